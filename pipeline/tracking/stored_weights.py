"""Weights of the user's own registry and runs, as files.

They are named ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/ID/model``.

The weights are kept by their content, in ``prepared/weights/HASH-HASH/``. The first hash is that of
the weights. The second is that of their normalisation, which stands beside them as
``preprocessing.json``. A name may come to stand for another model while a study trains. Trainings
that were checked before do not change then.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.config import FILE, Model, parse_yaml
from pipeline.errors import UserError, nearest
from pipeline.files import write_whole
from pipeline.models.normalisation import read_normalisation
from pipeline.models.torchvision_weights import correct_recorded
from pipeline.models.weights import content_hash
from pipeline.tracking import artifacts, find_runs, names
from pipeline.tracking.workspace import Workspace, open_workspace, results_folder

_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model"
_NO_SUCH = "RESOURCE_DOES_NOT_EXIST"


def resolve_weights(model: Model, origin: Mapping[str, str] | None = None) -> Model:
    """Return `model` with weights of the registry or a run as ``file:PATH``.

    Any other model is returned as it is.

    Args:
        model: The model as the user gives it.
        origin: The result of `pipeline.models.origin` at an earlier check. If it is given, the
            weights of that content are returned, whatever the name stands for now.

    Raises:
        UserError: There is no such model or run, it has no weights, or they are of another network.
    """
    if model.weights_kind != "store":
        return model
    file = None
    if origin:
        file = _weights_in(_folder_of(origin))
    if file is None or not file.is_file():
        file = _weights_in(_fetch(model))
    return model.model_copy(update={"weights": f"{FILE}{file}"})


def name_as_recorded(model: Model, origin: Mapping[str, str]) -> Model:
    """Return `model` as a run records it.

    DEFAULT or an alias is replaced by what it stood for when `origin` was taken.
    """
    weights = origin["weights"]
    if weights.startswith(FILE):
        weights = model.weights
        stood_for = _folder_of(origin) / quote(model.weights, safe="")
        if model.weights_kind == "store" and stood_for.is_file():
            weights = stood_for.read_text()
    return model.model_copy(update={"weights": weights})


def _folder_of(origin: Mapping[str, str]) -> Path:
    weights = origin["weights"].removeprefix(FILE)
    return _root() / _folder_name(weights, origin.get("normalisation", ""))


def _folder_name(weights: str, normalisation: str) -> str:
    return f"{weights}-{hashlib.sha256(normalisation.encode()).hexdigest()[:8]}"


def _weights_in(folder: Path) -> Path:
    return folder / Path(names.CHECKPOINT).name


def _root() -> Path:
    return results_folder() / "prepared" / "weights"


def _fetch(model: Model) -> Path:
    """Return the folder of the weights that the name stands for now."""
    workspace = open_workspace("")
    try:
        exact, run_id = _find_run(workspace, model.weights)
        network, folder = _copy_weights(workspace.uri, run_id, _root())
    except UserError as error:
        message = error.message.removeprefix("run_id: ").removeprefix("model.weights: ")
        raise UserError(f"model.weights: {model.weights}: {message}") from None
    if _without_folder(network) != _without_folder(model.name):
        raise UserError(
            f"model.weights: {model.weights} is a {network}, but model.name is {model.name}; "
            "they must be the same network"
        )
    if exact != model.weights:
        (folder / quote(model.weights, safe="")).write_text(exact)
    return folder


def _without_folder(name: str) -> str:
    """Return a network's name without the folder of the user's own file, which may have moved."""
    return Path(name.removeprefix(FILE)).name if name.startswith(FILE) else name


def _find_run(workspace: Workspace, weights: str) -> tuple[str, str]:
    """Return the exact name of weights, and the id of the run that trained them.

    An exact name has the version instead of an alias, so that it always means the same weights.
    """
    run_uri = re.fullmatch(r"runs:/([^/]+)/(.+)", weights)
    if run_uri and run_uri[2] == names.MODEL:
        return weights, run_uri[1]
    model_uri = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", weights)
    if model_uri is None:
        raise UserError(f"allowed: {_FORMS}")
    name, alias, number = model_uri.groups()
    aliases = _find_aliases(workspace.client, name)
    found = workspace.client.search_model_versions(f"name = '{name}'")
    versions = {str(version.version): version for version in found}
    if alias and alias not in aliases:
        known = sorted(aliases)
        raise UserError(
            f"model {name!r} has no alias {alias!r}{nearest(alias, known)}; "
            f"there are: {', '.join(known) or 'none'}"
        )
    if alias:
        number = str(aliases[alias])
    if number not in versions:
        known = sorted(versions, key=int)
        raise UserError(
            f"model {name!r} has no version {number}; there are: {', '.join(known) or 'none'}"
        )
    if not versions[number].run_id:
        raise UserError(f"no run is known that trained version {number}")
    return f"models:/{name}/{number}", str(versions[number].run_id)


def _find_aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Return the versions of a registered model by their aliases."""
    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code != _NO_SUCH:
            raise
        known = sorted(other.name for other in client.search_registered_models())
        raise UserError(
            f"no model {name!r} is registered{nearest(name, known)}; "
            f"there are: {', '.join(known) or 'none'}"
        ) from None


@lru_cache
def _copy_weights(uri: str, run_id: str, root: Path) -> tuple[str, Path]:
    """Copy the weights of a run into the folder that is named by their content.

    A run that has ended does not change, so each run is fetched once in a process (from the store
    at `uri`).

    Returns:
        Name of the network, and the folder.
    """
    workspace = open_workspace("")
    run = find_runs.get_run(workspace, run_id, even_deleted=True)
    if find_runs.to_row(run)["state"] == names.RUNNING:
        raise UserError(
            f"run {run_id} ({run.info.run_name}) is still running; its best weights may change"
        )
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        arrived = Path(temporary)
        checkpoint = artifacts.download_artifact(workspace, run_id, names.CHECKPOINT, arrived)
        preprocessing = artifacts.download_artifact(workspace, run_id, names.PREPROCESSING, arrived)
        configuration = artifacts.download_artifact(workspace, run_id, names.CONFIG, arrived)
        try:
            recorded = parse_yaml(configuration.read_text(encoding="utf-8"))["model"]
            model = Model(name=str(recorded["name"]), weights=str(recorded["weights"]))
        except (yaml.YAMLError, ValueError, TypeError, KeyError):
            raise UserError(f"run {run_id}: {names.CONFIG} is no configuration") from None
        normalisation = correct_recorded(model, read_normalisation(preprocessing, checkpoint))
        folder = root / _folder_name(content_hash(checkpoint), json.dumps(normalisation))
        folder.mkdir(exist_ok=True)
        mean, std = normalisation
        write_whole(folder / preprocessing.name, json.dumps({"mean": mean, "std": std}))
        # The weights come last: if they are there, everything is.
        checkpoint.replace(folder / checkpoint.name)
    return model.name, folder
