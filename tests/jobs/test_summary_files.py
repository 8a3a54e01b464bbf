"""What a comparison leaves in its folder, and on its page."""

from __future__ import annotations

import re

import pytest

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
    stale.write_text("path,label,answer,runs,runs_that_agree\n1.png,rose,tulip,3,2\n")
    summarise_and_write(workspace)
    assert not stale.exists()
    # What the study itself has kept comes back.
    for kind in ("csv", "html"):
        text = "path,label,answer,runs,runs_that_agree\n2.png,rose,tulip,3,2\n"
        workspace.client.log_text(parent, text, f"summary/{NAME}.{kind}")
    assert "2.png labelled rose, looks like tulip (2 of 3 runs)" in page_of(workspace)
    assert stale.read_text() == text
