from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from pipeline.search.trial_runner import TrialRunner
from pipeline.tracking import names, study_runs
from pipeline.tracking.workspace import open_workspace
from pipeline.training.stepper import Stepper
from tests.conftest import PROJECT, Cli, Finished, interrupt


def study_file(quick: Path, **parts: Any) -> Path:
    """Write the quick experiment with further parts."""
    file = quick.with_name("study.yaml")
    raw = yaml.safe_load(quick.read_text())
    study = {**raw["study"], **parts.pop("study", {})}
    file.write_text(yaml.safe_dump({**raw, **parts, "study": study}))
    return file


def runs(step: str | None = None) -> list[Any]:
    workspace = open_workspace("quick")
    found = workspace.client.search_runs(
        [workspace.experiment_id], order_by=["attributes.start_time"]
    )
    return [run for run in found if step is None or run.data.tags[names.STEP] == step]


LIST = [{"optimizer": {"lr": 3e-3}}, {"optimizer": {"lr": 1e-3}}]
SPACE = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}


def test_the_way_from_tune_to_the_network_is_short(cli: Cli, quick: Path) -> None:
    ways: list[list[str]] = []
    forward = Stepper.forward

    def noting(
        stepper: Stepper, inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        frames = traceback.extract_stack()
        own = [
            one.name for one in frames if Path(one.filename).is_relative_to(PROJECT / "pipeline")
        ]
        ways.append([*own[own.index("tune") :], "forward"])
        return forward(stepper, inputs, labels)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stepper, "forward", noting)
        assert cli("tune", "--config", study_file(quick, configs=LIST[:1])).code == 0
    trained = [way for way in ways if "train_epoch" in way]
    assert trained
    # Whoever follows a training has so many functions to read, both ends included.
    assert max(map(len, trained)) <= 11, trained[0]


def test_a_list_is_trained_under_one_parent(cli: Cli, quick: Path) -> None:
    done = cli("tune", "--config", study_file(quick, configs=LIST))
    assert done.code == 0, done.err
    (parent,) = runs("tune")
    trained = runs("train")
    assert [run.data.tags[names.PARENT] for run in trained] == [parent.info.run_id] * 2
    assert [run.data.tags[names.TRIAL] for run in trained] == ["0", "1"]
    assert [float(run.data.params["optimizer.lr"]) for run in trained] == [3e-3, 1e-3]
    assert parent.info.status == "FINISHED"
    best = max(
        trained,
        key=lambda run: (run.data.metrics["best/val_accuracy"], -run.data.metrics["best/val_loss"]),
    )
    assert parent.data.tags[names.BEST_RUN] == best.info.run_id
    assert parent.data.metrics["best/val_accuracy"] == best.data.metrics["best/val_accuracy"]
    artifacts = {
        file.path
        for part in ("", "summary", "optuna")
        for file in open_workspace("quick").client.list_artifacts(parent.info.run_id, part)
    }
    assert {
        "best_config.yaml",
        "summary/comparison.csv",
        "summary/comparison.html",
        "optuna/history.png",
        "study.yaml",
    } <= artifacts
    # Only the winner is exported.
    assert [run.info.run_id for run in trained if run.outputs and run.outputs.model_outputs] == [
        best.info.run_id
    ]


@pytest.mark.thorough
def test_list_and_search_together_make_the_number_of_trials(cli: Cli, quick: Path) -> None:
    done = cli(
        "tune",
        "--config",
        study_file(quick, configs=LIST, space=SPACE, study={"trials": 6, "pruner": "median"}),
    )
    assert done.code == 0, done.err
    trained = runs("train")
    assert len(trained) == 6
    assert {run.data.tags[names.STATE] for run in trained[:2]} == {"complete"}
    searched = [float(run.data.params["optimizer.lr"]) for run in trained[2:]]
    assert len(set(searched)) == 4
    assert all(1e-4 <= lr <= 1e-2 for lr in searched)


@pytest.mark.thorough
def test_a_hopeless_searched_trial_is_pruned_and_a_listed_one_never(cli: Cli, quick: Path) -> None:
    # The list learns; what is searched cannot, at a learning rate of 1e-9.
    base = {
        **yaml.safe_load(quick.read_text())["base"],
        "training": {"epochs": 9, "precision": "fp32", "memory_format": "contiguous"},
    }
    space = {"optimizer.lr": {"low": 1e-9, "high": 1.1e-9}}
    listed = [{"optimizer": {"lr": lr}} for lr in (1e-9, 3e-3, 4e-3, 5e-3, 6e-3)]
    done = cli(
        "tune",
        "--config",
        study_file(
            quick,
            base=base,
            configs=listed,
            space=space,
            study={"trials": 9, "pruner": "hyperband"},
        ),
    )
    assert done.code == 0, done.err
    states = [run.data.tags[names.STATE] for run in runs("train")]
    assert states[:5] == ["complete"] * 5
    assert "pruned" in states[5:]
    pruned = next(run for run in runs("train") if run.data.tags[names.STATE] == "pruned")
    assert pruned.info.status == "FINISHED"
    assert "best/val_accuracy" in pruned.data.metrics
    assert "pruned after epoch" in pruned.data.tags[names.REASON]


