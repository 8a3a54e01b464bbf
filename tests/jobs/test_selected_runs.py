"""Comparisons of runs that a person selects."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.jobs.selected_runs import FOLDER, summarise_selected
from pipeline.jobs.summary import with_verdicts
from pipeline.jobs.summary_files import write_summary
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import Cli
from tests.jobs.test_verdicts import log_run, right_in

pytestmark = pytest.mark.slow


def test_a_filter_selects_trainings_of_the_experiment(workspace: Workspace) -> None:
    log_run(workspace, "first", 0.95, right_in(0.9))
    log_run(workspace, "second", 0.94, right_in(0.9))
    log_run(workspace, "third", 0.70, right_in(0.9))
    condition = "metrics.`best/val_accuracy` > 0.9"
    compared = with_verdicts(workspace, summarise_selected(workspace, "", condition))
    assert [row["run_name"] for row in compared.ranked()] == ["first", "second"]
    write_summary(workspace, compared)
    written = pd.read_csv(workspace.outputs / FOLDER / "configurations.csv")
    assert written["verdict"].tolist() == ["leader", "not told apart"]
    # The comparison of the study, or of all, is another one.
    assert not (workspace.outputs / "configurations.csv").exists()


def test_trainings_of_other_images_stand_apart(workspace: Workspace) -> None:
    log_run(workspace, "first", 0.95, right_in(0.9))
    other = open_workspace("other")
    run_id = log_run(other, "elsewhere", 0.99, right_in(0.9))
    other.client.set_tag(run_id, "pipeline.data_digest", "e" * 32)
    log_run(other, "same", 0.90, right_in(0.9))
    compared = summarise_selected(workspace, f"{workspace.experiment}, other", "")
    assert [row["run_name"] for row in compared.ranked()] == [
        f"{workspace.experiment}: first",
        "other: same",
    ]
    assert compared.rows[-1]["apart"] == "other data"
    assert any("1 of them were trained on other data" in note for note in compared.notes)


def test_what_finds_nothing_says_what_there_is(workspace: Workspace) -> None:
    log_run(workspace, "first", 0.95)
    with pytest.raises(UserError, match="finds no training; there are:") as caught:
        summarise_selected(workspace, "", "params.`model.name` = 'resnet18'")
    assert caught.value.findings == [f"{workspace.experiment}: 1 training of first"]
    with pytest.raises(UserError, match="filter: 'lr < 1' given; Invalid"):
        summarise_selected(workspace, "", "lr < 1")
    with pytest.raises(UserError, match="'nobody' has no trainings"):
        summarise_selected(replace(workspace, experiment="mine"), "nobody", "")


def test_a_named_study_is_no_selection(cli: Cli) -> None:
    refused = cli("summary", "--study.name", "one", "--filter", "params.a = 'b'")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "leave one of them out" in refused.err
