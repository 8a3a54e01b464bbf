"""Groups of a network's layers that are looked at together, and the spread of their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import digits

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MOST_GROUPS = 12
MOST_VALUES = 20_000
_MOST_BINS = 120

_Part = tuple[str, nn.Module | nn.Parameter]


def layer_groups(module: nn.Module, most: int = MOST_GROUPS) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters of a network in groups by place, from its input to its head.

    Groups are the network's top-level parts (resnet: conv1, bn1, layer1 to layer4, fc). A part that
    holds nearly all of the network is replaced by its children (densenet: features.denseblock1 and
    so on). If there are too many groups, small neighbours are merged (features.2-5).

    Args:
        module: Any network.
        most: Largest number of groups.

    Returns:
        Parameters by the group's name, which is the module's path. Frozen parameters, and groups
        that have no others, are left out.
    """
    parts = _children("", module)
    total = sum(len(_trainable(part)) for _, part in parts)
    while parts:
        largest = max(range(len(parts)), key=lambda place: len(_trainable(parts[place][1])))
        name, part = parts[largest]
        # Tensors are counted and not numbers: three quarters of resnet18's numbers are in layer4.
        share = len(_trainable(part)) / total
        holds_most = share > 0.8 or (share > 0.5 and len(parts) < 4)
        if isinstance(part, nn.Parameter) or not holds_most:
            break
        children = _children(name, part)
        if all(isinstance(child, nn.Parameter) for _, child in children):
            break
        parts[largest : largest + 1] = children
    return _merge({name: _trainable(part) for name, part in parts}, most)


def _children(name: str, module: nn.Module) -> list[_Part]:
    prefix = f"{name}." if name else ""
    named: list[_Part] = [*module.named_parameters(recurse=False), *module.named_children()]
    return [(prefix + child, part) for child, part in named if _trainable(part)]


def _trainable(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    parameters = [part] if isinstance(part, nn.Parameter) else part.parameters()
    return [parameter for parameter in parameters if parameter.requires_grad]


def _merge(groups: dict[str, list[nn.Parameter]], most: int) -> dict[str, list[nn.Parameter]]:
    """Merge the two neighbours that are smallest together, until there are at most `most` groups.

    The input's and the head's group stay alone as long as they can.
    """
    merged = [([name], parameters) for name, parameters in groups.items()]
    while len(merged) > most:
        places = range(len(merged) - 1)
        if len(merged) > 3:
            places = range(1, len(merged) - 2)
        place = min(places, key=lambda at: len(merged[at][1]) + len(merged[at + 1][1]))
        names, parameters = merged[place]
        more_names, more_parameters = merged[place + 1]
        merged[place : place + 2] = [(names + more_names, parameters + more_parameters)]
    return {_span(names): parameters for names, parameters in merged}


def _span(names: Sequence[str]) -> str:
    """Return the name of merged groups.

    It is ``features.2-5`` for features.2 to features.5, and ``blocks.11-norm`` for blocks.11 to
    norm.
    """
    first = names[0]
    last = names[-1]
    if first == last:
        return first
    stem = last.rstrip(digits)
    if stem == first.rstrip(digits):
        last = last.removeprefix(stem)
    return f"{first}-{last}"


def kernels(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the matrices and kernels; if there are none (a normalisation layer), all parameters.

    Biases and a normalisation's factors are few and of another size: beside the kernels they would
    only stretch the axis of a histogram.
    """
    found = [parameter for parameter in parameters if parameter.ndim >= 2]
    return found or list(parameters)


def subsample(tensors: Sequence[Tensor], most: int = MOST_VALUES) -> NDArray[np.float32]:
    """Return about every k-th value of all tensors together, shape (values,).

    There are at most `most` values, and one more per tensor. The stride depends on the sizes alone:
    no random generator is touched, and the values are from the same places each time.
    """
    stride = math.ceil(sum(tensor.numel() for tensor in tensors) / most) or 1
    # A stride that divides the size of a kernel would see only one of the kernel's places.
    while math.gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    values = torch.cat([_flatten(tensor.detach())[::stride] for tensor in tensors])
    return values.float().cpu().numpy()


def _flatten(tensor: Tensor) -> Tensor:
    """View a tensor as one dimension.

    It is in the order of memory, since a copy costs more than all else here.
    """
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1)


def histogram(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return edges (bins + 1,) and counts (bins,) of finite values, in bins of equal width.

    Few values get few bins, about the root of their number; so all histograms of one group have the
    same number of bins. NumPy computes the histogram: on a busy machine, the threads of torch wait
    for one another for longer than the work takes.
    """
    bins = int(min(max(math.sqrt(len(values)), 20), _MOST_BINS))
    low = float(values.min())
    high = float(values.max())
    if high - low > 1e-6 * max(abs(low), abs(high)):
        # The range is half a bin larger at both ends, so that a value which is exactly the lowest
        # or highest (a factor of 1) lies in the middle of its bin.
        margin = (high - low) / (bins - 1) / 2
    else:
        margin = max(1e-3 * abs(high), 1e-6)
    counts, edges = np.histogram(values, bins, (low - margin, high + margin))
    return edges.astype(np.float32), counts.astype(np.float32)
