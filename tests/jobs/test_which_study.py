"""Each step follows the study that its own file, options and data identify."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
import yaml

from pipeline import models
from pipeline.config import Model
from pipeline.experiment import load
from pipeline.identity import FIRST_RELEASE, study_name
from pipeline.tracking import find, names
from pipeline.tracking.store import Workspace, open_workspace
from tests.conftest import Cli, place_store, write_digits


def write(quick: Path, name: str, **changes: Any) -> Path:
    """Write the quick experiment, one epoch, with changes to its base, by section."""
    raw = yaml.safe_load(quick.read_text())
    raw["base"]["training"]["epochs"] = 1
    for section, fields in changes.items():
        raw["base"].setdefault(section, {}).update(fields)
    raw["configs"] = [{}]
    file = quick.with_name(name)
    file.write_text(yaml.safe_dump(raw))
    return file


def ok(cli: Cli, *arguments: Any) -> str:
    done = cli(*arguments)
    assert done.code == 0, done.err
    return done.out


def champion_run(workspace: Workspace, name: str) -> Any:
    return workspace.client.get_run(workspace.client.get_model_version_by_alias(name, "champion").run_id)


def test_a_try_out_after_the_real_run_touches_nothing_of_it(cli: Cli, quick: Path, workspace: Workspace) -> None:
    file = write(quick, "f.yaml", training={"epochs": 3})
    ok(cli, "main", "--config", file)
    before = {path.name: path.read_bytes() for path in workspace.outputs.iterdir() if path.is_file()}
    ok(cli, "main", "--config", file, "--fast", "true")
    assert {path.name: path.read_bytes() for path in workspace.outputs.iterdir() if path.is_file()} == before
    assert {run.data.params["training.epochs"] for run in (champion_run(workspace, "quick"),)} == {"3"}
    assert champion_run(workspace, "quick-fast").data.params["training.epochs"] == "2"
    told = ok(cli, "register", "--config", file)
    assert champion_run(workspace, "quick").data.params["training.epochs"] == "3"
    assert f"run {champion_run(workspace, 'quick').info.run_id}" in told
    ok(cli, "register", "--config", file, "--fast", "true", "--name", "mine")
    assert champion_run(workspace, "mine-fast").data.params["training.epochs"] == "2"
    with pytest.raises(Exception, match="mine"):
        workspace.client.get_registered_model("mine")
    fast = open_workspace("quick-fast")
    assert {row["params"]["training.epochs"] for row in find.trainings(fast)} == {"2"}
    assert (fast.outputs / "comparison.csv").is_file()


@pytest.fixture
def two(cli: Cli, quick: Path, workspace: Workspace) -> tuple[Path, Path]:
    """Two files on one folder and of one experiment, b's study begun last."""
    a, b = write(quick, "a.yaml", optimizer={"lr": 1e-3}), write(quick, "b.yaml", optimizer={"lr": 2e-3})
    for file in (a, b):
        ok(cli, "tune", "--config", file)
    return a, b


def lr_of_evaluated(workspace: Workspace) -> set[float]:
    return {row["lr"] for row in find.trainings(workspace) if row["test_accuracy"] is not None}


def test_of_two_files_on_one_folder_each_takes_its_own(cli: Cli, two: tuple[Path, Path], workspace: Workspace) -> None:
    a, b = two
    told = ok(cli, "evaluate", "--config", a)
    assert lr_of_evaluated(workspace) == {1e-3}
    study = next(study for study in find.studies(workspace) if study.name in told)
    assert f"study {study.name}, data {study.data_digest[:8]} from folder:" in told and ": 1 run" in told
    assert "latest" not in told
    ok(cli, "summary", "--config", a)
    assert pd.read_csv(workspace.outputs / "comparison.csv")["lr"].tolist() == [1e-3]
    ok(cli, "register", "--config", a)
    assert champion_run(workspace, "quick").data.params["optimizer.lr"] == "0.001"
    ok(cli, "summary", "--config", b)
    assert pd.read_csv(workspace.outputs / "comparison.csv")["lr"].tolist() == [2e-3]


