"""State dicts from the files that people have: read without running code, freed of what wrapped them, loaded where they fit."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import UserError, first_line

_AVERAGED = ("model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema")
_INSIDE = (*_AVERAGED, "state_dict", "model_state_dict", "model", "network", "net")
"""Keys under which training scripts keep a state dict among other things; the average over the last steps is mostly the better network."""
_WRAPPERS = ("module", "model", "network", "net", "_orig_mod")
_WRAPPERS_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
_scalar: Any = np.float64(0).__reduce__()[0]
_PLAIN_VALUES = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
    _scalar,
    (_scalar, "numpy.core.multiarray.scalar"),
]
"""What beside tensors, numbers and texts may stand in a file: a script's arguments, scores as numpy's numbers. To make one runs no code."""


class StateDict(NamedTuple):
    """A state dict from a file.

    Attributes:
        tensors: By name.
        notes: What a person should know about where it stood in the file.
    """

    tensors: dict[str, Tensor]
    notes: list[str]


class Loaded(NamedTuple):
    """What has become of a state dict.

    Attributes:
        keeps_head: The network's own head stayed: the file's is for another number of classes, or missing.
        notes: What a person should know about the weights.
    """

    keeps_head: bool
    notes: list[str]


def read_state(file: Path) -> StateDict:
    """Read a state dict from safetensors, or from a torch file without unpickling anything else.

    It may stand under a usual key of a checkpoint (``{"model": …}``), and there once more.

    Raises:
        UserError: The file is neither, or holds what is no weights.
    """
    try:
        content = _content(file)
    except Exception as error:
        # A damaged file makes the readers stumble over anything.
        raise UserError(
            f"model.weights: {str(file)!r} is no state dict or safetensors file: {_why(error)}"
        ) from None
    notes: list[str] = []
    for _ in range(2):
        content = _inside(content, notes)
    if not isinstance(content, Mapping):
        raise UserError(
            f"model.weights: {str(file)!r} holds no state dict, but a {type(content).__name__}"
        )
    if not content:
        raise UserError(f"model.weights: {str(file)!r} holds no state dict: it is empty")
    for key, value in content.items():
        if (wrong := _wrong_with(key, value)) is not None:
            raise UserError(f"model.weights: {str(file)!r} holds no state dict: {wrong}")
    return StateDict(dict(content), notes)


def _content(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    # torch warns of kinds of files and tensors that are refused anyway.
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_PLAIN_VALUES):
        return torch.load(file, map_location="cpu", weights_only=True)


def _why(error: Exception) -> str:
    """Return why torch or safetensors cannot read a file, without torch's advice to let the file run code."""
    text = str(error)
    if stranger := re.search(r"GLOBAL (\S+)", text):
        return f"it holds a Python object ({stranger[1]}), which could run code; save network.state_dict() alone"
    if "TorchScript" in text:
        return "it is a TorchScript archive; save network.state_dict() instead"
    if "weights_only" in text:
        return "it holds more than tensors, numbers and texts; save network.state_dict() alone"
    return first_line(error)


def _inside(content: Any, notes: list[str]) -> Any:
    """Return what stands under a usual key of a checkpoint; the content itself where it has none."""
    if not isinstance(content, Mapping):
        return content
    found = [key for key in _INSIDE if _holds_tensors(content.get(key))]
    if not found:
        return content
    taken = found[0]
    average = ", an average over training steps," if taken in _AVERAGED else ""
    beside = f" rather than those under {' or '.join(map(repr, found[1:]))}" if found[1:] else ""
    notes.append(f"those under {taken!r}{average} in the file are taken{beside}")
    return content[taken]


def _holds_tensors(value: Any, depth: int = 2) -> bool:
    if not isinstance(value, Mapping) or not depth:
        return False
    return any(
        isinstance(inner, Tensor) or _holds_tensors(inner, depth - 1) for inner in value.values()
    )


def _wrong_with(key: Any, value: Any) -> str | None:
    """Return why an entry is none of a state dict, or None."""
    if not isinstance(key, str):
        return f"the key {key!r} is no name"
    if not isinstance(value, Tensor):
        return f"{key!r} is a {type(value).__name__}, no tensor"
    if value.is_meta:
        return f"{key!r} has a shape but no values (device meta)"
    if value.is_nested or value.is_quantized or value.layout != torch.strided:
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else "sparse"
        return f"{key!r} is a {kind} tensor; dense ones are needed"
    return None


