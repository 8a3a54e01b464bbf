"""The head of a network: the layer that is made for the number of classes."""

from __future__ import annotations

from torch import nn

HEADS = ("fc", "classifier", "head", "heads")
DEVIATION = 0.01
START = f"normal {DEVIATION}"
"""How a new head on trained weights starts; part of a configuration's identity."""


def find_head(module: nn.Module) -> str:
    """Return the name of the last linear or convolutional layer under a head's usual name, or ""."""
    layers = [
        name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    heads = [name for name in layers if name.partition(".")[0] in HEADS]
    return heads[-1] if heads else ""


def new_head(old: nn.Module, num_classes: int) -> nn.Module:
    """Return a layer like an old head, for another number of classes."""
    if isinstance(old, nn.Conv2d):
        return nn.Conv2d(old.in_channels, num_classes, old.kernel_size, old.stride, old.padding)  # type: ignore[arg-type]
    assert isinstance(old, nn.Linear)
    return nn.Linear(old.in_features, num_classes, bias=old.bias is not None)


def start_head(head: nn.Module) -> None:
    """Start a new head on trained weights: normally distributed with deviation 0.01, bias 0.

    Whatever the backbone, the first answers are then nearly equal for all classes. A library's own start is made for its own number of
    classes (timm's and torchvision's EfficientNet: uniform up to 1 / sqrt(classes)), and with few classes is so far off that a frozen
    backbone's head does not come back from it. Exact zeros would do as well, but for a ReLU behind the head, as in SqueezeNet, through
    which no gradient would ever pass.
    """
    for name, parameter in head.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=DEVIATION)
        elif name.rpartition(".")[2] == "bias":
            nn.init.zeros_(parameter)