def test_options_identify_a_study_as_they_did_in_tune_and_without_the_latest_is_taken_where_none_is_of_the_file(
    cli: Cli, two: tuple[Path, Path], quick: Path, workspace: Workspace
) -> None:
    a, _ = two
    other = write(quick, "c.yaml", optimizer={"lr": 9e-3})
    told = ok(cli, "summary", "--config", other)
    assert f"; the latest, since none has base and space of {other}: 1 run" in told
    assert pd.read_csv(workspace.outputs / "comparison.csv")["lr"].tolist() == [2e-3]
    ok(cli, "evaluate", "--config", a, "--optimizer.lr", "2e-3")
    assert lr_of_evaluated(workspace) == {2e-3}


OF_NO_STUDY = [("--optimizer.lr", "5e-3"), ("--model.name", "resnet18"), ("--data.seed", "7"), ("--data.image_size", "32")]


def test_options_that_no_study_has_are_refused_with_those_there_are(cli: Cli, two: tuple[Path, Path], workspace: Workspace) -> None:
    for step, options in itertools.product(("evaluate", "summary", "register"), OF_NO_STUDY):
        refused = cli(step, "--config", two[0], *options)
        assert refused.code == 2, (step, options)
        lines = refused.err.splitlines()
        assert lines[0].startswith("error: no study of experiment 'quick' is of ") and options[0] in lines[0]
        assert [line.split(",")[0].strip() for line in lines[1:]] == [f"study {study.name}" for study in find.studies(workspace)]
        assert lr_of_evaluated(workspace) == set()


def test_options_that_find_a_study_are_refused_where_there_is_none_or_a_run_is_named(cli: Cli, quick: Path, workspace: Workspace) -> None:
    ok(cli, "train", "--config", quick, "--training.epochs", "1")
    for step in ("evaluate", "summary", "register"):
        refused = cli(step, "--config", quick, "--model.name", "resnet50", "--data.source", f"folder:{quick.parent / 'digits'}")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "experiment 'quick' has no study that --model.name could find, only single trainings" in refused.err
    (row,) = find.trainings(workspace)
    for step in ("evaluate", "register"):
        refused = cli(step, "--config", quick, "--run_id", row["run_id"], "--model.name", "resnet50", "--study.name", "mine")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert f"run_id: run {row['run_id']} is named, and --model.name, --study.name would find a study" in refused.err
    assert find.trainings(workspace)[0]["test_accuracy"] is None
    ok(cli, "evaluate", "--config", quick, "--run_id", row["run_id"], "--data.source", f"folder:{quick.parent / 'digits'}")


def test_options_on_images_that_the_study_has_are_no_hindrance(cli: Cli, quick: Path, workspace: Workspace) -> None:
    file = write(quick, "f.yaml")
    ok(cli, "tune", "--config", file, "--data.seed", "3")
    ok(cli, "tune", "--config", file)
    ok(cli, "evaluate", "--config", file, "--data.seed", "3")
    (row,) = [row for row in find.trainings(workspace) if row["test_accuracy"] is not None]
    assert row["params"]["data.seed"] == "3"


def test_a_study_with_a_name_of_its_own_is_found_by_its_file(cli: Cli, quick: Path, workspace: Workspace) -> None:
    a, b = write(quick, "a.yaml", optimizer={"lr": 1e-3}), write(quick, "b.yaml", optimizer={"lr": 2e-3})
    ok(cli, "tune", "--config", a, "--study.name", "mine")
    ok(cli, "tune", "--config", b)
    told = ok(cli, "evaluate", "--config", a)
    assert "study mine, " in told and "latest" not in told
    assert lr_of_evaluated(workspace) == {1e-3}