def load_state(
    module: nn.Module, file: Path, name: str, head: str = "", only_finite: bool = False
) -> Loaded:
    """Load a state dict into a network of its names and shapes.

    Args:
        module: The network; on the meta device names and shapes are compared only.
        file: State dict or safetensors.
        name: Of the network, for messages.
        head: Submodule that keeps its own weights where the file's are for another number of classes, or missing; "": none does.
        only_finite: Refuse NaN and infinity where the network's own values are finite.

    Raises:
        UserError: Other names, shapes or kinds of numbers differ; the differences are listed.
    """
    own = module.state_dict()
    read = read_state(file)
    state, notes = _without_wrappers(own, read.tensors)
    if name in _AUXILIARY and (
        auxiliary := [key for key in state if key not in own and key.startswith(_AUXILIARY[name])]
    ):
        state = {key: value for key, value in state.items() if key not in auxiliary}
        notes.append("its auxiliary heads, which serve training from random weights, are left out")
    state = _under_names_of(own, state)
    note = _differing_head(own, state, head)
    if note:
        state = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
    # Older files have no count of BatchNorm's batches, which only averages without momentum need.
    expected = [
        key
        for key in own
        if not (note and key.startswith(f"{head}.")) and not key.endswith("num_batches_tracked")
    ]
    differences = [f"missing: {key}" for key in expected if key not in state] + [
        f"not in {name}: {key}" for key in state if key not in own
    ]
    differences += [
        difference
        for key in own
        if key in state and (difference := _difference(key, state[key], own[key], name))
    ]
    if differences:
        shown = differences[:10] + (
            [f"and {len(differences) - 10} more"] if len(differences) > 10 else []
        )
        differ = (
            "1 tensor differs" if len(differences) == 1 else f"{len(differences)} tensors differ"
        )
        raise UserError(
            f"model.weights: {str(file)!r} is of another architecture than {name}: {differ}", shown
        )
    if only_finite:
        _need_finite(own, state, file)
    if not next(module.parameters()).is_meta:
        # The network's own dict carries the versions of its layers, which a file of tensors does not.
        own.update(state)
        module.load_state_dict(own)
    return Loaded(bool(note), [*read.notes, *notes, *filter(None, [note])])


def _difference(key: str, given: Tensor, own: Tensor, name: str) -> str:
    if given.shape != own.shape:
        return f"{key}: {tuple(given.shape)} in the file, {tuple(own.shape)} in {name}"
    if given.is_complex() != own.is_complex() or (
        own.is_floating_point() and not given.is_floating_point()
    ):
        return f"{key}: {given.dtype} in the file, {own.dtype} in {name}"
    return ""


def _need_finite(own: Mapping[str, Tensor], state: Mapping[str, Tensor], file: Path) -> None:
    for key, value in state.items():
        # A mask of one's own network may hold infinities.
        may_be = not own[key].is_meta and not own[key].isfinite().all()
        if value.is_floating_point() and not may_be and not value.float().isfinite().all():
            what = "NaN" if value.float().isnan().any() else "infinite values"
            raise UserError(f"model.weights: {str(file)!r} cannot be used: {key} holds {what}")


def _without_wrappers(
    own: Mapping[str, Tensor], state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Leave out what has wrapped a network when it was saved: DataParallel, torch.compile, AveragedModel, Lightning and the like."""
    notes = []
    for within in _WRAPPERS_WITHIN:
        if any(within in key for key in state) and not any(within in key for key in own):
            state = {key.replace(within, ""): value for key, value in state.items()}
            notes.append(f"{within} is left out of its names")
    # AveragedModel counts what it has averaged.
    rest = {key: value for key, value in state.items() if key != "n_averaged" or key in own}
    while not any(key in own for key in rest) and (wrapper := _common_wrapper(rest)):
        state = rest = {key.removeprefix(wrapper): value for key, value in rest.items()}
        notes.append(f"the prefix {wrapper} is left out of its names")
    return state, notes


def _common_wrapper(state: Mapping[str, Tensor]) -> str:
    first = {key.partition(".")[0] for key in state if "." in key}
    return (
        f"{first.pop()}."
        if len(first) == 1 and first < set(_WRAPPERS) and all("." in key for key in state)
        else ""
    )


def _differing_head(own: Mapping[str, Tensor], state: Mapping[str, Tensor], head: str) -> str:
    """Return what is to be said where the file's head is missing or for another number of classes, else ""."""
    keys = [key for key in own if key.startswith(f"{head}.")] if head else []
    present = [key for key in keys if key in state]
    if keys and not present:
        return f"it has no head ({head}); a new random one is trained"
    differing = [key for key in present if state[key].shape != own[key].shape]
    # The number of classes is the first dimension of weight and bias; all others are the architecture's.
    is_of_classes = all(
        state[key].dim() and state[key].shape[1:] == own[key].shape[1:] for key in differing
    )
    if not differing or len(present) < len(keys) or not is_of_classes:
        return ""
    classes, wanted = state[differing[-1]].shape[0], own[differing[-1]].shape[0]
    return f"its head ({head}) is for {classes} classes; a new random one for {wanted} is trained"


def _under_names_of(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename what has other names in the file for reasons that are no difference.

    The head, where only one of network and file has dropout before it (``fc.1.weight``, ``fc.weight``); DenseNet's layers,
    which are ``norm.1`` in torchvision's files and ``norm1`` in its network.
    """
    renamed = {}
    for key, value in state.items():
        stem, _, last = key.rpartition(".")
        others = [
            key,
            f"{stem}.1.{last}",
            f"{stem.removesuffix('.1')}.{last}",
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", key),
        ]
        renamed[next((other for other in others if other in own), key)] = value
    return renamed
