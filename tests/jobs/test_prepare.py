"""prepare as a user runs it: report, policies, folds, private images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml

from pipeline.search.trials import uids_of
from pipeline.tracking.artifacts import download_artifact
from pipeline.tracking.workspace import Workspace
from tests.conftest import Cli


@pytest.fixture
def flawed(quick: Path) -> Path:
    """The quick experiment over images with faults.

    One is unreadable, one stands under two labels and one is there twice.
    """
    root = quick.parent / "digits"
    (root / "digit 0" / "broken.png").write_text("no picture")
    shutil.copyfile(root / "digit 0" / "000.png", root / "digit 1" / "zero.png")
    shutil.copyfile(root / "digit 2" / "000.png", root / "digit 2" / "again.png")
    return quick


def artifacts(workspace: Workspace, run_id: str, folder: str) -> set[str]:
    return {Path(file.path).name for file in workspace.client.list_artifacts(run_id, folder)}


def test_the_report_stands_in_the_outputs_and_in_mlflow(
    cli: Cli, flawed: Path, workspace: Workspace, tmp_path: Path
) -> None:
    done = cli("prepare", "--config", flawed, "--data.bad", "warn")
    assert done.code == 0, done.err
    assert "1 image cannot be used and is left out:" in done.out
    assert "  digit 0/broken.png: not an image" in done.out
    assert (
        "4 images are equal or nearly so, in 2 sets, 1 of them under several labels: kept on "
        "one side of a split"
    ) in done.out
    (run,) = workspace.client.search_runs([workspace.experiment_id])
    assert artifacts(workspace, run.info.run_id, "prepare") == {
        "manifest.csv",
        "classes.json",
        "data.json",
        "report.html",
        "report.json",
    }
    report = json.loads((workspace.outputs / "prepare" / "report.json").read_text())
    assert report == json.loads(
        download_artifact(workspace, run.info.run_id, "prepare/report.json", tmp_path).read_text()
    )
    assert report["num_images"] == 92
    assert (
        run.data.metrics["majority_rate"]
        == report["majority"]["share"]
        == pytest.approx(1 / 3, abs=0.1)
    )
    page = (workspace.outputs / "prepare" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 24


@pytest.mark.parametrize(
    ("option", "messages"),
    [("bad", ["  digit 0/broken.png: not an image"]), ("duplicates", ["  equal, under 2 labels"])],
)
def test_error_exits_2_and_writes_the_report(
    cli: Cli, flawed: Path, workspace: Workspace, option: str, messages: list[str]
) -> None:
    done = cli("prepare", "--config", flawed, "--data.bad", "warn", f"--data.{option}", "error")
    assert done.code == 2
    assert [message for message in messages if message not in done.err] == []
    report = json.loads((workspace.outputs / "prepare" / "report.json").read_text())
    assert report["refused"] in done.err
    assert "Not prepared" in (workspace.outputs / "prepare" / "report.html").read_text()
    (run,) = workspace.client.search_runs([workspace.experiment_id])
    assert run.info.status == "FAILED" and run.data.tags["pipeline.reason"].startswith(
        report["refused"]
    )
    assert artifacts(workspace, run.info.run_id, "prepare") == {"report.html", "report.json"}


TUNE = {"configs": [{}], "study": {"trials": 1, "evaluate": "best"}}


def write_study(quick: Path, **parts: object) -> Path:
    raw = {**yaml.safe_load(quick.read_text()), **TUNE, **parts}
    file = quick.with_name("study.yaml")
    file.write_text(yaml.safe_dump(raw))
    return file


def test_of_private_images_no_picture_is_written_or_logged(
    cli: Cli, flawed: Path, workspace: Workspace, tmp_path: Path
) -> None:
    study = write_study(flawed)
    options = (
        "--data.bad",
        "drop",
        "--tracking.log_images",
        "false",
        "--data.augment",
        "[RandomHorizontalFlip]",
        "--training.epochs",
        "1",
    )
    assert cli("tune", "--config", study, *options).code == 0
    (parent,) = [
        run
        for run in workspace.client.search_runs([workspace.experiment_id])
        if run.data.tags["pipeline.step"] == "tune"
    ]
    assert artifacts(workspace, parent.info.run_id, "prepare") == {
        "manifest.csv",
        "classes.json",
        "data.json",
        "report.html",
        "report.json",
    }
    page = download_artifact(
        workspace, parent.info.run_id, "prepare/report.html", tmp_path
    ).read_text()
    assert "data:image" not in page and "private" in page and "digit 0/broken.png" in page


def test_with_pictures_the_parent_has_the_augmentation_preview(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    study = write_study(quick)
    assert (
        cli(
            "tune",
            "--config",
            study,
            "--data.augment",
            "[RandomHorizontalFlip]",
            "--training.epochs",
            "1",
        ).code
        == 0
    )
    (parent,) = [
        run
        for run in workspace.client.search_runs([workspace.experiment_id])
        if run.data.tags["pipeline.step"] == "tune"
    ]
    assert {"augmentation.png", "report.html"} <= artifacts(
        workspace, parent.info.run_id, "prepare"
    )


@pytest.mark.thorough
def test_every_configuration_is_trained_on_every_fold_and_merged_as_repeats(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    configs = [{"optimizer": {"lr": 3e-3}}, {"optimizer": {"lr": 1e-3}}]
    study = write_study(
        quick,
        configs=configs,
        study={"trials": 3, "pruner": "none"},
        space={"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    )
    options = ("--data.folds", "3", "--data.fold", "all", "--training.epochs", "1")
    done = cli("tune", "--config", study, *options)
    assert done.code == 0, done.err
    runs = [
        run
        for run in workspace.client.search_runs([workspace.experiment_id])
        if run.data.tags["pipeline.step"] == "train"
    ]
    assert len(runs) == 9
    assert {run.data.params["data.fold"] for run in runs} == {"0", "1", "2"}
    assert len({run.data.tags["pipeline.config_hash"] for run in runs}) == 3
    assert len({run.data.tags["pipeline.data_digest"] for run in runs}) == 1
    # Each trial knows the runs of all of its folds.
    storage = "sqlite:///optuna.db"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert [len(uids_of(trial)) for trial in trials] == [3, 3, 3]
    noted = set().union(*map(uids_of, trials))
    assert noted == {run.data.tags["pipeline.uid"] for run in runs}
    merged = pd.read_csv(workspace.outputs / "configurations.csv")
    assert merged["repeats"].tolist() == [3, 3, 3]
    compared = pd.read_csv(workspace.outputs / "comparison.csv")
    means = compared.groupby("config_hash")["val_accuracy"].mean()
    assert merged.set_index("config_hash")["val_accuracy"].to_dict() == pytest.approx(
        means.to_dict()
    )
    again = cli("tune", "--config", study, *options)
    assert "3 of 3 trainings are there" in again.out
    assert len(workspace.client.search_runs([workspace.experiment_id])) == 10


def test_folds_validate_on_different_images_and_test_on_the_same(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    study = write_study(quick)
    assert (
        cli(
            "tune",
            "--config",
            study,
            "--data.folds",
            "3",
            "--data.fold",
            "all",
            "--training.epochs",
            "1",
        ).code
        == 0
    )
    assert cli("summary", "--config", study, "--evaluate", "all").code == 0
    runs = [
        run
        for run in workspace.client.search_runs([workspace.experiment_id])
        if run.data.tags["pipeline.step"] == "train"
    ]
    tested = [
        set(
            pd.read_csv(
                download_artifact(
                    workspace, run.info.run_id, "test/predictions.csv", tmp_path / run.info.run_id
                )
            )["path"]
        )
        for run in runs
    ]
    assert len(tested) == 3 and tested[0] == tested[1] == tested[2]


def test_all_folds_are_for_tune_only(cli: Cli, quick: Path) -> None:
    done = cli("train", "--config", quick, "--data.folds", "3", "--data.fold", "all")
    assert (done.code, done.err.strip()) == (
        2,
        "error: data.fold: all is for tune; train takes one fold, 0 to 2",
    )


def test_one_fold_is_trained_once(cli: Cli, quick: Path, workspace: Workspace) -> None:
    for fold in ("0", "1", "1"):
        assert (
            cli(
                "train",
                "--config",
                quick,
                "--data.folds",
                "3",
                "--data.fold",
                fold,
                "--training.epochs",
                "1",
            ).code
            == 0
        )
    assert sorted(
        run.data.params["data.fold"]
        for run in workspace.client.search_runs([workspace.experiment_id])
    ) == ["0", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.folds", "1"), "folds must be 0 (none) or at least 2, got 1"),
        (("--data.folds", "3", "--data.fold", "3"), "fold must be all or below folds (3), got 3"),
        (("--data.fold", "all"), "fold all needs folds"),
        (
            ("--data.fold", "first"),
            "data.fold: 'first' given; must be a whole number from 0, or all",
        ),
        (("--data.bad", "ignore"), "data.bad: 'ignore' given; must be 'error', 'warn' or 'drop'"),
        (("--data.duplicates", "grop"), "nearest: group"),
        (("--data.background", "blakc"), "unknown data.background 'blakc'; nearest: black"),
        (("--data.background", "#12"), "a colour is a name such as white, or #rrggbb"),
        (("--training.class_weights", "balanced"), "training.class_weights is not read by prepare"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    cli: Cli, quick: Path, options: tuple[str, ...], message: str
) -> None:
    done = cli("prepare", "--config", quick, *options)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_without_a_store_the_training_is_the_same(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    histories = []
    for store in ("disk", "none"):
        assert (
            cli("train", "--config", quick, "--data.store", store, "--experiment", store).code == 0
        )
        experiment = workspace.client.get_experiment_by_name(store)
        (run,) = workspace.client.search_runs([experiment.experiment_id])
        histories.append(
            [
                metric.value
                for metric in workspace.client.get_metric_history(run.info.run_id, "val/loss")
            ]
        )
    assert len(histories[0]) == 3 and histories[0] == histories[1]


def test_another_fold_is_another_study(cli: Cli, quick: Path, workspace: Workspace) -> None:
    study = write_study(quick)
    for fold in ("0", "all"):
        assert (
            cli(
                "tune",
                "--config",
                study,
                "--data.folds",
                "3",
                "--data.fold",
                fold,
                "--training.epochs",
                "1",
            ).code
            == 0
        )
    runs = workspace.client.search_runs([workspace.experiment_id])
    assert len([run for run in runs if run.data.tags["pipeline.step"] == "tune"]) == 2
    # The first study's training is that of the first fold.
    assert sorted(
        run.data.params["data.fold"] for run in runs if run.data.tags["pipeline.step"] == "train"
    ) == ["0", "1", "2"]


def test_a_single_training_has_the_report_on_its_images(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    assert cli("train", "--config", quick, "--training.epochs", "1").code == 0
    (run,) = workspace.client.search_runs([workspace.experiment_id])
    assert artifacts(workspace, run.info.run_id, "prepare") == {
        "manifest.csv",
        "classes.json",
        "data.json",
        "report.html",
        "report.json",
    }
    assert len(workspace.client.get_metric_history(run.info.run_id, "majority_rate")) == 1


def test_choices_that_do_not_fit_together_are_failed_runs(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    both = {"training.class_weights": ["balanced"], "training.sampler": ["balanced"]}
    study = write_study(quick, configs=[{}], space=both, study={"trials": 3})
    done = cli("tune", "--config", study, "--training.epochs", "1")
    assert done.code == 0, done.err
    runs = [
        run
        for run in workspace.client.search_runs([workspace.experiment_id])
        if run.data.tags["pipeline.step"] == "train"
    ]
    assert sorted((run.data.tags["pipeline.trial"], run.info.status) for run in runs) == [
        ("0", "FINISHED"),
        ("1", "FAILED"),
        ("2", "FAILED"),
    ]
    failed = [run for run in runs if run.info.status == "FAILED"]
    assert all("correct twice" in run.data.tags["pipeline.reason"] for run in failed)
    assert all(run.data.params["training.sampler"] == "balanced" for run in failed)


def test_a_step_names_and_examines_its_images_once(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    study = write_study(
        quick,
        configs=[{}, {"data": {"batch_size": 16}}, {"data": {"augment": ["RandomHorizontalFlip"]}}],
    )
    done = cli("main", "--config", study, "--training.epochs", "1", "--study.trials", "3")
    assert done.code == 0, done.err
    assert done.out.count(" images of 3 classes from ") == 1
    assert done.err == ""
    # Each of the two others would be prepared again.
    again = cli("summary", "--config", study, "--evaluate", "all")
    assert again.code == 0 and again.out.count("evaluating ") == 2


def test_images_that_have_changed_between_two_steps_are_noticed(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    study = write_study(quick)
    assert cli("tune", "--config", study, "--training.epochs", "1").code == 0
    (quick.parent / "digits" / "digit 0" / "000.png").unlink()
    done = cli("evaluate", "--config", study)
    assert done.code == 2 and "images, labels or splits have changed" in done.err
