"""A comparison in words: what leads, how sure that is, what is wrong, what to do next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import ranking
from pipeline.experiment import Command
from pipeline.report.format import NEXT, format_duration, to_number
from pipeline.report.merged import name_configuration
from pipeline.report.settings_text import differing_settings
from pipeline.scores.intervals import LEAST_GROUPS
from pipeline.scores.problems import GAP_ERRORS, Problem, gap_in_errors
from pipeline.scores.significance import MOST_COMPARED, Difference, Verdict, Word

Row = Mapping[str, Any]

_LEAST_IMAGES = 30
"""Fewest test images by which configurations are told apart."""
_INTERRUPTED = "interrupted"
_WORTH_A_WAIT = 10.0
"""Seconds from which it is said how long trainings take."""
MOST_REPEATED = 6
"""Most configurations that are to be trained with further seeds, the leader among them."""
MORE_SEEDS = 2
"""Further seeds that are proposed: two of them make the first estimate of what seeds do."""
_WORTH_SAYING = 1.2
"""Ratio of cost from which another configuration is said to be cheaper."""
_GAP = "validation far above test"
_MISSED = "target missed"
_UNLEARNED = ("collapsed", "not above majority")
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class _Judged:
    """The ranked configurations of a comparison.

    Attributes:
        rows: Results of `merge_repeats` that are ranked, the leader first.
        names: What they are called in a sentence.
        metric: The metric that ranks them.
    """

    rows: Sequence[Row]
    names: Sequence[str]
    metric: str

    @property
    def leader(self) -> Row:
        """The configuration that leads on validation."""
        return self.rows[0]

    def with_word(self, word: Word | None) -> list[int]:
        """Return the numbers of the configurations beside the leader of that verdict."""
        others = enumerate(self.rows[1:], start=1)
        return [number for number, row in others if _word(row) == word]

    def differences(self) -> list[Difference]:
        """Return the comparisons with the leader."""
        verdicts: list[Verdict | None] = [row["verdict"] for row in self.rows]
        found = [verdict.difference for verdict in verdicts if verdict is not None]
        return [difference for difference in found if difference is not None]

    def count_problem(self, name: str) -> int:
        """Return the number of configurations with a problem."""
        number = 0
        for row in self.rows:
            number += any(problem.name == name for problem in row["problems"])
        return number


def _word(row: Row) -> Word | None:
    verdict: Verdict | None = row["verdict"]
    return None if verdict is None else verdict.word


def write_conclusion(
    rows: Sequence[Row], metric: str, command: Command, target: float = 0.0
) -> list[str]:
    """Return the conclusion of a comparison, a sentence or two each.

    Args:
        rows: Results of `merge_repeats`.
        metric: The metric that ranks them.
        command: Returns what to type for a step.
        target: The score that the study is to reach; 0: none.
    """
    ranked = [row for row in rows if ranking.can_be_ranked(row) and not row.get("apart")]
    others = [row for row in rows if not row.get("apart") and row not in ranked]
    if not ranked:
        return _describe_nothing(others)
    pairs = zip(ranked, differing_settings(ranked), strict=True)
    names = [name_configuration(row, settings) for row, settings in pairs]
    judged = _Judged(ranked, names, metric)
    sentences = [
        _describe_leader(judged),
        _describe_others(judged),
        _describe_seeds(judged),
        _describe_gap(judged),
        *_describe_leaders_problems(judged),
        _describe_target(judged, target),
        _go_on(ranked, others, command) or _describe_next(judged, command),
    ]
    return [sentence for sentence in sentences if sentence]


def _describe_nothing(rows: Sequence[Row]) -> list[str]:
    """Say why nothing is ranked."""
    if not rows:
        return []
    states = Counter(str(row["state"]) for row in rows)
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    sentences = [f"No training is complete with a score: {counts}."]
    reasons = [str(row["reason"]) for row in rows if row.get("reason")]
    if reasons:
        sentences.append(f"The first one ended since {reasons[0].rstrip('.')}.")
    return sentences


def _go_on(ranked: Sequence[Row], others: Sequence[Row], command: Command) -> str:
    """Return how to go on with trainings that wait or were interrupted; nothing if none is.

    One that others were trained after has left the list of the study, and is not gone on with.
    """
    latest = 0
    for row in ranked:
        latest = max(latest, *(run.get("start_time") or 0 for run in row["runs"]))
    number = 0
    for row in others:
        is_last = (row.get("start_time") or 0) >= latest
        number += row["state"] == _INTERRUPTED and is_last
    typed = command("tune", "")
    if not number or not typed:
        return ""
    are = "training is" if number == 1 else "trainings are"
    return _next(f"go on with the study, {number_word(number)} {are} not finished", typed)


def number_word(number: int) -> str:
    """Return a number up to ten as a word, a larger one in digits."""
    return _WORDS[number] if number < len(_WORDS) else f"{number:,}"


def _configurations(number: int) -> str:
    return f"{number_word(number)} configuration{'' if number == 1 else 's'}"


def _describe_leader(judged: _Judged) -> str:
    leader = judged.leader
    value = ranking.text(leader["value"], judged.metric) if leader["value"] is not None else ""
    text = f"{judged.names[0]} leads on {ranking.title(judged.metric)} with {value}"
    if leader["value"] is None:
        text = f"{judged.names[0]} leads on validation"
    text += _describe_ties(judged)
    repeats = leader["repeats"]
    if leader["test_accuracy"] is None:
        known = sum(to_number(run.get("test_accuracy")) is not None for run in leader["runs"])
        what = "not all of its runs are" if known else "it is not"
        return f"{text}; on the test images {what} evaluated."
    of_runs = f"mean of {repeats} runs" if repeats > 1 else "one run"
    ends = (to_number(leader.get(f"test_accuracy_{end}")) for end in ("low", "high"))
    low, high = ends
    interval = "no interval"
    if leader["verdict"] is not None and leader["verdict"].has_few_groups:
        interval = f"no interval: fewer than {LEAST_GROUPS} groups of images"
    if low is not None and high is not None:
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{text}: {leader['test_accuracy']:.1%} on test ({of_runs}; {interval})."


def _describe_ties(judged: _Judged) -> str:
    """Say how many others have the leader's score, and whether their loss has decided."""
    leader = judged.leader
    tied = [row for row in judged.rows[1:] if row["value"] == leader["value"]]
    if not tied or leader["value"] is None or judged.metric == "val/loss":
        return ""
    losses = [to_number(row.get("val_loss")) for row in tied]
    own = to_number(leader.get("val_loss"))
    decides = own is not None and all(loss is not None and own < loss for loss in losses)
    why = "; the lower validation loss decides" if decides else ""
    more = "one more configuration has" if len(tied) == 1 else f"{_more(len(tied))} have"
    return f" ({more} the same{why})"


