"""Train one network on one set of images: the loop, the best checkpoint, early stopping."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from pipeline import metrics
from pipeline.config import Configuration
from pipeline.data.loader import Loader
from pipeline.data.transforms import Preprocessing
from pipeline.errors import TrainingFailed
from pipeline.models import Network
from pipeline.training.imbalance import balanced_class_weights
from pipeline.training.optimizer import build_optimizer
from pipeline.training.schedule import Plateau, lr_at


class Callback:
    """What the outside sees of a training; override what is needed. An exception ends the training."""

    def on_start(self, epochs: int, steps_per_epoch: int) -> None:
        """Called before the first step."""

    def on_step(self, epoch: int, loss: float, accuracy: float) -> None:
        """Called after each optimizer step with the running means of the epoch."""

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        """Called after each validation with that epoch's metrics, epochs counted from 1."""


@dataclass
class Fitted:
    """What a training has come to; filled as it goes on, so that a pruned one has it too.

    Attributes:
        history: Metrics of each epoch by name (``val/accuracy``); index 0 is epoch 1.
        lrs: Learning rate of every step.
        best_epoch: Counted from 1; 0 before the first validation.
        labels: Of the validation images, shape (images,).
        logits: Of the best epoch, shape (images, classes).
        seconds: Wall-clock time of training and validation.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    best_epoch: int = 0
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    logits: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    seconds: float = 0.0

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return self.history[self.best_epoch - 1]


@dataclass(frozen=True)
class Setting:
    """All that a training needs beside its configuration."""

    network: Network
    preprocessing: Preprocessing
    train: Loader
    val: Loader
    device: torch.device
    checkpoint: Path


def fit(configuration: Configuration, setting: Setting, callbacks: Sequence[Callback], fitted: Fitted) -> None:
    """Train, validate after each epoch, and keep the best weights in `setting.checkpoint`.

    The checkpoint is replaced when validation accuracy is >= the best so far, so that among equal
    scores the longer-trained one is kept. ``train/loss`` is the mean of what is minimised, weighed by
    class where `class_weights` is balanced; ``val/loss`` never is, so that it compares across configurations.

    Args:
        configuration: Of the training.
        setting: Network, images, device and where the checkpoint goes.
        callbacks: Told of every step and epoch.
        fitted: Filled as the training goes on.

    Raises:
        TrainingFailed: The loss is not finite.
    """
    module = setting.network.module.to(setting.device)
    optimizer = build_optimizer(configuration.optimizer, module.parameters())
    plateau = Plateau(configuration.schedule)
    class_weights = _class_weights(configuration, setting)
    epochs, patience = configuration.training.epochs, configuration.training.patience
    started = time.perf_counter()
    for callback in callbacks:
        callback.on_start(epochs, len(setting.train))
    for epoch in range(1, epochs + 1):
        epoch_started = time.perf_counter()
        train_loss, train_accuracy = _train_epoch(epoch, configuration, setting, class_weights, optimizer, plateau, callbacks, fitted)
        train_seconds = time.perf_counter() - epoch_started
        labels, logits = predict_logits(module, setting.val, setting.preprocessing, setting.device)
        scores = metrics.score(labels, logits)
        if not math.isfinite(scores["loss"]):
            raise TrainingFailed(f"the validation loss is not finite after epoch {epoch} ({scores['loss']})")
        plateau.observe(scores["loss"])
        values = {"train/loss": train_loss, "train/accuracy": train_accuracy, **{f"val/{name}": value for name, value in scores.items()}}
        values |= {
            "lr": fitted.lrs[-1],
            "epoch_seconds": time.perf_counter() - epoch_started,
            "images_per_second": setting.train.num_images / train_seconds,
        }
        fitted.history.append(values)
        is_best = fitted.best_epoch == 0 or scores["accuracy"] >= fitted.best["val/accuracy"]
        if is_best:
            fitted.best_epoch, fitted.labels, fitted.logits = epoch, labels, logits
            save_weights(module, setting.checkpoint)
        fitted.seconds = time.perf_counter() - started
        for callback in callbacks:
            callback.on_epoch(epoch, values, is_best)
        if patience and epoch - fitted.best_epoch >= patience:
            break


def _class_weights(configuration: Configuration, setting: Setting) -> torch.Tensor | None:
    if configuration.training.class_weights == "none":
        return None
    weights = balanced_class_weights(setting.train.labels.numpy(), setting.train.num_classes)
    return torch.from_numpy(weights).to(setting.device)


def _train_epoch(
    epoch: int,
    configuration: Configuration,
    setting: Setting,
    class_weights: torch.Tensor | None,
    optimizer: torch.optim.Optimizer,
    plateau: Plateau,
    callbacks: Sequence[Callback],
    fitted: Fitted,
) -> tuple[float, float]:
    module, steps_per_epoch = setting.network.module, len(setting.train)
    set_training_mode(setting.network, frozen=configuration.model.freeze == "backbone")
    total_loss, total_weight, correct, seen = 0.0, 0.0, 0, 0
    for number, (images, labels) in enumerate(setting.train.epoch(epoch)):
        step = (epoch - 1) * steps_per_epoch + number
        lr = lr_at(
            step, configuration.schedule, configuration.optimizer.lr, steps_per_epoch, steps_per_epoch * configuration.training.epochs
        )
        lr = max(lr * plateau.factor, min(lr, configuration.schedule.min_lr))
        for group in optimizer.param_groups:
            group["lr"] = lr
        inputs = setting.preprocessing.normalise(images.to(setting.device, non_blocking=True))
        labels = labels.to(setting.device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        logits = main_output(module(inputs))
        loss = functional.cross_entropy(logits, labels, weight=class_weights)
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            raise TrainingFailed(
                f"the loss is not finite at step {number + 1} of epoch {epoch} ({loss_value}); a lower optimizer.lr may help"
            )
        loss.backward()
        optimizer.step()
        fitted.lrs.append(lr)
        seen += len(labels)
        # The loss of a batch is a mean by weight; the sum of its weights is its part of the epoch's.
        weight = len(labels) if class_weights is None else float(class_weights[labels].sum())
        total_loss += loss_value * weight
        total_weight += weight
        correct += int((logits.detach().argmax(1) == labels).sum())
        for callback in callbacks:
            callback.on_step(epoch, total_loss / total_weight, correct / seen)
    return total_loss / total_weight, correct / seen


def main_output(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the logits; a network with auxiliary heads puts them first."""
    return output[0] if isinstance(output, tuple) else output


def set_training_mode(network: Network, frozen: bool) -> None:
    """Switch to training; a frozen backbone stays in evaluation, its BatchNorm statistics and dropout too."""
    network.module.train(not frozen)
    if frozen:
        network.module.get_submodule(network.head).train()


def predict_logits(
    module: nn.Module, loader: Loader, preprocessing: Preprocessing, device: torch.device
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return labels (images,) and logits (images, classes) of all images of a loader, in its order."""
    module.eval()
    all_labels, all_logits = [], []
    with torch.inference_mode():
        for images, labels in loader.epoch(0):
            all_logits.append(main_output(module(preprocessing.normalise(images.to(device)))).float().cpu())
            all_labels.append(labels)
    return torch.cat(all_labels).numpy(), torch.cat(all_logits).numpy()


def save_weights(module: nn.Module, file: Path) -> None:
    """Write the state dict as safetensors, whole or not at all."""
    temporary = file.with_name(f".{file.name}")
    # Cloned, since safetensors refuses tensors that share memory.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    safetensors.torch.save_file(state, temporary)
    os.replace(temporary, file)
