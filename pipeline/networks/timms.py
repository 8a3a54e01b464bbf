"""timm's networks, ``timm/NAME``, with its weights by tag; timm is the extra ``timm`` and imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import Model
from pipeline.errors import UserError, first_line, nearest, unknown_name
from pipeline.networks.heads import start_head
from pipeline.state_dicts import read_state
from pipeline.weights import BY_PLACE, are_named, download

PREFIX = "timm/"


def synchronised(module: nn.Module) -> nn.Module:
    """Return a network whose BatchNorm takes its statistics over all processes of a group, on GPUs.

    Raises:
        UserError: It has a BatchNorm of another kind than torch's and timm's, of which torch would make a plain one.
    """
    known = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    if "timm" in sys.modules:
        # timm's layers apply the activation too.
        layers: Any = _timm().layers
        known |= {layers.BatchNormAct2d, layers.SyncBatchNormAct}
        convert = layers.convert_sync_batchnorm
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and type(part) not in known:
            raise UserError(
                f"training.processes: {type(part).__name__}, a BatchNorm of its own kind, cannot be trained on several GPUs"
            )
    return convert(module)


def is_timms(name: str) -> bool:
    """Whether `model.name` is one of timm's."""
    return name.startswith(PREFIX)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"model.name: timm/ needs timm ({error}): pip install 'image-classifier-pipeline[timm]'"
        ) from None
    return timm


def _architecture(model: Model) -> str:
    name, known = model.name.removeprefix(PREFIX), _timm().list_models()
    if name not in known:
        raise unknown_name("model.name", model.name, [PREFIX + other for other in known])
    return name


def settings(model: Model) -> Any:
    """Return timm's settings (tag, mean, std, where the weights are) of the weights, those of DEFAULT where they are none or a file.

    Raises:
        UserError: timm is not installed, has no such network, or no such weights of it.
    """
    timm, name = _timm(), _architecture(model)
    default = timm.get_pretrained_cfg(name)
    if not are_named(model.weights):
        return default
    tags = [full.partition(".")[2] for full in timm.list_pretrained(name)]
    if model.weights == "DEFAULT" and default.tag in tags:
        return default
    if model.weights not in tags:
        allowed = ["none", *(["DEFAULT", *filter(None, tags)] if tags else [])]
        raise UserError(
            f"unknown model.weights {model.weights!r} of {model.name}{nearest(model.weights, allowed)}; "
            f"allowed: {', '.join(allowed)}, {BY_PLACE}"
        )
    return timm.get_pretrained_cfg(f"{name}.{model.weights}")


def fetch_timms(model: Model) -> Path:
    """Return the file of named weights, downloaded where it is not there yet.

    Raises:
        UserError: It cannot be downloaded; the message says where to put the file.
    """
    found = settings(model)
    url = found.url
    if found.hf_hub_id:
        from huggingface_hub import hf_hub_url

        repository, _, revision = found.hf_hub_id.partition("@")
        url = hf_hub_url(
            repository, found.hf_hub_filename or "model.safetensors", revision=revision or None
        )
    suffix = Path(url).suffix or ".pth"
    # One folder for all weights, torchvision's own: timm's would be a cache whose layout no person can fill.
    file = (
        Path(torch.hub.get_dir())
        / "checkpoints"
        / f"timm-{_architecture(model)}.{found.tag or 'default'}{suffix}"
    )
    if not file.is_file():
        download(model, url, file)
    return file


def build_timms(
    model: Model, num_classes: int, image_size: int, load: bool
) -> tuple[nn.Module, str]:
    """Build a network for the classes, its named weights loaded if asked.

    Returns:
        The network, and the name of its head; "" where it has several.

    Raises:
        UserError: As `settings`, or it cannot be built for that image size.
    """
    found, name = settings(model), _architecture(model)
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if found.fixed_input_size:
        arguments["img_size"] = image_size
    if load and are_named(model.weights):
        # Read by us, so that nothing is unpickled; timm then renames, resizes and drops the old head.
        arguments |= {
            "pretrained": True,
            "pretrained_cfg_overlay": {"state_dict": read_state(fetch_timms(model)).tensors},
        }
    full_name = f"{name}.{found.tag}" if are_named(model.weights) and found.tag else name
    try:
        module: nn.Module = _timm().create_model(full_name, **arguments)
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise UserError(
            f"model.name: {model.name} cannot be built for data.image_size {image_size}: {first_line(error)}"
        ) from None
    heads = (
        [found.classifier] if isinstance(found.classifier, str) else list(found.classifier or [])
    )
    if load and are_named(model.weights):
        # Of its own for as many classes too: those of somebody else's images.
        for head in heads:
            start_head(module.get_submodule(head))
    return module, heads[0] if len(heads) == 1 else ""


def normalisation(model: Model) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel that timm's weights of the network were trained with."""
    found = settings(model)
    return [float(value) for value in found.mean], [float(value) for value in found.std]
