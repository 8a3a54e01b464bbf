"""Train one network on one set of images: epochs, best weights, early stopping, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import metrics
from pipeline.background import Background
from pipeline.config import Configuration
from pipeline.errors import GivenUp, LossNotFinite, OutOfMemory, Paused
from pipeline.ranking import score
from pipeline.training.batch_size_advice import advise_batch_size
from pipeline.training.callback import Callback
from pipeline.training.checkpoint import (
    State,
    copied,
    random_states,
    save_weights,
    set_random_states,
    weights_of,
)
from pipeline.training.context import TrainingContext
from pipeline.training.device import is_out_of_memory
from pipeline.training.fit_result import FitResult, attach_result
from pipeline.training.imbalance import class_weights
from pipeline.training.inference import predict_logits, set_training_mode
from pipeline.training.running_means import NOTHING, BatchSums, RunningMeans
from pipeline.training.schedule import Plateau, lr_at
from pipeline.training.stepper import Stepper

_BEST = "best weights"
_MOST_PENDING = 2
"""Files that wait or are being written: a copy of a whole state, and one of the best weights."""


def fit(
    configuration: Configuration, context: TrainingContext, callbacks: Sequence[Callback] = ()
) -> FitResult:
    """Train, validate after each epoch, and keep the best weights in `context.checkpoint`.

    They are replaced when `training.best_metric` is >= the best so far (<= for a loss), so that
    among equal scores the longer-trained one is kept. ``train/loss`` is the mean of what is
    minimised, weighed by class if `class_weights` is balanced; ``val/loss`` never is, so that it
    compares across configurations. If `context.resume` has a checkpoint, the training goes on from
    there, to the same bits on a CPU.

    Args:
        configuration: What is trained, and how.
        context: Network, images, device, and the place of the checkpoints.
        callbacks: Called at every step and epoch.

    Raises:
        LossNotFinite: The training stops there; the best weights stay.
        OutOfMemory: A batch does not fit; the message says which would.
        Paused: A callback wants the training to wait; it goes on from the end of this epoch.
        Exception: Whatever a callback raises. Each of these carries what the training has come to
            (see `pipeline.training.fit_result.result_of`).
    """
    loop = _Loop(configuration, context, callbacks)
    try:
        with closing(loop.files):
            loop.start()
            while loop.goes_on():
                loop.train_epoch()
                loop.validate()
    except Exception as error:
        attach_result(error, loop.result)
        raise
    return loop.result


class _Loop:
    """A training between two steps.

    Its whole state is what `_save` writes; all else follows from configuration and context.
    """

    def __init__(
        self,
        configuration: Configuration,
        context: TrainingContext,
        callbacks: Sequence[Callback],
    ) -> None:
        self.result = FitResult()
        self.files = Background()
        self._configuration = configuration
        self._context = context
        self._callbacks = callbacks
        self._module = context.network.module.to(context.device)
        train = context.train
        weights = class_weights(configuration.training, train.labels.numpy(), train.num_classes)
        self._stepper = Stepper(
            configuration,
            context.trained_part,
            context.numerics,
            context.device,
            weights,
            context.group,
        )
        self._plateau = Plateau(configuration.schedule)
        self._epoch = 1
        self._sums = RunningMeans()
        self._epoch_seconds = 0.0
        self._saved = self._tick = time.perf_counter()
        self._is_save_due = False
        self._is_saving = False

    def start(self) -> None:
        """Go on from the last checkpoint, if there is one, and call back."""
        self._resume()
        raised: Exception | None = None
        try:
            for callback in self._callbacks:
                callback.on_start(self._configuration.training.epochs, len(self._context.train))
                callback.on_resume(len(self.result.lrs), self.result.history)
        except Exception as error:
            raised = error
        # As in `_call_back`: all processes of the group end, or none.
        (ends,) = self._context.group.sum([raised is not None])
        if ends:
            raise raised or GivenUp("the first process gave up before its first step")
        self._saved = self._tick = time.perf_counter()

    def goes_on(self) -> bool:
        """Whether there is another epoch to train."""
        training = self._configuration.training
        epochs_without_gain = self._epoch - 1 - self.result.best_epoch
        if training.patience and epochs_without_gain >= training.patience:
            return False
        return self._epoch <= training.epochs

    def train_epoch(self) -> None:
        """Train on all batches of an epoch, or on those that were left of it."""
        is_frozen = self._configuration.model.freeze == "backbone"
        set_training_mode(self._context.network, frozen=is_frozen)
        for images, labels in self._context.train.epoch(self._epoch, skip=self._sums.steps):
            if not self._train_batch(images, labels):
                raise OutOfMemory(self._describe_shortage(images, labels))
            for callback in self._callbacks:
                callback.on_step(
                    self._epoch, self._sums.loss, self._sums.accuracy, self.result.lrs[-1]
                )
            if self._is_save_due:
                self._save()

    def _train_batch(self, images: Tensor, labels: Tensor) -> bool:
        """Train on one batch; return whether it fits in memory, in every process of the group."""
        group = self._context.group
        labels = labels.to(self._context.device, non_blocking=True)
        loss, own = self._forward(images, labels)
        *sums, num_misfits, num_due = group.sum([*own, loss is None, self._is_time_to_save()])
        if loss is None or num_misfits:
            return False
        batch = BatchSums(*sums)
        self._need_finite(batch)
        if group.size > 1:
            # Gradients become the mean over the processes; the loss of a batch is the mean over its
            # images.
            loss = loss * (own.weight * group.size / batch.weight)
        lr = self._lr()
        try:
            self._stepper.backward(loss)
            for callback in self._callbacks:
                callback.on_backward(self._epoch, len(self.result.lrs) + 1)
            self._stepper.update(lr)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._break_group()
            return False
        self.result.lrs.append(lr)
        self._sums.add(batch)
        self._is_save_due = bool(num_due)
        return True

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor | None, BatchSums]:
        """Return the loss of this process's share of a batch, and what it adds to the means.

        The loss is None if the share does not fit in memory.
        """
        context = self._context
        try:
            loss, logits = self._stepper.forward(context.inputs(images), labels)
            sums = BatchSums.of(loss.item(), logits.detach(), labels, self._stepper.class_weights)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if context.device.type == "cuda":
                self._break_group()
            return None, NOTHING
        if context.group.rank >= context.train.length_of(self._sums.steps):
            # A batch smaller than the group leaves some with an image that is another's.
            return loss, NOTHING
        return loss, sums

    def _is_time_to_save(self) -> bool:
        """Whether it is time for a resume checkpoint, which the first process decides for all.

        It is not while the one before is being written: where the disk is slow, copies would fill
        the memory.
        """
        if self._context.resume is None or self._is_saving:
            return False
        if self.files.pending >= _MOST_PENDING:
            return False
        seconds = self._configuration.training.checkpoint_seconds
        return time.perf_counter() - self._saved >= seconds

    def _need_finite(self, batch: BatchSums) -> None:
        if not math.isfinite(batch.loss):
            mean = batch.loss / batch.weight
            raise LossNotFinite(
                f"the loss is not finite at {self._place()} ({mean}); {self._advice_for_loss()}"
            )

    def _break_group(self) -> None:
        """End the training if other processes wait for this one's gradients or statistics.

        A process that trains by itself goes on.
        """
        group = self._context.group
        if group.size > 1:
            group.is_broken = True
            raise OutOfMemory(self._describe_shortage())

    def _place(self) -> str:
        return f"step {self._sums.steps + 1} of epoch {self._epoch}"

    def _advice_for_loss(self) -> str:
        best = self.result.best_epoch
        kept = "no weights are kept, since no epoch was good"
        if best:
            kept = f"the weights of epoch {best}, the best so far, are kept"
        return f"a lower optimizer.lr may help; {kept}"

    def _describe_shortage(self, images: Tensor | None = None, labels: Tensor | None = None) -> str:
        """Say where memory did not suffice; for a batch that is given also which one would fit."""
        size = self._context.group.size
        if images is None or labels is None or size > 1:
            batch_size = self._configuration.data.batch_size
            return (
                f"out of memory at data.batch_size {batch_size} ({self._place()}) "
                f"in {size} processes; a smaller one may fit"
            )
        advice = advise_batch_size(self._stepper, self._context, images, labels)
        return f"out of memory at data.batch_size {len(labels)} ({self._place()}); {advice}"

    def _lr(self) -> float:
        schedule = self._configuration.schedule
        steps_per_epoch = len(self._context.train)
        total = steps_per_epoch * self._configuration.training.epochs
        first = self._configuration.optimizer.lr
        lr = lr_at(len(self.result.lrs), schedule, first, steps_per_epoch, total)
        return max(lr * self._plateau.factor, min(lr, schedule.min_lr))

    def validate(self) -> None:
        """Score the epoch, keep its weights if they are the best, call back; go to the next one."""
        train_seconds = self._epoch_seconds + self._lap()
        labels, logits = self._predict()
        scores = metrics.score(labels, logits)
        if not math.isfinite(scores["loss"]):
            raise LossNotFinite(
                f"the validation loss is not finite after epoch {self._epoch} ({scores['loss']}); "
                f"{self._advice_for_loss()}"
            )
        self._plateau.observe(scores["loss"])
        values = {"train/loss": self._sums.loss, "train/accuracy": self._sums.accuracy}
        for name, value in scores.items():
            values[f"val/{name}"] = value
        values["lr"] = self.result.lrs[-1]
        values["epoch_seconds"] = train_seconds + self._lap()
        values["images_per_second"] = self._context.train.num_images / train_seconds
        is_best = self._take_epoch(values, labels, logits)
        self._call_back(values, labels, logits, is_best)
        self._begin_next_epoch()

    def _begin_next_epoch(self) -> None:
        self._epoch += 1
        self._sums = RunningMeans()
        self._epoch_seconds = 0.0

    def _predict(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return labels (images,) and logits (images, classes) of all validation images."""
        context = self._context
        context.group.share_buffers(self._module)
        labels, logits = predict_logits(
            context.trained_part,
            context.val,
            None if context.part else context.preprocessing,
            context.device,
            context.numerics,
        )
        return context.group.interleaved(labels), context.group.interleaved(logits)

    def _take_epoch(
        self, values: dict[str, float], labels: NDArray[np.int64], logits: NDArray[np.float32]
    ) -> bool:
        """Take an epoch into the result; return whether it is the best so far."""
        result = self.result
        metric = self._configuration.training.best_metric
        result.history.append(values)
        result.seconds += values["epoch_seconds"]
        reached = score(values[metric], metric)
        is_best = not result.best_epoch or reached >= score(result.best[metric], metric)
        if not is_best:
            return False
        result.best_epoch = self._epoch
        result.labels = labels
        result.logits = logits
        if self._context.group.is_first:
            self._keep_best()
        return True

    def _call_back(
        self,
        values: dict[str, float],
        labels: NDArray[np.int64],
        logits: NDArray[np.float32],
        is_best: bool,
    ) -> None:
        """Call back after an epoch; if the training pauses here, save its state.

        Callbacks are the first process's. What one of them raises goes further only when all
        processes know that the training ends.
        """
        raised: Exception | None = None
        try:
            for callback in self._callbacks:
                callback.on_validation(self._epoch, labels, logits)
            for callback in self._callbacks:
                callback.on_epoch(self._epoch, values, is_best)
        except Exception as error:
            raised = error
        ends, pauses = self._context.group.sum([raised is not None, isinstance(raised, Paused)])
        epoch = self._epoch
        if pauses:
            self._begin_next_epoch()
            self._save()
        if ends:
            raise raised or GivenUp(f"the first process gave up after epoch {epoch}")

    def _keep_best(self) -> None:
        """Take a copy of the weights, and let it be written beside the training."""
        # Where the disk is slower than the epochs, only the newest of those that wait is written.
        self.files.make_room(_BEST, _MOST_PENDING - 1)
        weights = weights_of(self._module)
        context = self._context

        def write() -> None:
            context.guard()
            save_weights(weights, context.checkpoint)

        self.files.submit(write, replaces=_BEST)

    def _lap(self) -> float:
        """Return the seconds since the last call."""
        before = self._tick
        self._tick = time.perf_counter()
        return self._tick - before

    def _save(self) -> None:
        """Take a copy of the state, and let it be written beside the training."""
        self._epoch_seconds += self._lap()
        states = self._context.group.collect_states(random_states())
        checkpoints = self._context.resume
        if checkpoints is None:
            return
        state: State | None = copied(self._state(states))
        number = len(self.result.lrs)
        # With the best weights of this moment: those on disk may be of a later epoch when the
        # training goes on from here.
        best = self._context.checkpoint if self.result.best_epoch else None

        def write() -> None:
            nonlocal state
            assert state is not None
            try:
                self._context.guard()
                checkpoints.save(state, number, best)
            finally:
                state = None
                self._is_saving = False

        self._is_saving = True
        self.files.submit(write)
        self._saved = time.perf_counter()

    def _state(self, states: list[State]) -> State:
        """Return all that a training needs to go on, for random states by rank."""
        result = self.result
        return {
            "network": self._module.state_dict(),
            **self._stepper.state(),
            "plateau": self._plateau.state(),
            "random": states,
            "epoch": self._epoch,
            "sums": vars(self._sums),
            "epoch_seconds": self._epoch_seconds,
            "history": result.history,
            "lrs": torch.tensor(result.lrs, dtype=torch.float64),
            "best_epoch": result.best_epoch,
            "labels": torch.from_numpy(result.labels),
            "logits": torch.from_numpy(result.logits),
            "seconds": result.seconds,
            "callbacks": {type(each).__name__: each.state() for each in self._callbacks},
        }

    def _resume(self) -> None:
        """Go on from the last checkpoint, if there is one.

        Best weights of epochs that will be trained again are removed.
        """
        context = self._context
        state = context.resume.load(context.checkpoint) if context.resume else None
        state = context.group.share_state(state)
        if state is not None:
            self._load(state)
        elif context.group.is_first:
            context.checkpoint.unlink(missing_ok=True)

    def _load(self, state: State) -> None:
        self._module.load_state_dict(state["network"])
        self._stepper.load_state(state)
        self._plateau.load_state(state["plateau"])
        self._epoch = state["epoch"]
        self._epoch_seconds = state["epoch_seconds"]
        self._sums = RunningMeans(**state["sums"])
        result = self.result
        result.history = state["history"]
        result.lrs = state["lrs"].tolist()
        result.best_epoch = state["best_epoch"]
        result.labels = state["labels"].numpy()
        result.logits = state["logits"].numpy()
        result.seconds = state["seconds"]
        for callback in self._callbacks:
            callback.load_state(state["callbacks"].get(type(callback).__name__, {}))
        rank = self._context.group.rank
        if rank < len(state["random"]):
            set_random_states(state["random"][rank])
