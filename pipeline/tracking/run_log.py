"""What is written to a run: tags, params, metrics, files."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from pipeline.background import Task
from pipeline.config import Configuration
from pipeline.safe_text import hide_passwords
from pipeline.tracking import names
from pipeline.tracking.entries import MOST_METRICS, MOST_NAMED, Entry
from pipeline.tracking.find_runs import as_param
from pipeline.tracking.journal import MAY_LINK
from pipeline.tracking.transport import Direct, Transport
from pipeline.tracking.workspace import Workspace

TAG_LENGTH = 8000
"""Most characters of a tag's value; the rest is cut off."""
_PARAM_LENGTH = 6000
"""Most characters of a param's value; the rest is cut off."""


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
        self._transport: Transport = Direct(workspace, run_id)

    @property
    def id(self) -> str:
        """Id of the run; empty as long as a tracking server has not made it."""
        return self._transport.run_id

    def _write(self, task: Task) -> None:
        """Do a task that writes to the store: at once, or later if a subclass decides so."""
        task()

    def _add(self, entry: Entry, contents: Mapping[str, Path] | None = None) -> None:
        self._write(lambda: self._transport.add(entry, contents))

    def flush(self) -> None:
        """Wait until all is kept; needed before a file that was logged changes or is removed."""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for entry in _tag_entries(tags):
            self._add(entry)

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags before what is still waiting to be written."""
        for entry in _tag_entries(tags):
            self._transport.add(entry)

    def delete_tag(self, name: str) -> None:
        """Remove a tag that the run has."""
        self._add({"kind": "delete_tag", "name": name})

    def params(self, values: Mapping[str, Any]) -> None:
        """Log params. Params that the run has already (from the launcher) stay as they are."""
        shown = {}
        for key, value in values.items():
            shown[key] = hide_passwords(as_param(value))[:_PARAM_LENGTH]
        for part in _split(shown, MOST_NAMED):
            self._add({"kind": "params", "values": dict(part)})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step: an epoch, from 1, or 0 for what is measured only once."""
        for entry in metric_entries(values, step):
            self._add(entry)

    def text(self, name: str, content: str) -> None:
        """Log a text file as artifact `name`, such as ``folder/file.txt``."""
        self._write(lambda: self._log_text(name, content))

    def _log_text(self, name: str, content: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            file.write_text(content, encoding="utf-8")
            self._log_file(file, name)

    def json(self, name: str, content: Any) -> None:
        """Log plain values as a JSON artifact."""
        self.text(name, json.dumps(content, ensure_ascii=False, indent=1))

    def file(self, file: Path, folder: str = "", *, may_link: bool = False) -> None:
        """Log a file as an artifact in `folder`.

        The file must stay as it is until `flush` or the run's end.

        Args:
            file: The file.
            folder: Folder among the run's artifacts.
            may_link: Whether the file is only ever replaced, and never written to, so that a link
                keeps it as it is.
        """
        self._write(lambda: self._log_file(file, str(Path(folder, file.name)), may_link))

    def _log_file(self, file: Path, path: str, may_link: bool = False) -> None:
        entry = {"kind": "file", "path": path, MAY_LINK: may_link}
        self._transport.add(entry, {"file": file})

    def files(self, folder: Path, name: str) -> None:
        """Log all files of a folder as artifacts under `name`.

        They must stay as they are until `flush` or the run's end.
        """
        self._write(lambda: self._log_files(folder, name))

    def _log_files(self, folder: Path, name: str) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self._log_file(file, str(Path(name, file.relative_to(folder))))

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
            self._log_file(file, name)

    def configuration(self, configuration: Configuration) -> None:
        """Log the configuration as params and, complete, as the artifact that is read back."""
        self.params(configuration.flat())
        values = configuration.model_dump(mode="json")
        self.text(names.CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def dataset(self, name: str, source: str, digest: str, contexts: Sequence[str]) -> None:
        """Log the data as dataset inputs, one for each context."""
        described = {"name": name, "source": source, "digest": digest}
        self._add({"kind": "dataset", **described, "contexts": list(contexts)})

    def model(self, files: Mapping[str, Path], image_size: int) -> None:
        """Log an exported network with all that serving it needs (see `tracking.export`).

        Args:
            files: The files by name. They must stay as they are until `flush`.
            image_size: Height and width of its images.
        """
        self._add({"kind": "model", "image_size": image_size}, files)


def metric_entries(values: Mapping[str, float], step: int) -> Iterator[Entry]:
    """Yield entries with metrics of one step, measured now."""
    now = int(time.time() * 1000)
    for part in _split(values, MOST_METRICS):
        batch = [[name, float(value), now, step] for name, value in part]
        yield {"kind": "metrics", "values": batch}


def _tag_entries(tags: Mapping[str, str]) -> Iterator[Entry]:
    # Every user of a server reads them.
    shown = {key: hide_passwords(str(value))[:TAG_LENGTH] for key, value in tags.items()}
    for part in _split(shown, MOST_NAMED):
        yield {"kind": "tags", "values": dict(part)}


def _split(values: Mapping[str, Any], most: int) -> Iterator[list[tuple[str, Any]]]:
    """Yield the items of a mapping, `most` at a time."""
    items = iter(values.items())
    while part := list(islice(items, most)):
        yield part
