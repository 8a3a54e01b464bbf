"""Build all that a training needs from its configuration and images, and release it when the training has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch

from pipeline import models
from pipeline.config import Configuration
from pipeline.data.loader import Images, Loader
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import Preprocessing, build_augmentation
from pipeline.errors import UserError
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
    """Build network and loaders of a training; when the block ends, in whatever way, no process and no setting of torch's is left.

    Args:
        configuration: Of the training; ``model.weights`` none, a published name, or ``file:``.
        prepared: The images.
        checkpoint: File of the best weights; resume checkpoints stand beside it.
        group: Processes that train together; this one gets its share of the images.
        preprocessing: Of a training that goes on: what it began with. None: as the weights want, else by the training split.

    Raises:
        UserError: There is no such device, or fewer validation images than processes.
    """
    training = configuration.training
    device = resolve_device(training.device)
    if group.size > 1 and device.type == "cuda":
        # What is not told a device would go to the first one, in every process.
        torch.cuda.set_device(device)
    with (
        choose_cuda_kernels(training.deterministic and device.type == "cuda"),
        closing(
            _build(configuration, prepared, checkpoint, group, device, preprocessing)
        ) as setting,
    ):
        yield setting


def dropout_seed(seed: int, rank: int) -> int:
    """Return the seed of dropout in one of the processes that train together; of the first one it is the training's own.

    The CPU's generator takes the lowest 32 bits only, so that these must differ.
    """
    return (
        int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)[0]) if rank else seed
    )


def keeps_own_statistics(setting: TrainingContext) -> bool:
    """Whether BatchNorm takes its statistics in each process by itself: it cannot take them over all of them on CPUs."""
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
    data, training = configuration.data, configuration.training
    torch.manual_seed(training.seed)
    network = models.build(configuration.model, len(prepared.classes), data.image_size)
    if group.rank:
        # The same weights as the others, but not the same dropout.
        torch.manual_seed(dropout_seed(training.seed, group.rank))
    labels, train_positions, val_positions = (
        prepared.labels(),
        prepared.positions("train"),
        prepared.positions("val"),
    )
    if len(val_positions) < group.size:
        raise UserError(
            f"training.processes: {group.size} processes need as many validation images; there are {len(val_positions)}"
        )
    train_images = Images(
        prepared.images,
        train_positions,
        labels,
        data.image_size,
        build_augmentation(data),
        training.seed,
    )
    val_images = Images(
        prepared.images, val_positions[group.rank :: group.size], labels, data.image_size
    )
    loading = num_loading_processes(data.workers, device, group.size, data.augment)
    needs_two_each = group.size > 1 and device.type == "cpu" and trains_batch_norm(network.module)
    return TrainingContext(
        network,
        preprocessing
        or Preprocessing.of(
            data, network.normalisation or prepared.normalisation(), prepared.version
        ),
        Loader(
            train_images,
            data.batch_size,
            shuffle_seed=training.seed,
            workers=loading,
            probabilities=sampling_probabilities(training, labels[train_positions]),
            share=(group.rank, group.size),
            smallest=2 * group.size if needs_two_each else 2,
        ),
        Loader(val_images, data.batch_size, workers=loading),
        device,
        checkpoint,
        resume=Checkpoints(checkpoint.parent) if group.is_first else None,
        group=group,
    )
