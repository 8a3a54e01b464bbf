"""The head of a network: the layer that is made for the number of classes."""

from __future__ import annotations

from torch import nn

HEADS = ("fc", "classifier", "head", "heads")
DEVIATION = 0.01
START = f"normal {DEVIATION}"
"""How a new head on trained weights starts; part of a configuration's identity."""


def find_head(module: nn.Module) -> str:
    """Return the name of the last linear or convolutional layer under a usual name of a head.

    The name is empty if there is no such layer.
    """
    found = ""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and name.partition(".")[0] in HEADS:
            found = name
    return found


def new_head(old: nn.Module, num_classes: int) -> nn.Module:
    """Return a layer like an old head, for another number of classes."""
    if isinstance(old, nn.Conv2d):
        return nn.Conv2d(
            old.in_channels,
            num_classes,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
        )
    assert isinstance(old, nn.Linear)
    return nn.Linear(old.in_features, num_classes, bias=old.bias is not None)


def start_head(head: nn.Module) -> None:
    """Start a new head on trained weights: normally distributed with deviation 0.01, bias 0.

    Whatever the backbone is, the first answers are then nearly equal for all classes. A library's
    own start is made for the library's own number of classes (timm's and torchvision's
    EfficientNet: uniform up to 1 / sqrt(classes)). With few classes it is so far off that the head
    of a frozen backbone does not come back from it. Exact zeros would do as well, except if a ReLU
    stands behind the head, as in SqueezeNet: no gradient would ever pass through it.
    """
    for name, parameter in head.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=DEVIATION)
        elif name.rpartition(".")[2] == "bias":
            nn.init.zeros_(parameter)
