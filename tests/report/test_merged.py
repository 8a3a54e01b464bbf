"""One row for each configuration: its repeats are merged, and nothing else is."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ranking import rank
from pipeline.report.merged import merge_repeats, name_configuration
from pipeline.scores.significance import TestResults, Verdict, judge

Run = dict[str, Any]


def row(run_id: str, config_hash: str = "abc", **values: Any) -> Run:
    return {
        "run_id": run_id, "run_name": f"run {run_id}", "state": "complete", "model": "resnet18",
        "seed": 0, "fold": "0", "metric": "val/accuracy", "val_accuracy": 0.9, "val_loss": 0.3,
        "value": 0.9, "test_accuracy": 0.8, "test_value": 0.8, "test_accuracy_low": 0.75,
        "test_accuracy_high": 0.84, "parameters": 1e6, "seconds": 60.0,
        "images_per_second": 100.0, "config_hash": config_hash, "data_digest": "d1",
        "test_images": 350, "params": {"model.name": "resnet18"}, **values,
    }  # fmt: skip


def test_repeats_become_one_row_with_the_means_of_their_scores() -> None:
    scores: dict[str, tuple[float, float, float]] = {
        "val_accuracy": (0.93, 0.90, 0.81),
        "val_loss": (0.2, 0.3, 0.7),
        "test_accuracy": (0.88, 0.90, 0.86),
        "value": (0.92, 0.89, 0.83),
        "test_value": (0.87, 0.91, 0.80),
        "seconds": (50.0, 60.0, 100.0),
    }
    runs = []
    for number in range(3):
        values = {name: found[number] for name, found in scores.items()}
        runs.append({**row(f"r{number}", seed=number, best_epoch=number + 5), **values})
    (merged,) = merge_repeats(runs)
    for name, found in scores.items():
        assert merged[name] == pytest.approx(statistics.fmean(found))
        assert merged[f"{name}_std"] == pytest.approx(statistics.stdev(found))
    assert (merged["repeats"], merged["runs"]) == (3, runs)
    # What is no score is the best run's.
    assert (merged["run_id"], merged["seed"], merged["best_epoch"]) == ("r0", 0, 5)
    assert merged["verdict"] is None


def test_a_single_run_keeps_its_scores_and_has_no_deviation() -> None:
    (merged,) = merge_repeats([row("r0")])
    kept = {name: merged[name] for name in row("r0")}
    assert kept == row("r0")
    assert math.isnan(merged["val_accuracy_std"]) and math.isnan(merged["test_accuracy_std"])
    assert merged["repeats"] == 1 and merged["is_pareto"]


def test_what_is_given_stays_as_it_is() -> None:
    run = row("r0", params={"training.seed": "0"})
    merge_repeats([run, row("r1")])
    assert run == row("r0", params={"training.seed": "0"})


def test_configurations_stay_in_the_order_of_the_ranking() -> None:
    rows = [row("a", "one"), row("b", "two"), row("c", "one"), row("d", "three")]
    found = [(one["config_hash"], one["repeats"]) for one in merge_repeats(rows)]
    assert found == [("one", 2), ("two", 1), ("three", 1)]


INFINITE = 1.797e308
"""What MLflow makes of an infinite metric."""


@pytest.mark.parametrize("missing", [None, math.nan, INFINITE])
def test_of_repeats_that_are_not_all_evaluated_there_is_no_test_score(
    missing: float | None,
) -> None:
    unknown = dict.fromkeys(("test_accuracy", "test_value"), missing)
    (merged,) = merge_repeats([row("r0"), row("r1", **unknown)])
    assert merged["test_accuracy"] is None and merged["test_value"] is None
    assert merged["test_accuracy_low"] is None and merged["test_accuracy_high"] is None
    # It has validation scores all the same, of the runs that have them.
    (merged,) = merge_repeats([row("r0"), row("r1", val_loss=missing, seconds=missing, **unknown)])
    assert (merged["val_loss"], merged["seconds"]) == (0.3, 60.0)
    assert merged["val_accuracy"] == pytest.approx(0.9)
    (merged,) = merge_repeats([row("r0", val_loss=missing), row("r1", val_loss=missing)])
    assert merged["val_loss"] is None


def test_the_interval_is_that_of_the_configuration() -> None:
    runs = [row("r0", test_accuracy=0.9), row("r1", seed=1, test_accuracy=0.8)]
    other = row("r2", "other", test_accuracy=0.5)
    verdicts = judge([TestResults([0.9, 0.8], 350), TestResults([0.5], 350)])
    assert merge_repeats(runs)[0]["test_accuracy_std"] == pytest.approx(0.1 / math.sqrt(2))
    first, second = merge_repeats([*runs, other], dict(zip(("r0", "r2"), verdicts, strict=True)))
    assert (first["test_accuracy_low"], first["test_accuracy_high"]) == verdicts[0].interval
    assert (second["test_accuracy_low"], second["test_accuracy_high"]) == verdicts[1].interval
    assert first["test_accuracy_low"] < 0.75 and first["test_accuracy_high"] > 0.84
    assert [one["verdict"] for one in (first, second)] == verdicts


def test_repeats_without_an_interval_do_not_have_that_of_the_best_one() -> None:
    (merged,) = merge_repeats([row("r0"), row("r1")], {"r0": Verdict("leader", None, None)})
    assert merged["test_accuracy_low"] is None and merged["test_accuracy_high"] is None


def test_a_single_run_that_is_not_compared_keeps_its_interval() -> None:
    (merged,) = merge_repeats([row("r0")], {"r0": Verdict(None, None, None)})
    assert (merged["test_accuracy_low"], merged["test_accuracy_high"]) == (0.75, 0.84)


def test_without_verdicts_a_single_run_keeps_its_interval_and_repeats_have_none() -> None:
    single, repeated = merge_repeats([row("r0", "one"), row("r1", "two"), row("r2", "two")])
    assert (single["test_accuracy_low"], single["test_accuracy_high"]) == (0.75, 0.84)
    assert repeated["test_accuracy_low"] is None and repeated["test_accuracy_high"] is None


def test_seed_and_fold_are_no_settings_of_a_configuration() -> None:
    params = {"model.name": "resnet18", "training.seed": "3", "data.fold": "1", "optimizer.lr": "1"}
    (merged,) = merge_repeats([row("r0", params=params), row("r1", params=params)])
    assert merged["params"] == {"model.name": "resnet18", "optimizer.lr": "1"}
    # They are all that tells a run of unknown configuration apart.
    assert merge_repeats([row("r0", "", params=params)])[0]["params"] == params
    assert merge_repeats([row("r0", params=None)])[0]["params"] == {}


def test_runs_that_are_not_ranked_are_not_merged() -> None:
    rows = [
        row("r0"),
        row("r1", apart="other metric", test_accuracy=0.99),
        row("r2", state="failed"),
        row("r3", val_accuracy=None),
        row("r4"),
    ]
    verdicts = {f"r{number}": Verdict("leader", None, None) for number in range(5)}
    merged = merge_repeats(rows, verdicts, target=0.95)
    assert [one["run_id"] for one in merged] == ["r0", "r1", "r2", "r3"]
    assert [one["repeats"] for one in merged] == [2, 1, 1, 1]
    assert [run["run_id"] for run in merged[0]["runs"]] == ["r0", "r4"]
    for one, run in zip(merged[1:], rows[1:4], strict=True):
        assert one["runs"] == [run] and one["problems"] == [] and one["verdict"] is None
        assert not one["is_pareto"]
    assert [problem.name for problem in merged[0]["problems"]] == ["target missed"]


@pytest.mark.parametrize("values", [{"config_hash": ""}, {"data_digest": "d2"}])
def test_runs_of_unknown_configuration_or_on_other_data_are_not_merged(
    values: dict[str, str],
) -> None:
    merged = merge_repeats([row("r0", **values), row("r1"), row("r2", config_hash="", seed=1)])
    assert [one["repeats"] for one in merged] == [1, 1, 1]


def test_the_mean_of_equal_scores_is_that_score() -> None:
    (merged,) = merge_repeats([row(f"r{seed}", value=15 / 350) for seed in range(3)])
    assert merged["value"] == 15 / 350


Point = tuple[float | None, float | None]
COARSE = st.one_of(st.none(), st.integers(0, 4).map(float))


@given(st.lists(st.tuples(COARSE, COARSE), max_size=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_those_are_marked_that_none_is_better_than_in_both_accuracy_and_speed(
    points: list[Point],
) -> None:
    rows = []
    for number, (accuracy, speed) in enumerate(points):
        rows.append(
            row(f"r{number}", f"c{number}", test_accuracy=accuracy, images_per_second=speed)
        )
    for merged, (accuracy, speed) in zip(merge_repeats(rows), points, strict=True):
        expected = accuracy is not None and speed is not None
        for one, other in points:
            if one is None or other is None or accuracy is None or speed is None:
                continue
            is_better = one > accuracy or other > speed
            expected = expected and not (one >= accuracy and other >= speed and is_better)
        assert merged["is_pareto"] is expected


def test_the_accuracy_that_is_marked_is_the_mean_of_the_repeats() -> None:
    rows = [
        row("r0", "one", test_accuracy=0.95),
        row("r1", "one", test_accuracy=0.75),
        row("r2", "two", test_accuracy=0.90, images_per_second=120.0),
        row("r3", "other", test_accuracy=0.99, images_per_second=500.0, apart="other data"),
    ]
    assert [one["is_pareto"] for one in merge_repeats(rows)] == [False, True, False]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(["complete", "failed"])
        ),
        max_size=12,
    )
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_each_run_is_in_one_row(runs: list[tuple[str, int, str]]) -> None:
    rows = []
    for number, (config_hash, tenths, state) in enumerate(runs):
        rows.append(row(f"r{number}", config_hash, val_accuracy=tenths / 10, state=state))
    ranked = rank(rows)
    found: list[str] = []
    for merged in merge_repeats(ranked):
        found += [run["run_id"] for run in merged["runs"]]
        assert merged["repeats"] == len(merged["runs"])
    assert found == [run["run_id"] for run in ranked]


def test_a_configuration_is_called_by_its_network_and_what_differs() -> None:
    assert name_configuration({"model": "resnet18"}, "") == "resnet18"
    assert name_configuration({"model": "resnet18"}, "lr 0.1") == "resnet18, lr 0.1"
    assert name_configuration({"model": "resnet18"}, "resnet18, lr 0.1") == "resnet18, lr 0.1"
    assert name_configuration({"model": None, "run_name": "bold-fox"}, "lr 1") == "bold-fox, lr 1"