def test_a_name_of_its_own_that_was_another_stores_is_followed_beside_it(
    cli: Cli, quick: Path, workspace: Workspace, empty_store: Path
) -> None:
    storage = f"sqlite:///{quick.with_name('shared.db')}"
    raw = yaml.safe_load(write(quick, "a.yaml", optimizer={"lr": 1e-3}).read_text())
    quick.with_name("a.yaml").write_text(yaml.safe_dump({**raw, "study": {"name": "mine", "storage": storage}}))
    a = quick.with_name("a.yaml")
    ok(cli, "tune", "--config", a)
    mlflow.set_tracking_uri(place_store(empty_store, quick.with_name("other")))
    assert "study mine~2 is used" in ok(cli, "tune", "--config", a)
    for step in ("evaluate", "summary", "register"):
        ok(cli, step, "--config", a)


def test_options_on_what_is_done_about_bad_images_hinder_nobody(cli: Cli, quick: Path, workspace: Workspace) -> None:
    a = write(quick, "a.yaml")
    ok(cli, "tune", "--config", a)
    ok(cli, "tune", "--config", a, "--data.bad", "warn")
    assert "latest" not in ok(cli, "summary", "--config", a, "--data.bad", "warn")


def test_evaluate_scores_all_repeats_of_the_best_configuration(cli: Cli, quick: Path, workspace: Workspace) -> None:
    a = write(quick, "a.yaml")
    ok(cli, "tune", "--config", a, "--study.repeats", "2")
    ok(cli, "evaluate", "--config", a)
    assert [row["test_accuracy"] is not None for row in find.trainings(workspace)] == [True, True]


def test_a_study_of_a_network_with_neighbours_is_found(cli: Cli, quick: Path, workspace: Workspace) -> None:
    quick.with_name("blocks.py").write_text("from torch import nn\n\ndef head(n):\n    return nn.Linear(3 * 16 * 16, n)\n")
    network = quick.with_name("net.py")
    network.write_text("from torch import nn\nfrom blocks import head\n\ndef build(n):\n    return nn.Sequential(nn.Flatten(), head(n))\n")
    a = write(quick, "a.yaml", model={"name": f"file:{network}:build"}, optimizer={"lr": 1e-3})
    ok(cli, "tune", "--config", a)
    ok(cli, "tune", "--config", write(quick, "b.yaml"))
    assert "latest" not in ok(cli, "evaluate", "--config", a)
    assert lr_of_evaluated(workspace) == {1e-3}


def test_a_study_of_release_0_1_0_on_trained_weights_is_found(cli: Cli, quick: Path, workspace: Workspace) -> None:
    state = models.build(Model(name="small_cnn"), 7, 16).module.state_dict()
    torch.save(state, quick.with_name("weights.pt"))
    model = {"name": "small_cnn", "weights": f"file:{quick.with_name('weights.pt')}"}
    a = write(quick, "a.yaml", model=model, optimizer={"lr": 1e-3})
    ok(cli, "tune", "--config", a)
    (study,) = find.studies(workspace)
    experiment = load(str(a), {})
    origin = models.origin(experiment.base.model)
    name = study_name("quick", experiment.base, origin, experiment.space, study.data_digest, FIRST_RELEASE)
    assert name != study.name
    # As that release left it.
    workspace.client.set_tag(study.parent, names.STUDY, name)
    workspace.client.delete_tag(study.parent, names.IDENTITY)
    (run,) = [row["run_id"] for row in find.trainings(workspace)]
    workspace.client.set_tag(run, names.STUDY, name)
    ok(cli, "tune", "--config", write(quick, "b.yaml"))
    assert "latest" not in ok(cli, "evaluate", "--config", a)
    assert lr_of_evaluated(workspace) == {1e-3}


def test_of_two_sets_of_images_the_one_named_is_taken(cli: Cli, quick: Path, workspace: Workspace) -> None:
    file = write(quick, "f.yaml")
    other = write_digits(quick.parent / "others", 25)
    ok(cli, "tune", "--config", file)
    ok(cli, "tune", "--config", file, "--data.source", f"folder:{other}")
    ok(cli, "evaluate", "--config", file)
    sources = [row["params"]["data.source"] for row in find.trainings(workspace) if row["test_accuracy"] is not None]
    assert sources == [yaml.safe_load(file.read_text())["base"]["data"]["source"]]