def _more(number: int) -> str:
    return f"{number_word(number)} more configurations"


def _describe_others(judged: _Judged) -> str:
    others = len(judged.rows) - 1
    if not others or judged.leader["test_accuracy"] is None:
        return ""
    alike, worse = judged.with_word("not told apart"), judged.with_word("worse")
    texts = []
    if alike:
        are = "is" if len(alike) == 1 else "are"
        texts.append(
            f"{_configurations(len(alike)).capitalize()} {are} not told apart from it"
            + _describe_cheapest(judged, alike)
        )
    if len(worse) == others:
        texts.append("All others are worse" if others > 1 else "The other one is worse")
    elif worse:
        are = "is" if len(worse) == 1 else "are"
        texts.append(f"{number_word(len(worse)).capitalize()} {are} worse")
    for number in judged.with_word("better on test"):
        accuracy = f"{judged.rows[number]['test_accuracy']:.1%}"
        texts.append(
            f"{judged.names[number]} is better on test ({accuracy}), though not on validation"
        )
    unknown = judged.with_word(None)
    if unknown:
        are = "is" if len(unknown) == 1 else "are"
        text = f"{_configurations(len(unknown)).capitalize()} {are} not compared"
        if all(judged.rows[number]["test_accuracy"] is None for number in unknown):
            text += ", since not evaluated"
        texts.append(text)
    return ". ".join(texts) + "."


