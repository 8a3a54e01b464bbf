"""Choices that are lists, such as augmentations.

They are searched, drawn and taken up again, also where release 0.1.0 could not.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.entities import Run
from PIL import Image

from pipeline.tracking import artifacts, find_runs, names, study_runs
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import Cli, interrupt
from tests.recorded.store import unpack
from tests.search.test_study import runs, study_file

AUGMENT: dict[str, list[Any]] = {
    "data.augment": [[], ["RandomHorizontalFlip"], [{"RandomRotation": {"degrees": 15}}]]
}


@pytest.mark.thorough
@pytest.mark.filterwarnings("error:Choices for a categorical:UserWarning")
def test_a_study_over_lists_ends_with_its_figures(cli: Cli, quick: Path, tmp_path: Path) -> None:
    searched = {**AUGMENT, "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    file = study_file(
        quick,
        configs=[{"data": {"augment": AUGMENT["data.augment"][1]}}],
        space=searched,
        study={"trials": 5, "pruner": "none", "sampler": "random"},
    )
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    assert "cannot be drawn" not in done.out
    (parent,) = runs("tune")
    assert "best/val_accuracy" in parent.data.metrics
    for figure in ("history", "importances", "slices"):
        name = f"optuna/{figure}.png"
        workspace = open_workspace("quick")
        file_of_figure = artifacts.download_artifact(workspace, parent.info.run_id, name, tmp_path)
        with Image.open(file_of_figure) as picture:
            assert picture.width > 300
    study = optuna.load_study(
        study_name=parent.data.tags[names.STUDY], storage=f"sqlite:///{quick.parent / 'optuna.db'}"
    )
    # The entry of the list lies inside: the sampler has its values.
    assert all(isinstance(trial.params["data.augment"], str) for trial in study.trials)
    assert study.trials[0].params["data.augment"] == runs("train")[0].data.params["data.augment"]
    again = cli("tune", "--config", file)
    assert (again.code, len(runs("train"))) == (0, 5)
    assert "5 of 5 trainings are there (1 of the list)" in again.out


@pytest.mark.thorough
def test_an_interrupted_trial_of_lists_goes_on(cli: Cli, quick: Path) -> None:
    study = {"trials": 3, "pruner": "none", "sampler": "random"}
    space = {
        "optimizer.betas": [[0.9, 0.999], [0.8, 0.9]],
        "optimizer.lr": {"low": 1e-4, "high": 1e-2},
    }
    file = study_file(quick, space=space, study=study)
    interrupt(cli, "tune", "--config", str(file), training="01", epoch=2)
    before = [(run.info.run_id, run.data.params["optimizer.betas"]) for run in runs("train")]
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    after = [(run.info.run_id, run.data.params["optimizer.betas"]) for run in runs("train")]
    assert after[:2] == before and len(after) == 3


def contents(database: Path, study: str) -> list[Any]:
    """Return all that an Optuna database has of a study and its trials."""
    tables = [
        "trial_params",
        "trial_user_attributes",
        "trial_system_attributes",
        "trial_values",
        "trial_intermediate_values",
    ]
    with closing(sqlite3.connect(database)) as opened:
        (study_id,) = opened.execute(
            "SELECT study_id FROM studies WHERE study_name = ?", [study]
        ).fetchone()
        rows = [
            opened.execute(
                "SELECT * FROM study_user_attributes WHERE study_id = ?", [study_id]
            ).fetchall()
        ]
        rows.append(
            opened.execute("SELECT * FROM trials WHERE study_id = ?", [study_id]).fetchall()
        )
        for table in tables:
            of_study = (
                f"SELECT * FROM {table} "
                "WHERE trial_id IN (SELECT trial_id FROM trials WHERE study_id = ?)"
            )
            rows.append(opened.execute(of_study, [study_id]).fetchall())
    return rows


def parents_of(workspace: Workspace) -> dict[str, Run]:
    return {
        study.name: find_runs.get_run(workspace, study.parent)
        for study in study_runs.find_studies(workspace)
    }


@pytest.mark.thorough
@pytest.mark.filterwarnings("error:Choices for a categorical:UserWarning")
def test_a_study_of_lists_by_release_0_1_0_is_finished_beside_it(cli: Cli, folder: Path) -> None:
    unpack(folder)
    workspace = open_workspace("lists")
    ((study, failed),) = parents_of(workspace).items()
    assert failed.info.status == "FAILED"
    before, trained = (
        contents(folder / "optuna.db", study),
        [row["run_id"] for row in find_runs.find_trainings(workspace)],
    )
    done = cli("tune", "--config", "lists.yaml")
    assert done.code == 0, done.err
    told = [line for line in done.out.splitlines() if line.startswith("study lists")]
    assert told[0] == (
        f"study {study} is of release 0.1.0, which could not search lists; study {study}~2 is used"
    )
    assert contents(folder / "optuna.db", study) == before
    parents = parents_of(workspace)
    assert (
        parents[study].info.status == "FAILED" and parents[f"{study}~2"].info.status == "FINISHED"
    )
    best = parents[f"{study}~2"].data.tags[names.BEST_RUN]
    assert best in {row["run_id"] for row in find_runs.find_trainings(workspace, f"{study}~2")}
    # What is drawn again has been trained before.
    assert "trained before as run" in done.out and set(trained) <= {
        row["run_id"] for row in find_runs.find_trainings(workspace)
    }
    again = cli("tune", "--config", "lists.yaml")
    assert again.code == 0 and "2 of 2 trainings are there" in again.out
    assert set(parents_of(workspace)) == {study, f"{study}~2"}
