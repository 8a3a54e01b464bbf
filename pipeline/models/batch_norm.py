"""BatchNorm of a network that several processes train together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from pipeline.errors import UserError


def trains_batch_norm(module: nn.Module) -> bool:
    """Whether a network has a BatchNorm whose statistics follow the batches."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return any(_is_trained(norm) for norm in norms)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Return a network whose BatchNorm takes its statistics over all processes of a group, on GPUs.

    Raises:
        UserError: The network has a BatchNorm of another kind than torch's and timm's. torch would
            make a plain BatchNorm of it.
    """
    known = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    if "timm" in sys.modules:
        # timm's layers apply the activation too.
        layers: Any = sys.modules["timm"].layers
        known |= {layers.BatchNormAct2d, layers.SyncBatchNormAct}
        convert = layers.convert_sync_batchnorm
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and type(part) not in known:
            raise UserError(
                f"training.processes: {type(part).__name__}, a BatchNorm of its own kind, "
                "cannot be trained on several GPUs"
            )
    return convert(module)
