"""How long a study takes: trainings, evaluation and all that stands around them.

The fixed parts are processor seconds of `main` on one core of an idle machine of 2.5 GHz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.config import Study
from pipeline.jobs.network_speeds import Speed

FORWARD = 0.3
"""Time of a forward pass over that of a forward and a backward one, roughly."""
LOADING_SECONDS = 3e-4
"""Seconds to read and augment an image, if the processor that does it trains too."""
HEAD_SECONDS = 5e-5
"""Seconds of a training step per image if only a head is trained on features."""
EPOCH_SECONDS = 0.15
"""Seconds of an epoch beside its images: metrics, histograms of weights, the best weights."""
TRAINING_SECONDS = 1.4
"""Seconds of a training beside its epochs: its start, its figures and what is logged."""
EVALUATION_SECONDS = 1.6
"""Seconds of an evaluation beside its images: figures, tables, intervals."""
STUDY_SECONDS = 27.0
"""Seconds of a study beside its trainings: its start, the comparison, the exported network."""
COST_IMAGES = 160
"""Images that a network answers while its speed is measured, once in a study."""
MISTAKE_IMAGES = 60
"""Images that the maps of an evaluation's mistakes take as long as."""


@dataclass(frozen=True)
class Images:
    """What planning must know of the images.

    Attributes:
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        num_folds: How often each configuration is trained.
        reading_seconds: Seconds to read and decode an image, once in a study.
        loading_seconds: Seconds by which each image makes an epoch longer beside its step.
    """

    train: int
    val: int
    test: int
    num_folds: int = 1
    reading_seconds: float = 0.0
    loading_seconds: float = LOADING_SECONDS

    @property
    def total(self) -> int:
        """Number of all images."""
        return self.train + self.val + self.test


@dataclass(frozen=True)
class Searching:
    """What a pruner makes of searched trials.

    Attributes:
        epochs: Share of their epochs that searched trials train, on the average.
        complete: Share of the searched trials that are trained to their end, and so evaluated.
    """

    epochs: float
    complete: float


def _race(epochs: int, num_searched: int) -> Searching:
    if not num_searched:
        return Searching(1.0, 1.0)
    finalists = min(Study().num_finalists(num_searched), num_searched)
    complete = finalists / num_searched
    return Searching((1 + complete * (epochs - 1)) / epochs, complete)


PRUNERS: dict[str, Callable[[int, int], Searching]] = {
    "none": lambda epochs, num_searched: Searching(1.0, 1.0),
    "one_epoch": _race,
}
"""What each pruner that is planned with makes of a number of epochs and of searched trials."""


@dataclass(frozen=True)
class Trainings:
    """The trainings of a study.

    Attributes:
        epochs: Number of epochs of each.
        is_frozen: Whether they train heads only, on features that are computed once a network.
        batch_size: Number of images per step.
        num_settings: Number of entries of the list for each network.
        num_searched: Number of searched trials.
        pruner: Name of the pruner.
    """

    epochs: int
    is_frozen: bool
    batch_size: int
    num_settings: int
    num_searched: int
    pruner: str


@dataclass(frozen=True)
class StudySeconds:
    """Seconds that a study takes, by its parts.

    Attributes:
        listed: Trainings of the list.
        searched: Searched trainings.
        evaluation: Evaluation of all complete runs.
        rest: All else, such as preparing the images and comparing the runs.
    """

    listed: float
    searched: float
    evaluation: float
    rest: float

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return self.listed + self.searched + self.evaluation + self.rest


def training_seconds(speed: Speed, images: Images, epochs: float, is_frozen: bool) -> float:
    """Return how long one training takes.

    A frozen backbone's features, which its first training computes, are not among it.
    """
    step = HEAD_SECONDS if is_frozen else speed.step + images.loading_seconds
    validation = step if is_frozen else FORWARD * speed.step + images.loading_seconds
    epoch = images.train * step + images.val * validation + EPOCH_SECONDS
    return epochs * epoch + TRAINING_SECONDS


def study_seconds(speeds: Sequence[Speed], images: Images, trainings: Trainings) -> StudySeconds:
    """Return how long a study takes.

    Args:
        speeds: What each of its networks takes per image.
        images: Its images.
        trainings: Its trainings. Searched ones are spread evenly over the networks.
    """
    whole = []
    pruned = []
    evaluations = []
    once = []
    searching = PRUNERS[trainings.pruner](trainings.epochs, trainings.num_searched)
    some = searching.epochs * trainings.epochs
    for speed in speeds:
        whole.append(training_seconds(speed, images, trainings.epochs, trainings.is_frozen))
        pruned.append(training_seconds(speed, images, some, trainings.is_frozen))
        evaluations.append(
            EVALUATION_SECONDS + FORWARD * speed.plain * (images.test + MISTAKE_IMAGES)
        )
        once.append(_network_seconds(speed, images, trainings))
    mean = 1 / len(speeds)
    searched = mean * trainings.num_searched * images.num_folds
    listed = trainings.num_settings * images.num_folds
    return StudySeconds(
        listed=listed * sum(whole),
        searched=searched * sum(pruned),
        evaluation=(listed + searched * searching.complete) * sum(evaluations),
        rest=sum(once) + STUDY_SECONDS + images.reading_seconds * images.total,
    )


def _network_seconds(speed: Speed, images: Images, trainings: Trainings) -> float:
    """Return what is done once for each network of a study."""
    choice = speed.choice * trainings.batch_size
    cost = FORWARD * speed.plain * COST_IMAGES
    if not trainings.is_frozen:
        return choice + cost
    features = FORWARD * speed.step * (images.train + images.val)
    return FORWARD * choice + cost + features
