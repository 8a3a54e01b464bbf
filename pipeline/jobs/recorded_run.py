"""Rebuild a trained network from its run."""

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
from pipeline.scores.temperature import valid_temperature
from pipeline.tracking import artifacts, find_runs, names
from pipeline.tracking.workspace import Workspace
from pipeline.training.exported_model import classes_from


@dataclass(frozen=True)
class Restored:
    """A trained network, rebuilt from its run.

    Attributes:
        configuration: The configuration that the run has recorded.
        network: The network with the best weights, on the CPU in evaluation mode.
        classes: Names of the classes, in the order of the network's outputs.
        preprocessing: What is done to images before the network sees them.
        data_digest: Digest of the images it was trained on; empty if the run has recorded none.
        temperature: What its logits are divided by, see `pipeline.scores.calibration`; None if the
            run has recorded none.
    """

    configuration: Configuration
    network: nn.Module
    classes: list[str]
    preprocessing: Preprocessing
    data_digest: str
    temperature: float | None = None


def get_complete_run(workspace: Workspace, run_id: str) -> Any:
    """Return a complete training, as MLflow's Run.

    Raises:
        UserError: There is no such run, it is no training, or it is not complete.
    """
    run = find_runs.get_run(workspace, run_id)
    step = run.data.tags.get(names.STEP)
    state = find_runs.to_row(run)["state"]
    if step not in ("train", None) or not run.data.params:
        raise UserError(f"run_id: run {run_id} is a {step} run; a training is needed")
    if state != names.COMPLETE:
        raise UserError(
            f"run_id: run {run_id} ({run.info.run_name}) is {state}; "
            "only a complete training can be used"
        )
    return run


def restore_network(workspace: Workspace, run_id: str) -> Restored:
    """Rebuild the network of a complete run from its artifacts.

    Raises:
        UserError: The run is not complete, its artifacts are missing, or it keeps code that is not
            trusted (see `pipeline.trust`).
    """
    run = get_complete_run(workspace, run_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        configuration = load_configuration(workspace, run_id, folder)
        classes = classes_from(_load_json(workspace, run_id, names.CLASSES, folder))
        preprocessing = load_preprocessing(workspace, run_id, configuration.model, folder)
        network = _rebuild_network(workspace, run_id, configuration, len(classes), folder)
        checkpoint = artifacts.download_artifact(workspace, run_id, names.CHECKPOINT, folder)
        load_state(network, checkpoint, configuration.model.name)
    digest = run.data.tags.get(names.DATA_DIGEST, "")
    temperature = valid_temperature(run.data.metrics.get(names.TEMPERATURE))
    return Restored(configuration, network.eval(), classes, preprocessing, digest, temperature)


def load_preprocessing(
    workspace: Workspace, run_id: str, model: Model, folder: Path
) -> Preprocessing:
    """Return what a run did to its images, for its network as it is built now.

    Args:
        workspace: The open store.
        run_id: Id of a training.
        model: The model that the run has recorded.
        folder: Folder for the download.

    Raises:
        UserError: The run has recorded no preprocessing.
    """
    recorded = Preprocessing.from_dict(_load_json(workspace, run_id, names.PREPROCESSING, folder))
    mean, std = correct_recorded(model, (list(recorded.mean), list(recorded.std)))
    return Preprocessing.from_dict({**recorded.to_dict(), "mean": mean, "std": std})


def load_decoding_version(workspace: Workspace, run_id: str, folder: Path) -> int:
    """Return the version of the rules by which a run has decoded its images.

    If the run ended before it recorded any, this is the present version.
    """
    try:
        artifacts.download_artifact(workspace, run_id, names.PREPROCESSING, folder)
    except UserError:
        return VERSION
    recorded = _load_json(workspace, run_id, names.PREPROCESSING, folder)
    return Preprocessing.from_dict(recorded).decoding


def load_configuration(workspace: Workspace, run_id: str, folder: Path) -> Configuration:
    """Return the configuration that a run has recorded; download it to `folder`.

    Raises:
        UserError: The run has recorded no configuration, or a damaged one.
    """
    file = artifacts.download_artifact(workspace, run_id, names.CONFIG, folder)
    try:
        raw = parse_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"run {run_id}: {names.CONFIG} is no YAML: {first_line(error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"run {run_id}: {names.CONFIG} is no configuration")
    return parse(Configuration, raw, f"run {run_id}: {names.CONFIG}")


def _load_json(workspace: Workspace, run_id: str, name: str, folder: Path) -> Any:
    try:
        file = artifacts.download_artifact(workspace, run_id, name, folder)
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"run {run_id}: {name} is no JSON: {first_line(error)}") from None


