"""A trained network back from its run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from torch import nn

from pipeline import models, trust
from pipeline.config import FILE, Configuration, Model, parse, parse_yaml
from pipeline.data.decode import VERSION
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError, first_line
from pipeline.files import child_path
from pipeline.models.own_models import find_own_file, find_sources
from pipeline.models.state_dicts import load_state
from pipeline.models.torchvision_weights import correct_recorded
from pipeline.tracking import artifacts, find_runs, names
from pipeline.tracking.workspace import Workspace
from pipeline.training.exported_model import classes_from


@dataclass(frozen=True)
class Restored:
    """A run's configuration and its network with the best weights, on the CPU in evaluation mode."""

    configuration: Configuration
    network: nn.Module
    classes: list[str]
    preprocessing: Preprocessing
    data_digest: str


def get_complete_run(workspace: Workspace, run_id: str) -> Any:
    """Return a complete training, as MLflow's Run.

    Raises:
        UserError: No such run, no training, or not complete.
    """
    run = find_runs.get_run(workspace, run_id)
    step, state = run.data.tags.get(names.STEP), find_runs.to_row(run)["state"]
    if step not in ("train", None) or not run.data.params:
        raise UserError(f"run_id: run {run_id} is a {step} run; a training is needed")
    if state != names.COMPLETE:
        raise UserError(
            f"run_id: run {run_id} ({run.info.run_name}) is {state}; only a complete training can be used"
        )
    return run


def restore_network(workspace: Workspace, run_id: str) -> Restored:
    """Rebuild the network of a complete run from its artifacts.

    Raises:
        UserError: The run is not complete, its artifacts are missing, or it keeps code that is not trusted (see `pipeline.trust`).
    """
    run = get_complete_run(workspace, run_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        configuration = load_configuration(workspace, run_id, folder)
        classes = classes_from(_json(workspace, run_id, names.CLASSES, folder))
        preprocessing = load_preprocessing(workspace, run_id, configuration.model, folder)
        network = _rebuilt(workspace, run_id, configuration, len(classes), folder)
        load_state(
            network,
            artifacts.download_artifact(workspace, run_id, names.CHECKPOINT, folder),
            configuration.model.name,
        )
    return Restored(
        configuration,
        network.eval(),
        classes,
        preprocessing,
        run.data.tags.get(names.DATA_DIGEST, ""),
    )


def load_preprocessing(
    workspace: Workspace, run_id: str, model: Model, folder: Path
) -> Preprocessing:
    """Return what a run did to its images, for its network as it is built now.

    Args:
        workspace: The open store.
        run_id: Of a training.
        model: As the run has recorded it.
        folder: To download to.

    Raises:
        UserError: It has not recorded that.
    """
    recorded = Preprocessing.from_dict(_json(workspace, run_id, names.PREPROCESSING, folder))
    mean, std = correct_recorded(model, (list(recorded.mean), list(recorded.std)))
    return Preprocessing.from_dict({**recorded.to_dict(), "mean": mean, "std": std})


def load_decoding_version(workspace: Workspace, run_id: str, folder: Path) -> int:
    """Return the version of the rules by which a run has decoded its images; of now where it ended before it has recorded any."""
    try:
        artifacts.download_artifact(workspace, run_id, names.PREPROCESSING, folder)
    except UserError:
        return VERSION
    return Preprocessing.from_dict(_json(workspace, run_id, names.PREPROCESSING, folder)).decoding


def load_configuration(workspace: Workspace, run_id: str, folder: Path) -> Configuration:
    """Return the configuration that a run has recorded; downloads to `folder`.

    Raises:
        UserError: It has recorded none.
    """
    file = artifacts.download_artifact(workspace, run_id, names.CONFIG, folder)
    try:
        raw = parse_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"run {run_id}: {names.CONFIG} is no YAML: {first_line(error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"run {run_id}: {names.CONFIG} is no configuration")
    return parse(Configuration, raw, f"run {run_id}: {names.CONFIG}")


def _json(workspace: Workspace, run_id: str, name: str, folder: Path) -> Any:
    try:
        return json.loads(
            artifacts.download_artifact(workspace, run_id, name, folder).read_text(encoding="utf-8")
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"run {run_id}: {name} is no JSON: {first_line(error)}") from None


def _rebuilt(
    workspace: Workspace, run_id: str, configuration: Configuration, num_classes: int, folder: Path
) -> nn.Module:
    """Build a run's network with random weights; one's own from the files that the run has kept."""
    model = configuration.model.model_copy(update={"freeze": "none"})
    if not model.is_own:
        return models.build(model, num_classes, configuration.data.image_size, load=False).module
    path, _, function = model.name.removeprefix(FILE).rpartition(":")
    file = download_source(workspace, run_id, path, folder)
    kept = {
        one.relative_to(file.parent).as_posix(): one.read_bytes()
        for one in file.parent.rglob("*")
        if one.is_file()
    }
    own = _named_like(file.name, num_classes, configuration.data.image_size)
    trust.need_trust(kept, f"run {run_id}: its artifact {names.SOURCE}", own)
    name = f"{FILE}{file}:{function}"
    try:
        return models.build(
            model.model_copy(update={"name": name}),
            num_classes,
            configuration.data.image_size,
            load=False,
        ).module
    except UserError as error:
        why = error.message.replace(name, model.name)
        if "ModuleNotFoundError" in why:
            add = f"mlflow artifacts log-artifact --run-id {run_id} --artifact-path {names.SOURCE} --local-file FILE"
            why += f"; release 0.1.0 kept the network's own file alone, add what it imports with: {add}"
        raise UserError(f"run {run_id}: {why}", error.findings) from None


def _named_like(name: str, num_classes: int, image_size: int) -> Iterator[Mapping[str, bytes]]:
    """Yield what the networks are made of that this step's configuration names, of those whose file has that name."""
    for network in trust.named_networks():
        with suppress(UserError):
            if find_own_file(network)[0].name == name:
                # Runs of release 0.1.0 keep the network's own file alone.
                yield find_sources(network, 0, image_size)
                yield find_sources(network, num_classes, image_size)


def path_of_source(root: Path, artifact: str) -> Path:
    """Return where a file among a run's source files stands below the network's folder.

    Raises:
        UserError: Its name leads elsewhere.
    """
    file = root
    for part in PurePosixPath(artifact).parts[1:]:
        file = child_path(file, part)
    return file


def download_source(workspace: Workspace, run_id: str, path: str, folder: Path) -> Path:
    """Download the files of one's own network that a run has kept.

    They come into folders of the names that theirs had, by which they may import one another (``from nets.blocks import Block``).

    Args:
        workspace: The open store.
        run_id: Of a training.
        path: Of the network's own file, as the run has recorded it.
        folder: To download to.

    Returns:
        The network's own file; in its folder there is nothing but what the run has kept.

    Raises:
        UserError: It has not kept that file, or one under a name that leads elsewhere.
    """
    root = child_path(folder, names.SOURCE)
    for part in reversed(list(takewhile(str.isidentifier, reversed(Path(path).parts[:-1])))):
        root = child_path(root, part)
    root.mkdir(parents=True, exist_ok=True)
    for name in artifacts.list_artifacts(workspace, run_id, names.SOURCE):
        file = path_of_source(root, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        artifacts.download_artifact(
            workspace, run_id, name, child_path(folder, "downloaded")
        ).replace(file)
    own = child_path(root, Path(path).name)
    if not own.is_file():
        raise UserError(
            f"run {run_id} has no artifact {names.SOURCE}/{own.name}, the file of its network"
        )
    return own
