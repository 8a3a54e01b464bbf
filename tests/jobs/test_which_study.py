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
from mlflow import MlflowClient

from pipeline import models
from pipeline.config import Model
from pipeline.experiment import load_experiment
from pipeline.identity import FIRST_RELEASE, study_name
from pipeline.tracking import artifacts, find_runs, names, study_runs
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace, open_workspace
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
    return workspace.client.get_run(
        workspace.client.get_model_version_by_alias(name, "champion").run_id
    )


def test_a_try_out_after_the_real_run_touches_nothing_of_it(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    file = write(quick, "f.yaml", training={"epochs": 3})
    ok(cli, "main", "--config", file)
    before = {
        path.name: path.read_bytes() for path in workspace.outputs.iterdir() if path.is_file()
    }
    ok(cli, "main", "--config", file, "--fast", "true")
    assert {
        path.name: path.read_bytes() for path in workspace.outputs.iterdir() if path.is_file()
    } == before
    assert {run.data.params["training.epochs"] for run in (champion_run(workspace, "quick"),)} == {
        "3"
    }
    assert champion_run(workspace, "quick-fast").data.params["training.epochs"] == "2"
    told = ok(cli, "register", "--config", file)
    assert champion_run(workspace, "quick").data.params["training.epochs"] == "3"
    assert f"run {champion_run(workspace, 'quick').info.run_id}" in told
    ok(cli, "register", "--config", file, "--fast", "true", "--name", "mine")
    assert champion_run(workspace, "mine-fast").data.params["training.epochs"] == "2"
    with pytest.raises(Exception, match="mine"):
        workspace.client.get_registered_model("mine")
    fast = open_workspace("quick-fast")
    assert {row["params"]["training.epochs"] for row in find_runs.find_trainings(fast)} == {"2"}
    assert (fast.outputs / "comparison.csv").is_file()


@pytest.fixture
def two(cli: Cli, quick: Path, workspace: Workspace) -> tuple[Path, Path]:
    """Two files on one folder and of one experiment, b's study begun last."""
    a, b = (
        write(quick, "a.yaml", optimizer={"lr": 1e-3}),
        write(quick, "b.yaml", optimizer={"lr": 2e-3}),
    )
    for file in (a, b):
        ok(cli, "tune", "--config", file)
    return a, b


def lr_of_evaluated(workspace: Workspace) -> set[float]:
    return {
        row["lr"] for row in find_runs.find_trainings(workspace) if row["test_accuracy"] is not None
    }


def test_of_two_files_on_one_folder_each_takes_its_own(
    cli: Cli, two: tuple[Path, Path], workspace: Workspace
) -> None:
    a, b = two
    told = ok(cli, "evaluate", "--config", a)
    assert lr_of_evaluated(workspace) == {1e-3}
    study = next(study for study in study_runs.find_studies(workspace) if study.name in told)
    assert (
        f"study {study.name}, data {study.data_digest[:8]} from folder:" in told
        and ": 1 run" in told
    )
    assert "latest" not in told
    ok(cli, "summary", "--config", a)
    assert pd.read_csv(workspace.outputs / "comparison.csv")["lr"].tolist() == [1e-3]
    ok(cli, "register", "--config", a)
    assert champion_run(workspace, "quick").data.params["optimizer.lr"] == "0.001"
    ok(cli, "summary", "--config", b)
    assert pd.read_csv(workspace.outputs / "comparison.csv")["lr"].tolist() == [2e-3]


def test_options_identify_a_study_as_they_did_in_tune_and_without_the_latest_is_taken_if_none_fits(
    cli: Cli, two: tuple[Path, Path], quick: Path, workspace: Workspace
) -> None:
    a, _ = two
    other = write(quick, "c.yaml", optimizer={"lr": 9e-3})
    told = ok(cli, "summary", "--config", other)
    assert f"; the latest, since none has base and space of {other}: 1 run" in told
    assert pd.read_csv(workspace.outputs / "comparison.csv")["lr"].tolist() == [2e-3]
    ok(cli, "evaluate", "--config", a, "--optimizer.lr", "2e-3")
    assert lr_of_evaluated(workspace) == {2e-3}


OF_NO_STUDY = [
    ("--optimizer.lr", "5e-3"),
    ("--model.name", "resnet18"),
    ("--data.seed", "7"),
    ("--data.image_size", "32"),
]


def test_options_that_no_study_has_are_refused_with_those_there_are(
    cli: Cli, two: tuple[Path, Path], workspace: Workspace
) -> None:
    for step, options in itertools.product(("evaluate", "summary", "register"), OF_NO_STUDY):
        refused = cli(step, "--config", two[0], *options)
        assert refused.code == 2, (step, options)
        lines = refused.err.splitlines()
        assert (
            lines[0].startswith("error: no study of experiment 'quick' is of ")
            and options[0] in lines[0]
        )
        assert [line.split(",")[0].strip() for line in lines[1:]] == [
            f"study {study.name}" for study in study_runs.find_studies(workspace)
        ]
        assert lr_of_evaluated(workspace) == set()


def test_options_that_find_a_study_are_refused_where_there_is_none_or_a_run_is_named(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    ok(cli, "train", "--config", quick, "--training.epochs", "1")
    for step in ("evaluate", "summary", "register"):
        refused = cli(
            step,
            "--config",
            quick,
            "--model.name",
            "resnet50",
            "--data.source",
            f"folder:{quick.parent / 'digits'}",
        )
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert (
            "experiment 'quick' has no study that --model.name could find, only single trainings"
            in refused.err
        )
    (row,) = find_runs.find_trainings(workspace)
    for step in ("evaluate", "register"):
        refused = cli(
            step,
            "--config",
            quick,
            "--run_id",
            row["run_id"],
            "--model.name",
            "resnet50",
            "--study.name",
            "mine",
        )
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert (
            f"run_id: run {row['run_id']} is named, and --model.name, --study.name would "
            "find a study"
        ) in refused.err
    assert find_runs.find_trainings(workspace)[0]["test_accuracy"] is None
    ok(
        cli,
        "evaluate",
        "--config",
        quick,
        "--run_id",
        row["run_id"],
        "--data.source",
        f"folder:{quick.parent / 'digits'}",
    )


def test_options_on_images_that_the_study_has_are_no_hindrance(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    file = write(quick, "f.yaml")
    ok(cli, "tune", "--config", file, "--data.seed", "3")
    ok(cli, "tune", "--config", file)
    ok(cli, "evaluate", "--config", file, "--data.seed", "3")
    (row,) = [
        row for row in find_runs.find_trainings(workspace) if row["test_accuracy"] is not None
    ]
    assert row["params"]["data.seed"] == "3"


def test_a_study_with_a_name_of_its_own_is_found_by_its_file(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    a, b = (
        write(quick, "a.yaml", optimizer={"lr": 1e-3}),
        write(quick, "b.yaml", optimizer={"lr": 2e-3}),
    )
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
    quick.with_name("a.yaml").write_text(
        yaml.safe_dump({**raw, "study": {"name": "mine", "storage": storage}})
    )
    a = quick.with_name("a.yaml")
    ok(cli, "tune", "--config", a)
    mlflow.set_tracking_uri(place_store(empty_store, quick.with_name("other")))
    assert "study mine~2 is used" in ok(cli, "tune", "--config", a)
    for step in ("evaluate", "summary", "register"):
        ok(cli, step, "--config", a)


def test_options_on_what_is_done_about_bad_images_hinder_nobody(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    a = write(quick, "a.yaml")
    ok(cli, "tune", "--config", a)
    ok(cli, "tune", "--config", a, "--data.bad", "warn")
    assert "latest" not in ok(cli, "summary", "--config", a, "--data.bad", "warn")


def test_evaluate_scores_all_repeats_of_the_best_configuration(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    a = write(quick, "a.yaml")
    ok(cli, "tune", "--config", a, "--study.repeats", "2")
    ok(cli, "evaluate", "--config", a)
    assert [row["test_accuracy"] is not None for row in find_runs.find_trainings(workspace)] == [
        True,
        True,
    ]


def test_a_study_of_a_network_with_neighbours_is_found(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    quick.with_name("blocks.py").write_text(
        "from torch import nn\n\ndef head(n):\n    return nn.Linear(3 * 16 * 16, n)\n"
    )
    network = quick.with_name("net.py")
    network.write_text(
        "from torch import nn\n"
        "from blocks import head\n"
        "\n"
        "def build(n):\n"
        "    return nn.Sequential(nn.Flatten(), head(n))\n"
    )
    a = write(quick, "a.yaml", model={"name": f"file:{network}:build"}, optimizer={"lr": 1e-3})
    ok(cli, "tune", "--config", a)
    ok(cli, "tune", "--config", write(quick, "b.yaml"))
    assert "latest" not in ok(cli, "evaluate", "--config", a)
    assert lr_of_evaluated(workspace) == {1e-3}


def test_a_study_of_release_0_1_0_on_trained_weights_is_found(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    state = models.build(Model(name="small_cnn"), 7, 16).module.state_dict()
    torch.save(state, quick.with_name("weights.pt"))
    model = {"name": "small_cnn", "weights": f"file:{quick.with_name('weights.pt')}"}
    a = write(quick, "a.yaml", model=model, optimizer={"lr": 1e-3})
    ok(cli, "tune", "--config", a)
    (study,) = study_runs.find_studies(workspace)
    experiment = load_experiment(str(a), {})
    origin = models.origin(experiment.base.model)
    name = study_name(
        "quick", experiment.base, origin, experiment.space, study.data_digest, FIRST_RELEASE
    )
    assert name != study.name
    # As that release left it.
    workspace.client.set_tag(study.parent, names.STUDY, name)
    workspace.client.delete_tag(study.parent, names.IDENTITY)
    (run,) = [row["run_id"] for row in find_runs.find_trainings(workspace)]
    workspace.client.set_tag(run, names.STUDY, name)
    ok(cli, "tune", "--config", write(quick, "b.yaml"))
    assert "latest" not in ok(cli, "evaluate", "--config", a)
    assert lr_of_evaluated(workspace) == {1e-3}


def test_of_two_sets_of_images_the_one_named_is_taken(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    file = write(quick, "f.yaml")
    other = write_digits(quick.parent / "others", 25)
    ok(cli, "tune", "--config", file)
    ok(cli, "tune", "--config", file, "--data.source", f"folder:{other}")
    ok(cli, "evaluate", "--config", file)
    sources = [
        row["params"]["data.source"]
        for row in find_runs.find_trainings(workspace)
        if row["test_accuracy"] is not None
    ]
    assert sources == [yaml.safe_load(file.read_text())["base"]["data"]["source"]]


def test_a_champion_of_another_study_that_is_replaced_is_named(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    a, b = (
        write(quick, "a.yaml", optimizer={"lr": 3e-3}, training={"epochs": 6}),
        write(quick, "b.yaml", optimizer={"lr": 1e-9}),
    )
    first = ok(cli, "main", "--config", a)
    assert "it replaces" not in first
    told = ok(cli, "main", "--config", b)
    scores = {
        study.name: max(
            row["val_accuracy"] for row in find_runs.find_trainings(workspace, study.name)
        )
        for study in study_runs.find_studies(workspace)
    }
    new, old = scores
    assert (
        f"it replaces version 1 of {old} (validation accuracy {100 * scores[old]:.2f}%, now "
        f"{100 * scores[new]:.2f}%)"
    ) in told
    # The same study again is nobody else's champion.
    assert "it replaces" not in ok(cli, "main", "--config", b)
    # A run of both studies takes the place of one that is better in one of them.
    best, worst = (find_runs.find_trainings(workspace, name)[0]["run_id"] for name in (old, new))
    assert f"it replaces version 2 of {new}" in ok(cli, "register", "--run_id", best)
    workspace.client.set_tag(worst, names.STUDY, f"{new},{old}")
    assert f"it replaces version 1 of {old} (" in ok(cli, "register", "--run_id", worst)


def test_main_evaluates_all_repeats_of_the_leader(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    raw = yaml.safe_load(write(quick, "f.yaml").read_text())
    raw |= {
        "configs": [{"optimizer": {"lr": 3e-3}}, {"optimizer": {"lr": 1e-9}}],
        "study": {"repeats": 2, "evaluate": "best"},
    }
    quick.write_text(yaml.safe_dump(raw))
    ok(cli, "main", "--config", quick)
    table = pd.read_csv(workspace.outputs / "configurations.csv")
    assert table["repeats"].tolist() == [2, 2] and table["test_repeats"].tolist() == [2, 0]
    assert table["test_accuracy"].notna().tolist() == [True, False]


def test_without_a_study_runs_of_another_metric_stand_below(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    # The loss of a training that has learnt little, -2, is below any accuracy; a near-zero one is
    # above.
    ok(cli, "train", "--config", quick, "--training.epochs", "8")
    ok(
        cli,
        "train",
        "--config",
        quick,
        "--training.epochs",
        "1",
        "--training.best_metric",
        "val/loss",
    )
    ok(cli, "summary", "--config", quick)
    table = pd.read_csv(workspace.outputs / "comparison.csv")
    assert table["metric"].tolist() == ["val/accuracy", "val/loss"]
    assert table["epochs"].tolist() == [8, 1]
    page = (workspace.outputs / "comparison.md").read_text()
    assert (
        "| other metric |" in page and "1 of them chose their best epoch by another metric" in page
    )
    ok(cli, "summary", "--config", quick, "--training.best_metric", "val/loss")
    assert pd.read_csv(workspace.outputs / "comparison.csv")["metric"].tolist() == [
        "val/loss",
        "val/accuracy",
    ]
    ok(cli, "evaluate", "--config", quick)
    ok(cli, "register", "--config", quick)
    assert champion_run(workspace, "quick").data.params["training.epochs"] == "8"


def test_runs_of_a_metric_that_the_file_does_not_name_are_ranked_by_theirs(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    ok(cli, "train", "--config", quick, "--training.best_metric", "val/f1_macro")
    done = ok(cli, "summary", "--config", quick)
    assert ": 1 run\n" in done
    page = (workspace.outputs / "comparison.md").read_text()
    assert "1 training, 1 complete, ranked by validation macro F1" in page
    assert "other metric" not in page


def test_a_run_of_mlflow_run_is_read_by_its_recorded_configuration(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    ok(cli, "train", "--config", quick, "--training.epochs", "2")
    (run,) = [
        run
        for run in workspace.client.search_runs([workspace.experiment_id])
        if run.data.tags[names.STEP] == "train"
    ]
    # As `mlflow run -P training.epochs=50 -P fast=true` leaves it: its params are logged before
    # ours, and stay.
    other = workspace.client.create_run(
        workspace.experiment_id, tags={**run.data.tags, "mlflow.project.entryPoint": "train"}
    )
    for name, value in {**run.data.params, "training.epochs": "50"}.items():
        workspace.client.log_param(other.info.run_id, name, value)
    for name, value in run.data.metrics.items():
        workspace.client.log_metric(other.info.run_id, name, value)
    workspace.client.log_artifact(
        other.info.run_id,
        str(artifacts.download_artifact(workspace, run.info.run_id, names.CONFIG, quick.parent)),
    )
    workspace.client.set_terminated(other.info.run_id)
    assert [row["epochs"] for row in find_runs.find_trainings(workspace)] == [2, 2]


def champion(name: str) -> Any:
    return MlflowClient().get_model_version_by_alias(name, "champion")


@pytest.fixture
def other(quick: Path) -> Path:
    """Other images than the experiment's: digits of other classes, in another folder."""
    return write_digits(quick.with_name("other"), 30, classes=(3, 4, 5))


def test_a_study_that_was_given_a_name_is_not_taken_for_the_one_that_tune_goes_on_with(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    a = write(quick, "a.yaml")
    ok(cli, "tune", "--config", a, "--training.seed", "3")
    ok(cli, "tune", "--config", a, "--training.seed", "3", "--study.name", "mine")
    for step in ("summary", "evaluate", "register"):
        assert "study mine" not in ok(cli, step, "--config", a)
    assert champion("quick").tags[names.STUDY].split(",")[0] != "mine"
    assert "study mine, " in ok(cli, "summary", "--config", a, "--study.name", "mine")


def test_options_beside_a_studys_name_are_refused_unless_they_tell_of_its_images(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    a = write(quick, "a.yaml")
    ok(cli, "tune", "--config", a, "--study.name", "mine")
    for step in ("summary", "evaluate", "register"):
        refused = cli(step, "--config", a, "--study.name", "mine", "--model.name", "resnet18")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert (
            "study.name: study 'mine' is named, and --model.name would find another" in refused.err
        )
    (run,) = find_runs.find_trainings(workspace)
    listed = quick.with_name("images.csv")
    files = sorted(quick.with_name("digits").rglob("*.png"))
    listed.write_text(
        "pic,klass\n"
        + "".join(
            f"{file.relative_to(quick.with_name('digits'))},{file.parent.name}\n" for file in files
        )
    )
    columns = ("--data.image_column", "pic", "--data.label_column", "klass")
    where = ("--data.source", f"csv:{listed}", "--data.root", quick.with_name("digits"), *columns)
    for which in (("--study.name", "mine"), ("--run_id", run["run_id"]), ()):
        ok(cli, "evaluate", "--config", a, *which, *where)


def test_the_study_is_the_one_of_the_images_that_an_option_names(
    cli: Cli, quick: Path, workspace: Workspace, other: Path
) -> None:
    a = write(quick, "a.yaml")
    ok(cli, "tune", "--config", a)
    ok(cli, "tune", "--config", a, "--data.source", f"folder:{other}")
    ok(cli, "evaluate", "--config", a)
    ok(cli, "register", "--config", a)
    before = champion("quick")
    for step in ("summary", "register"):
        refused = cli(step, "--config", a, "--data.source", "folder:othre")
        assert refused.code == 2 and "is of the images 'folder:othre'; there are:" in refused.err
    assert champion("quick").run_id == before.run_id
    moved = quick.with_name("moved")
    quick.with_name("digits").rename(moved)
    told = ok(cli, "evaluate", "--config", a, "--data.source", f"folder:{moved}")
    assert f"from folder:{quick.with_name('digits')}" in told
    refused = cli(
        "evaluate",
        "--config",
        a,
        "--data.source",
        f"folder:{write_digits(quick.with_name('third'), 30, classes=(7, 8))}",
    )
    assert refused.code == 2 and "no study of experiment 'quick' is of the images" in refused.err


def test_single_trainings_are_those_of_the_images_that_are_named(
    cli: Cli, quick: Path, workspace: Workspace, other: Path
) -> None:
    digits = f"folder:{quick.with_name('digits')}"
    ok(cli, "train", "--config", quick, "--training.epochs", "1")
    ok(
        cli,
        "train",
        "--config",
        quick,
        "--training.epochs",
        "1",
        "--data.source",
        f"folder:{other}",
    )
    of = {
        row["params"]["data.source"]: row["run_id"] for row in find_runs.find_trainings(workspace)
    }
    for options, source in (
        ((), digits),
        (("--data.source", f"folder:{other}"), f"folder:{other}"),
    ):
        assert f"from {source}: 1 run" in ok(cli, "summary", "--config", quick, *options)
        ok(cli, "evaluate", "--config", quick, *options)
        ok(cli, "register", "--config", quick, *options)
        assert champion("quick").run_id == of[source]
    for step in ("summary", "register", "evaluate"):
        refused = cli(step, "--config", quick, "--data.source", "folder:nowhere")
        assert refused.code == 2
    moved = quick.with_name("moved")
    other.rename(moved)
    assert of[f"folder:{other}"] in ok(
        cli, "evaluate", "--config", quick, "--data.source", f"folder:{moved}"
    )


def test_moved_images_of_the_only_trainings_are_found_whatever_else_they_were_given(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    ok(cli, "train", "--config", quick, "--training.epochs", "1", "--data.seed", "5")
    moved = quick.with_name("moved")
    quick.with_name("digits").rename(moved)
    ok(cli, "evaluate", "--config", quick, "--data.source", f"folder:{moved}")
    (row,) = find_runs.find_trainings(workspace)
    assert row["test_accuracy"] is not None


def test_a_run_becomes_the_champion_of_its_own_experiment(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    ok(cli, "train", "--config", quick, "--training.epochs", "1")
    ok(cli, "train", "--config", quick, "--fast", "true")
    (run,) = find_runs.find_trainings(workspace)
    (tried,) = find_runs.find_trainings(open_workspace("quick-fast"))
    assert "models:/quick@champion" in ok(cli, "register", "--run_id", run["run_id"])
    assert "models:/quick-fast@champion" in ok(cli, "register", "--run_id", tried["run_id"])
    for options in (("--config", quick), ("--experiment", "digits"), ("--experiment", "quick")):
        refused = cli("register", "--run_id", tried["run_id"], *options)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert (
            f"run {tried['run_id']} is of experiment 'quick-fast', and {options[0]} of "
            in refused.err
        )
    assert champion("quick").run_id == run["run_id"]
    assert "models:/chosen@champion" in ok(
        cli, "register", "--run_id", tried["run_id"], "--name", "chosen"
    )
    for options in (("--experiment", "digits"), ("--fast", "true")):
        refused = cli("evaluate", "--run_id", run["run_id"], "--config", quick, *options)
        assert (
            refused.code == 2
            and f"run {run['run_id']} is of experiment 'quick', and {options[0]} of " in refused.err
        )


def test_an_experiment_without_trainings_is_not_its_own_suggestion(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    a = write(quick, "a.yaml", optimizer={"lr": 1e-3})
    assert (
        cli("tune", "--config", a, "--model.name", f"file:{quick.with_name('none.py')}:build").code
        == 2
    )
    with TrackedRun(workspace, "tune", "tune"):
        pass
    refused = cli("evaluate", "--config", a)
    assert (
        refused.code == 2
        and "experiment 'quick' has no trainings in " in refused.err
        and "nearest: quick" not in refused.err
    )


def test_what_trials_without_a_space_mean_is_said(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    a = write(quick, "a.yaml", optimizer={"lr": 1e-3})
    told = ok(cli, "tune", "--config", a, "--study.trials", "5")
    assert "study.trials 5: there is no space to search, so that the 1 of the list are all" in told