def _describe_cheapest(judged: _Judged, alike: Sequence[int]) -> str:
    """Return which of the configurations that are not told apart costs least, if that is much."""
    for column, is_speed in (("images_per_second", True), ("parameters", False)):
        own = to_number(judged.leader.get(column))
        if not own:
            continue
        ratios: list[tuple[float, int]] = []
        for number in alike:
            cost = to_number(judged.rows[number].get(column))
            if cost:
                ratios.append((cost / own if is_speed else own / cost, -number))
        ratio, number = max(ratios, default=(0.0, 0))
        if ratio >= _WORTH_SAYING:
            than = "times faster" if is_speed else "times fewer parameters"
            verb = "" if is_speed else "with "
            if len(alike) > 1:
                return f"; the cheapest is {judged.names[-number]}, {verb}{ratio:.1f} {than}"
            return f"; that one {'is' if is_speed else 'has'} {ratio:.1f} {than}"
        if ratios:
            return ""
    return ""


def _describe_seeds(judged: _Judged) -> str:
    differences = judged.differences()
    if not differences or any(difference.counts_seeds for difference in differences):
        return ""
    return "This is of these runs alone: another seed may turn it round."


def _describe_gap(judged: _Judged) -> str:
    total = len(judged.rows)
    number = judged.count_problem(_GAP)
    gaps = _common_gap(judged)
    if gaps:
        text = f"In all of them validation is above test, by {gaps}"
    elif number:
        text = f"In {number_word(number)} of {number_word(total)} validation is far above test"
        if total == 1:
            text = "Its validation accuracy is far above test"
    else:
        return ""
    return (
        f"{text}: look for near-duplicates in training and validation, or for test images "
        "from elsewhere."
    )


def _common_gap(judged: _Judged) -> str:
    """Return by how much validation is above test, if it is so in all runs, and far on average.

    The runs answered the same images, so that their mean is as uncertain as one of them.
    """
    gaps = []
    means = {"val_accuracy": 0.0, "test_accuracy": 0.0}
    runs: list[Row] = []
    for row in judged.rows:
        runs += row["runs"]
    for run in runs:
        val, test = (to_number(run.get(name)) for name in means)
        if val is None or test is None or val <= test:
            return ""
        gaps.append(100 * (val - test))
        means["val_accuracy"] += val / len(runs)
        means["test_accuracy"] += test / len(runs)
    num_val, num_test = (judged.leader.get(name) for name in ("val_images", "test_images"))
    if len(judged.rows) < 2 or not num_val or not num_test:
        return ""
    errors = gap_in_errors(means["val_accuracy"], num_val, means["test_accuracy"], num_test)
    ends = dict.fromkeys((f"{min(gaps):.1f}", f"{max(gaps):.1f}"))
    return f"{' to '.join(ends)} points" if errors > GAP_ERRORS else ""


def _describe_leaders_problems(judged: _Judged) -> list[str]:
    told = (_MISSED, _GAP)
    problems = [one for one in judged.leader["problems"] if one.name not in told]
    runs = judged.leader["repeats"]
    sentences = []
    for problem in problems:
        share = f", in {problem.num_runs} of {runs} runs" if problem.num_runs < runs else ""
        sentences.append(f"Of the leader{share}: {problem.text}.")
    return sentences


def _describe_target(judged: _Judged, target: float) -> str:
    if not target:
        return ""
    scored = sum(to_number(row["value"]) is not None for row in judged.rows)
    reached = scored - judged.count_problem(_MISSED)
    if not reached:
        return f"The target {target:g} is not reached."
    total = number_word(len(judged.rows))
    return f"The target {target:g} is reached by {number_word(reached)} of {total}."


