"""The optimizer that a configuration names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.config import Optimizer


def build_optimizer(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build it over the parameters that require a gradient."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if optimizer.name == "sgd":
        return torch.optim.SGD(trained, lr=optimizer.lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay)
    kind = torch.optim.Adam if optimizer.name == "adam" else torch.optim.AdamW
    return kind(trained, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay)
