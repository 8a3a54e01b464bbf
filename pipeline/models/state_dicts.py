"""State dicts from the files that people have.

They are read without running code, freed from the names of wrappers, and loaded if they fit.
"""

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
"""Keys under which training scripts keep a state dict among other things, in the order of choice.

The average over the last training steps is mostly the better network.
"""
_WRAPPERS = ("module", "model", "network", "net", "_orig_mod")
_WRAPPERS_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
_PLAIN_VALUES = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
    _NUMPY_SCALAR,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
]
"""Types that may stand in a file beside tensors, numbers and texts.

They are a script's arguments, and scores as numpy's numbers. To make one runs no code.
"""


class StateDict(NamedTuple):
    """A state dict from a file.

    Attributes:
        tensors: Tensors by name.
        notes: What a person should know about where it stood in the file.
    """

    tensors: dict[str, Tensor]
    notes: list[str]


class Loaded(NamedTuple):
    """What has become of a state dict.

    Attributes:
        keeps_head: Whether the network's own head stayed, since the file's head is missing or for
            another number of classes.
        notes: What a person should know about the weights.
    """

    keeps_head: bool
    notes: list[str]


def read_state(file: Path) -> StateDict:
    """Read a state dict from safetensors, or from a torch file without unpickling anything else.

    It may stand under a usual key of a checkpoint (``{"model": …}``), and there under another one.

    Raises:
        UserError: The file is neither, or holds something else than weights.
    """
    try:
        content = _read_content(file)
    except Exception as error:
        # On a damaged file the readers may fail with any error.
        raise UserError(
            f"model.weights: {str(file)!r} is no state dict or safetensors file: "
            f"{_explain_failure(error)}"
        ) from None
    notes: list[str] = []
    for _ in range(2):
        content = _look_inside(content, notes)
    if not isinstance(content, Mapping):
        raise UserError(
            f"model.weights: {str(file)!r} holds no state dict, but a {type(content).__name__}"
        )
    if not content:
        raise UserError(f"model.weights: {str(file)!r} holds no state dict: it is empty")
    for key, value in content.items():
        problem = _find_problem(key, value)
        if problem is not None:
            raise UserError(f"model.weights: {str(file)!r} holds no state dict: {problem}")
    return StateDict(dict(content), notes)


def _read_content(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    # torch warns of kinds of files and tensors that are refused later anyway.
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_PLAIN_VALUES):
        return torch.load(file, map_location="cpu", weights_only=True)


def _explain_failure(error: Exception) -> str:
    """Return why torch or safetensors cannot read a file.

    torch's advice to let the file run code is left out.
    """
    text = str(error)
    stranger = re.search(r"GLOBAL (\S+)", text)
    if stranger:
        return (
            f"it holds a Python object ({stranger[1]}), which could run code; "
            "save network.state_dict() alone"
        )
    if "TorchScript" in text:
        return "it is a TorchScript archive; save network.state_dict() instead"
    if "weights_only" in text:
        return "it holds more than tensors, numbers and texts; save network.state_dict() alone"
    return first_line(error)


def _look_inside(content: Any, notes: list[str]) -> Any:
    """Return what stands under a usual key of a checkpoint; the content itself if it has none."""
    if not isinstance(content, Mapping):
        return content
    found = [key for key in _INSIDE if _holds_tensors(content.get(key))]
    if not found:
        return content
    taken = found[0]
    average = ", an average over training steps," if taken in _AVERAGED else ""
    others = " or ".join(map(repr, found[1:]))
    beside = f" rather than those under {others}" if others else ""
    notes.append(f"those under {taken!r}{average} in the file are taken{beside}")
    return content[taken]


def _holds_tensors(value: Any, depth: int = 2) -> bool:
    if not isinstance(value, Mapping) or not depth:
        return False
    return any(
        isinstance(inner, Tensor) or _holds_tensors(inner, depth - 1) for inner in value.values()
    )


def _find_problem(key: Any, value: Any) -> str | None:
    """Return why an entry cannot be one of a state dict, or None."""
    if not isinstance(key, str):
        return f"the key {key!r} is no name"
    if not isinstance(value, Tensor):
        return f"{key!r} is a {type(value).__name__}, no tensor"
    if value.is_meta:
        return f"{key!r} has a shape but no values (device meta)"
    if value.is_nested:
        kind = "nested"
    elif value.is_quantized:
        kind = "quantized"
    elif value.layout != torch.strided:
        kind = "sparse"
    else:
        return None
    return f"{key!r} is a {kind} tensor; dense ones are needed"


def load_state(
    module: nn.Module, file: Path, name: str, head: str = "", only_finite: bool = False
) -> Loaded:
    """Load a state dict into a network of the same names and shapes.

    Args:
        module: The network. On the meta device names and shapes are compared only.
        file: A state dict, or a safetensors file.
        name: Name of the network, for messages.
        head: Submodule that keeps its own weights if the file has none for it, or has them for
            another number of classes; empty if there is no such submodule.
        only_finite: Refuse NaN and infinity in tensors whose own values in the network are finite.

    Raises:
        UserError: Other names, shapes or kinds of numbers differ. The differences are listed.
    """
    own = module.state_dict()
    read = read_state(file)
    notes = read.notes
    state = _remove_wrappers(own, read.tensors, notes)
    state = _remove_auxiliary_heads(own, state, name, notes)
    state = _rename_as_in(own, state)
    expected: Mapping[str, Tensor] = own
    head_note = _describe_differing_head(own, state, head)
    if head_note:
        notes.append(head_note)
        state = _without_head(state, head)
        expected = _without_head(own, head)
    _need_same_tensors(expected, state, file, name)
    if only_finite:
        _need_finite(own, state, file)
    if not next(module.parameters()).is_meta:
        # The network's own dict carries the versions of its layers. A file of tensors does not.
        own.update(state)
        module.load_state_dict(own)
    return Loaded(bool(head_note), notes)


