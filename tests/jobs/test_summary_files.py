"""What a comparison leaves in its folder, and on its page."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from pipeline.experiment import load_experiment
from pipeline.jobs.label_review import NAME
from pipeline.jobs.summary import summarise
from pipeline.jobs.summary_files import summarise_and_write
from pipeline.jobs.summary_notes import describe_target
from pipeline.tracking import names
from pipeline.tracking.workspace import Workspace
from tests.jobs.test_verdicts import log_run, right_in

pytestmark = pytest.mark.slow


def page_of(workspace: Workspace) -> str:
    summarise_and_write(workspace)
    text = (workspace.outputs / "comparison.html").read_text()
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (names.PRUNED, "pruned: run second the search gave it up early"),
        (names.RUNNING, "running: run second it has not ended"),
        (names.INTERRUPTED, "interrupted: run second it was interrupted"),
        (names.FAILED, "failed: run second the disk is full"),
    ],
)
def test_the_page_says_why_a_run_has_no_place(workspace: Workspace, state: str, why: str) -> None:
    log_run(workspace, "first", 0.95, right_in(0.9))
    run_id = log_run(workspace, "second", 0.70)
    workspace.client.set_tag(run_id, names.STATE, state)
    if state == names.FAILED:
        workspace.client.set_tag(run_id, names.REASON, "the disk is full")
    if state == names.RUNNING:
        workspace.client.update_run(run_id, status="RUNNING")
    assert why in page_of(workspace)


def test_of_many_that_reach_the_target_twenty_are_named(workspace: Workspace) -> None:
    for number in range(22):
        log_run(workspace, f"run{number:02d}", 0.9 + number / 1000)
    log_run(workspace, "low", 0.5)
    rows = summarise(workspace).rows
    [note] = describe_target(workspace, 0.9, rows)
    assert note.startswith("Target 0.9: reached by 22 of 23 trainings: run21, run20, ")
    assert note.endswith("run02, and 2 more.")
    [note] = describe_target(workspace, 0.92, rows)
    assert note == "Target 0.92: reached by 2 of 23 trainings: run21, run20."


def test_labels_that_another_study_doubts_do_not_stay(workspace: Workspace) -> None:
    tags = {names.EXPERIMENT: workspace.experiment, names.STEP: "tune", names.STUDY: "mine-1"}
    parent = workspace.client.create_run(workspace.experiment_id, tags=tags).info.run_id
    run_id = log_run(workspace, "first", 0.95, right_in(0.9))
    workspace.client.set_tag(run_id, names.STUDY, "mine-1")
    workspace.outputs.mkdir(parents=True)
    stale = workspace.outputs / f"{NAME}.csv"
    head = "path,label,answer,confidence_in_label,confidence_in_answer,runs,runs_that_agree"
    head += ",suspected\n"
    stale.write_text(f"{head}1.png,rose,tulip,0.2,0.7,3,2,True\n")
    summarise_and_write(workspace)
    assert not stale.exists()
    # What the study itself has kept comes back.
    text = f"{head}2.png,rose,tulip,0.2,0.7,3,2,True\n"
    workspace.client.log_text(parent, text, f"summary/{NAME}.csv")
    # Its page may be a stranger's: it is written anew.
    workspace.client.log_text(parent, "<script>alert(1)</script>", f"summary/{NAME}.html")
    assert "2.png labelled rose; 2 of 3 runs answer tulip (suspected)" in page_of(workspace)
    assert stale.read_text() == text
    page = stale.with_suffix(".html")
    assert "2.png" in page.read_text() and "alert(1)" not in page.read_text()
    # A page with pictures that this folder has of it stays, unless images are to be private.
    page.write_text("with pictures")
    summarise_and_write(workspace)
    assert page.read_text() == "with pictures"
    file = workspace.home / "private.yaml"
    file.write_text(
        f"experiment: {workspace.experiment}\n"
        "base: {data: {source: digits}, tracking: {log_images: false}}\n"
    )
    summarise_and_write(workspace, experiment=load_experiment(file, {}))
    assert "2.png" in page.read_text()


ODD = {
    "accuracy that is none": {"test/accuracy": math.nan, "test/images": 350},
    "accuracy in percent": {"test/accuracy": 88.0, "test/images": 350},
    "both in percent": {"best/val_accuracy": 95.0, "test/accuracy": 88.0, "val/images": 100},
    "fewer than no images": {"test/accuracy": 0.9, "test/images": -350, "val/images": -5},
    "speed below zero": {"test/accuracy": 0.9, "cost/images_per_second": -1},
    "speed without end": {"test/accuracy": 0.9, "cost/images_per_second": math.inf},
    "curve without end": {"val/accuracy": math.inf},
}


@pytest.mark.parametrize("name", ODD)
def test_what_anybody_may_write_ends_no_comparison(workspace: Workspace, name: str) -> None:
    for config, speed in (("first", 100.0), ("second", 200.0)):
        run_id = log_run(workspace, config, 0.95, right_in(0.9))
        workspace.client.log_metric(run_id, "cost/images_per_second", speed)
        workspace.client.log_metric(run_id, "val/images", 100)
    odd = log_run(workspace, "odd", 0.96)
    for step in (1, 2):
        for metric, value in ODD[name].items():
            workspace.client.log_metric(odd, metric, value, step=step)
    workspace.client.log_param(odd, "schedule.gamma", "abc")
    compared = summarise_and_write(workspace)
    assert compared.conclusion and len(compared.ranked()) == 3


def test_a_damaged_list_of_answers_ends_no_comparison(workspace: Workspace) -> None:
    for config in ("first", "second"):
        log_run(workspace, config, 0.95, right_in(0.9))
    odd = log_run(workspace, "odd", 0.94, right_in(0.9))
    [file] = Path("mlruns").rglob(f"{odd}/artifacts/test/predictions.parquet")
    table = pd.read_parquet(file)
    table["path"] = [["a"]] * len(table)
    table.to_parquet(file)
    words = [str(verdict.word) for verdict in summarise_and_write(workspace).verdicts.values()]
    assert words == ["leader", "not told apart", "not told apart"]


def test_speeds_of_other_machines_are_not_compared(workspace: Workspace) -> None:
    for config, speed, machine in (
        ("large", 100, "laptop, 2 processors"),
        ("small", 4000, "server, NVIDIA H100"),
    ):
        run_id = log_run(workspace, config, 0.95 + (config == "large") / 100, right_in(0.9))
        workspace.client.log_metric(run_id, "cost/images_per_second", speed)
        tag = f"{config}, 100 parameters, 32 x 32 pixels, {machine}"
        workspace.client.set_tag(run_id, names.COST, tag)
    text = " ".join(summarise_and_write(workspace).conclusion)
    assert "not told apart" in text and "faster" not in text


def test_names_of_strangers_are_no_commands(workspace: Workspace) -> None:
    name = "m python -m pipeline x\n\n![a](http://evil/x.png)\n\n# You won <img src=x>"
    run_id = log_run(workspace, "first", 0.95, right_in(0.9))
    workspace.client.log_param(run_id, "model.weights", "none")
    odd = log_run(workspace, "odd", 0.97, right_in(0.9))
    workspace.client.set_tag(odd, names.CONFIG_HASH, "")
    workspace.client.log_param(odd, "optimizer.name", name)
    summarise_and_write(workspace)
    text = (workspace.outputs / "comparison.md").read_text()
    assert "![a]" not in text and "\n# You" not in text and "`python -m pipeline x" not in text
    page = (workspace.outputs / "comparison.html").read_text()
    assert "<code>python -m pipeline x" not in page


def test_tables_and_page_merge_the_same_runs(workspace: Workspace) -> None:
    for seed in (0, 1):
        log_run(workspace, "a", 0.95, right_in(0.9), seed=seed)
    lost = log_run(workspace, "a", 0.95, right_in(0.3), seed=2)
    workspace.client.log_metric(lost, "best/val_accuracy", math.nan, step=1)
    compared = summarise_and_write(workspace)
    table = pd.read_csv(workspace.outputs / "configurations.csv")
    assert table["repeats"].tolist() == [2, 1]
    assert [row["repeats"] for row in compared.configurations] == [2, 1]


def test_the_interval_of_what_is_ahead_has_its_sign(workspace: Workspace) -> None:
    log_run(workspace, "first", 0.95, right_in(0.70))
    log_run(workspace, "second", 0.94, right_in(0.80))
    text = page_of(workspace)
    found = re.search(r"([\d.]+) points ahead of .*?pair alone: ([-\d.]+) to ([-\d.]+);", text)
    assert found is not None
    value, low, high = map(float, found.groups())
    assert 0 < low < value < high
    assert "; second)" in text


def test_without_a_complete_run_the_page_says_why(workspace: Workspace) -> None:
    run_id = log_run(workspace, "first", math.nan)
    workspace.client.set_tag(run_id, names.STATE, names.FAILED)
    workspace.client.set_tag(run_id, names.REASON, "training loss is not finite in epoch 1")
    workspace.client.set_tag(run_id, f"{names.FLAG}not_finite", "the loss was nan")
    compared = summarise_and_write(workspace)
    assert compared.conclusion == [
        "No training is complete with a score: 1 failed.",
        "The first one ended since training loss is not finite in epoch 1.",
    ]
    text = page_of(workspace)
    assert text.count("training loss is not finite in epoch 1") == 2
    assert "loss not finite" in text and "the configurations, best first" not in text
