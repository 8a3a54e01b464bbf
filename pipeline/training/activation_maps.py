"""What a network looked at: maps of the parts of an image that speak for a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchcam.methods import LayerCAM

from pipeline.training.inference import main_output

_BATCH = 8
_LEAST_SIDES = (4, 2)
"""The last layer whose maps have this many places along a side is taken, in this order."""
_MOST_PREFIX_TOKENS = 8
"""A transformer puts its class token, and a few others, before those of the image."""
_NO_LAYER = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Identity, nn.Softmax)
"""Modules that yield no map of the image, though it may look like one.

Adaptive pooling stretches it, and the others are for attention, of each token to each.
"""
_FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)
"""Errors by which a network or torchcam says that there is no gradient, or no memory for it."""

_Sides = tuple[int, int]


class _Layer(NamedTuple):
    """A layer whose output is a map of the image.

    Attributes:
        name: Name of the module in the network.
        arrange: Function from its output to the shape (images, channels, height, width).
        side: The shorter side of that shape.
    """

    name: str
    arrange: Callable[[Tensor], Tensor]
    side: int


def find_activation_maps(
    network: nn.Module, images: Tensor, classes: NDArray[np.int64]
) -> NDArray[np.float32] | None:
    """Return which parts of each image speak for a class, by LayerCAM of the last suitable layer.

    The network is the same afterwards: its mode, its gradients and its hooks.

    Jiang et al., LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, 2021.

    Args:
        network: The network. It is run in evaluation mode.
        images: Normalised images on the network's device, shape (images, 3, height, width).
        classes: Class of each image, usually the predicted one, shape (images,).

    Returns:
        Maps of shape (images, height of the layer, width of the layer), each scaled to 0 to 1. A
        map is zero if no part speaks more for the class than another. None if the network gives no
        maps: it has no layer with one, no gradient, or values that are not finite.
    """
    if len(images) == 0:
        return None
    wanted = torch.from_numpy(classes).to(images.device)
    with _evaluation_mode(network):
        try:
            layer = _find_layer(network, images, wanted)
            if layer is None:
                return None
            maps = []
            for start in range(0, len(images), _BATCH):
                batch = slice(start, start + _BATCH)
                maps.append(_compute_maps(network, layer, images[batch], wanted[batch]))
        except _FAILURES:
            return None
    return _scale(torch.cat(maps).cpu().numpy())


@contextmanager
def _evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Switch a network to evaluation and compute gradients, whatever was on before."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _run(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits, with a graph even if all parameters are frozen."""
    # The copy may be changed in place by the network, which a leaf of the graph may not.
    inputs = images.detach().clone().requires_grad_().clone()
    logits = main_output(network(inputs))
    if not logits.isfinite().all():
        raise ValueError("the logits are not finite")
    return logits


def _compute_maps(network: nn.Module, layer: _Layer, images: Tensor, classes: Tensor) -> Tensor:
    """Return maps that are not scaled, of shape (images, height, width)."""
    with LayerCAM(network, layer.name, reshape_transform=layer.arrange) as extractor:
        logits = _run(network, images)
        maps: Tensor = extractor(classes.tolist(), _contrast(logits), normalized=False)[0]
        # In its sum torchcam leaves out what is no number.
        for values in (*extractor.hook_a, *extractor.hook_g):
            if values is None or not values.isfinite().all():
                raise ValueError("activations or gradients are not finite")
    return maps.float()


def _find_layer(network: nn.Module, images: Tensor, classes: Tensor) -> _Layer | None:
    """Return the last layer whose output is a map of the image that the logits depend on."""
    # Parts that are the same for all images, such as biases of attention, have one row for all.
    two = torch.arange(2) % len(images)
    logits, outputs = _record_outputs(network, images[two])
    total = logits.gather(1, classes[two, None]).sum()
    layers = _list_layers(network, outputs, (images.shape[2], images.shape[3]))
    for least in _LEAST_SIDES:
        for layer in reversed(layers):
            if layer.side >= least and _has_gradient(total, outputs[layer.name], layer):
                return layer
    return None


def _record_outputs(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits, and the last output of each module, in the order of the computation."""
    outputs: dict[str, Tensor] = {}

    def record(module: nn.Module, inputs: object, output: object, name: str) -> None:
        # A module may be called many times.
        outputs.pop(name, None)
        if isinstance(output, Tensor) and output.requires_grad:
            outputs[name] = output

    handles = []
    try:
        for name, module in network.named_modules():
            handles.append(module.register_forward_hook(partial(record, name=name)))
        return _run(network, images), outputs
    finally:
        for handle in handles:
            handle.remove()


def _list_layers(network: nn.Module, outputs: dict[str, Tensor], size: _Sides) -> list[_Layer]:
    layers: list[_Layer] = []
    grids: list[_Sides] = []
    for name, output in outputs.items():
        module = network.get_submodule(name)
        if len(output) != 2 or isinstance(module, _NO_LAYER):
            continue
        match output.shape[1:]:
            case _, height, width if _is_grid((height, width), size):
                grids.append((height, width))
                layers.append(_Layer(name, _keep, min(height, width)))
            case height, width, _ if _is_grid((height, width), size):
                layers.append(_Layer(name, _from_channels_last, min(height, width)))
            case num_tokens, _ if "norm" in type(module).__name__.lower():
                sides = _find_token_grid(num_tokens, grids)
                if sides is not None:
                    layers.append(_Layer(name, partial(_from_tokens, sides=sides), min(sides)))
    return layers


def _is_grid(sides: _Sides, size: _Sides) -> bool:
    """Whether a map of these sides has the proportions of an image, and is not larger."""
    height, width = sides
    unequal = abs(height * size[1] - width * size[0])
    return unequal <= max(size) and height <= size[0] and width <= size[1]


def _find_token_grid(num_tokens: int, grids: Sequence[_Sides]) -> _Sides | None:
    """Return the sides of the map that was cut up into tokens, the last one of a fitting size."""
    for height, width in reversed(grids):
        if 0 <= num_tokens - height * width <= _MOST_PREFIX_TOKENS:
            return height, width
    return None


def _keep(output: Tensor) -> Tensor:
    return output


def _from_channels_last(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def _from_tokens(output: Tensor, sides: _Sides) -> Tensor:
    height, width = sides
    images: Tensor = output[:, -height * width :].transpose(1, 2).unflatten(2, sides)
    return images


def _has_gradient(total: Tensor, output: Tensor, layer: _Layer) -> bool:
    """Whether the logits depend on the map.

    They may depend on the class token alone in the last layers of a transformer.
    """
    (gradient,) = torch.autograd.grad(total, output, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(layer.arrange(gradient).any())


def _scale(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each map to 0 to 1; differences that are rounding become zero."""
    lowest = maps.min(axis=(1, 2), keepdims=True)
    highest = maps.max(axis=(1, 2), keepdims=True)
    extent = highest - lowest
    is_flat = extent <= 1e-5 * np.abs(highest)
    scaled = (maps - lowest) / np.where(is_flat, 1, extent)
    return np.where(is_flat, np.float32(0), scaled)


def _contrast(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=1, keepdim=True)