def _remove_wrappers(
    own: Mapping[str, Tensor], state: dict[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """Remove from the names what has wrapped the network when it was saved.

    It may be DataParallel, torch.compile, AveragedModel, Lightning and others.
    """
    for within in _WRAPPERS_WITHIN:
        is_wrapped = any(within in key for key in state)
        if is_wrapped and not any(within in key for key in own):
            state = {key.replace(within, ""): value for key, value in state.items()}
            notes.append(f"{within} is left out of its names")
    # AveragedModel counts what it has averaged.
    rest = {key: value for key, value in state.items() if key != "n_averaged" or key in own}
    wrapper = _common_wrapper(rest)
    while wrapper and own.keys().isdisjoint(rest):
        rest = {key.removeprefix(wrapper): value for key, value in rest.items()}
        state = rest
        notes.append(f"the prefix {wrapper} is left out of its names")
        wrapper = _common_wrapper(rest)
    return state


def _common_wrapper(state: Mapping[str, Tensor]) -> str:
    """Return the prefix of a wrapper that all names have, or an empty string."""
    if not all("." in key for key in state):
        return ""
    first = {key.partition(".")[0] for key in state}
    if len(first) == 1 and first < set(_WRAPPERS):
        return f"{first.pop()}."
    return ""


def _remove_auxiliary_heads(
    own: Mapping[str, Tensor], state: dict[str, Tensor], name: str, notes: list[str]
) -> dict[str, Tensor]:
    prefixes = _AUXILIARY.get(name, ())
    auxiliary = [key for key in state if key not in own and key.startswith(prefixes)]
    if not auxiliary:
        return state
    notes.append("its auxiliary heads, which serve training from random weights, are left out")
    return {key: value for key, value in state.items() if key not in auxiliary}


def _rename_as_in(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the network's names if the names differ for reasons that do not matter."""
    return {_find_name(own, key): value for key, value in state.items()}


def _find_name(own: Mapping[str, Tensor], key: str) -> str:
    """Return the network's name for a tensor of the file; the file's name if it has none.

    Two differences do not matter. Only one of network and file may have dropout before the head
    (``fc.1.weight``, ``fc.weight``). DenseNet's layers are ``norm.1`` in torchvision's files and
    ``norm1`` in its network.
    """
    stem, _, last = key.rpartition(".")
    names = (
        key,
        f"{stem}.1.{last}",
        f"{stem.removesuffix('.1')}.{last}",
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", key),
    )
    for name in names:
        if name in own:
            return name
    return key


def _describe_differing_head(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], head: str
) -> str:
    """Return what a person is told if the file's head is missing or for another number of classes.

    Otherwise the text is empty.
    """
    keys = [key for key in own if head and key.startswith(f"{head}.")]
    present = [key for key in keys if key in state]
    if keys and not present:
        return f"it has no head ({head}); a new random one is trained"
    differing = [key for key in present if state[key].shape != own[key].shape]
    # The number of classes is the first dimension of weight and bias. All other dimensions belong
    # to the architecture.
    is_of_classes = all(
        state[key].dim() and state[key].shape[1:] == own[key].shape[1:] for key in differing
    )
    if not differing or len(present) < len(keys) or not is_of_classes:
        return ""
    classes = state[differing[-1]].shape[0]
    wanted = own[differing[-1]].shape[0]
    return f"its head ({head}) is for {classes} classes; a new random one for {wanted} is trained"


def _without_head(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(f"{head}.")}


def _need_same_tensors(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], file: Path, name: str
) -> None:
    # Older files have no count of BatchNorm's batches, which only averages without momentum need.
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    differences = [f"missing: {key}" for key in needed if key not in state]
    differences += [f"not in {name}: {key}" for key in state if key not in own]
    common = [key for key in own if key in state]
    compared = [_describe_difference(key, state[key], own[key], name) for key in common]
    differences += filter(None, compared)
    if not differences:
        return
    differ = f"{len(differences)} tensors differ"
    if len(differences) == 1:
        differ = "1 tensor differs"
    shown = differences[:10]
    if len(differences) > 10:
        shown.append(f"and {len(differences) - 10} more")
    raise UserError(
        f"model.weights: {str(file)!r} is of another architecture than {name}: {differ}", shown
    )


def _describe_difference(key: str, given: Tensor, own: Tensor, name: str) -> str:
    if given.shape != own.shape:
        return f"{key}: {tuple(given.shape)} in the file, {tuple(own.shape)} in {name}"
    if given.is_complex() != own.is_complex() or (
        own.is_floating_point() and not given.is_floating_point()
    ):
        return f"{key}: {given.dtype} in the file, {own.dtype} in {name}"
    return ""


def _need_finite(own: Mapping[str, Tensor], state: Mapping[str, Tensor], file: Path) -> None:
    for key, value in state.items():
        # A mask in the user's own network may hold infinities.
        may_be = not own[key].is_meta and not own[key].isfinite().all()
        if value.is_floating_point() and not may_be and not value.float().isfinite().all():
            what = "NaN" if value.float().isnan().any() else "infinite values"
            raise UserError(f"model.weights: {str(file)!r} cannot be used: {key} holds {what}")
