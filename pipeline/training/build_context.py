"""Build all that a training needs from its configuration and images, and release it at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch

from pipeline import models
from pipeline.config import Configuration
from pipeline.data.loader import Images, Loader, Share
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import Preprocessing, build_augmentation
from pipeline.errors import UserError
from pipeline.models import Network
from pipeline.models.batch_norm import trains_batch_norm
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.context import TrainingContext
from pipeline.training.device import choose_cuda_kernels, num_loading_processes, resolve_device
from pipeline.training.distributed import SINGLE_PROCESS, Group
from pipeline.training.imbalance import sampling_probabilities


@contextmanager
def open_context(
    configuration: Configuration,
    prepared: Prepared,
    checkpoint: Path,
    group: Group = SINGLE_PROCESS,
    preprocessing: Preprocessing | None = None,
) -> Iterator[TrainingContext]:
    """Build network and loaders of a training.

    When the block ends, in whatever way, the processes that load images have ended and torch's
    settings are as before.

    Args:
        configuration: The configuration of the training. Its ``model.weights`` are none, a
            published name, or ``file:``.
        prepared: The images.
        checkpoint: File of the best weights; resume checkpoints stand beside it.
        group: Processes that train together; this one gets its share of the images.
        preprocessing: The preprocessing that a training which goes on began with. None: its
            normalisation comes with the weights, or else from the training images.

    Raises:
        UserError: There is no such device, or fewer validation images than processes.
    """
    training = configuration.training
    device = resolve_device(training.device)
    if group.size > 1 and device.type == "cuda":
        # Without this, whatever names no device would use the first one, in every process.
        torch.cuda.set_device(device)
    with (
        choose_cuda_kernels(training.deterministic and device.type == "cuda"),
        closing(
            _build(configuration, prepared, checkpoint, group, device, preprocessing)
        ) as setting,
    ):
        yield setting


def dropout_seed(seed: int, rank: int) -> int:
    """Return the seed of dropout in one of the processes that train together.

    The first process has the seed of the training itself. The CPU's generator takes the lowest 32
    bits of a seed only, so the seeds must differ in these.
    """
    if rank == 0:
        return seed
    state = np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)
    return int(state[0])


def keeps_own_statistics(setting: TrainingContext) -> bool:
    """Whether BatchNorm takes its statistics in each process by itself.

    It does so on CPUs, which cannot take them over all processes.
    """
    return (
        setting.group.size > 1
        and setting.device.type == "cpu"
        and trains_batch_norm(setting.network.module)
    )


def _build(
    configuration: Configuration,
    prepared: Prepared,
    checkpoint: Path,
    group: Group,
    device: torch.device,
    preprocessing: Preprocessing | None,
) -> TrainingContext:
    data = configuration.data
    training = configuration.training
    network = _build_network(configuration, len(prepared.classes), group)
    labels = prepared.labels()
    train_positions = prepared.positions("train")
    val_positions = prepared.positions("val")
    if len(val_positions) < group.size:
        raise UserError(
            f"training.processes: {group.size} processes need as many validation images; "
            f"there are {len(val_positions)}"
        )
    augmentation = build_augmentation(data)
    train_images = Images(
        prepared.images, train_positions, labels, data.image_size, augmentation, training.seed
    )
    own_positions = val_positions[group.rank :: group.size]
    val_images = Images(prepared.images, own_positions, labels, data.image_size)
    if preprocessing is None:
        normalisation = network.normalisation or prepared.normalisation()
        preprocessing = Preprocessing.of(data, normalisation, prepared.version)
    workers = num_loading_processes(data.workers, device, group.size, data.augment)
    needs_two_each = group.size > 1 and device.type == "cpu" and trains_batch_norm(network.module)
    train = Loader(
        train_images,
        data.batch_size,
        shuffle_seed=training.seed,
        workers=workers,
        probabilities=sampling_probabilities(training, labels[train_positions]),
        share=Share(group.rank, group.size, 2 * group.size if needs_two_each else 2),
    )
    val = Loader(val_images, data.batch_size, workers=workers)
    resume = Checkpoints(checkpoint.parent) if group.is_first else None
    return TrainingContext(
        network, preprocessing, train, val, device, checkpoint, resume=resume, group=group
    )


def _build_network(configuration: Configuration, num_classes: int, group: Group) -> Network:
    """Build the network, with the same weights in every process but not the same dropout."""
    seed = configuration.training.seed
    torch.manual_seed(seed)
    network = models.build(configuration.model, num_classes, configuration.data.image_size)
    if group.rank:
        torch.manual_seed(dropout_seed(seed, group.rank))
    return network
