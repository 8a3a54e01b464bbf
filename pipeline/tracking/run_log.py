"""What is written to a run: tags, params, metrics, files."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag

from pipeline.background import Task
from pipeline.config import Configuration
from pipeline.safe_text import hide_passwords
from pipeline.tracking import names
from pipeline.tracking.find_runs import as_param
from pipeline.tracking.workspace import Workspace

_PARAM_LENGTH, TAG_LENGTH = 6000, 8000
_PARAMS_PER_BATCH, _METRICS_PER_BATCH = 100, 1000


class RunLog:
    """Writes to one run, whose status it leaves alone: for what is found out later, such as test scores.

    Args:
        workspace: The open store.
        run_id: Of an existing run.
    """

    def __init__(self, workspace: Workspace, run_id: str) -> None:
        self.workspace, self.client, self.id = workspace, workspace.client, run_id

    def _write(self, task: Task) -> None:
        """Do what writes to the store; at once, unless a subclass puts it off."""
        task()

    def flush(self) -> None:
        """Wait until all is written; needed before a file that was logged changes or goes."""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._write(lambda: self._tag(tags))

    def _tag(self, tags: Mapping[str, str]) -> None:
        # Every user of a server reads them.
        shown = {key: hide_passwords(str(value))[:TAG_LENGTH] for key, value in tags.items()}
        self.client.log_batch(self.id, tags=[RunTag(key, value) for key, value in shown.items()])

    def params(self, values: Mapping[str, Any]) -> None:
        """Log params; those the run has already (the launcher's) stay as they are."""
        self._write(lambda: self._params(values))

    def delete_tag(self, name: str) -> None:
        """Remove a tag that the run has."""
        self._write(lambda: self.client.delete_tag(self.id, name))

    def _params(self, values: Mapping[str, Any]) -> None:
        present = self.client.get_run(self.id).data.params
        new = [
            Param(key, hide_passwords(as_param(value))[:_PARAM_LENGTH])
            for key, value in values.items()
            if key not in present
        ]
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            self.client.log_batch(self.id, params=new[start : start + _PARAMS_PER_BATCH])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step (an epoch, from 1; 0 for what is known once)."""
        now = int(time.time() * 1000)
        batch = [Metric(key, float(value), now, step) for key, value in values.items()]
        for start in range(0, len(batch), _METRICS_PER_BATCH):
            part = batch[start : start + _METRICS_PER_BATCH]
            self._write(partial(self._log_metrics, part))

    def _log_metrics(self, metrics: Sequence[Metric]) -> None:
        self.client.log_batch(self.id, metrics=metrics)

    def text(self, name: str, content: str) -> None:
        """Log a text file as artifact `name`, such as ``folder/file.txt``."""
        self._write(lambda: self._text(name, content))

    def _text(self, name: str, content: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            file.write_text(content, encoding="utf-8")
            self._file(file, str(Path(name).parent))

    def json(self, name: str, content: Any) -> None:
        """Log plain values as a JSON artifact."""
        self.text(name, json.dumps(content, ensure_ascii=False, indent=1))

    def file(self, file: Path, folder: str = "") -> None:
        """Log a file as an artifact in `folder`; it must stay as it is until `flush` or the run's end."""
        self._write(lambda: self._file(file, folder))

    def _file(self, file: Path, folder: str) -> None:
        self.client.log_artifact(self.id, str(file), folder if folder != "." else "")

    def files(self, folder: Path, name: str) -> None:
        """Log all files of a folder as artifacts under `name`; they must stay as they are until `flush` or the run's end."""
        self._write(lambda: self.client.log_artifacts(self.id, str(folder), name))

    def figure(self, name: str, draw: Callable[[Path], None]) -> None:
        """Log a figure as artifact `name`, such as ``folder/file.png``.

        Args:
            name: Of the artifact.
            draw: Writes the figure to a file; what it draws must not change meanwhile.
        """
        self._write(lambda: self._figure(name, draw))

    def _figure(self, name: str, draw: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            draw(file)
            self._file(file, str(Path(name).parent))

    def configuration(self, configuration: Configuration) -> None:
        """Log the configuration as params and, whole, as the artifact that is read back."""
        self.params(configuration.flat())
        self.text(
            names.CONFIG,
            yaml.safe_dump(
                configuration.model_dump(mode="json"), sort_keys=False, allow_unicode=True
            ),
        )

    def dataset(self, name: str, source: str, digest: str, contexts: Sequence[str]) -> None:
        """Log the data as dataset inputs, one per context."""
        dataset = MetaDataset(CodeDatasetSource({"source": source}), name=name, digest=digest)  # type: ignore[abstract]
        inputs = [
            DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)])
            for context in contexts
        ]
        self._write(lambda: self.client.log_inputs(self.id, inputs))
