"""Weights from one's own registry and runs, on a real store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline import models
from pipeline.config import Configuration, Model
from pipeline.errors import UserError
from pipeline.identity import config_hash
from pipeline.tracking import artifacts, names, stored_weights
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace
from pipeline.training.checkpoint import save_weights, weights_of
from tests.conftest import Cli, write_digits

pytestmark = pytest.mark.slow

NORMALISATION = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def trained_run(
    workspace: Workspace, tmp_path: Path, name: str = "small_cnn", seed: int = 0
) -> str:
    """Log what a training leaves behind."""
    torch.manual_seed(seed)
    with TrackedRun(workspace, "train", f"{name} {seed}") as run:
        save_weights(
            weights_of(models.build(Model(name="small_cnn"), 3, 32).module),
            tmp_path / "best.safetensors",
        )
        run.file(tmp_path / "best.safetensors", "checkpoint")
        run.configuration(Configuration(model=Model(name=name)))
        run.json(names.PREPROCESSING, {"mean": NORMALISATION[0], "std": NORMALISATION[1]})
    return run.id


@pytest.fixture
def registered(workspace: Workspace, tmp_path: Path) -> list[str]:
    """Two versions of the model ``digits``, the first one the champion; their runs."""
    workspace.client.create_registered_model("digits")
    runs = [trained_run(workspace, tmp_path, seed=seed) for seed in (1, 2)]
    for run in runs:
        workspace.client.create_model_version("digits", f"runs:/{run}/model", run)
    workspace.client.set_registered_model_alias("digits", "champion", "1")
    return runs


def origin(weights: str) -> dict[str, str]:
    return models.origin(stored_weights.resolve_weights(Model(name="small_cnn", weights=weights)))


def artifact(workspace: Workspace, run: str, folder: Path) -> Path:
    """Copy the weights of a run, and what belongs to them."""
    folder.mkdir()
    artifacts.download_artifact(workspace, run, names.PREPROCESSING, folder)
    return artifacts.download_artifact(workspace, run, names.CHECKPOINT, folder)


@pytest.mark.parametrize("form", ["models:/digits@champion", "models:/digits/1", "runs:/{}/model"])
def test_the_weights_and_the_normalisation_of_the_run_are_taken(
    workspace: Workspace, registered: list[str], tmp_path: Path, form: str
) -> None:
    model = stored_weights.resolve_weights(
        Model(name="small_cnn", weights=form.format(registered[0]), dropout=0.1)
    )
    file = artifact(workspace, registered[0], tmp_path / "copy")
    network = models.build(model, 3, 32)
    loaded = network.module.state_dict()
    assert all(
        torch.equal(loaded[key.replace("fc.", "fc.1.")], value)
        for key, value in load_file(file).items()
    )
    assert network.normalisation == NORMALISATION
    assert model.dropout == 0.1


def test_an_alias_its_version_its_run_and_the_file_have_one_hash(
    workspace: Workspace, registered: list[str], tmp_path: Path
) -> None:
    file = artifact(workspace, registered[0], tmp_path / "copy")
    forms = (
        "models:/digits@champion",
        "models:/digits/1",
        f"runs:/{registered[0]}/model",
        f"file:{file}",
    )
    assert (
        len(
            {
                config_hash(
                    Configuration(model=Model(name="small_cnn", weights=form)), origin(form)
                )
                for form in forms
            }
        )
        == 1
    )


def test_a_moved_alias_is_another_hash_and_changes_nothing_that_was_checked(
    workspace: Workspace, registered: list[str]
) -> None:
    model = Model(name="small_cnn", weights="models:/digits@champion")
    before = origin(model.weights)
    workspace.client.set_registered_model_alias("digits", "champion", "2")
    assert stored_weights.name_as_recorded(model, before).weights == "models:/digits/1"
    assert models.origin(stored_weights.resolve_weights(model, before)) == before
    after = origin(model.weights)
    assert after != before
    assert after == origin("models:/digits/2")
    assert stored_weights.name_as_recorded(model, after).weights == "models:/digits/2"


@pytest.mark.parametrize(
    ("given", "stands_for"),
    [
        ("models:/digits@champion", "models:/digits/1"),
        ("models:/digits/2", "models:/digits/2"),
        ("none", "none"),
    ],
)
def test_what_is_recorded_always_stands_for_the_same(
    registered: list[str], given: str, stands_for: str
) -> None:
    assert (
        stored_weights.name_as_recorded(
            Model(name="small_cnn", weights=given), origin(given)
        ).weights
        == stands_for
    )


def test_default_is_recorded_as_the_name_it_stands_for() -> None:
    model = Model(name="resnet50", weights="DEFAULT")
    assert stored_weights.resolve_weights(model) is model
    assert stored_weights.name_as_recorded(model, models.origin(model)).weights == "IMAGENET1K_V2"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (
            "models:/digit@champion",
            "no model 'digit' is registered; nearest: digits; there are: digits",
        ),
        (
            "models:/digits@champ",
            "model 'digits' has no alias 'champ'; nearest: champion; there are: champion",
        ),
        ("models:/digits/3", "model 'digits' has no version 3; there are: 1, 2"),
        ("models:/digits", "allowed: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model"),
        ("models:/digits/latest", "allowed: models:/NAME@ALIAS, "),
        ("runs:/abc", "allowed: models:/NAME@ALIAS, "),
        ("runs:/abc/checkpoint", "allowed: models:/NAME@ALIAS, "),
        (
            "runs:/0123456789abcdef0123456789abcdef/model",
            "there is no run '0123456789abcdef0123456789abcdef' in sqlite:",
        ),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(
    registered: list[str], weights: str, expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        origin(weights)
    assert caught.value.message.startswith(f"model.weights: {weights}: {expected}")


def test_weights_of_another_network_are_refused_naming_both(registered: list[str]) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"models:/digits@champion is a small_cnn, but model\.name is resnet18; they must be "
            "the same"
        ),
    ):
        stored_weights.resolve_weights(Model(name="resnet18", weights="models:/digits@champion"))


def test_ones_own_network_may_have_moved(workspace: Workspace, tmp_path: Path) -> None:
    run = trained_run(workspace, tmp_path, "file:there/net.py:build")
    assert stored_weights.resolve_weights(
        Model(name="file:net.py:build", weights=f"runs:/{run}/model")
    ).weights.endswith("best.safetensors")
    with pytest.raises(
        UserError, match=r"is a file:there/net\.py:build, but model\.name is file:net\.py:other"
    ):
        stored_weights.resolve_weights(
            Model(name="file:net.py:other", weights=f"runs:/{run}/model")
        )


def test_a_run_without_weights_is_refused(workspace: Workspace) -> None:
    with TrackedRun(workspace, "prepare", "prepare") as run:
        pass
    with pytest.raises(
        UserError,
        match=f"runs:/{run.id}/model: run {run.id} has no artifact checkpoint/best.safetensors",
    ):
        origin(f"runs:/{run.id}/model")


def test_a_run_that_still_runs_is_refused(workspace: Workspace) -> None:
    with (
        TrackedRun(workspace, "train", "busy") as run,
        pytest.raises(UserError, match=r"\(busy\) is still running"),
    ):
        origin(f"runs:/{run.id}/model")


def test_a_model_of_no_known_run_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    workspace.client.create_registered_model("foreign")
    workspace.client.create_model_version("foreign", tmp_path.as_uri())
    with pytest.raises(
        UserError, match="models:/foreign/1: no run is known that trained version 1"
    ):
        origin("models:/foreign/1")


def test_wrong_weights_end_a_step_with_one_line(
    cli: Cli, quick: Path, registered: list[str]
) -> None:
    done = cli("train", "--config", quick, "--model.weights", "models:/digits@champ")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "nearest: champion" in done.err


def test_a_champion_is_trained_further_on_other_classes(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    assert cli("train", "--config", quick).code == 0
    assert cli("evaluate", "--config", quick).code == 0
    assert cli("register", "--config", quick).code == 0
    (first,) = workspace.client.search_runs(
        [workspace.experiment_id], f"tags.`{names.STEP}` = 'train'"
    )
    five = write_digits(tmp_path / "five", 20, classes=(3, 4, 5, 6, 7))
    options = (
        "--data.source",
        f"folder:{five}",
        "--model.weights",
        "models:/quick@champion",
        "--model.freeze",
        "backbone",
    )
    done = cli("train", "--config", quick, *options)
    assert done.code == 0, done.err
    assert (
        "model.weights models:/quick@champion: its head (fc) is for 3 classes; a new random "
        "one for 5 is trained"
    ) in done.out
    second = workspace.client.search_runs(
        [workspace.experiment_id], order_by=["attributes.start_time DESC"]
    )[0].info.run_id
    (tmp_path / "one").mkdir()
    one, two = (
        artifact(workspace, first.info.run_id, tmp_path / "a"),
        artifact(workspace, second, tmp_path / "b"),
    )
    assert all(
        torch.equal(load_file(two)[key], value)
        for key, value in load_file(one).items()
        if key.startswith("conv")
    )
    first_preprocessing, second_preprocessing = (
        json.loads(
            artifacts.download_artifact(
                workspace, run, names.PREPROCESSING, tmp_path / "one"
            ).read_text()
        )
        for run in (first.info.run_id, second)
    )
    assert first_preprocessing["mean"] == second_preprocessing["mean"]
    configuration = yaml.safe_load(
        artifacts.download_artifact(workspace, second, names.CONFIG, tmp_path / "one").read_text()
    )
    assert configuration["model"]["weights"] == "models:/quick/1"
    shutil.rmtree(workspace.prepared / "weights")
    assert (
        "trained before"
        in cli("train", "--config", quick, *options, "--model.weights", f"file:{one}").out
    )
