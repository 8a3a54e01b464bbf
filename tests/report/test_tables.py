"""The comparison of runs as tables."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import ranking
from pipeline.config import Configuration, nest
from pipeline.report import people_table, settings_text, tables
from pipeline.report.format import format_duration, format_percent

FIRST_COLUMNS = [
    "run_id",
    "run_name",
    "state",
    "model",
    "weights",
    "freeze",
    "optimizer",
    "lr",
    "schedule",
    "weight_decay",
    "seed",
    "epochs",
    "best_epoch",
    "val_accuracy",
    "val_loss",
    "test_accuracy",
    "test_accuracy_low",
    "test_accuracy_high",
    "parameters",
    "seconds",
    "config_hash",
    "data_digest",
]
PEOPLES_COLUMNS = [
    "#",
    "run",
    "settings",
    "val accuracy",
    "test accuracy (95%)",
    "parameters",
    "time",
]


def row(
    run_id: str = "r1", settings: dict[str, Any] | None = None, **values: Any
) -> dict[str, Any]:
    configuration = Configuration.model_validate(nest(settings or {}))
    return {
        "run_id": run_id, "run_name": f"run {run_id}", "state": "complete",
        "model": "resnet18", "weights": "none", "freeze": "none",
        "optimizer": "adamw", "lr": 0.001, "schedule": "none", "weight_decay": 0.0001, "seed": 0,
        "epochs": 10, "best_epoch": 7, "val_accuracy": 0.98139, "val_loss": 0.05,
        "test_accuracy": 0.92, "test_accuracy_low": 0.887, "test_accuracy_high": 0.944,
        "parameters": 11181642.0, "seconds": 48.2, "config_hash": "abc", "data_digest": "d1",
        "params": {name: str(value) for name, value in configuration.flat().items()}, **values,
    }  # fmt: skip


def csv_of(table: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(table.to_csv(index=False)))


def test_the_columns_that_scripts_rely_on_come_first_and_in_order() -> None:
    assert (
        list(csv_of(tables.comparison_table([row()])).columns)[: len(FIRST_COLUMNS)]
        == FIRST_COLUMNS
        == tables.COLUMNS
    )


def test_runs_stay_in_the_order_given() -> None:
    assert csv_of(tables.comparison_table([row("b"), row("a"), row("c")]))["run_id"].tolist() == [
        "b",
        "a",
        "c",
    ]


def test_values_survive_the_csv() -> None:
    (found,) = csv_of(tables.comparison_table([row(val_accuracy=1 / 3, lr=5e-5)])).to_dict(
        "records"
    )
    assert found["val_accuracy"] == pytest.approx(1 / 3, abs=1e-15)
    assert found["lr"] == 5e-5
    assert (found["model"], found["weights"], found["state"]) == (
        "resnet18",
        "none",
        "complete",
    ) or math.isnan(found["weights"])


def test_whole_numbers_are_written_without_a_point_even_beside_missing_ones() -> None:
    text = tables.comparison_table(
        [row(best_epoch=7.0), row(best_epoch=None, parameters=None, state="failed")]
    ).to_csv(index=False)
    first = dict(zip(*[line.split(",") for line in text.splitlines()[:2]], strict=True))
    assert (first["best_epoch"], first["seed"], first["epochs"], first["parameters"]) == (
        "7",
        "0",
        "10",
        "11181642",
    )


def test_missing_values_are_empty() -> None:
    found = csv_of(tables.comparison_table([{"run_id": "r1", "state": "failed"}]))
    assert found.loc[0].dropna().to_dict() == {"run_id": "r1", "state": "failed"}


def test_no_runs_have_the_columns_too() -> None:
    assert list(csv_of(tables.comparison_table([])).columns)[: len(FIRST_COLUMNS)] == FIRST_COLUMNS


def test_repeats_are_merged_to_mean_and_standard_deviation() -> None:
    rows = [
        row("r1", val_accuracy=0.9, test_accuracy=0.8),
        row("r2", config_hash="other", val_accuracy=0.5),
        row("r3", val_accuracy=0.8, test_accuracy=None),
        row("r4", val_accuracy=0.1, state="pruned"),
    ]
    table = tables.configurations_table(rows)
    assert table["config_hash"].tolist() == ["abc", "other"]
    assert table["repeats"].tolist() == [2, 1]
    assert table["run_ids"].tolist() == ["r1 r3", "r2"]
    assert table["val_accuracy"].tolist() == pytest.approx([0.85, 0.5])
    assert table["val_accuracy_std"][0] == pytest.approx(0.05 * math.sqrt(2))
    assert math.isnan(table["val_accuracy_std"][1])
    assert table["test_repeats"].tolist() == [1, 1]
    # The mean of the one repeat that is evaluated would not be the configuration's.
    assert math.isnan(table["test_accuracy"][0]) and table["test_accuracy"][1] == pytest.approx(
        0.92
    )


def test_a_test_accuracy_is_the_mean_of_all_repeats() -> None:
    rows = [row("r1", test_accuracy=0.8), row("r2", test_accuracy=0.9)]
    table = tables.configurations_table(rows)
    assert table["test_accuracy"].tolist() == pytest.approx([0.85]) and table[
        "test_repeats"
    ].tolist() == [2]


def test_merged_numbers_are_pandas_own() -> None:
    rng = np.random.default_rng(0)
    names = ["val_loss", "test_accuracy", "seconds", "val_accuracy", "value"]
    rows = [
        row(
            f"r{number}",
            config_hash=f"c{number % 7}",
            metric="val/accuracy",
            **{name: rng.choice([None, *rng.random(4)]) for name in names[:-2]},
            val_accuracy=rng.random(),
            value=rng.random(),
        )
        for number in range(60)
    ]
    table = tables.configurations_table(rows).set_index("config_hash")
    for config_hash, group in pd.DataFrame(rows).groupby("config_hash"):
        for name in names:
            numbers, skips = pd.to_numeric(group[name]), name != "test_accuracy"
            expected = [numbers.mean(skipna=skips), numbers.std(ddof=1, skipna=skips)]
            assert table.loc[config_hash, [name, f"{name}_std"]].tolist() == pytest.approx(
                expected, rel=1e-12, nan_ok=True
            )
        assert table.loc[config_hash, "test_repeats"] == group["test_accuracy"].notna().sum()


def test_no_complete_run_is_an_empty_table() -> None:
    assert tables.configurations_table([row(state="failed")]).empty
    assert list(tables.configurations_table([])) == list(tables.configurations_table([row()]))


@pytest.mark.parametrize(
    "metric", ["val/accuracy", "val/loss", "val/f1_macro", "val/balanced_accuracy"]
)
def test_what_ranks_is_never_expendable(metric: str) -> None:
    columns = list(people_table.table_for_people([row(metric=metric, value=0.5)], metric))
    expendable = people_table.least_important(metric)
    ranked = ranking.title(metric).replace("validation", "val")
    assert ranked in columns and ranked not in expendable


def test_runs_of_unknown_configuration_are_not_merged() -> None:
    rows = [row("r1", config_hash="", lr=0.1), row("r2", config_hash="", lr=0.2)]
    assert tables.configurations_table(rows)["repeats"].tolist() == [1, 1]


def test_runs_on_other_data_are_not_merged() -> None:
    assert tables.configurations_table([row("r1"), row("r2", data_digest="d2")])[
        "repeats"
    ].tolist() == [
        1,
        1,
    ]


def test_without_a_complete_run_there_are_the_columns_still() -> None:
    expected = list(tables.configurations_table([row()]).columns)
    assert list(csv_of(tables.configurations_table([row(state="failed")])).columns) == expected


def test_only_settings_that_differ_are_shown() -> None:
    rows = [
        row(settings={"optimizer.lr": 1e-3}),
        row(settings={"optimizer.lr": 5e-5, "schedule.name": "cosine"}),
    ]
    assert settings_text.differing_settings(rows) == [
        "lr 0.001, decay none",
        "lr 5e-05, decay cosine",
    ]


def test_equal_runs_differ_in_nothing() -> None:
    assert settings_text.differing_settings([row(), row()]) == ["", ""]


@pytest.mark.parametrize("name", ["model.name", "data.source", "data.workers", "training.device"])
def test_what_is_no_setting_is_not_shown(name: str) -> None:
    other = {
        "model.name": "resnet34",
        "data.source": "folder:x",
        "data.workers": 2,
        "training.device": "cpu",
    }[name]
    named = {"run_name": "resnet18 and resnet34"}
    rows = [row(**named), row(settings={name: other}, **named)]
    assert settings_text.differing_settings(rows) == ["", ""]


def test_a_network_that_run_names_do_not_tell_is_a_setting() -> None:
    rows = [
        row(run_name=f"bold-fox-{number}", settings={"model.name": name, "optimizer.lr": lr})
        for number, (name, lr) in enumerate([("resnet18", 1e-3), ("resnet34", 1e-4)])
    ]
    assert settings_text.differing_settings(rows) == ["resnet18, lr 0.001", "resnet34, lr 0.0001"]


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("training.seed", 12345, 12346),
        ("training.epochs", 1000, 1001),
        ("optimizer.lr", 1e-3, 1.01e-3),
        ("data.augment", ["RandomCrop"], ["Grayscale"]),
        ("model.dropout", 0.0, 0.5),
        ("optimizer.momentum", 0.9, 0.95),
    ],
)
def test_settings_that_differ_can_be_told_apart(name: str, one: Any, other: Any) -> None:
    under = {"optimizer.name": "sgd"} if name == "optimizer.momentum" else {}
    first, second = settings_text.differing_settings(
        [row(settings={**under, name: one}), row(settings={**under, name: other})]
    )
    assert first != second


def test_a_setting_without_effect_is_not_shown() -> None:
    rows = [
        row(settings={"optimizer.name": "adam", "optimizer.momentum": momentum})
        for momentum in (0.9, 0.95)
    ]
    assert settings_text.differing_settings(rows) == ["", ""]


def test_a_gamma_that_all_have_who_use_it_is_not_shown() -> None:
    settings = [
        {"schedule.name": name, "schedule.gamma": 0.6}
        for name in ("exponential", "cosine", "exponential")
    ]
    rows = [row(settings=some) for some in settings]
    assert settings_text.differing_settings(rows) == [
        "decay exponential",
        "decay cosine",
        "decay exponential",
    ]


def test_a_gamma_of_ones_own_is_shown() -> None:
    rows = [
        row(settings={"schedule.name": "exponential", "schedule.gamma": gamma})
        for gamma in (0.9, 0.8)
    ]
    assert settings_text.differing_settings(rows) == ["gamma 0.9", "gamma 0.8"]


def test_a_gamma_that_comes_with_the_schedule_is_not_shown() -> None:
    rows = [row(settings={"schedule.name": name}) for name in ("exponential", "step")]
    assert settings_text.differing_settings(rows) == ["decay exponential", "decay step"]


def test_few_columns_for_people() -> None:
    table = people_table.table_for_people([row()])
    assert list(table.columns) == PEOPLES_COLUMNS
    assert table.loc[0].tolist() == [
        "1",
        "run r1",
        "",
        "98.14%",
        "92.00% (88.7 to 94.4)",
        "11.2 M",
        "48 s",
    ]


def test_a_metric_of_its_own_has_a_column_of_its_own() -> None:
    table = people_table.table_for_people(
        [row(metric="val/f1_macro", value=0.8765)], "val/f1_macro"
    )
    assert list(table.columns) == [*PEOPLES_COLUMNS[:3], "val macro F1", *PEOPLES_COLUMNS[3:]]
    assert table["val macro F1"].tolist() == ["87.65%"]


def test_a_run_of_another_metric_has_no_rank() -> None:
    table = people_table.table_for_people(
        [row(), row(apart="other metric"), row(apart="other data")]
    )
    assert table["#"].tolist() == ["1", "other metric", "other data"]


def test_runs_that_cannot_be_ranked_show_their_state_instead_of_a_rank() -> None:
    rows = [
        row(),
        row(val_accuracy=0.9),
        row(state="pruned"),
        row(state="failed", val_accuracy=None),
        row(val_accuracy=math.nan),
    ]
    assert people_table.table_for_people(rows)["#"].tolist() == [
        "1",
        "2",
        "pruned",
        "failed",
        "no score",
    ]


def test_ranks_are_given_to_those_the_ranking_ranks() -> None:
    rows = [
        row(val_accuracy=value, state=state)
        for value in (0.9, None, math.nan, 1.797e308)
        for state in ("complete", "pruned")
    ]
    assert [text.isdigit() for text in people_table.table_for_people(rows)["#"]] == [
        ranking.can_be_ranked(one) for one in rows
    ]


@pytest.mark.parametrize("missing", [None, math.nan, 1.797e308])
def test_missing_scores_are_blank_for_people(missing: float | None) -> None:
    names = ("val_accuracy", "val_loss", "test_accuracy", "parameters", "seconds")
    table = people_table.table_for_people([row(**dict.fromkeys(names, missing))])
    assert table.loc[0].tolist()[3:] == [""] * 5
    assert list(table)[3:5] == ["val accuracy", "val loss"]


def test_a_test_score_without_interval_stands_alone() -> None:
    assert people_table.table_for_people([row(test_accuracy_low=None)])[
        "test accuracy (95%)"
    ].tolist() == ["92.00%"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (48.2, "48 s"),
        (119, "119 s"),
        (120, "2 min"),
        (3600, "60 min"),
        (12600, "3.5 h"),
        (None, ""),
        (math.nan, ""),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.98139, "98.14%"), (1, "100.00%"), (0, "0.00%"), (None, ""), (math.nan, "")],
)
def test_percents(value: float | None, text: str) -> None:
    assert format_percent(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(11181642, "11.2 M"), (26154, "26,154"), (100000, "0.1 M")]
)
def test_numbers_of_parameters(count: int, text: str) -> None:
    assert people_table.table_for_people([row(parameters=count)])["parameters"].tolist() == [text]


def test_scores_per_class_as_text() -> None:
    per_class = pd.DataFrame(
        {"class": ["cat"], "precision": [0.5], "recall": [1.0], "f1": [2 / 3], "images": [12]}
    )
    shown, title = tables.scores_table(per_class)
    assert shown.to_dict("records") == [
        {"class": "cat", "precision": "50.00%", "recall": "100.00%", "f1": "66.67%", "images": "12"}
    ]
    assert title == "test scores per class"


def test_of_many_classes_the_worst_are_shown() -> None:
    f1 = [number / 2000 for number in range(2000)]
    per_class = pd.DataFrame(
        {
            "class": [f"c{number}" for number in range(2000)],
            "precision": f1,
            "recall": f1,
            "f1": f1,
            "images": 5,
        }
    )
    shown, title = tables.scores_table(per_class.iloc[::-1])
    assert shown["class"].tolist() == [f"c{number}" for number in range(20)]
    assert title == (
        "test scores of the 20 of 2,000 classes with the lowest F1 (all: the run's "
        "test/per_class.csv)"
    )


def test_the_markdown_has_a_line_per_run() -> None:
    lines = people_table.to_markdown(
        people_table.table_for_people([row("r1"), row("r2", parameters=5)]),
        "Comparison",
        ["a note"],
    ).splitlines()
    assert lines[0] == "# Comparison"
    assert "a note" in lines
    assert lines[-4] == "| " + " | ".join(PEOPLES_COLUMNS) + " |"
    assert [line.split(" | ")[1] for line in lines[-2:]] == ["run r1", "run r2"]


def test_the_markdown_escapes_bars() -> None:
    last = people_table.to_markdown(
        people_table.table_for_people([row(run_name="a|b")]), "Comparison", []
    ).splitlines()[-1]
    assert "a\\|b" in last
    assert last.replace("\\|", "").count("|") == len(PEOPLES_COLUMNS) + 1


def test_a_training_is_described_by_what_tells_it_apart() -> None:
    params = Configuration.model_validate(
        nest({"optimizer.lr": 0.001, "schedule.name": "cosine"})
    ).flat()
    assert (
        settings_text.describe_settings(params)
        == "resnet18, weights none, lr 0.001, wd 0.0001, decay cosine"
    )


def test_networks_of_ones_own_that_differ_in_their_code_are_told_apart() -> None:
    params = {"model.name": "file:net.py:build", "optimizer.lr": "0.001"}
    rows = [
        row("a", config_hash="a" * 12, params=params),
        row("b", config_hash="b" * 12, params={**params, "optimizer.lr": "0.001"}),
    ]
    assert settings_text.differing_settings(rows) == [
        "configuration aaaaaa",
        "configuration bbbbbb",
    ]
    assert settings_text.differing_settings(
        [rows[0], row("c", config_hash="a" * 12, params=params)]
    ) == [
        "",
        "",
    ]


def test_a_number_that_nobody_writes_out_is_short() -> None:
    rows = [row("a", params={"optimizer.lr": "1e+30"}), row("b", params={"optimizer.lr": "0.001"})]
    assert settings_text.differing_settings(rows) == ["lr 1e+30", "lr 0.001"]
