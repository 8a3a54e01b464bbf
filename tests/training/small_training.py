"""A small training for tests.

Its configuration, its context by the real builder, and how it ends early.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from pipeline.config import Configuration
from pipeline.data.loader import Images
from pipeline.data.prepared import Prepared
from pipeline.training.build_context import open_context
from pipeline.training.context import TrainingContext
from pipeline.training.fit_result import FitResult, result_of

BASE: dict[str, Any] = {
    "data": {"source": "digits", "image_size": 16, "batch_size": 32, "limit": 300},
    "model": {"name": "small_cnn"},
    "optimizer": {"name": "adam", "lr": 3e-3},
    "training": {"epochs": 3, "device": "cpu"},
}
TIMES = {"epoch_seconds", "images_per_second"}
METRICS = {
    "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/f1_macro",
    "val/balanced_accuracy", "lr", *TIMES,
}  # fmt: skip

_opened = ExitStack()
"""Contexts stay open as long as the process."""
atexit.register(_opened.close)


def build_context(
    configuration: Configuration,
    prepared: Prepared,
    folder: Path,
    labels: NDArray[Any] | None = None,
) -> TrainingContext:
    """Build a context as the pipeline does.

    `labels` of all images replace the labels of the training split.
    """
    checkpoint = folder / "best.safetensors"
    context = _opened.enter_context(open_context(configuration, prepared, checkpoint))
    if labels is not None:
        images = context.train.images
        assert isinstance(images, Images)
        images.labels = torch.from_numpy(labels[images.positions])
    return context


class Ended:
    """What a training that ended early had come to; filled when the block of `ends_by` is left."""

    result: FitResult


@contextmanager
def ends_by(kind: type[Exception], message: str = "") -> Iterator[Ended]:
    """Check that a training ends early by an error of a kind, whose text has a pattern in it."""
    ended = Ended()
    with pytest.raises(kind, match=message or None) as caught:
        yield ended
    result = result_of(caught.value)
    assert result is not None
    ended.result = result
