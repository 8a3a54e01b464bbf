"""What is to be trained, and all that its training needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline import models
from pipeline.config import Configuration
from pipeline.data.loader import Images, Loader
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import Preprocessing, build_augmentation
from pipeline.errors import UserError
from pipeline.identity import config_hash
from pipeline.report.console import say
from pipeline.tracking import names, transfer
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.device import num_loading, resolve_device, use_deterministic_kernels
from pipeline.training.distributed import Group, trains_batch_norm
from pipeline.training.imbalance import probabilities
from pipeline.training.memory import settle_memory
from pipeline.training.setting import Setting


@dataclass(frozen=True)
class Job:
    """What is to be trained, and what identifies it.

    Attributes:
        configuration: Of the training.
        origin: Of its model, by `pipeline.models.origin`.
        prepared: Its images.
        preprocessing: Of a training that goes on: what it began with, whatever stands beside its weights by now. None: as the weights want.
    """

    configuration: Configuration
    origin: Mapping[str, str]
    prepared: Prepared
    preprocessing: Preprocessing | None = None

    @property
    def config_hash(self) -> str:
        """Of the configuration, weights resolved."""
        return config_hash(self.configuration, self.origin)

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.configuration.training.seed

    def per_fold(self) -> list[Job]:
        """Return the trainings to do: this one, or where ``data.fold`` is all, one for each fold."""
        data = self.configuration.data
        if data.fold != "all":
            return [self]
        return [
            replace(
                self,
                configuration=self.configuration.model_copy(update={"data": data.model_copy(update={"fold": fold})}),
                prepared=self.prepared.with_fold(fold),
            )
            for fold in range(data.folds)
        ]

    def resolved(self, processes: int) -> Configuration:
        """Return the configuration with DEFAULT and aliases replaced by what they stand for, and the processes that train."""
        training = self.configuration.training.model_copy(update={"processes": processes})
        return self.configuration.model_copy(
            update={"model": transfer.recorded(self.configuration.model, self.origin), "training": training}
        )


def setting_of(job: Job, kept: Path, group: Group) -> Setting:
    """Build network and loaders of a training.

    Args:
        job: What is trained.
        kept: Folder of its checkpoints.
        group: Processes that train together; this one gets its share of the images.

    Raises:
        UserError: There is no such device, or fewer validation images than processes.
    """
    settle_memory()
    configuration, prepared = job.configuration, job.prepared
    data = configuration.data
    device = resolve_device(configuration.training.device)
    if group.size > 1 and device.type == "cuda":
        # What is not told a device would go to the first one, in every process.
        torch.cuda.set_device(device)
    if configuration.training.deterministic and device.type == "cuda":
        use_deterministic_kernels()
    torch.manual_seed(job.seed)
    network = models.build(transfer.with_file(configuration.model, job.origin), len(prepared.classes), data.image_size)
    if group.rank:
        # The same weights as the others, but not the same dropout.
        torch.manual_seed(job.seed + group.rank * 2**32)
    preprocessing = job.preprocessing or Preprocessing.of(data, network.normalisation or prepared.normalisation())
    labels, train_positions, val_positions = prepared.labels(), prepared.positions("train"), prepared.positions("val")
    if len(val_positions) < group.size:
        raise UserError(f"training.processes: {group.size} processes need as many validation images; there are {len(val_positions)}")
    train_images = Images(prepared.images, train_positions, labels, data.image_size, build_augmentation(data), job.seed)
    val_images = Images(prepared.images, val_positions[group.rank :: group.size], labels, data.image_size)
    loading = num_loading(data.workers, device, group.size)
    smallest = 2
    if group.size > 1 and device.type == "cpu" and trains_batch_norm(network.module):
        smallest = 2 * group.size
        if group.is_first:
            say("  BatchNorm takes its statistics in each process by itself on CPUs: the result is not quite that of one process")
    return Setting(
        network,
        preprocessing,
        Loader(
            train_images,
            data.batch_size,
            shuffle_seed=job.seed,
            workers=loading,
            probabilities=probabilities(configuration.training, labels[train_positions]),
            share=(group.rank, group.size),
            smallest=smallest,
        ),
        Loader(val_images, data.batch_size, workers=loading),
        device,
        kept / Path(names.CHECKPOINT).name,
        resume=Checkpoints(kept) if group.is_first else None,
        group=group,
    )
