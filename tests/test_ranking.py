"""What is better than what, and what it is called."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ranking
from pipeline.config import Training
from pipeline.ranking import can_be_ranked, rank

MLFLOWS_INFINITY = 1.7976931348623157e308
METRICS = get_args(Training.model_fields["best_metric"].annotation)


@pytest.mark.parametrize("metric", METRICS)
def test_a_better_value_has_the_higher_score(metric: str) -> None:
    better, worse = (0.1, 0.9) if metric == "val/loss" else (0.9, 0.1)
    assert ranking.score(better, metric) > ranking.score(worse, metric)
    assert ranking.score(ranking.score(0.3, metric), metric) == 0.3
    assert ranking.is_lower_better(metric) == (metric == "val/loss") != ranking.is_share(metric)


@pytest.mark.parametrize(
    ("metric", "best", "test", "title", "text"),
    [
        ("val/accuracy", "best/val_accuracy", "test/accuracy", "validation accuracy", "91.23%"),
        ("val/f1_macro", "best/val_f1_macro", "test/f1_macro", "validation macro F1", "91.23%"),
        (
            "val/balanced_accuracy",
            "best/val_balanced_accuracy",
            "test/balanced_accuracy",
            "validation balanced accuracy",
            "91.23%",
        ),
        ("val/loss", "best/val_loss", "test/loss", "validation loss", "0.9123"),
    ],
)
def test_what_a_metric_is_called(metric: str, best: str, test: str, title: str, text: str) -> None:
    assert (ranking.best_name(metric), ranking.on_test(metric), ranking.title(metric)) == (
        best,
        test,
        title,
    )
    assert ranking.text(0.91234, metric) == text


def test_every_metric_has_a_name_for_people() -> None:
    assert not [
        metric for metric in METRICS if "_" in ranking.title(metric) or "/" in ranking.title(metric)
    ]


def run(**values: Any) -> dict[str, Any]:
    defaults = {
        "val_accuracy": 0.9,
        "val_loss": 0.5,
        "parameters": 1000,
        "start_time": 100,
        "state": "complete",
        "config_hash": "a",
    }
    return {**defaults, **values}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"val_accuracy": 0.91, "val_loss": 0.9}, {}),
        ({"val_loss": 0.4, "parameters": 9000}, {}),
        ({"parameters": 900, "start_time": 200}, {}),
        ({"start_time": 50}, {}),
        ({}, {"val_accuracy": math.nan}),
        ({}, {"val_accuracy": None}),
        ({}, {"val_accuracy": MLFLOWS_INFINITY}),
        ({}, {"val_accuracy": math.inf}),
        ({}, {"val_loss": math.nan}),
        ({}, {"val_loss": None}),
        ({}, {"val_loss": -MLFLOWS_INFINITY}),
        ({}, {"val_loss": MLFLOWS_INFINITY, "parameters": 1}),
        ({}, {"state": "pruned", "val_accuracy": 0.99}),
        ({}, {"state": "failed", "val_accuracy": 0.99}),
        ({}, {"state": "interrupted", "val_accuracy": 0.99}),
        ({}, {"state": "running", "val_accuracy": 0.99}),
    ],
)
@pytest.mark.parametrize("hashes", ["ab", "ba"])
def test_ranking(better: dict[str, Any], worse: dict[str, Any], hashes: str) -> None:
    first, second = run(config_hash=hashes[0], **better), run(config_hash=hashes[1], **worse)
    assert rank([first, second]) == rank([second, first]) == [first, second]


def test_repeats_rank_by_their_mean_and_stay_together() -> None:
    lucky, unlucky = (
        run(config_hash="a", val_accuracy=0.95),
        run(config_hash="a", val_accuracy=0.81),
    )
    steady = run(config_hash="b", val_accuracy=0.9)
    assert rank([unlucky, steady, lucky]) == [steady, lucky, unlucky]


def test_repeats_that_cannot_be_ranked_do_not_count() -> None:
    complete, failed = (
        run(config_hash="a", val_accuracy=0.95),
        run(config_hash="a", val_accuracy=0.1, state="failed"),
    )
    other = run(config_hash="b")
    assert rank([failed, other, complete]) == [complete, other, failed]


def test_a_configuration_without_all_folds_comes_after_those_with_all() -> None:
    lucky = run(config_hash="a", val_accuracy=0.99, fold="0")
    failed = run(config_hash="a", state="failed", fold="1")
    whole = [
        run(config_hash="b", val_accuracy=accuracy, fold=str(fold))
        for fold, accuracy in enumerate((0.8, 0.6))
    ]
    assert rank([lucky, failed, *whole]) == [*whole, lucky, failed]


def test_runs_on_other_data_are_no_repeats() -> None:
    one, two = run(data_digest="d1", val_accuracy=0.99), run(data_digest="d2", val_accuracy=0.5)
    between = run(config_hash="b", data_digest="d1", val_accuracy=0.8)
    assert rank([two, between, one]) == [one, between, two]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(correct=st.integers(1, 165), repeats=st.integers(2, 9), repeated_leads=st.booleans())
def test_equal_accuracies_leave_the_choice_to_the_loss_however_often_repeated(
    correct: int, repeats: int, repeated_leads: bool
) -> None:
    accuracy = correct / 165
    repeated = [run(config_hash="a", val_accuracy=accuracy, val_loss=0.5) for _ in range(repeats)]
    single = run(config_hash="b", val_accuracy=accuracy, val_loss=0.6 if repeated_leads else 0.4)
    ranked = rank([*repeated, single])
    assert ranked[0]["config_hash"] == ("a" if repeated_leads else "b")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(
        st.builds(
            run,
            val_accuracy=st.sampled_from([0.5, 0.9, None, math.nan, MLFLOWS_INFINITY]),
            val_loss=st.sampled_from([0.5, 0.9, None, math.nan]),
            state=st.sampled_from(["complete", "failed", "pruned"]),
            config_hash=st.sampled_from(["a", "b", "c"]),
        ),
        max_size=8,
    )
)
def test_ranking_keeps_every_run_and_puts_the_unranked_last(runs: list[dict[str, Any]]) -> None:
    ranked = rank(runs)
    assert sorted(map(id, ranked)) == sorted(map(id, runs))
    can = [can_be_ranked(one) for one in ranked]
    assert can == sorted(can, reverse=True)


def test_ranking_nothing_is_empty() -> None:
    assert rank([]) == []


def test_a_run_without_a_hash_stands_alone() -> None:
    one, two = run(config_hash="", run_id="r1"), run(config_hash="", run_id="r2")
    assert ranking.by_configuration([one, two]) == [[one], [two]]


def test_a_lower_loss_leads_where_the_loss_ranks() -> None:
    def by_loss(loss: float, accuracy: float) -> dict[str, Any]:
        return run(
            config_hash=str(loss),
            val_loss=loss,
            val_accuracy=accuracy,
            score=ranking.score(loss, "val/loss"),
        )

    low, high = by_loss(0.3, 0.8), by_loss(0.4, 0.95)
    assert rank([high, low]) == [low, high]
