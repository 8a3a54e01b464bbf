"""A study that is taken up again after its file, its seed or its database has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.errors import Interrupted
from pipeline.files import lock
from pipeline.tracking import names
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace
from tests.conftest import Cli
from tests.search.test_study import LIST, SPACE, runs, study_file


def lrs() -> list[float]:
    return sorted(float(run.data.params["optimizer.lr"]) for run in runs("train"))


def test_an_edited_entry_is_trained(cli: Cli, quick: Path) -> None:
    assert cli("tune", "--config", study_file(quick, configs=LIST)).code == 0
    assert (
        cli(
            "tune", "--config", study_file(quick, configs=[LIST[0], {"optimizer": {"lr": 5e-3}}])
        ).code
        == 0
    )
    assert lrs() == [1e-3, 3e-3, 5e-3]


@pytest.mark.thorough
def test_another_seed_trains_the_list_again(cli: Cli, quick: Path) -> None:
    file = study_file(quick, configs=LIST)
    assert cli("tune", "--config", file).code == 0
    assert cli("tune", "--config", file, "--training.seed", "7").code == 0
    assert sorted(run.data.params["training.seed"] for run in runs("train")) == ["0", "0", "7", "7"]


def test_an_entry_added_to_a_finished_search_is_trained(cli: Cli, quick: Path) -> None:
    study = {"trials": 3, "pruner": "none"}
    assert (
        cli("tune", "--config", study_file(quick, configs=LIST, space=SPACE, study=study)).code == 0
    )
    longer = [*LIST, {"optimizer": {"lr": 7e-3}}]
    assert (
        cli("tune", "--config", study_file(quick, configs=longer, space=SPACE, study=study)).code
        == 0
    )
    assert len(runs("train")) == 4
    assert 7e-3 in lrs()


def test_a_lost_study_database_keeps_parent_and_trainings(cli: Cli, quick: Path) -> None:
    file = study_file(quick, configs=LIST)
    assert cli("tune", "--config", file).code == 0
    (quick.parent / "optuna.db").unlink()
    done = cli("tune", "--config", file)
    assert "trained before as run" in done.out
    assert (len(runs("tune")), len(runs("train"))) == (1, 2)


@pytest.mark.thorough
def test_choices_that_do_not_fit_together_are_failed_runs_with_the_reason(
    cli: Cli, quick: Path
) -> None:
    raw = yaml.safe_load(quick.read_text())["base"]
    base = {
        **raw,
        "data": {**raw["data"], "image_size": 64},
        "training": {"epochs": 1, "precision": "fp32", "memory_format": "contiguous"},
    }
    space = {"model.name": ["small_cnn", "alexnet"], "data.image_size": [16, 64]}
    done = cli(
        "tune",
        "--config",
        study_file(
            quick,
            base=base,
            space=space,
            study={"trials": 6, "pruner": "none", "sampler": "random"},
        ),
    )
    assert done.code == 0, done.err
    trained = runs("train")
    wrong = {
        run.info.run_id
        for run in trained
        if (run.data.params["model.name"], run.data.params["data.image_size"]) == ("alexnet", "16")
    }
    failed = [run for run in trained if run.data.tags[names.STATE] == "failed"]
    assert wrong
    assert {run.info.run_id for run in failed} == wrong
    assert all(
        "cannot take images of data.image_size 16" in run.data.tags[names.REASON] for run in failed
    )
    again = cli("tune", "--config", quick.with_name("study.yaml"))
    assert (
        again.code == 0
        and f"6 of 6 trainings are there (0 of the list, {len(wrong)} failed for good)" in again.out
    )
    assert len(runs("train")) == len(trained)


def test_what_has_left_the_list_takes_no_place_of_the_search(cli: Cli, quick: Path) -> None:
    study = {"trials": 3, "pruner": "none"}
    assert (
        cli("tune", "--config", study_file(quick, configs=LIST, space=SPACE, study=study)).code == 0
    )
    edited = [LIST[0], {"optimizer": {"lr": 7e-3}}]
    assert (
        cli(
            "tune",
            "--config",
            study_file(quick, configs=edited, space=SPACE, study={**study, "trials": 4}),
        ).code
        == 0
    )
    # Three at first; then the new entry and, for the one that has left, a second searched trial.
    assert len(runs("train")) == 5


def test_checkpoints_of_trainings_that_another_machine_has_ended_are_removed(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    file = study_file(quick, configs=LIST)
    assert cli("tune", "--config", file).code == 0
    left = [workspace.checkpoints / run.data.tags[names.UID] for run in runs("train")]
    of_others = workspace.checkpoints / ("f" * 32)
    for folder in [*left, of_others]:
        folder.mkdir()
        (folder / "resume-00000004.pt").write_bytes(b"state")
    with lock(left[1]):
        assert cli("tune", "--config", file).code == 0
    assert [folder.is_dir() for folder in [*left, of_others]] == [False, True, True]


def test_a_training_that_is_interrupted_as_its_run_begins_goes_on_in_that_run(
    cli: Cli, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = study_file(quick, configs=LIST)
    begin = TrackedRun._start

    def begin_and_stop(run: TrackedRun) -> None:
        begin(run)
        if run._step == "train":
            raise Interrupted("stopped by SIGINT")

    with monkeypatch.context() as patched:
        patched.setattr(TrackedRun, "_start", begin_and_stop)
        assert cli("tune", "--config", file).code == 1
    (stopped,) = runs("train")
    assert stopped.data.tags[names.STATE] == names.INTERRUPTED
    assert cli("tune", "--config", file).code == 0
    assert [run.data.tags[names.STATE] for run in runs("train")] == [names.COMPLETE] * 2
    assert stopped.info.run_id in {run.info.run_id for run in runs("train")}