def test_equal_entries_are_real_repeats_and_one_configuration(cli: Cli, quick: Path) -> None:
    done = cli(
        "tune",
        "--config",
        study_file(quick, configs=[LIST[0], LIST[0], LIST[1]], study={"repeats": 1}),
    )
    assert done.code == 0, done.err
    table = pd.read_csv(quick.parent / "outputs" / "quick" / "configurations.csv")
    assert sorted(table["repeats"]) == [1, 2]
    rows = pd.read_csv(quick.parent / "outputs" / "quick" / "comparison.csv")
    assert sorted(rows["seed"]) == [0, 0, 1]


def test_study_repeats_train_each_entry_with_other_seeds(cli: Cli, quick: Path) -> None:
    assert cli("tune", "--config", study_file(quick, configs=LIST, study={"repeats": 2})).code == 0
    rows = pd.read_csv(quick.parent / "outputs" / "quick" / "comparison.csv")
    assert sorted(zip(rows["lr"], rows["seed"], strict=True)) == [
        (1e-3, 0),
        (1e-3, 1),
        (3e-3, 0),
        (3e-3, 1),
    ]


def test_a_finished_study_trains_nothing_grows_by_added_entries_and_shares_them_with_another_space(
    cli: Cli, quick: Path
) -> None:
    assert cli("tune", "--config", study_file(quick, configs=LIST)).code == 0
    again = cli("tune", "--config", study_file(quick, configs=LIST))
    assert "2 of 2 trainings are there" in again.out
    assert len(runs("train")) == 2
    assert (
        cli(
            "tune", "--config", study_file(quick, configs=[*LIST, {"optimizer": {"lr": 2e-3}}])
        ).code
        == 0
    )
    assert len(runs("train")) == 3
    assert len(runs("tune")) == 1
    # Another space is another study. What is complete is shared, not trained again.
    assert (
        cli(
            "tune", "--config", study_file(quick, configs=LIST, space=SPACE, study={"trials": 2})
        ).code
        == 0
    )
    assert len({run.data.tags[names.STUDY] for run in runs("tune")}) == 2
    assert sorted(len(run.data.tags[names.STUDY].split(",")) for run in runs("train")) == [1, 2, 2]


def test_a_named_study_refuses_another_space(cli: Cli, quick: Path) -> None:
    assert (
        cli("tune", "--config", study_file(quick, configs=LIST, study={"name": "mine"})).code == 0
    )
    refused = cli(
        "tune",
        "--config",
        study_file(quick, configs=LIST, space=SPACE, study={"name": "mine", "trials": 2}),
    )
    assert refused.code == 2
    assert "study.name: study 'mine' has another base, space, data or fold" in refused.err


def test_a_training_that_fails_is_one_failed_run_and_the_study_goes_on(
    cli: Cli, quick: Path
) -> None:
    entries = [{"optimizer": {"name": "sgd", "lr": 1e30}}, LIST[0]]
    done = cli("tune", "--config", study_file(quick, configs=entries))
    assert done.code == 0, done.err
    failed, complete = runs("train")
    assert (failed.info.status, failed.data.tags[names.STATE]) == ("FAILED", "failed")
    assert "not finite" in failed.data.tags[names.REASON]
    assert complete.data.tags[names.STATE] == "complete"
    table = pd.read_csv(quick.parent / "outputs" / "quick" / "comparison.csv")
    assert list(table["state"]) == ["complete", "failed"]


