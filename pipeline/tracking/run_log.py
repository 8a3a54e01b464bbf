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

TAG_LENGTH = 8000
"""Most characters of a tag's value; the rest is cut off."""
_PARAM_LENGTH = 6000
"""Most characters of a param's value; the rest is cut off."""
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000


class RunLog:
    """What writes to one run and leaves its status as it is.

    It serves for results that are found later, such as test scores.

    Args:
        workspace: The open store.
        run_id: Id of an existing run.
    """

    def __init__(self, workspace: Workspace, run_id: str) -> None:
        self.workspace = workspace
        self.client = workspace.client
        self.id = run_id

    def _write(self, task: Task) -> None:
        """Do a task that writes to the store: at once, or later if a subclass decides so."""
        task()

    def flush(self) -> None:
        """Wait until all is written; needed before a file that was logged changes or is removed."""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._write(lambda: self._set_tags(tags))

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        # Every user of a server reads them.
        shown = {key: hide_passwords(str(value))[:TAG_LENGTH] for key, value in tags.items()}
        self.client.log_batch(self.id, tags=[RunTag(key, value) for key, value in shown.items()])

    def delete_tag(self, name: str) -> None:
        """Remove a tag that the run has."""
        self._write(lambda: self.client.delete_tag(self.id, name))

    def params(self, values: Mapping[str, Any]) -> None:
        """Log params. Params that the run has already (from the launcher) stay as they are."""
        self._write(lambda: self._log_params(values))

    def _log_params(self, values: Mapping[str, Any]) -> None:
        present = self.client.get_run(self.id).data.params
        new = [
            Param(key, hide_passwords(as_param(value))[:_PARAM_LENGTH])
            for key, value in values.items()
            if key not in present
        ]
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            self.client.log_batch(self.id, params=new[start : start + _PARAMS_PER_BATCH])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step: an epoch, from 1, or 0 for what is measured only once."""
        now = int(time.time() * 1000)
        batch = [Metric(key, float(value), now, step) for key, value in values.items()]
        for start in range(0, len(batch), _METRICS_PER_BATCH):
            part = batch[start : start + _METRICS_PER_BATCH]
            self._write(partial(self._log_metrics, part))

    def _log_metrics(self, metrics: Sequence[Metric]) -> None:
        self.client.log_batch(self.id, metrics=metrics)

    def text(self, name: str, content: str) -> None:
        """Log a text file as artifact `name`, such as ``folder/file.txt``."""
        self._write(lambda: self._log_text(name, content))

    def _log_text(self, name: str, content: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            file.write_text(content, encoding="utf-8")
            self._log_file(file, str(Path(name).parent))

    def json(self, name: str, content: Any) -> None:
        """Log plain values as a JSON artifact."""
        self.text(name, json.dumps(content, ensure_ascii=False, indent=1))

    def file(self, file: Path, folder: str = "") -> None:
        """Log a file as an artifact in `folder`.

        The file must stay as it is until `flush` or the run's end.
        """
        self._write(lambda: self._log_file(file, folder))

    def _log_file(self, file: Path, folder: str) -> None:
        self.client.log_artifact(self.id, str(file), folder if folder != "." else "")

    def files(self, folder: Path, name: str) -> None:
        """Log all files of a folder as artifacts under `name`.

        They must stay as they are until `flush` or the run's end.
        """
        self._write(lambda: self.client.log_artifacts(self.id, str(folder), name))

    def figure(self, name: str, draw: Callable[[Path], None]) -> None:
        """Log a figure as artifact `name`, such as ``folder/file.png``.

        Args:
            name: Path of the artifact.
            draw: Function that writes the figure to a file. What it draws must not change before
                `flush` or the run's end.
        """
        self._write(lambda: self._log_figure(name, draw))

    def _log_figure(self, name: str, draw: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            draw(file)
            self._log_file(file, str(Path(name).parent))

    def configuration(self, configuration: Configuration) -> None:
        """Log the configuration as params and, complete, as the artifact that is read back."""
        self.params(configuration.flat())
        values = configuration.model_dump(mode="json")
        self.text(names.CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def dataset(self, name: str, source: str, digest: str, contexts: Sequence[str]) -> None:
        """Log the data as dataset inputs, one for each context."""
        code_source = CodeDatasetSource({"source": source})
        dataset = MetaDataset(code_source, name=name, digest=digest)  # type: ignore[abstract]
        inputs: list[DatasetInput] = []
        for context in contexts:
            tags = [InputTag("mlflow.data.context", context)]
            inputs.append(DatasetInput(dataset._to_mlflow_entity(), tags))
        self._write(lambda: self.client.log_inputs(self.id, inputs))
