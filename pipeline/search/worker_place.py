"""Which of a study's workers a process is, and how it is started."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.errors import PipelineError
from pipeline.experiment import Experiment
from pipeline.tracking.launcher_process import WORKER
from pipeline.tracking.workspace import Workspace


class WorkerPlace(NamedTuple):
    """Which of a study's workers a process is.

    Attributes:
        number: Number of the worker among those that one process has started, from 1.
        study: Name of the study.
    """

    number: int
    study: str

    def named(self, experiment: Experiment) -> Experiment:
        """Return an experiment that names the worker's study, as one process works on it."""
        alone = {"name": self.study, "workers": 1, "launcher": "local"}
        return replace(experiment, study=experiment.study.model_copy(update=alone))

    def environment(self, workspace: Workspace) -> dict[str, str]:
        """Return the environment variables by which a process becomes this worker."""
        return {
            WORKER: json.dumps(self._asdict()),
            "PYTHONUNBUFFERED": "1",
            "MLFLOW_TRACKING_URI": workspace.uri,
        }


def this_worker() -> WorkerPlace | None:
    """Return which worker this process is; None if it is not the worker of another process."""
    given = os.environ.get(WORKER)
    return WorkerPlace(**json.loads(given)) if given else None


def worker_arguments(experiment: Experiment) -> list[str]:
    """Return the arguments of a Python that becomes a worker of a study."""
    return ["-P", "-m", "pipeline", "tune", *experiment.arguments("tune")]


@dataclass(frozen=True)
class Workers:
    """Processes that train a study's trials, wherever they are.

    What they print is printed with their numbers. Another process takes the place of one that
    dies. They end with this process, however it ends.

    Attributes:
        experiment: The experiment; it tells how this process was called.
        workspace: The open store.
        study: Name of the study.
        count: Number of processes.
        num_left: Returns how many trials are still to begin.
    """

    experiment: Experiment
    workspace: Workspace
    study: str
    count: int
    num_left: Callable[[], int]

    def need_nothing_left(self) -> None:
        """Check that the workers, which have all ended, have left nothing that could be trained.

        Raises:
            PipelineError: There are such trials.
        """
        left = self.num_left()
        if left:
            raise PipelineError(
                f"all workers have ended, and {left} of the study's trials are still to do; "
                "the same command goes on with them"
            )
