"""torchvision's networks with its weights: what is trained comes back out of a run as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pipeline import models
from pipeline.config import Configuration, Data, Model
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.jobs.recorded_run import restore_network
from pipeline.tracking import names, stored_weights
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace
from pipeline.training.checkpoint import save_weights, weights_of
from tests.conftest import thorough_of
from tests.models.published import FAMILIES, entry_of, published
from tests.models.test_heads import starts_normally

pytestmark = pytest.mark.slow

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRANSFORMED = ("googlenet", "inception_v3")
SMALL = ("googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")


def run_of(
    workspace: Workspace,
    folder: Path,
    model: Model,
    size: int,
    module: nn.Module,
    normalisation: Sequence[Sequence[float]],
) -> str:
    """Log what a training of a network leaves behind, as version 1 of the model ``trained`` too."""
    data = Data(image_size=size)
    with TrackedRun(workspace, "train", model.name) as run:
        save_weights(weights_of(module), folder / "best.safetensors")
        run.file(folder / "best.safetensors", "checkpoint")
        run.configuration(Configuration(data=data, model=model))
        run.json(names.CLASSES, ["a", "b", "c"])
        run.json(
            names.PREPROCESSING,
            Preprocessing.of(data, (normalisation[0], normalisation[1])).to_dict(),
        )
    (folder / "best.safetensors").unlink()
    workspace.client.create_registered_model("trained")
    workspace.client.create_model_version("trained", f"runs:/{run.id}/model", run.id)
    return run.id


def logits(module: nn.Module, normalisation: Any, pixels: Tensor) -> Tensor:
    data = Data(image_size=pixels.shape[-1])
    with torch.inference_mode():
        answer: Tensor = module.eval()(Preprocessing.of(data, normalisation).normalise(pixels))
    return answer


def pixels_of(size: int) -> Tensor:
    return torch.randint(
        0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def answers_out_of(workspace: Workspace, run: str, name: str, pixels: Tensor) -> list[Tensor]:
    """Return what a run's network answers when it is continued, and when it is evaluated.

    A small network is asked by its registered version too.
    """
    size, answers = pixels.shape[-1], []
    for form in (f"runs:/{run}/model", *(["models:/trained/1"] if name in SMALL else [])):
        network = models.build(
            stored_weights.resolve_weights(Model(name=name, weights=form)), 3, size
        )
        answers.append(logits(network.module, network.normalisation, pixels))
    restored = restore_network(workspace, run)
    return [
        *answers,
        logits(restored.network, (restored.preprocessing.mean, restored.preprocessing.std), pixels),
    ]


def with_trained_head(module: nn.Module, head: str) -> nn.Module:
    """Return a network that has been trained on, as far as its answers are concerned."""
    with torch.no_grad():
        for parameter in module.get_submodule(head).parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    return module


def assert_same(answers: Sequence[Tensor], expected: Tensor) -> None:
    assert expected.std() > 1e-3
    for answer in answers:
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", thorough_of(FAMILIES, [*SMALL, "resnet18"]))
def test_a_new_head_starts_normally_and_weights_out_of_a_run_and_in_again_give_the_same_logits(
    workspace: Workspace, cache: Path, tmp_path: Path, name: str
) -> None:
    model, size = Model(name=name, weights=entry_of(name).name), FAMILIES[name]
    with published(name, cache):
        network = models.build(model, 3, size)
    assert starts_normally(network.module.get_submodule(network.head))
    with_trained_head(network.module, network.head)
    assert network.normalisation is not None
    pixels = pixels_of(size)
    expected = logits(network.module, network.normalisation, pixels)
    run = run_of(workspace, tmp_path, model, size, network.module, network.normalisation)
    assert_same(answers_out_of(workspace, run, name, pixels), expected)


def as_torchvision_has_it(name: str, cache: Path) -> nn.Module:
    """Return a network with named weights as torchvision builds it, which maps its input.

    It has a head for three classes.
    """
    with published(name, cache):
        module: Any = torchvision.models.get_model(name, weights="DEFAULT", aux_logits=True)
    module.aux_logits = False
    for auxiliary in ("aux1", "aux2", "AuxLogits"):
        if hasattr(module, auxiliary):
            setattr(module, auxiliary, None)
    assert module.transform_input
    module.fc = nn.Linear(module.fc.in_features, 3)
    return with_trained_head(module, "fc")


@pytest.mark.parametrize("name", TRANSFORMED)
def test_the_normalisation_does_what_torchvision_does_inside_the_network(
    cache: Path, name: str
) -> None:
    expected = as_torchvision_has_it(name, cache)
    with published(name, cache):
        network = models.build(Model(name=name, weights="DEFAULT"), 3, FAMILIES[name])
    pixels = pixels_of(FAMILIES[name])
    assert_same(
        [logits(with_trained_head(network.module, "fc"), network.normalisation, pixels)],
        logits(expected, IMAGENET, pixels),
    )


@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_run_of_the_first_release_answers_as_it_did(
    workspace: Workspace, cache: Path, tmp_path: Path, name: str
) -> None:
    module = as_torchvision_has_it(name, cache)
    model = Model(name=name, weights="IMAGENET1K_V1")
    pixels = pixels_of(FAMILIES[name])
    run = run_of(workspace, tmp_path, model, FAMILIES[name], module, IMAGENET)
    assert_same(answers_out_of(workspace, run, name, pixels), logits(module, IMAGENET, pixels))


@pytest.mark.parametrize("weights", ["none", "runs:/0123456789abcdef0123456789abcdef/model"])
def test_a_run_that_had_no_map_inside_the_network_keeps_its_normalisation(
    workspace: Workspace, tmp_path: Path, weights: str
) -> None:
    network = models.build(Model(name="googlenet"), 3, 64)
    with_trained_head(network.module, "fc")
    pixels = pixels_of(64)
    run = run_of(
        workspace, tmp_path, Model(name="googlenet", weights=weights), 64, network.module, IMAGENET
    )
    assert_same(
        answers_out_of(workspace, run, "googlenet", pixels),
        logits(network.module, IMAGENET, pixels),
    )


@pytest.mark.parametrize("name", TRANSFORMED)
def test_the_published_file_is_taken_by_path_too(cache: Path, name: str) -> None:
    with published(name, cache) as file:
        named = models.build(
            Model(name=name, weights="DEFAULT"), 3, FAMILIES[name]
        ).module.state_dict()
        network = models.build(Model(name=name, weights=f"file:{file}"), 3, FAMILIES[name])
    loaded = network.module.state_dict()
    assert all(
        torch.equal(loaded[key], value) for key, value in named.items() if not key.startswith("fc.")
    )
    assert (
        "its auxiliary heads, which serve training from random weights, are left out"
        in network.notes
    )


def test_weights_without_a_classifier_are_no_weights_of_a_classifier() -> None:
    with pytest.raises(
        UserError,
        match=(
            r"unknown model\.weights 'IMAGENET1K_FEATURES' of vgg16; nearest: IMAGENET1K_V1; "
            "allowed: "
        ),
    ):
        models.check(Model(name="vgg16", weights="IMAGENET1K_FEATURES"), 3, 64)
