"""How many bytes a network's weights have, of which some are trained."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class NetworkSize(NamedTuple):
    """Bytes of a network.

    Attributes:
        weights: Bytes of what a file of its weights holds: parameters and buffers.
        trained: Bytes of the parameters that are trained, each of which an optimizer may keep
            further numbers of.
    """

    weights: int
    trained: int


def measure_size(module: nn.Module) -> NetworkSize:
    """Return the size of a network, which may be on the device meta."""
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
    trained = sum(one.nbytes for one in module.parameters() if one.requires_grad)
    return NetworkSize(weights, trained)