def test_a_study_in_which_everything_fails_says_so(cli: Cli, quick: Path) -> None:
    done = cli(
        "tune", "--config", study_file(quick, configs=[{"optimizer": {"name": "sgd", "lr": 1e30}}])
    )
    assert done.code == 1
    assert "none of the 1 trainings" in done.err
    assert "not finite" in done.err
    (parent,) = runs("tune")
    assert parent.info.status == "FAILED"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"model": {"name": "resnet19"}},
            "configs[1]: unknown model.name 'resnet19'; nearest: resnet1",
        ),
        (
            {"model": {"name": "alexnet"}},
            "configs[1]: model.name: alexnet cannot take images of data.image_size 16",
        ),
        ({"model": {"name": "resnet18", "weights": "DEFALT"}}, "nearest: DEFAULT"),
        ({"data": {"augment": ["RandomRotatoin"]}}, "nearest: RandomRotation"),
        ({"optimizer": {"lr": -1}}, "configs[1]: optimizer.lr: -1 given; must be greater than 0"),
    ],
)
def test_every_entry_is_checked_before_the_first_one_trains(
    cli: Cli, quick: Path, entry: dict[str, Any], message: str
) -> None:
    done = cli("tune", "--config", study_file(quick, configs=[LIST[0], entry]))
    assert done.code == 2
    assert message in done.err
    assert runs() == []


def test_runs_deleted_from_mlflow_start_the_study_anew(cli: Cli, quick: Path) -> None:
    file = study_file(quick, configs=LIST)
    assert cli("tune", "--config", file).code == 0
    workspace = open_workspace("quick")
    for run in runs():
        workspace.client.delete_run(run.info.run_id)
    assert cli("tune", "--config", file).code == 0
    assert len(runs("train")) == 2


def test_a_study_stopped_half_way_goes_on_under_the_same_parent(cli: Cli, quick: Path) -> None:
    base = {
        **yaml.safe_load(quick.read_text())["base"],
        "training": {"epochs": 4, "precision": "fp32", "memory_format": "contiguous"},
    }
    file = study_file(
        quick, base=base, configs=LIST, space=SPACE, study={"trials": 4, "pruner": "none"}
    )
    interrupt(cli, "tune", "--config", str(file), training="01 small_cnn", epoch=2)
    before = {run.info.run_id: run.data.tags[names.STATE] for run in runs("train")}
    assert sorted(before.values()) == ["complete", "interrupted"]
    done = cli("tune", "--config", file)
    assert done.code == 0, done.err
    assert "1 of 4 trainings are there (1 of the list)" in done.out
    (parent,) = runs("tune")
    assert parent.info.status == "FINISHED"
    states = [run.data.tags[names.STATE] for run in runs("train")]
    # The interrupted training went on in its own run.
    assert states == ["complete"] * 4
    assert before.keys() <= {run.info.run_id for run in runs("train")}
    assert all(run.info.status != "RUNNING" for run in runs())
    places = [
        run.data.tags[names.TRIAL]
        for run in runs("train")
        if run.data.tags[names.STATE] == "complete"
    ]
    assert sorted(places) == ["0", "1", "2", "3"]


def test_a_second_process_on_the_same_study_is_refused(cli: Cli, quick: Path) -> None:
    file = study_file(quick, configs=LIST)
    refusals: list[Finished] = []
    train = TrialRunner.run

    def work(worker: TrialRunner) -> None:
        # While this one trains; the lock knows no process, only who has the file.
        refusals.append(cli("tune", "--config", file))
        train(worker)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrialRunner, "run", work)
        assert cli("tune", "--config", file).code == 0
    (refused,) = refusals
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is being tuned by another process" in refused.err
    assert len(study_runs.find_studies(open_workspace("quick"))) == 1


def test_an_unusable_study_storage_is_one_line(cli: Cli, quick: Path) -> None:
    done = cli(
        "tune",
        "--config",
        study_file(
            quick, configs=LIST, study={"storage": "sqlite:////nonexistent/folder/optuna.db"}
        ),
    )
    assert done.code == 2
    assert "study.storage: 'sqlite:////nonexistent/folder/optuna.db' cannot be used" in done.err


def test_a_study_by_loss_says_so_and_ranks_by_it(cli: Cli, quick: Path) -> None:
    raw = yaml.safe_load(quick.read_text())
    raw["base"]["training"]["best_metric"] = "val/loss"
    done = cli(
        "tune",
        "--config",
        study_file(quick, base=raw["base"], configs=LIST, space=SPACE, study={"trials": 3}),
    )
    assert done.code == 0, done.err
    (parent,) = runs("tune")
    losses = {run.info.run_id: run.data.metrics["best/val_loss"] for run in runs("train")}
    assert parent.data.tags[names.BEST_RUN] == min(losses, key=losses.__getitem__)
    assert f"validation loss {min(losses.values()):.4f}" in parent.data.tags[names.NOTE]
    assert parent.data.metrics["best/val_loss"] == min(losses.values())
    page = (quick.parent / "outputs" / "quick" / "comparison.md").read_text()
    assert "ranked by validation loss" in page and "-0." not in page
    experiment = open_workspace("quick").client.get_experiment_by_name("quick")
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "best/val_loss"
    assert experiment.tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "false"
