"""The worst mistakes of a network on the test images, as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.data.loader import Images, Loader
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import Preprocessing
from pipeline.report.gallery import MOST_MISTAKES, Mistake, draw_gallery
from pipeline.scores.evaluation import Evaluation
from pipeline.tracking.run_log import RunLog
from pipeline.training.activation_maps import find_activation_maps

MISTAKES = "test/mistakes.png"


@dataclass(frozen=True)
class Answering:
    """A network, and the images that it answered.

    Attributes:
        network: The network, in evaluation mode on the device that it computes on.
        preprocessing: What is done to images before the network sees them.
        image_size: Side of the square that it sees, in pixels.
        prepared: The images.
        device: The device.
    """

    network: nn.Module
    preprocessing: Preprocessing
    image_size: int
    prepared: Prepared
    device: torch.device


def log_mistakes(
    run: RunLog, answering: Answering, classes: list[str], evaluation: Evaluation
) -> None:
    """Log the test images that were answered wrongly with the most confidence.

    Beside each stands which parts of it spoke for the wrong answer. Nothing is logged if all
    answers are right.

    Args:
        run: The run.
        answering: The network and its images.
        classes: Names of the classes, in the order of the network's outputs.
        evaluation: The answers to all test images.
    """
    wrong = np.flatnonzero(~evaluation.correct)
    if not len(wrong):
        return
    confidences = evaluation.probabilities.max(axis=1)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")]
    places = worst[:MOST_MISTAKES]
    answers = evaluation.probabilities[places].argmax(axis=1)
    positions = answering.prepared.positions("test")[places]
    images = _load(answering, positions)
    inputs = answering.preprocessing.normalise(images.to(answering.device))
    maps = find_activation_maps(answering.network, inputs, answers)
    paths = answering.prepared.manifest["path"].iloc[positions]
    mistakes = []
    for number, (place, path) in enumerate(zip(places, paths, strict=True)):
        mistake = Mistake(
            image=images[number].numpy(),
            true=classes[evaluation.labels[place]],
            predicted=classes[answers[number]],
            confidence=float(confidences[place]),
            map=None if maps is None else maps[number],
            name=PurePosixPath(str(path)).name,
        )
        mistakes.append(mistake)
    run.figure(MISTAKES, partial(draw_gallery, mistakes=mistakes, num_all=len(wrong)))


def _load(answering: Answering, positions: NDArray[np.int64]) -> torch.Tensor:
    """Return images as the network sees them, before they are normalised, 0 to 255."""
    prepared = answering.prepared
    images = Images(prepared.images, positions, prepared.labels(), answering.image_size)
    batches = [batch for batch, _ in Loader(images, len(positions)).epoch(0)]
    return torch.cat(batches)
