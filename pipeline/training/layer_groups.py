"""Which parts of a network are looked at together, and how their values are spread."""

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

    Groups are the network's top-level parts (resnet: conv1, bn1, layer1 to layer4, fc). A part that holds nearly all of the network
    is replaced by its children (densenet: features.denseblock1 and so on), and where groups are too many, small neighbours are
    merged (features.2-5).

    Args:
        module: Any network.
        most: Groups at most.

    Returns:
        Parameters by the group's name, which is the module's path; frozen parameters, and groups of nothing else, are left out.
    """
    parts = _children("", module)
    total = sum(len(_trainable(part)) for _, part in parts)
    while parts:
        largest = max(range(len(parts)), key=lambda place: len(_trainable(parts[place][1])))
        name, part = parts[largest]
        # Counted in tensors, not in numbers: three quarters of resnet18's numbers are in layer4.
        share = len(_trainable(part)) / total
        if isinstance(part, nn.Parameter) or not (share > 0.8 or (share > 0.5 and len(parts) < 4)):
            break
        children = _children(name, part)
        if all(isinstance(child, nn.Parameter) for _, child in children):
            break
        parts[largest : largest + 1] = children
    return _merged({name: _trainable(part) for name, part in parts}, most)


def _children(name: str, module: nn.Module) -> list[_Part]:
    prefix = f"{name}." if name else ""
    named: list[_Part] = [*module.named_parameters(recurse=False), *module.named_children()]
    return [(prefix + child, part) for child, part in named if _trainable(part)]


def _trainable(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    parameters = [part] if isinstance(part, nn.Parameter) else part.parameters()
    return [parameter for parameter in parameters if parameter.requires_grad]


def _merged(groups: dict[str, list[nn.Parameter]], most: int) -> dict[str, list[nn.Parameter]]:
    """Merge the two neighbours that are smallest together, again and again; input and head stay alone as long as they can."""
    merged = [([name], parameters) for name, parameters in groups.items()]
    while len(merged) > most:
        inner = range(1, len(merged) - 2) if len(merged) > 3 else range(len(merged) - 1)
        place = min(inner, key=lambda at: len(merged[at][1]) + len(merged[at + 1][1]))
        (names, parameters), (more_names, more_parameters) = merged[place : place + 2]
        merged[place : place + 2] = [(names + more_names, parameters + more_parameters)]
    return {_span(names): parameters for names, parameters in merged}


def _span(names: Sequence[str]) -> str:
    """Return ``features.2-5`` for features.2 to features.5, and ``blocks.11-norm`` for blocks.11 to norm."""
    first, last = names[0], names[-1]
    if first == last:
        return first
    stem = last.rstrip(digits)
    return f"{first}-{last.removeprefix(stem) if stem == first.rstrip(digits) else last}"


def kernels(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the matrices and kernels; where there are none (a normalisation layer), all parameters.

    Beside them biases and a normalisation's factors, few and of another size, would only stretch the axis of a histogram.
    """
    return [parameter for parameter in parameters if parameter.ndim >= 2] or list(parameters)


def subsample(tensors: Sequence[Tensor], most: int = MOST_VALUES) -> NDArray[np.float32]:
    """Return about every k-th value of all tensors together, at most `most` and one per tensor more, shape (values,).

    The stride is fixed by the sizes alone: no random generator is touched, and the same places are seen each time.
    """
    stride = math.ceil(sum(tensor.numel() for tensor in tensors) / most) or 1
    # A stride that divides the size of a kernel would see one of its places only.
    while math.gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    return torch.cat([_flat(tensor.detach())[::stride] for tensor in tensors]).float().cpu().numpy()


def _flat(tensor: Tensor) -> Tensor:
    """View as one dimension, in the order of memory, since a copy costs more than all else here."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1)


def histogram(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return edges (bins + 1,) and counts (bins,) of finite values, in bins of equal width.

    Few values get few bins, about the root of their number; so all histograms of one group have as many.
    NumPy's and not torch's, whose threads wait for one another on a busy machine, for longer than the work takes.
    """
    bins = int(min(max(math.sqrt(len(values)), 20), _MOST_BINS))
    low, high = float(values.min()), float(values.max())
    if high - low > 1e-6 * max(abs(low), abs(high)):
        # Half a bin more, so that what is exactly the lowest or highest value (a factor of 1) lies in the middle of its bin.
        margin = (high - low) / (bins - 1) / 2
    else:
        margin = max(1e-3 * abs(high), 1e-6)
    counts, edges = np.histogram(values, bins, (low - margin, high + margin))
    return edges.astype(np.float32), counts.astype(np.float32)
