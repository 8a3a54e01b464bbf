"""A published comparison of twenty rows, as another program logged them: what is seen in it."""

from __future__ import annotations

import pandas as pd
import pytest

from pipeline.jobs.summary_files import summarise_and_write
from pipeline.scores.problems import describe_short
from pipeline.tracking import names
from pipeline.tracking.workspace import Workspace

pytestmark = pytest.mark.slow

ROWS = [
    ("resnet18", "DEFAULT", 1e-5, "none", 96.3636, 89.714),
    ("resnet18", "DEFAULT", 5e-5, "none", 98.7879, 89.714),
    ("resnet18", "DEFAULT", 5e-5, "exponential", 98.1818, 86.571),
    ("resnet18", "IMAGENET1K_V1", 5e-5, "none", 96.9697, 87.428),
    ("resnet18", "IMAGENET1K_V1", 5e-5, "exponential", 98.7879, 86.857),
    ("resnet34", "DEFAULT", 1e-5, "none", 97.5758, 88.000),
    ("resnet34", "DEFAULT", 5e-5, "none", 97.5758, 90.285),
    ("resnet34", "DEFAULT", 5e-5, "exponential", 97.5758, 90.857),
    ("resnet34", "IMAGENET1K_V1", 5e-5, "none", 98.7879, 89.428),
    ("resnet34", "IMAGENET1K_V1", 5e-5, "exponential", 96.9697, 84.571),
    ("resnet50", "DEFAULT", 1e-5, "none", 98.1818, 88.571),
    ("resnet50", "DEFAULT", 5e-5, "none", 97.5758, 91.142),
    ("resnet50", "DEFAULT", 5e-5, "exponential", 99.3939, 90.000),
    ("resnet50", "IMAGENET1K_V2", 5e-5, "none", 98.7879, 91.142),
    ("resnet50", "IMAGENET1K_V2", 5e-5, "exponential", 98.7879, 92.000),
    ("resnet101", "DEFAULT", 5e-5, "none", 98.7879, 90.000),
    ("resnet101", "DEFAULT", 5e-5, "exponential", 98.7879, 91.428),
    ("resnet101", "IMAGENET1K_V2", 5e-5, "none", 96.9697, 86.571),
    ("resnet101", "IMAGENET1K_V2", 5e-5, "exponential", 98.7879, 91.714),
    ("swin_v2_s", "DEFAULT", 1e-5, "none", None, 94.857),
]


def log_rows(workspace: Workspace) -> None:
    client = workspace.client
    for number, (model, weights, lr, schedule, val, test) in enumerate(ROWS, start=1):
        run_id = client.create_run(workspace.experiment_id, run_name=str(number)).info.run_id
        params = {
            "model.name": model,
            "model.weights": weights,
            "optimizer.lr": lr,
            "schedule.name": schedule,
            "data.batch_size": 16,
            "training.epochs": 100,
            names.TEST_IMAGES: 350,
            names.VAL_IMAGES: 165,
        }
        for name, value in params.items():
            client.log_param(run_id, name, value)
        if val is not None:
            client.log_metric(run_id, "best/val_accuracy", val / 100)
        client.log_metric(run_id, "test/accuracy", test / 100)
        client.set_terminated(run_id)


def test_the_effect_of_each_setting_is_that_of_its_pairs(workspace: Workspace) -> None:
    log_rows(workspace)
    summarise_and_write(workspace)
    table = pd.read_csv(workspace.outputs / "effects.csv")
    table = table.set_index(["setting", "from", "to"])
    # Over resnet18, 34, 50 and 101, each at 5e-5, the means of their two runs.
    decay = table.loc[("schedule.name", "exponential", "none")]
    assert decay["pairs"] == 4 and decay["searched_pairs"] == 0
    differences = [
        (89.714 + 87.428) - (86.571 + 86.857),
        (90.285 + 89.428) - (90.857 + 84.571),
        (91.142 + 91.142) - (90.000 + 92.000),
        (90.000 + 86.571) - (91.428 + 91.714),
    ]
    halves = [difference / 200 for difference in differences]
    assert decay["test_mean"] == pytest.approx(sum(halves) / 4)
    assert (decay["test_low"], decay["test_high"]) == pytest.approx((min(halves), max(halves)))
    # DEFAULT is another name for each network: they have the same weights.
    assert table.loc[("model.name", "resnet18", "resnet50"), "pairs"] == 3
    lr = table.loc["optimizer.lr"]
    assert lr["pairs"].tolist() == [3]
    assert "model.weights" not in table.index.get_level_values(0)


def test_equal_rows_are_repeats_and_no_row_is_told_apart(workspace: Workspace) -> None:
    log_rows(workspace)
    compared = summarise_and_write(workspace)
    table = pd.read_csv(workspace.outputs / "configurations.csv")
    assert len(compared.rows) == 20
    ranked = table[table["val_accuracy"].notna()]
    # Eight pairs, and three rows that stand alone.
    assert sorted(ranked["repeats"]) == [1, 1, 1, *[2] * 8]
    lead = table.iloc[0]
    assert (lead["model"], lead["schedule"], lead["repeats"]) == ("resnet50", "exponential", 2)
    assert lead["test_accuracy"] == pytest.approx(0.91)
    assert table["verdict"].tolist()[0] == "leader"
    assert set(ranked["verdict"][1:]) == {"not told apart"}
    assert set(ranked["compared_by"][1:]) == {"unpaired"}
    # The row without a validation accuracy stands last, and is compared with nothing.
    assert table.iloc[-1]["model"] == "swin_v2_s" and pd.isna(table.iloc[-1]["verdict"])
    assert list(compared.conclusion) == [
        "resnet50, weights IMAGENET1K_V2, lr 5e-05, decay exponential leads on validation accuracy "
        "with 99.09%: 91.0% on test (mean of 2 runs; 85.9 to 94.4).",
        "Ten configurations are not told apart from it.",
        "In all of them validation is above test, by 6.4 to 12.4 points: look for near-duplicates "
        "in training and validation, or for test images from elsewhere.",
        "Next: train the first six until each has four seeds (study.repeats).",
    ]
    page = (workspace.outputs / "comparison.html").read_text()
    assert "8 of 19 trainings share 98.79%, where one validation image is 0.61 points." in page
    notes = {row["run_name"]: describe_short(row["problems"], 2) for row in compared.configurations}
    assert notes["8"] == "validation far above test (1 of 2), unstable"
    # Eight pairs tell what another seed may do.
    assert ranked["counts_seeds"][1:].all() and "another seed" not in page
