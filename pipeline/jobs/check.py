"""Every mistake of a configuration that can be found before training."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from pipeline import models
from pipeline.config import Configuration, Data
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import build_augmentation
from pipeline.errors import Unreachable, UserError
from pipeline.files import sha256_over
from pipeline.models.own_models import find_own_file, find_sources
from pipeline.report.console import say_once
from pipeline.tracking import stored_weights
from pipeline.tracking.workspace import Workspace
from pipeline.training.device import need_compiler, resolve_device
from pipeline.training.distributed import join_group
from pipeline.trust import are_images_named, remember


def check(
    configuration: Configuration, prepared: Prepared, where: str, is_recorded: bool = False
) -> dict[str, str]:
    """Find every mistake that can be found before training.

    Args:
        configuration: The configuration of a training.
        prepared: Its images.
        where: The place of the configuration, such as a file, which messages begin with; or empty.
        is_recorded: A run has recorded the configuration. Otherwise it is the user's own, and the
            code that it names is trusted from now on.

    Returns:
        The model's origin, which enters the configuration's hash.

    Raises:
        UserError: The configuration has a mistake; the message starts with `where`.
    """
    try:
        device = resolve_device(configuration.training.device)
        if configuration.training.compile:
            need_compiler(device)
        build_augmentation(configuration.data)
        model = stored_weights.resolve_weights(configuration.model)
        num_classes = len(prepared.classes)
        image_size = configuration.data.image_size
        origin = models.origin(model, num_classes, image_size)
        if model.is_own and not is_recorded:
            _trust_own_code(model.name, num_classes, image_size)
        # On GPUs BatchNorm takes its statistics over all processes.
        num_shares = 1 if device.type == "cuda" else join_group().size
        share = configuration.data.batch_size // num_shares
        notes = models.check(model, num_classes, image_size, trains_on_one=share < 2)
    except UserError as error:
        message = f"{where}: {error.message}" if where else error.message
        raise UserError(message, error.findings) from None
    for note in notes:
        say_once(f"model.weights {configuration.model.weights}: {note}")
    return origin


def _trust_own_code(name: str, num_classes: int, image_size: int) -> None:
    # For 0 classes this is the network's own file alone, which is all that runs of release 0.1.0
    # keep.
    for known in (0, num_classes):
        digest = sha256_over(find_sources(name, known, image_size))
        file, _ = find_own_file(name)
        remember(digest, str(file.absolute()))


def replace_unreachable_weights(configuration: Configuration) -> Configuration:
    """Return a configuration with random weights if the named ones cannot be downloaded.

    The replacement is said. Random weights are enough to try a study out.
    """
    try:
        models.fetch(configuration.model)
    except Unreachable as error:
        say_once(f"fast: random weights, since {error.message}")
        return configuration.change("model", weights="none")
    return configuration


def need_known_images(workspace: Workspace, data: Data, run_id: str) -> None:
    """Check that a run does not choose which folder of this machine is read.

    Only a folder that was named or prepared on this machine before is read.

    Raises:
        UserError: The images are in no such folder; the message says how to allow it.
    """
    kind, _, path = data.source.partition(":")
    if data.source == "digits" or (kind == "torchvision" and not data.root):
        return
    if are_images_named(data.source, data.root, data.labels):
        return
    recorded = {f"torchvision {path} in {data.root}", str(Path(path).expanduser().resolve())}
    for description in workspace.prepared.glob("*/data.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(description.read_text(encoding="utf-8"))["source"] in recorded:
                return
    raise UserError(
        f"run_id: run {run_id} names the images {data.source!r}, which nobody has prepared here; "
        "prepare them first (step prepare), or say with --data.source of evaluate where they are"
    )