def _describe_next(judged: _Judged, command: Command) -> str:
    leader = judged.leader
    if any(_is_unlearned(problem, leader["repeats"]) for problem in leader["problems"]):
        return f"{NEXT}look at the images and the learning rate; nothing has been learned yet."
    if any(row["test_accuracy"] is None for row in judged.rows[: MOST_COMPARED + 1]):
        typed = command("summary", "--evaluate all")
        return _next("evaluate" if typed else "evaluate (summary --evaluate all)", typed)
    num_images = to_number(leader.get("test_images"))
    if len(judged.rows) > 1 and num_images is not None and num_images < _LEAST_IMAGES:
        return f"{NEXT}get more test images; {number_word(int(num_images))} tell too little."
    alike = judged.with_word("not told apart")
    if not alike and not any(one.counts_seeds for one in judged.differences()):
        # Another seed may turn round what is called worse.
        alike = sorted([*judged.with_word("worse"), *judged.with_word("better on test")])
    if not alike:
        return _next("register the leader", command("register", ""))
    are_repeated = all(_count_seeds(judged.rows[number]) > 1 for number in (0, *alike))
    if are_repeated:
        differences = {number: judged.rows[number]["verdict"].difference for number in alike}
        by_seeds = [number for number in alike if differences[number].seeds_needed]
        if not by_seeds:
            return _describe_more_images(judged, alike, command)
        alike = by_seeds
    return _describe_repeats(judged, [0, *alike][:MOST_REPEATED], command)


def _count_seeds(row: Row) -> int:
    """Return how many seeds a configuration was trained with, each perhaps on several folds.

    Runs of other programs may not have logged their seeds: each counts as another one.
    """
    seeds = [run.get("seed") for run in row["runs"]]
    return len(set(seeds) - {None}) + seeds.count(None)


def _is_unlearned(problem: Problem, repeats: int) -> bool:
    """Whether a problem says that most trainings of a configuration have learned nothing."""
    return problem.name in _UNLEARNED and 2 * problem.num_runs > repeats


def _next(act: str, command: str) -> str:
    return f"{NEXT}{act}: {command}" if command else f"{NEXT}{act}."


def _describe_more_images(judged: _Judged, alike: Sequence[int], command: Command) -> str:
    """Say that seeds alone tell no configurations apart, and what would."""
    needed: list[tuple[int, int]] = []
    for number in alike:
        images = judged.rows[number]["verdict"].difference.images_needed
        if images is not None:
            needed.append((images, number))
    text = "Neither more seeds nor more test images alone would tell them apart"
    if needed:
        images, number = min(needed)
        text = (
            "More seeds would not tell them apart; "
            f"{images:,} test images would tell {judged.names[number]} from the leader"
        )
    return f"{text}. " + _next(
        "register the leader, or another one by --run_id", command("register", "")
    )


def _describe_repeats(judged: _Judged, numbers: Sequence[int], command: Command) -> str:
    """Say which configurations to train with further seeds, and how long that takes."""
    seeds_of = []
    hashes = []
    for number in numbers:
        row = judged.rows[number]
        seeds_of.append(_count_seeds(row))
        hashes.append(str(row["config_hash"]))
    wanted = max(seeds_of) + MORE_SEEDS
    seconds = 0.0
    for number, seeds in zip(numbers, seeds_of, strict=True):
        row = judged.rows[number]
        each = to_number(row["seconds"])
        # A time that is not known makes the sum unknown.
        seconds += math.nan if each is None else each * row["repeats"] / seeds * (wanted - seeds)
    lacking = {wanted - seeds for seeds in seeds_of}
    more = f"with {number_word(MORE_SEEDS)} more seeds"
    if len(lacking) > 1:
        more = f"until each has {number_word(wanted)} seeds"
    act = f"train {_describe_places(numbers, len(judged.rows))} {more}"
    if not all(hashes):
        return f"{NEXT}{act} (study.repeats)."
    options = f"--study.repeats {wanted} --study.only {','.join(hashes)}"
    typed = command("tune", options)
    if not typed:
        return f"{NEXT}{act} (study.repeats)."
    if math.isnan(seconds) or seconds < _WORTH_A_WAIT:
        return f"{NEXT}{act}: {typed}"
    return f"{NEXT}{act}: {typed} (about {format_duration(seconds)} by their times so far)"


def _describe_places(numbers: Sequence[int], total: int) -> str:
    """Return which rows of the table are meant."""
    if list(numbers) == list(range(len(numbers))):
        which = "the first" if len(numbers) < total else "these"
        return f"{which} {number_word(len(numbers))}"
    *first, last = [str(number + 1) for number in numbers]
    return f"numbers {', '.join(first)} and {last}"
