"""What is written to a run, as plain entries: what each kind holds, and how MLflow takes it.

An entry is a dict that JSON can hold. Its ``kind`` is one of these, with further keys:

- ``create``: a new run; experiment, experiment_id (empty if not known), name, tags, start_time
- ``take_up``: an existing run goes on; run_id, name, tags, stale (names of tags to remove)
- ``metrics``: values, a list of [name, value, timestamp, step]
- ``params``, ``tags``: values, by name
- ``delete_tag``: name
- ``file``: path of an artifact; its content is a file of the last part of that path
- ``dataset``: name, source, digest, contexts
- ``model``: an exported network; image_size; its contents are the files that serving it needs
- ``end``: status, end_time
- ``leave``: nothing more is written, and the run is another process's to end

Every entry but ``create`` may be written twice, and has the effect of once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipeline.tracking.workspace import Workspace

Entry = dict[str, Any]
Item = Metric | Param | RunTag
"""What one call of MLflow takes many of."""

ITEMS = ("metrics", "params", "tags")
"""Kinds of entries that are made of items."""
MOST_METRICS = 1000
"""Most metrics, and most items, that one call takes."""
MOST_NAMED = 100
"""Most params, and most tags, that one call takes."""
_NO_SUCH = "RESOURCE_DOES_NOT_EXIST"


def items_of(entry: Entry) -> list[Item]:
    """Return the items of an entry of one of the kinds `ITEMS`."""
    values = entry["values"]
    if entry["kind"] == "metrics":
        return [Metric(*value) for value in values]
    make: type[Param] | type[RunTag] = Param if entry["kind"] == "params" else RunTag
    return [make(name, text) for name, text in values.items()]


def entry_of(item: Item) -> Entry:
    """Return the entry that has one item."""
    if isinstance(item, Metric):
        values: Any = [[item.key, item.value, item.timestamp, item.step]]
        return {"kind": "metrics", "values": values}
    kind = "params" if isinstance(item, Param) else "tags"
    return {"kind": kind, "values": {item.key: item.value}}


def fit_in_one_call(items: Sequence[Item]) -> bool:
    """Whether MLflow takes these items in one call, and in their order.

    Two values of one tag have no order in a call.
    """
    tags = [item.key for item in items if isinstance(item, RunTag)]
    num_params = sum(isinstance(item, Param) for item in items)
    is_ordered = len(set(tags)) == len(tags)
    return is_ordered and len(items) <= MOST_METRICS and max(len(tags), num_params) <= MOST_NAMED


def write_items(client: MlflowClient, run_id: str, items: Sequence[Item]) -> None:
    """Write items in one call. Params that the run has (from the launcher) stay as they are."""
    params = [item for item in items if isinstance(item, Param)]
    if params:
        present = client.get_run(run_id).data.params
        params = [param for param in params if param.key not in present]
    metrics = [item for item in items if isinstance(item, Metric)]
    tags = [item for item in items if isinstance(item, RunTag)]
    if metrics or params or tags:
        client.log_batch(run_id, metrics=metrics, params=params, tags=tags)


def make_run(client: MlflowClient, experiment_id: str, entry: Entry) -> str:
    """Make the run that an entry ``create`` describes; return its id."""
    run = client.create_run(
        experiment_id, start_time=entry["start_time"], tags=entry["tags"], run_name=entry["name"]
    )
    return str(run.info.run_id)


def write_entry(
    workspace: Workspace, run_id: str, entry: Entry, contents: Mapping[str, Path]
) -> None:
    """Write an entry of any kind but ``create``.

    Args:
        workspace: The open store.
        run_id: Id of the run.
        entry: The entry.
        contents: Its files by name.
    """
    client = workspace.client
    match entry["kind"]:
        case "metrics" | "params" | "tags":
            write_items(client, run_id, items_of(entry))
        case "take_up":
            _take_up(client, run_id, entry)
        case "delete_tag":
            _delete_tag(client, run_id, entry["name"])
        case "file":
            folder = str(Path(entry["path"]).parent).removeprefix(".")
            client.log_artifact(run_id, str(contents["file"]), folder)
        case "dataset":
            client.log_inputs(run_id, _inputs(entry))
        case "model":
            from pipeline.tracking.export import publish_model

            publish_model(workspace, run_id, contents, entry["image_size"])
        case "end":
            client.set_terminated(run_id, entry["status"], entry["end_time"])


def _take_up(client: MlflowClient, run_id: str, entry: Entry) -> None:
    client.update_run(run_id, status="RUNNING", name=entry["name"] or None)
    write_items(client, run_id, items_of({"kind": "tags", "values": entry["tags"]}))
    for name in entry["stale"]:
        _delete_tag(client, run_id, name)


def _delete_tag(client: MlflowClient, run_id: str, name: str) -> None:
    try:
        client.delete_tag(run_id, name)
    except MlflowException as error:
        # It has been removed before, and the answer was lost.
        if error.error_code != _NO_SUCH:
            raise


def _inputs(entry: Entry) -> list[DatasetInput]:
    source = CodeDatasetSource({"source": entry["source"]})
    name, digest = entry["name"], entry["digest"]
    dataset = MetaDataset(source, name=name, digest=digest)  # type: ignore[abstract]
    inputs: list[DatasetInput] = []
    for context in entry["contexts"]:
        tags = [InputTag("mlflow.data.context", context)]
        inputs.append(DatasetInput(dataset._to_mlflow_entity(), tags))
    return inputs