def test_a_champion_of_another_study_that_is_replaced_is_named(cli: Cli, quick: Path, workspace: Workspace) -> None:
    a, b = write(quick, "a.yaml", optimizer={"lr": 3e-3}, training={"epochs": 6}), write(quick, "b.yaml", optimizer={"lr": 1e-9})
    first = ok(cli, "main", "--config", a)
    assert "it replaces" not in first
    told = ok(cli, "main", "--config", b)
    scores = {study.name: max(row["val_accuracy"] for row in find.trainings(workspace, study.name)) for study in find.studies(workspace)}
    new, old = scores
    assert f"it replaces version 1 of {old} (validation accuracy {100 * scores[old]:.2f}%, now {100 * scores[new]:.2f}%)" in told
    # The same study again is nobody else's champion.
    assert "it replaces" not in ok(cli, "main", "--config", b)


def test_main_evaluates_all_repeats_of_the_leader(cli: Cli, quick: Path, workspace: Workspace) -> None:
    raw = yaml.safe_load(write(quick, "f.yaml").read_text())
    raw |= {"configs": [{"optimizer": {"lr": 3e-3}}, {"optimizer": {"lr": 1e-9}}], "study": {"repeats": 2}}
    quick.write_text(yaml.safe_dump(raw))
    ok(cli, "main", "--config", quick)
    table = pd.read_csv(workspace.outputs / "configurations.csv")
    assert table["repeats"].tolist() == [2, 2] and table["test_repeats"].tolist() == [2, 0]
    assert table["test_accuracy"].notna().tolist() == [True, False]


def test_without_a_study_runs_of_another_metric_stand_below(cli: Cli, quick: Path, workspace: Workspace) -> None:
    # The loss of a training that has learnt little, -2, is below any accuracy; a near-zero one is above.
    ok(cli, "train", "--config", quick, "--training.epochs", "8")
    ok(cli, "train", "--config", quick, "--training.epochs", "1", "--training.best_metric", "val/loss")
    ok(cli, "summary", "--config", quick)
    table = pd.read_csv(workspace.outputs / "comparison.csv")
    assert table["metric"].tolist() == ["val/accuracy", "val/loss"]
    assert table["epochs"].tolist() == [8, 1]
    page = (workspace.outputs / "comparison.md").read_text()
    assert "| other metric |" in page and "1 of them chose their best epoch by another metric" in page
    ok(cli, "summary", "--config", quick, "--training.best_metric", "val/loss")
    assert pd.read_csv(workspace.outputs / "comparison.csv")["metric"].tolist() == ["val/loss", "val/accuracy"]
    ok(cli, "evaluate", "--config", quick)
    ok(cli, "register", "--config", quick)
    assert champion_run(workspace, "quick").data.params["training.epochs"] == "8"


def test_a_run_of_mlflow_run_is_read_by_its_recorded_configuration(cli: Cli, quick: Path, workspace: Workspace) -> None:
    ok(cli, "train", "--config", quick, "--training.epochs", "2")
    (run,) = [run for run in workspace.client.search_runs([workspace.experiment_id]) if run.data.tags[names.STEP] == "train"]
    # As `mlflow run -P training.epochs=50 -P fast=true` leaves it: its params are logged before ours, and stay.
    other = workspace.client.create_run(workspace.experiment_id, tags={**run.data.tags, "mlflow.project.entryPoint": "train"})
    for name, value in {**run.data.params, "training.epochs": "50"}.items():
        workspace.client.log_param(other.info.run_id, name, value)
    for name, value in run.data.metrics.items():
        workspace.client.log_metric(other.info.run_id, name, value)
    workspace.client.log_artifact(other.info.run_id, str(find.artifact(workspace, run.info.run_id, names.CONFIG, quick.parent)))
    workspace.client.set_terminated(other.info.run_id)
    assert [row["epochs"] for row in find.trainings(workspace)] == [2, 2]
