"""timm's networks, ``timm/NAME``, with its weights by tag.

timm is the extra ``timm`` of this package, and imported only when one of its networks is asked for.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.config import Model
from pipeline.errors import UserError, first_line, nearest, unknown_name
from pipeline.models.family import Family
from pipeline.models.heads import start_head
from pipeline.models.state_dicts import read_state
from pipeline.models.weights import BY_PLACE, Normalisation, download, download_folder

PREFIX = "timm/"


class TimmModels(Family):
    """All of timm's networks."""

    def has(self, name: str) -> bool:
        return name.startswith(PREFIX)

    def identity(self, model: Model, num_classes: int, image_size: int) -> dict[str, str]:
        find_settings(model)
        return {"name": model.name}

    def weights_name(self, model: Model) -> str:
        return find_settings(model).tag or model.weights

    def fetch_weights(self, model: Model) -> None:
        fetch(model)

    def normalisation(self, model: Model) -> tuple[Normalisation, str] | None:
        found = find_settings(model)
        mean = [float(value) for value in found.mean]
        std = [float(value) for value in found.std]
        return (mean, std), f"of timm's weights {found.tag or 'DEFAULT'} of {model.name}"

    def libraries(self) -> list[str]:
        return [f"timm {version('timm')}"]

    def why_no_head(self, model: Model) -> str:
        return f"one head; {model.name} has several"

    def build(
        self, model: Model, num_classes: int, image_size: int, load: bool
    ) -> tuple[nn.Module, str]:
        settings = find_settings(model)
        full_name = _find_architecture(model)
        is_published = model.weights_kind == "published"
        arguments: dict[str, Any] = {"num_classes": num_classes}
        if settings.fixed_input_size:
            arguments["img_size"] = image_size
        if load and is_published:
            # The file is read here, so that nothing is unpickled. timm then renames and resizes
            # the tensors, and drops the old head.
            arguments["pretrained"] = True
            arguments["pretrained_cfg_overlay"] = {"state_dict": read_state(fetch(model)).tensors}
        if is_published and settings.tag:
            full_name = f"{full_name}.{settings.tag}"
        try:
            module: nn.Module = _import_timm().create_model(full_name, **arguments)
        except (ValueError, RuntimeError, AssertionError, TypeError) as error:
            raise UserError(
                f"model.name: {model.name} cannot be built for data.image_size {image_size}: "
                f"{first_line(error)}"
            ) from None
        heads = settings.classifier or []
        heads = [heads] if isinstance(heads, str) else list(heads)
        if load and is_published:
            # The head is a new one for the same number of classes too: the old one is for the
            # classes of somebody else's images.
            for name in heads:
                start_head(module.get_submodule(name))
        head = heads[0] if len(heads) == 1 else ""
        return module, head


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"model.name: timm/ needs timm ({error}): pip install 'image-classifier-pipeline[timm]'"
        ) from None
    return timm


def _find_architecture(model: Model) -> str:
    name = model.name.removeprefix(PREFIX)
    known = _import_timm().list_models()
    if name not in known:
        raise unknown_name("model.name", model.name, [PREFIX + other for other in known])
    return name


def find_settings(model: Model) -> Any:
    """Return timm's settings (tag, mean, std, address) of the weights.

    If the weights are none or a file, they are the settings of ``DEFAULT``.

    Raises:
        UserError: timm is not installed, has no such network, or no such weights of it.
    """
    timm = _import_timm()
    name = _find_architecture(model)
    default = timm.get_pretrained_cfg(name)
    if model.weights_kind != "published":
        return default
    tags = [full.partition(".")[2] for full in timm.list_pretrained(name)]
    if model.weights == "DEFAULT" and default.tag in tags:
        return default
    if model.weights in tags:
        return timm.get_pretrained_cfg(f"{name}.{model.weights}")
    allowed = ["none"]
    if tags:
        allowed += ["DEFAULT", *filter(None, tags)]
    raise UserError(
        f"unknown model.weights {model.weights!r} of {model.name}"
        f"{nearest(model.weights, allowed)}; allowed: {', '.join(allowed)}, {BY_PLACE}"
    )


def fetch(model: Model) -> Path:
    """Return the file of published weights; download it if it is not here yet.

    Raises:
        UserError: There are no such weights.
        Unreachable: The weights cannot be downloaded. The message says where to put the file.
    """
    settings = find_settings(model)
    url = settings.url
    if settings.hf_hub_id:
        from huggingface_hub import hf_hub_url

        repository, _, revision = settings.hf_hub_id.partition("@")
        name = settings.hf_hub_filename or "model.safetensors"
        url = hf_hub_url(repository, name, revision=revision or None)
    suffix = Path(url).suffix or ".pth"
    # The file is not kept in timm's own folder, a cache with a layout that no person can fill.
    name = f"timm-{_find_architecture(model)}.{settings.tag or 'default'}{suffix}"
    file = download_folder() / name
    if not file.is_file():
        download(model, url, file)
    return file
