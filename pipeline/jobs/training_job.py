"""What is to be trained, and all that its training needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import Configuration
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import Preprocessing
from pipeline.identity import TrainingIdentity, config_hash
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
        configuration: The training's configuration.
        origin: Identity of its model, by `pipeline.models.origin`.
        prepared: Its images.
        preprocessing: The preprocessing that an interrupted training has begun with, whatever
            stands beside its weights by now. None: the preprocessing that the weights want.
    """

    configuration: Configuration
    origin: Mapping[str, str]
    prepared: Prepared
    preprocessing: Preprocessing | None = None

    @property
    def config_hash(self) -> str:
        """Hash of the configuration, weights resolved."""
        return config_hash(self.configuration, self.origin)

    @property
    def seed(self) -> int:
        """The training's seed, which is not part of the hash."""
        return self.configuration.training.seed

    @property
    def identity(self) -> TrainingIdentity:
        """What makes another training the same as this one."""
        prepared = self.prepared
        return TrainingIdentity(self.config_hash, self.seed, prepared.fold, prepared.digest)

    def per_fold(self) -> list[Job]:
        """Return the trainings to do: this one, or one for each fold if ``data.fold`` is all."""
        data = self.configuration.data
        if data.fold != "all":
            return [self]
        return [self._on_fold(fold) for fold in range(data.folds)]

    def _on_fold(self, fold: int) -> Job:
        configuration = self.configuration.change("data", fold=fold)
        return replace(self, configuration=configuration, prepared=self.prepared.with_fold(fold))

    def resolved(self, processes: int) -> Configuration:
        """Return the configuration as a run records it.

        DEFAULT and aliases are replaced by what they stand for.

        Args:
            processes: The number of processes that train.
        """
        model = stored_weights.name_as_recorded(self.configuration.model, self.origin)
        configuration = self.configuration.change("training", processes=processes)
        return configuration.model_copy(update={"model": model})


@contextmanager
def open_job_context(job: Job, folder: Path, group: Group) -> Iterator[TrainingContext]:
    """Build network and loaders of a training, and release them when the block ends.

    Args:
        job: What is trained.
        folder: Folder of its checkpoints.
        group: Processes that train together; this one gets its share of the images.

    Raises:
        UserError: There is no such device, or fewer validation images than processes.
    """
    settle_memory()
    model = stored_weights.resolve_weights(job.configuration.model, job.origin)
    configuration = job.configuration.model_copy(update={"model": model})
    checkpoint = folder / Path(names.CHECKPOINT).name
    with open_context(configuration, job.prepared, checkpoint, group, job.preprocessing) as context:
        if group.is_first and keeps_own_statistics(context):
            say(
                "  BatchNorm takes its statistics in each process by itself on CPUs: "
                "the result is not quite that of one process"
            )
        yield context
