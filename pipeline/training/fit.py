"""Train one network on one set of images: the epochs, the best weights, early stopping, resume checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import metrics
from pipeline.background import Background
from pipeline.config import Configuration
from pipeline.errors import GivenUp, LossNotFinite, OutOfMemory
from pipeline.ranking import score
from pipeline.training.callback import Callback
from pipeline.training.checkpoint import (
    State,
    copied,
    random_states,
    save_weights,
    set_random_states,
    weights_of,
)
from pipeline.training.context import FitResult, TrainingContext
from pipeline.training.device import is_out_of_memory
from pipeline.training.imbalance import class_weights
from pipeline.training.inference import predict_logits, set_training_mode
from pipeline.training.running_means import NOTHING, BatchSums, RunningMeans
from pipeline.training.schedule import Plateau, lr_at
from pipeline.training.stepper import Stepper

_BEST = "best weights"
_MOST_PENDING = 2
"""Files that wait or are being written: a copy of a whole state, and one of the best weights."""


def fit(
    configuration: Configuration,
    setting: TrainingContext,
    callbacks: Sequence[Callback],
    fitted: FitResult,
) -> None:
    """Train, validate after each epoch, and keep the best weights in `setting.checkpoint`.

    They are replaced when `training.best_metric` is >= the best so far (<= for a loss), so that among equal
    scores the longer-trained one is kept. ``train/loss`` is the mean of what is minimised, weighed by
    class where `class_weights` is balanced; ``val/loss`` never is, so that it compares across configurations.
    Where `setting.resume` has a checkpoint, the training goes on from there, to the same bits on a CPU.

    Args:
        configuration: Of the training.
        setting: Network, images, device and where the checkpoints go.
        callbacks: Told of every step and epoch.
        fitted: Filled as the training goes on.

    Raises:
        LossNotFinite: It stops there; the best weights stay.
        OutOfMemory: A batch does not fit; the message says which would.
    """
    training = _Training(configuration, setting, callbacks, fitted)
    try:
        training.run()
    finally:
        training.files.close()


class _Training:
    """The state of a training between two steps is `state`; all else follows from configuration and setting."""

    def __init__(
        self,
        configuration: Configuration,
        setting: TrainingContext,
        callbacks: Sequence[Callback],
        fitted: FitResult,
    ) -> None:
        self._configuration, self._setting, self._callbacks, self._fitted = (
            configuration,
            setting,
            callbacks,
            fitted,
        )
        self._module = setting.network.module.to(setting.device)
        train = setting.train
        weights = class_weights(configuration.training, train.labels.numpy(), train.num_classes)
        self._stepper = Stepper(
            configuration, setting.called, setting.numerics, setting.device, weights, setting.group
        )
        self._plateau = Plateau(configuration.schedule)
        self._epoch, self._sums, self._epoch_seconds = 1, RunningMeans(), 0.0
        self._saved = self._tick = time.perf_counter()
        self._due = self._is_saving = False
        self.files = Background()

    def run(self) -> None:
        """Train to the end."""
        epochs, patience = (
            self._configuration.training.epochs,
            self._configuration.training.patience,
        )
        self._resume()
        for callback in self._callbacks:
            callback.on_start(epochs, len(self._setting.train))
            callback.on_resume(len(self._fitted.history), self._fitted.history)
        self._saved = self._tick = time.perf_counter()
        while self._epoch <= epochs and not (
            patience and self._epoch - 1 - self._fitted.best_epoch >= patience
        ):
            self._train_epoch()
            self._validate()
            self._epoch, self._sums, self._epoch_seconds = self._epoch + 1, RunningMeans(), 0.0

    def _train_epoch(self) -> None:
        configuration, setting, sums = self._configuration, self._setting, self._sums
        set_training_mode(setting.network, frozen=configuration.model.freeze == "backbone")
        for images, labels in setting.train.epoch(self._epoch, skip=sums.steps):
            if not self._step(images, labels):
                raise OutOfMemory(self._advice(images, labels))
            for callback in self._callbacks:
                callback.on_step(self._epoch, sums.loss, sums.accuracy)
            if self._due:
                self._save()

    def _is_due(self) -> bool:
        """Whether it is time for a resume checkpoint, which the first process decides for all.

        It is not while the one before is being written: where the disk is slow, copies would fill the memory.
        """
        if self._setting.resume is None or self._is_saving or self.files.pending >= _MOST_PENDING:
            return False
        return time.perf_counter() - self._saved >= self._configuration.training.checkpoint_seconds

    def _step(self, images: Tensor, labels: Tensor) -> bool:
        """Train on one batch; return whether it fits in memory, in every process of the group."""
        group = self._setting.group
        labels = labels.to(self._setting.device, non_blocking=True)
        loss, own = self._forward(images, labels)
        *sums, misfits, due = group.sum([*own, loss is None, self._is_due()])
        if loss is None or misfits:
            return False
        batch = BatchSums(*sums)
        if not math.isfinite(batch.loss):
            mean = batch.loss / batch.weight
            raise LossNotFinite(
                f"the loss is not finite at {self._place()} ({mean}); {self._advice_for_loss()}"
            )
        if group.size > 1:
            # Gradients become the mean over the processes; the loss of a batch is the mean over its images.
            loss = loss * (own.weight * group.size / batch.weight)
        try:
            self._stepper.backward(loss)
            for callback in self._callbacks:
                callback.on_backward(self._epoch, len(self._fitted.lrs) + 1)
            lr = self._lr()
            self._stepper.update(lr)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._break_group()
            return False
        self._fitted.lrs.append(lr)
        self._sums.add(batch)
        self._due = bool(due)
        return True

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor | None, BatchSums]:
        """Return the loss of this process's share of a batch, None where it does not fit in memory, and what it adds to the means."""
        setting = self._setting
        try:
            loss, logits = self._stepper.forward(setting.inputs(images), labels)
            sums = BatchSums.of(loss.item(), logits.detach(), labels, self._stepper.class_weights)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if setting.device.type == "cuda":
                self._break_group()
            return None, NOTHING
        # A batch smaller than the group leaves some with an image that is another's.
        return loss, sums if setting.group.rank < setting.train.length_of(
            self._sums.steps
        ) else NOTHING

    def _break_group(self) -> None:
        """End the training where memory does not suffice and others wait for this process's gradients or statistics; alone do nothing."""
        group = self._setting.group
        if group.size > 1:
            group.is_broken = True
            raise OutOfMemory(self._advice(torch.zeros(0), torch.zeros(0)))

    def _place(self) -> str:
        return f"step {self._sums.steps + 1} of epoch {self._epoch}"

    def _advice_for_loss(self) -> str:
        best = self._fitted.best_epoch
        kept = (
            f"the weights of epoch {best}, the best so far, are kept"
            if best
            else "no weights are kept, since no epoch was good"
        )
        return f"a lower optimizer.lr may help; {kept}"

    def _advice(self, images: Tensor, labels: Tensor) -> str:
        """Say which batch would have fitted, by trying: the weights are lost, but the training has ended anyway."""
        place, batch_size = self._place(), self._configuration.data.batch_size
        if self._setting.group.size > 1:
            return f"out of memory at data.batch_size {batch_size} ({place}) in {self._setting.group.size} processes; a smaller one may fit"
        size, labels = len(labels), labels.to(self._setting.device)
        while (size := size // 2) and not self._fits(images[:size], labels[:size]):
            pass
        advice = (
            f"data.batch_size {size} fits"
            if size
            else "not even one image fits; a smaller data.image_size or network may"
        )
        return f"out of memory at data.batch_size {len(labels)} ({place}); {advice}"

    def _fits(self, images: Tensor, labels: Tensor) -> bool:
        try:
            self._stepper.first_step(self._setting.inputs(images), labels)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _lr(self) -> float:
        schedule, steps_per_epoch = self._configuration.schedule, len(self._setting.train)
        total = steps_per_epoch * self._configuration.training.epochs
        lr = lr_at(
            len(self._fitted.lrs),
            schedule,
            self._configuration.optimizer.lr,
            steps_per_epoch,
            total,
        )
        return max(lr * self._plateau.factor, min(lr, schedule.min_lr))

    def _validate(self) -> None:
        setting, fitted, sums = self._setting, self._fitted, self._sums
        train_seconds = self._epoch_seconds + self._lap()
        preprocessing = None if setting.part else setting.preprocessing
        setting.group.share_buffers(self._module)
        labels, logits = predict_logits(
            setting.called, setting.val, preprocessing, setting.device, setting.numerics
        )
        labels, logits = setting.group.interleaved(labels), setting.group.interleaved(logits)
        scores = metrics.score(labels, logits)
        if not math.isfinite(scores["loss"]):
            raise LossNotFinite(
                f"the validation loss is not finite after epoch {self._epoch} ({scores['loss']}); {self._advice_for_loss()}"
            )
        self._plateau.observe(scores["loss"])
        values = {
            "train/loss": sums.loss,
            "train/accuracy": sums.accuracy,
            **{f"val/{name}": value for name, value in scores.items()},
        }
        values |= {
            "lr": fitted.lrs[-1],
            "epoch_seconds": train_seconds + self._lap(),
            "images_per_second": setting.train.num_images / train_seconds,
        }
        fitted.history.append(values)
        metric = self._configuration.training.best_metric
        is_best = fitted.best_epoch == 0 or score(values[metric], metric) >= score(
            fitted.best[metric], metric
        )
        if is_best:
            fitted.best_epoch, fitted.labels, fitted.logits = self._epoch, labels, logits
            if setting.group.is_first:
                self._keep_best()
        fitted.seconds += values["epoch_seconds"]
        given_up = self._tell(labels, logits, values, is_best)
        if setting.group.sum([given_up is not None])[0]:
            raise given_up or GivenUp(f"the first process gave up after epoch {self._epoch}")

    def _tell(
        self,
        labels: NDArray[np.int64],
        logits: NDArray[np.float32],
        values: dict[str, float],
        is_best: bool,
    ) -> Exception | None:
        """Call back after an epoch; return what a callback raises, of which the other processes must know before it goes further."""
        try:
            for callback in self._callbacks:
                callback.on_validation(self._epoch, labels, logits)
            for callback in self._callbacks:
                callback.on_epoch(self._epoch, values, is_best)
        except Exception as error:
            return error
        return None

    def _keep_best(self) -> None:
        """Take a copy of the weights, and let it be written beside the training."""
        # Where the disk is slower than the epochs, only the newest of those that wait is written.
        self.files.make_room(_BEST, _MOST_PENDING - 1)
        weights, file = weights_of(self._module), self._setting.checkpoint
        self.files.submit(lambda: save_weights(weights, file), replaces=_BEST)

    def _lap(self) -> float:
        """Return the seconds since the last call."""
        before, self._tick = self._tick, time.perf_counter()
        return self._tick - before

    def _save(self) -> None:
        """Take a copy of the state, and let it be written beside the training."""
        self._epoch_seconds += self._lap()
        fitted, best, checkpoints = self._fitted, self._setting.checkpoint, self._setting.resume
        states = self._setting.group.collect_states(random_states())
        if checkpoints is None:
            return
        state: State | None = copied(
            {
                "network": self._module.state_dict(),
                **self._stepper.state(),
                "plateau": self._plateau.state(),
                "random": states,
                "epoch": self._epoch,
                "sums": vars(self._sums),
                "epoch_seconds": self._epoch_seconds,
                "history": fitted.history,
                "lrs": torch.tensor(fitted.lrs, dtype=torch.float64),
                "best_epoch": fitted.best_epoch,
                "labels": torch.from_numpy(fitted.labels),
                "logits": torch.from_numpy(fitted.logits),
                "seconds": fitted.seconds,
                "callbacks": {
                    type(callback).__name__: callback.state() for callback in self._callbacks
                },
            }
        )
        number, has_best = len(fitted.lrs), fitted.best_epoch > 0

        def write() -> None:
            nonlocal state
            assert state is not None
            try:
                # With the best weights of that moment: those on disk may be of a later epoch when the training goes on from here.
                checkpoints.save(state, number, best if has_best else None)
            finally:
                state = None
                self._is_saving = False

        self._is_saving = True
        self.files.submit(write)
        self._saved = time.perf_counter()

    def _resume(self) -> None:
        """Go on from the last checkpoint, if there is one. Best weights of epochs that will be trained again are removed."""
        resume, checkpoint, group = (
            self._setting.resume,
            self._setting.checkpoint,
            self._setting.group,
        )
        state = group.share_state(resume.load(checkpoint) if resume else None)
        if state is not None:
            self._load(state)
        elif group.is_first:
            checkpoint.unlink(missing_ok=True)

    def _load(self, state: State) -> None:
        fitted = self._fitted
        self._module.load_state_dict(state["network"])
        self._stepper.load_state(state)
        self._plateau.load_state(state["plateau"])
        self._epoch, self._epoch_seconds, self._sums = (
            state["epoch"],
            state["epoch_seconds"],
            RunningMeans(**state["sums"]),
        )
        fitted.history, fitted.lrs, fitted.best_epoch = (
            state["history"],
            state["lrs"].tolist(),
            state["best_epoch"],
        )
        fitted.labels, fitted.logits, fitted.seconds = (
            state["labels"].numpy(),
            state["logits"].numpy(),
            state["seconds"],
        )
        for callback in self._callbacks:
            callback.load_state(state["callbacks"].get(type(callback).__name__, {}))
        if self._setting.group.rank < len(state["random"]):
            set_random_states(state["random"][self._setting.group.rank])