def _rebuild_network(
    workspace: Workspace, run_id: str, configuration: Configuration, num_classes: int, folder: Path
) -> nn.Module:
    """Build a run's network with random weights; one's own from the files that the run has kept."""
    model = configuration.model.model_copy(update={"freeze": "none"})
    image_size = configuration.data.image_size
    if not model.is_own:
        return models.build(model, num_classes, image_size, load=False).module
    path, _, function = model.name.removeprefix(FILE).rpartition(":")
    file = download_source(workspace, run_id, path, folder)
    kept = {
        one.relative_to(file.parent).as_posix(): one.read_bytes()
        for one in file.parent.rglob("*")
        if one.is_file()
    }
    own = _find_named_sources(file.name, num_classes, image_size)
    trust.need_trust(kept, f"run {run_id}: its artifact {names.SOURCE}", own)
    name = f"{FILE}{file}:{function}"
    downloaded = model.model_copy(update={"name": name})
    try:
        return models.build(downloaded, num_classes, image_size, load=False).module
    except UserError as error:
        why = error.message.replace(name, model.name)
        if "ModuleNotFoundError" in why:
            add = (
                f"mlflow artifacts log-artifact --run-id {run_id} "
                f"--artifact-path {names.SOURCE} --local-file FILE"
            )
            why += (
                "; release 0.1.0 kept the network's own file alone, "
                f"add what it imports with: {add}"
            )
        raise UserError(f"run {run_id}: {why}", error.findings) from None


def _find_named_sources(
    file_name: str, num_classes: int, image_size: int
) -> Iterator[Mapping[str, bytes]]:
    """Yield the sources of the networks that this step's configuration names.

    Only networks whose own file has the given name are looked at. Each comes twice: its own file
    alone, and with all that it imports.
    """
    for network in trust.named_networks():
        with suppress(UserError):
            if find_own_file(network)[0].name == file_name:
                # Runs of release 0.1.0 keep the network's own file alone.
                yield find_sources(network, 0, image_size)
                yield find_sources(network, num_classes, image_size)


def path_of_source(root: Path, artifact: str) -> Path:
    """Return the path of a file among a run's source files, below the network's folder.

    Args:
        root: The network's folder.
        artifact: Path of the file among the run's artifacts.

    Raises:
        UserError: The name of the artifact leads out of that folder.
    """
    file = root
    for part in PurePosixPath(artifact).parts[1:]:
        file = child_path(file, part)
    return file


def download_source(workspace: Workspace, run_id: str, path: str, folder: Path) -> Path:
    """Download the files of one's own network that a run has kept.

    The folders that they are put into have the names of the original ones, since the files may
    import one another by these (``from nets.blocks import Block``).

    Args:
        workspace: The open store.
        run_id: Id of a training.
        path: Path of the network's own file, as the run has recorded it.
        folder: Folder for the download.

    Returns:
        The network's own file; in its folder there is nothing but what the run has kept.

    Raises:
        UserError: The run has not kept that file, or keeps one under a name that leads elsewhere.
    """
    root = child_path(folder, names.SOURCE)
    packages = list(takewhile(str.isidentifier, reversed(Path(path).parts[:-1])))
    for part in reversed(packages):
        root = child_path(root, part)
    root.mkdir(parents=True, exist_ok=True)
    for name in artifacts.list_artifacts(workspace, run_id, names.SOURCE):
        file = path_of_source(root, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        place = child_path(folder, "downloaded")
        artifacts.download_artifact(workspace, run_id, name, place).replace(file)
    own = child_path(root, Path(path).name)
    if not own.is_file():
        raise UserError(
            f"run {run_id} has no artifact {names.SOURCE}/{own.name}, the file of its network"
        )
    return own
