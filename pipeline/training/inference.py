"""The answers of a network, and its training mode."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.data.loader import Loader
from pipeline.data.transforms import Preprocessing
from pipeline.models import Network
from pipeline.training.precision import PLAIN, Numerics


def main_output(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the logits; a network with auxiliary heads puts them first."""
    return output[0] if isinstance(output, tuple) else output


def set_training_mode(network: Network, frozen: bool) -> None:
    """Switch a network to training mode.

    A frozen backbone stays in evaluation mode, its BatchNorm statistics and dropout too.
    """
    network.module.train(not frozen)
    if frozen:
        network.module.get_submodule(network.head).train()


def predict_logits(
    module: nn.Module,
    loader: Loader,
    preprocessing: Preprocessing | None,
    device: torch.device,
    numerics: Numerics = PLAIN,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return labels (images,) and logits (images, classes) of all images of a loader, in its order.

    If `preprocessing` is None, the network gets the images as they are.
    """
    module.eval()
    all_labels = []
    all_logits = []
    with torch.inference_mode(), numerics.autocast(device):
        for images, labels in loader.epoch(0):
            inputs = images.to(device)
            if preprocessing is not None:
                inputs = preprocessing.normalise(inputs)
            all_logits.append(main_output(module(numerics.arrange(inputs))).float().cpu())
            all_labels.append(labels)
    return torch.cat(all_labels).numpy(), torch.cat(all_logits).numpy()
