"""The conclusion of a comparison: each sentence is said where it is true, and not elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.experiment import Command, no_command
from pipeline.report.conclusion import write_conclusion
from pipeline.report.merged import merge_repeats
from pipeline.scores.significance import Difference, TestResults, Verdict, judge
from pipeline.steps.options import parse_options, read_experiment
from pipeline.steps.tune import TuneOptions

Run = dict[str, Any]

IMAGES = 350
OVERFITS = {"overfit": "training accuracy 97.6% is 13.4 points above validation's 84.2%"}


def configuration(name: str, *right: int | None, **values: Any) -> list[Run]:
    """Return the runs of a configuration, one per seed.

    Args:
        name: Its network, and its hash.
        right: How many of 350 test images each run answers rightly: the first ones. None: it is not
            evaluated.
        values: Further columns of all its runs.
    """
    runs = []
    for seed, number in enumerate(right):
        run = {
            "run_id": f"{name}-{seed}", "run_name": f"{name} seed {seed}", "state": "complete",
            "model": name, "seed": seed, "fold": "0", "metric": "val/accuracy",
            "val_accuracy": 0.9, "val_loss": 0.3, "value": 0.9,
            "test_accuracy": None if number is None else number / IMAGES,
            "parameters": 1e6, "seconds": 60.0, "config_hash": f"hash-{name}", "data_digest": "d1",
            "val_images": IMAGES, "test_images": IMAGES, "flags": {}, "right": number,
            "params": {"model.name": name, "training.seed": str(seed)}, **values,
        }  # fmt: skip
        runs.append(run)
    return runs


def results_of(runs: Sequence[Run], num_groups: int | None) -> TestResults | None:
    """Return what the runs of a configuration answered; None if some are not evaluated."""
    if any(run["test_accuracy"] is None for run in runs):
        return None
    correct = np.array([np.arange(IMAGES) < run["right"] for run in runs])
    groups = None if num_groups is None else np.arange(IMAGES) % num_groups
    return TestResults(correct.mean(axis=1).tolist(), IMAGES, correct, groups)


def conclude(
    *configurations: list[Run],
    metric: str = "val/accuracy",
    command: Command = no_command,
    target: float = 0.0,
    num_groups: int | None = None,
) -> list[str]:
    """Return the conclusion of configurations in the order of the ranking."""
    verdicts = judge([results_of(runs, num_groups) for runs in configurations])
    return conclude_from(verdicts, *configurations, metric=metric, command=command, target=target)


def conclude_from(
    verdicts: Sequence[Verdict],
    *configurations: list[Run],
    metric: str = "val/accuracy",
    command: Command = no_command,
    target: float = 0.0,
) -> list[str]:
    """Return the conclusion of configurations that have these verdicts."""
    rows: list[Run] = []
    by_run: dict[str, Verdict] = {}
    for runs, verdict in zip(configurations, verdicts, strict=True):
        rows += runs
        by_run[runs[0]["run_id"]] = verdict
    return write_conclusion(merge_repeats(rows, by_run, target), metric, command, target)


def typed(step: str, options: str) -> str:
    """Return what to type for a step."""
    return f"pipeline {step} {options}".strip()


def said(sentences: Sequence[str], words: str) -> bool:
    """Whether a conclusion has these words."""
    return any(words in sentence for sentence in sentences)


ALIKE = (318, 319, 317, 316, 321, 322, 318, 319)
"""Test images that are answered rightly by configurations which 320 are not told apart from."""


def test_without_a_ranked_run_the_reason_is_said() -> None:
    lost = configuration("resnet18", 320, None, state="failed", reason="the disk is full.")
    stopped = configuration("resnet34", None, state="interrupted")
    assert conclude(lost, stopped) == [
        "No training is complete with a score: 2 failed, 1 interrupted.",
        "The first one ended since the disk is full.",
    ]
    assert conclude(stopped) == ["No training is complete with a score: 1 interrupted."]
    assert conclude(configuration("resnet18", 320, apart="other data")) == []
    assert write_conclusion([], "val/accuracy", typed, 0.9) == []


def test_a_study_that_was_interrupted_goes_on_next() -> None:
    whole, stopped = configuration("resnet18", 320), configuration("a", None, state="interrupted")
    assert conclude(whole, stopped, command=typed)[-1] == (
        "Next: go on with the study, one training is not finished: pipeline tune"
    )
    assert said(conclude(whole, stopped), "Next: register")
    later = configuration("resnet18", 320, start_time=2)
    left = configuration("a", None, state="interrupted", start_time=1)
    assert said(conclude(later, left, command=typed), "Next: register")
    assert said(
        conclude(whole, configuration("a", None, state="failed"), command=typed), "register"
    )


def test_few_test_images_are_the_first_thing_to_change() -> None:
    few = [configuration(name, 4, test_images=5) for name in ("resnet18", "resnet34")]
    verdicts = [LEADER, difference(0.2, 40, None)]
    assert conclude_from(verdicts, *few, command=typed)[-1] == (
        "Next: get more test images; five tell too little."
    )
    assert said(conclude_from([LEADER], few[0], command=typed), "Next: register the leader")


def test_runs_that_are_not_ranked_are_not_spoken_of() -> None:
    alone = conclude(configuration("resnet18", 320))
    among = conclude(
        configuration("resnet18", 320),
        configuration("resnet34", 340, apart="other metric"),
        configuration("resnet50", None, state="pruned"),
    )
    assert among == alone


def test_the_leader_is_told_with_its_score_on_test_and_how_sure_that_is() -> None:
    # Wilson's interval of 320 out of 350.
    assert conclude(configuration("resnet18", 320))[0] == (
        "resnet18 leads on validation accuracy with 90.00%: 91.4% on test (one run; 88.0 to 93.9)."
    )
    (first, *_) = conclude(configuration("resnet18", 320, 324, 322))
    assert first.startswith(
        "resnet18 leads on validation accuracy with 90.00%: 92.0% on test (mean of 3 runs; 8"
    )


@pytest.mark.parametrize(
    ("right", "what"), [([None], "it is not"), ([320, None], "not all of its runs are")]
)
def test_a_leader_without_test_scores_of_all_repeats_is_not_evaluated(
    right: list[int | None], what: str
) -> None:
    (first, *_) = conclude(configuration("resnet18", *right))
    assert first == (
        f"resnet18 leads on validation accuracy with 90.00%; on the test images {what} evaluated."
    )


def test_few_groups_have_no_interval() -> None:
    few = conclude(configuration("resnet18", 320), num_groups=19)
    assert few[0].endswith("(one run; no interval: fewer than 20 groups of images).")
    enough = conclude(configuration("resnet18", 320), num_groups=20)
    assert " to " in enough[0] and not said(enough, "no interval")


def test_a_tie_on_validation_is_told() -> None:
    leader, other = configuration("resnet18", 320), configuration("resnet34", 318)
    lower = configuration("resnet50", 318, value=0.89)
    assert conclude(leader, other, lower)[0].startswith(
        "resnet18 leads on validation accuracy with 90.00% (one more configuration has the same): "
    )
    third = configuration("resnet101", 318)
    assert said(conclude(leader, other, third, lower), "(two more configurations have the same)")
    assert not said(conclude(leader, lower), "more; the lower")


def test_a_tie_of_a_mean_with_a_single_run_is_told() -> None:
    # 15 / 350, which three times over three is another number in the last digit.
    leader = configuration("resnet18", 320, 320, 320, value=15 / 350)
    assert said(conclude(leader, configuration("resnet34", 318, value=15 / 350)), "(one more")


def test_a_tie_of_losses_is_not_decided_by_the_loss() -> None:
    pair = [
        configuration(name, 320, metric="val/loss", value=0.25) for name in ("resnet18", "resnet34")
    ]
    (first, *_) = conclude(*pair, metric="val/loss")
    assert first.startswith("resnet18 leads on validation loss with 0.2500: 91.4% on test")


def test_the_leader_is_told_by_the_metric_that_ranks() -> None:
    (first, *_) = conclude(
        configuration("resnet18", 320, metric="val/f1_macro", value=0.8765), metric="val/f1_macro"
    )
    assert first.startswith("resnet18 leads on validation macro F1 with 87.65%: ")
    (first, *_) = conclude(configuration("resnet18", 320, value=None))
    assert first.startswith("resnet18 leads on validation: 91.4% on test")


def test_configurations_are_called_by_network_and_by_what_differs() -> None:
    pair = []
    for number, lr in enumerate(("0.001", "0.01")):
        params = {"model.name": "resnet18", "optimizer.lr": lr}
        runs = configuration("resnet18", 320 + 25 * number, params=params)
        pair.append([{**run, "run_id": lr, "config_hash": lr} for run in runs])
    first, second, *_ = conclude(*pair)
    assert first.startswith("resnet18, lr 0.001 leads on ")
    assert second.startswith("resnet18, lr 0.01 is better on test ")


def test_of_one_configuration_alone_no_others_are_told() -> None:
    alone = conclude(configuration("resnet18", 320))
    assert len(alone) == 2 and alone[1].startswith("Next: ")


def test_of_others_nothing_is_said_before_the_leader_is_evaluated() -> None:
    sentences = conclude(configuration("resnet18", None), configuration("resnet34", 318))
    assert len(sentences) == 2 and sentences[1].startswith("Next: evaluate")


def test_what_is_not_told_apart_is_told_with_the_cheapest_by_speed() -> None:
    leader = configuration("resnet50", 320, images_per_second=100.0)
    slower = configuration("resnet101", 318, images_per_second=50.0)
    twice = configuration("resnet34", 318, images_per_second=200.0)
    quickest = configuration("resnet18", 318, images_per_second=310.0)
    several = conclude(leader, slower, twice, quickest)
    assert several[1] == (
        "Three configurations are not told apart from it; the cheapest is resnet18, "
        "3.1 times faster."
    )
    (_, one, *_) = conclude(leader, twice)
    assert one.startswith("One configuration is not told apart from it; ")
    assert one.endswith("2.0 times faster.")
    # What is worse may be as quick as it likes.
    worse = configuration("squeezenet1_1", 200, images_per_second=1000.0)
    assert not said(conclude(leader, slower, worse), "faster")


def test_what_is_not_told_apart_is_told_with_the_cheapest_by_parameters() -> None:
    leader = configuration("resnet50", 320, parameters=24e6)
    others = [configuration(name, 318, parameters=12e6) for name in ("resnet18", "resnet34")]
    others[1][0]["parameters"] = 6e6
    (_, second, *_) = conclude(leader, *others)
    assert second == (
        "Two configurations are not told apart from it; the cheapest is resnet34, "
        "with 4.0 times fewer parameters."
    )
    (_, second, *_) = conclude(leader, others[1])
    assert second.endswith("4.0 times fewer parameters.")


def test_of_equally_cheap_configurations_the_one_that_ranks_higher_is_told() -> None:
    leader = configuration("resnet50", 320, parameters=24e6)
    others = [configuration(name, 318, parameters=12e6) for name in ("resnet34", "resnet18")]
    assert said(conclude(leader, *others), "the cheapest is resnet34, with 2.0 times")


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ({"images_per_second": 100.0}, {"images_per_second": 119.0}),
        # Where the speed is known, the number of parameters says no more.
        (
            {"images_per_second": 100.0, "parameters": 4e6},
            {"images_per_second": 90.0, "parameters": 1e6},
        ),
        ({"parameters": 1.19e6}, {"parameters": 1e6}),
        ({"parameters": None}, {"parameters": 1e6}),
        ({"parameters": 1e6}, {"parameters": None}),
    ],
)
def test_none_is_called_cheaper_that_hardly_is(own: dict[str, Any], other: dict[str, Any]) -> None:
    leader, alike = configuration("resnet50", 320, **own), configuration("resnet18", 318, **other)
    assert conclude(leader, alike)[1] == "One configuration is not told apart from it."


@pytest.mark.parametrize("other", [{"images_per_second": 120.0}, {"parameters": 1e6 / 1.2}])
def test_a_fifth_is_called_cheaper(other: dict[str, Any]) -> None:
    leader = configuration("resnet50", 320, images_per_second=100.0)
    if "parameters" in other:
        leader = configuration("resnet50", 320)
    assert said(conclude(leader, configuration("resnet18", 318, **other)), "1.2 times f")


def test_what_is_worse_is_told() -> None:
    leader = configuration("resnet50", 320)
    worse = [configuration(name, 200) for name in ("resnet18", "resnet34")]
    assert conclude(leader, worse[0])[1] == "The other one is worse."
    assert conclude(leader, *worse)[1] == "All others are worse."
    alike = configuration("resnet101", 319)
    assert conclude(leader, *worse, alike)[1] == (
        "One configuration is not told apart from it. Two are worse."
    )
    assert conclude(leader, worse[0], alike)[1].endswith(" One is worse.")
    assert not said(conclude(leader, alike), "worse")


def test_what_is_better_on_test_is_told() -> None:
    leader, better = configuration("resnet18", 300), configuration("resnet34", 345)
    assert conclude(leader, better, configuration("resnet50", 200))[1] == (
        "One is worse. resnet34 is better on test (98.6%), though not on validation."
    )
    assert conclude(leader, better)[1].startswith("resnet34 is better on test")
    assert not said(conclude(better, leader), "better on test")


def test_what_is_not_evaluated_is_not_compared() -> None:
    leader, worse = configuration("resnet18", 320), configuration("resnet34", 200)
    lacking = [configuration("resnet50", None), configuration("resnet101", 320, None)]
    assert conclude(leader, worse, lacking[0])[1] == (
        "One is worse. One configuration is not compared, since not evaluated."
    )
    assert conclude(leader, worse, *lacking)[1].endswith(
        " Two configurations are not compared, since not evaluated."
    )
    assert not said(conclude(leader, worse), "compared")


def test_what_is_evaluated_but_not_compared_has_another_reason() -> None:
    leader, worse = configuration("resnet18", 320), configuration("resnet34", 200)
    verdicts = judge([results_of(leader, None), results_of(worse, None)])
    verdicts.append(Verdict(None, None, None))
    sentences = conclude_from(verdicts, leader, worse, configuration("resnet50", 320))
    assert sentences[1] == "One is worse. One configuration is not compared."


def test_numbers_above_ten_are_told_in_digits() -> None:
    leader = configuration("resnet18", 320)
    others = [configuration(f"net{number}", 318) for number in range(11)]
    assert conclude(leader, *others)[1] == "11 configurations are not told apart from it."
    assert conclude(leader, *others[:10])[1].startswith("Ten configurations are ")


SEEDS = "This is of these runs alone: another seed may turn it round."


def test_without_repeats_it_is_told_that_seeds_do_not_count() -> None:
    leader, other = configuration("resnet18", 320), configuration("resnet34", 318)
    assert SEEDS in conclude(leader, other)
    assert SEEDS not in conclude(leader, configuration("resnet34", 318, 317))
    assert SEEDS not in conclude(leader)
    assert SEEDS not in conclude(leader, configuration("resnet34", None))


GAP = ": look for near-duplicates in training and validation, or for test images from elsewhere."


def test_a_gap_that_all_have_is_told_once() -> None:
    # 97% on validation and 87.1% to 88.6% on test, of 350 images each.
    pair = [configuration("resnet18", 310, 308), configuration("resnet34", 305)]
    for runs in pair:
        for run in runs:
            run["val_accuracy"] = 0.97
    sentences = conclude(*pair)
    assert f"In all of them validation is above test, by 8.4 to 9.9 points{GAP}" in sentences
    assert sum("validation" in one and "above test" in one for one in sentences) == 1


def test_a_gap_that_all_have_and_that_is_large_in_none_is_told_if_it_is_on_average() -> None:
    # 3.2 standard errors; the difference of the second one alone is 2.9 of them.
    pair = [configuration("resnet18", 310), configuration("resnet34", 314)]
    for (run,), val in zip(pair, (0.956, 0.957), strict=True):
        run["val_accuracy"] = val
    assert said(conclude(*pair), "In all of them validation is above test, by 6.0 to 7.0 points")


def test_a_gap_of_some_is_told_with_their_number() -> None:
    wide = [configuration(name, 305, val_accuracy=0.97) for name in ("resnet18", "resnet34")]
    even = configuration("resnet50", 320)
    assert f"In one of two validation is far above test{GAP}" in conclude(wide[0], even)
    assert f"In two of three validation is far above test{GAP}" in conclude(*wide, even)
    assert f"Its validation accuracy is far above test{GAP}" in conclude(wide[0])
    # A gap of a run that is not evaluated is not known.
    lacking = configuration("resnet101", None, val_accuracy=0.97)
    assert said(conclude(*wide, lacking), "In two of three validation is far above test")


def test_no_gap_is_told_where_none_is_large() -> None:
    narrow = [configuration(name, 318, val_accuracy=0.93) for name in ("resnet18", "resnet34")]
    assert not said(conclude(*narrow), "above test")
    assert not said(conclude(narrow[0]), "above test")
    # In all of them, but nobody knows of how many images.
    wide = [configuration(name, 305, val_accuracy=0.97) for name in ("resnet18", "resnet34")]
    for (run,) in wide:
        run["val_images"] = None
    assert not said(conclude(*wide), "above test")


def test_what_is_wrong_with_the_leader_is_told_of_it_alone() -> None:
    sound, overfits = configuration("resnet18", 320), configuration("resnet34", 318)
    overfits[0]["flags"] = OVERFITS
    assert not said(conclude(sound, overfits), "Of the leader")
    assert (
        "Of the leader: in its last epoch training accuracy 97.6% is 13.4 points above "
        "validation's 84.2%." in conclude(overfits, sound)
    )
    unsure = configuration("resnet50", 320, ece=0.15, ece_by_chance=0.02, flags=OVERFITS)
    assert sum("Of the leader: " in sentence for sentence in conclude(unsure)) == 2


def test_the_leaders_gap_and_target_are_not_told_again() -> None:
    leader = configuration("resnet18", 300, val_accuracy=0.97)
    sentences = conclude(leader, configuration("resnet34", 318), target=0.99)
    assert said(sentences, "above test") and said(sentences, "target")
    assert not said(sentences, "Of the leader")


def test_whether_the_target_is_reached_is_told() -> None:
    high, low = configuration("resnet18", 320), configuration("resnet34", 318, value=0.85)
    assert "The target 0.87 is reached by one of two." in conclude(high, low, target=0.87)
    assert "The target 0.85 is reached by two of two." in conclude(high, low, target=0.85)
    assert "The target 0.9001 is not reached." in conclude(high, low, target=0.9001)
    assert not said(conclude(high, low), "target")


def test_a_target_of_a_loss_is_reached_from_above() -> None:
    runs = configuration("resnet18", 320, metric="val/loss", value=0.25)
    assert said(conclude(runs, metric="val/loss", target=0.3), "target 0.3 is reached by one")
    assert said(conclude(runs, metric="val/loss", target=0.2), "The target 0.2 is not reached.")


@pytest.mark.parametrize("flag", ["collapse", "baseline"])
def test_where_nothing_is_learned_that_is_next(flag: str) -> None:
    nothing = "Next: look at the images and the learning rate; nothing has been learned yet."
    leader = configuration("resnet18", None, flags={flag: "predicts 1 of 10 classes"})
    other = configuration("resnet34", 318)
    assert conclude(leader, other, command=typed)[-1] == nothing
    assert nothing not in conclude(other, leader, command=typed)


def test_a_leader_that_is_not_evaluated_is_evaluated_next() -> None:
    leader, other = configuration("resnet18", None), configuration("resnet34", 318)
    assert conclude(leader, other)[-1] == "Next: evaluate (summary --evaluate all)."
    assert conclude(leader, other, command=typed)[-1] == (
        "Next: evaluate: pipeline summary --evaluate all"
    )


def test_a_leader_that_all_others_are_worse_than_is_registered_next() -> None:
    leader = configuration("resnet18", 320, 321)
    worse = configuration("resnet34", 200, 202)
    assert conclude(leader, worse)[-1] == "Next: register the leader."
    assert (
        conclude(leader, worse, command=typed)[-1] == "Next: register the leader: pipeline register"
    )
    assert conclude(leader)[-1] == "Next: register the leader."
    assert not said(conclude(leader, worse, configuration("resnet50", 319)), "register")
    # Of single runs another seed may turn it round.
    alone = conclude(configuration("resnet18", 320), configuration("resnet34", 200))
    assert alone[-1] == "Next: train these two with two more seeds (study.repeats)."


def test_what_is_not_told_apart_is_trained_with_further_seeds_next() -> None:
    leader, other = configuration("resnet18", 320), configuration("resnet34", 318, seconds=400.0)
    # Two seeds more of each: 120 and 800 seconds.
    assert conclude(leader, other, command=typed)[-1] == (
        "Next: train these two with two more seeds: pipeline tune "
        "--study.repeats 3 --study.only hash-resnet18,hash-resnet34 "
        "(about 15 min by their times so far)"
    )
    assert conclude(leader, other)[-1] == (
        "Next: train these two with two more seeds (study.repeats)."
    )
    # What is worse is not trained again.
    assert conclude(leader, other, configuration("resnet50", 200), command=typed)[-1] == (
        "Next: train the first two with two more seeds: pipeline tune "
        "--study.repeats 3 --study.only hash-resnet18,hash-resnet34 "
        "(about 15 min by their times so far)"
    )


def test_the_command_is_one_that_tune_reads() -> None:
    given = ["--optimizer.lr", "0.01", "--study.repeats", "2"]
    # These are of the one call.
    given += ["--study.trials", "7", "--study.hours", "3"]
    own, overrides = parse_options(TuneOptions, given)
    command = read_experiment(own, overrides).command
    pair = configuration("resnet18", 330, 300), configuration("resnet34", 318, 290)
    text = conclude(*pair, command=command)[-1]
    assert text == (
        "Next: train these two with two more seeds: python -m pipeline tune --optimizer.lr 0.01 "
        "--study.repeats 4 --study.only hash-resnet18,hash-resnet34 "
        "(about 4 min by their times so far)"
    )
    words = shlex.split(text.partition("python -m pipeline tune ")[2].partition(" (about")[0])
    _, overrides = parse_options(TuneOptions, words)
    assert overrides == {
        "optimizer": {"lr": "0.01"},
        "study": {"repeats": "4", "only": "hash-resnet18,hash-resnet34"},
    }


def test_configurations_of_unequal_repeats_are_trained_until_each_has_as_many() -> None:
    leader = configuration("resnet18", 340, 320, 300)
    sentences = conclude(leader, configuration("resnet34", 290), command=typed)
    # Two runs more of the leader, four of the other: six minutes.
    assert sentences[-1] == (
        "Next: train these two until each has five seeds: pipeline tune "
        "--study.repeats 5 --study.only hash-resnet18,hash-resnet34 "
        "(about 6 min by their times so far)"
    )


def test_the_folds_of_a_seed_are_one_repeat_of_several_trainings() -> None:
    pair = [configuration("resnet18", 340, 320, 300), configuration("resnet34", 325, 300, 280)]
    for runs in pair:
        for fold, run in enumerate(runs):
            run.update(seed=0, fold=str(fold))
    # Two seeds more of two configurations with three folds each: twelve minutes.
    assert conclude(*pair, command=typed)[-1] == (
        "Next: train these two with two more seeds: pipeline tune "
        "--study.repeats 3 --study.only hash-resnet18,hash-resnet34 "
        "(about 12 min by their times so far)"
    )


def test_at_most_six_are_trained_further() -> None:
    names = [f"net{number}" for number in range(1, 9)]
    leader = configuration("net0", 320)
    others = [configuration(name, right) for name, right in zip(names, ALIKE, strict=True)]
    six = "--study.only hash-net0,hash-net1,hash-net2,hash-net3,hash-net4,hash-net5 (about 12 min"
    for number in (6, 8):
        text = conclude(leader, *others[:number], command=typed)[-1]
        assert text.startswith("Next: train the first six with two more seeds: ")
        assert six in text
    text = conclude(leader, *others[:5], command=typed)[-1]
    assert text.startswith("Next: train these six with two more seeds: ") and six in text
    text = conclude(leader, *others[:5], configuration("resnet18", 200), command=typed)[-1]
    assert text.startswith("Next: train the first six with two more seeds: ") and six in text


def test_a_configuration_of_unknown_hash_has_no_command() -> None:
    leader, other = configuration("resnet18", 320), configuration("resnet34", 318)
    other[0]["config_hash"] = ""
    assert conclude(leader, other, command=typed)[-1] == (
        "Next: train these two with two more seeds (study.repeats)."
    )


def difference(value: float, images: int | None, seeds: int | None) -> Verdict:
    """Return the verdict of a configuration that is not told apart, though seeds are known."""
    found = Difference(value, -0.01, 0.02, 0.4, "paired", True, images, seeds)
    return Verdict("not told apart", found, 0.4, (0.88, 0.94))


LEADER = Verdict("leader", None, None, (0.88, 0.94))


def test_where_seeds_do_not_help_more_images_are_named() -> None:
    trio = [configuration(name, 320, 318) for name in ("resnet18", "resnet34", "resnet50")]
    verdicts = [LEADER, difference(0.005, 123456, None), difference(0.01, 1234, None)]
    assert conclude_from(verdicts, *trio, command=typed)[-1] == (
        "More seeds would not tell them apart; 1,234 test images would tell resnet50 from the "
        "leader. Next: register the leader, or another one by --run_id: pipeline register"
    )
    verdicts = [LEADER, difference(0.0, None, None), difference(0.0, None, None)]
    assert conclude_from(verdicts, *trio)[-1] == (
        "Neither more seeds nor more test images alone would tell them apart. "
        "Next: register the leader, or another one by --run_id."
    )
    verdicts = [LEADER, difference(0.005, 123456, None), difference(0.01, 1234, 9)]
    assert conclude_from(verdicts, *trio, command=typed)[-1].startswith(
        "Next: train numbers 1 and 3 with two more seeds: "
    )


def test_repeats_that_agree_leave_the_images_as_what_is_lacking() -> None:
    # Both seeds of each answer alike: what is unsure are two images in 350.
    sentences = conclude(configuration("resnet18", 320, 320), configuration("resnet34", 318, 318))
    assert sentences[-1].startswith("More seeds would not tell them apart; ")
    assert sentences[-1].endswith(
        " test images would tell resnet34 from the leader. "
        "Next: register the leader, or another one by --run_id."
    )


def test_a_whole_conclusion_reads_in_order() -> None:
    leader = configuration("resnet50", 310, val_accuracy=0.97, value=0.97, parameters=24e6)
    leader[0]["flags"] = OVERFITS
    alike = configuration("resnet18", 308, val_accuracy=0.96, value=0.96, parameters=12e6)
    worse = configuration("resnet34", 200, val_accuracy=0.95, value=0.95)
    openings = [
        "resnet50 leads on validation accuracy with 97.00%: 88.6% on test (one run; ",
        "One configuration is not told apart from it; ",
        "This is of these runs alone",
        "In all of them validation is above test, by ",
        "Of the leader: in its last epoch training accuracy",
        "The target 0.98 is not reached.",
        "Next: train the first two with two more seeds: ",
    ]
    sentences = conclude(leader, alike, worse, target=0.98, command=typed)
    assert [
        sentence.startswith(opening) for sentence, opening in zip(sentences, openings, strict=True)
    ] == [True] * 7


def test_a_configuration_without_score_does_not_reach_the_target() -> None:
    assert not said(conclude(configuration("resnet18", 320, value=None), target=0.95), "reached by")


def test_few_groups_are_named_only_where_there_are_groups() -> None:
    runs = configuration("resnet18", 320, 318)
    assert not said(conclude_from([Verdict("leader", None, None)], runs), "groups of images")


def test_those_that_are_not_told_apart_are_not_the_first_if_a_worse_one_is_between() -> None:
    leader, worse, alike = (
        configuration(name, right)
        for name, right in (("resnet18", 320), ("resnet34", 200), ("resnet50", 318))
    )
    text = conclude(leader, worse, alike, command=typed)[-1]
    assert text.startswith("Next: train numbers 1 and 3 with two more seeds: pipeline tune ")
    assert "--study.only hash-resnet18,hash-resnet50 " in text


def test_where_most_repeats_have_learned_something_is_learned() -> None:
    leader = configuration("resnet18", 320, 318, 319)
    leader[2]["flags"] = {"collapse": "predicts 1 of 10 classes"}
    assert not said(conclude(leader), "nothing has been learned")


def test_a_leader_is_not_registered_while_no_other_one_is_evaluated() -> None:
    leader, other = configuration("resnet18", 320), configuration("resnet34", None)
    sentences = conclude(leader, other, command=typed)
    assert said(sentences, "not compared, since not evaluated")
    assert sentences[-1] == "Next: evaluate: pipeline summary --evaluate all"


def test_times_that_are_not_known_are_not_told() -> None:
    pair = [configuration(name, 320, seconds=None) for name in ("resnet18", "resnet34")]
    assert not said(conclude(*pair, command=typed), "about 0 s")


def test_seeds_that_were_never_tried_are_not_called_useless() -> None:
    leader = configuration("resnet18", 320, 319)
    sentences = conclude(leader, configuration("resnet34", 319), command=typed)
    assert said(sentences, "Next: train these two until each has ")


def test_the_loss_decides_a_tie_only_if_it_differs() -> None:
    leader, other = configuration("resnet18", 320), configuration("resnet34", 318)
    leader[0]["val_loss"], other[0]["val_loss"] = 0.2, 0.3
    assert said(conclude(leader, other), "has the same; the lower validation loss decides)")
    other[0]["val_loss"] = 0.2
    assert not said(conclude(leader, other), "the lower validation loss decides")


def test_folds_of_one_seed_are_no_seeds_that_were_tried() -> None:
    pair = [configuration(name, 320, 316, 318) for name in ("resnet18", "resnet34")]
    for runs in pair:
        for fold, run in enumerate(runs):
            run["seed"], run["fold"] = 0, str(fold)
    assert said(conclude(*pair, command=typed), "Next: train these two with two more seeds: ")


def test_what_is_wrong_with_one_repeat_is_told_of_that_one() -> None:
    leader = configuration("resnet18", 320, 318, 319)
    leader[2]["flags"] = {"overfit": "much above"}
    assert said(conclude(leader), "Of the leader, in 1 of 3 runs: in its last epoch much above.")


def test_all_are_evaluated_before_anything_is_registered() -> None:
    rows = [configuration("a", 320), configuration("b", 200), configuration("c", None)]
    assert said(conclude(*rows, command=typed), "Next: evaluate: ")
    # Where nothing tells how sure the scores are, evaluating once more would not help.
    verdicts = [Verdict("leader", None, None), Verdict(None, None, None)]
    said_of = conclude_from(verdicts, configuration("a", 320), configuration("b", 318))
    assert not said(said_of, "Next: evaluate")
