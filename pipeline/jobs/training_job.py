"""What is to be trained, and all that its training needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import Configuration
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import Preprocessing
from pipeline.identity import config_hash
from pipeline.report.console import say
from pipeline.tracking import names, stored_weights
from pipeline.training.build_context import keeps_own_statistics, open_context
from pipeline.training.context import TrainingContext
from pipeline.training.distributed import Group
from pipeline.training.malloc import settle_memory


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
                configuration=self.configuration.model_copy(
                    update={"data": data.model_copy(update={"fold": fold})}
                ),
                prepared=self.prepared.with_fold(fold),
            )
            for fold in range(data.folds)
        ]

    def resolved(self, processes: int) -> Configuration:
        """Return the configuration with DEFAULT and aliases replaced by what they stand for, and the processes that train."""
        training = self.configuration.training.model_copy(update={"processes": processes})
        return self.configuration.model_copy(
            update={
                "model": stored_weights.name_as_recorded(self.configuration.model, self.origin),
                "training": training,
            }
        )


@contextmanager
def open_job_context(job: Job, kept: Path, group: Group) -> Iterator[TrainingContext]:
    """Build network and loaders of a training, and release them when the block ends.

    Args:
        job: What is trained.
        kept: Folder of its checkpoints.
        group: Processes that train together; this one gets its share of the images.

    Raises:
        UserError: There is no such device, or fewer validation images than processes.
    """
    settle_memory()
    model = stored_weights.resolve_weights(job.configuration.model, job.origin)
    configuration = job.configuration.model_copy(update={"model": model})
    with open_context(
        configuration, job.prepared, kept / Path(names.CHECKPOINT).name, group, job.preprocessing
    ) as setting:
        if group.is_first and keeps_own_statistics(setting):
            say(
                "  BatchNorm takes its statistics in each process by itself on CPUs: the result is not quite that of one process"
            )
        yield setting
