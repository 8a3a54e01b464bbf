"""Prepare the images of a configuration, and check what would be trained on them."""

from __future__ import annotations

from pipeline import models
from pipeline.config import Configuration, Data
from pipeline.data.prepared import Prepared, prepare
from pipeline.data.sources import SPLITS
from pipeline.data.transforms import build_augmentation
from pipeline.errors import UserError
from pipeline.report.console import Counter, say
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.store import Workspace
from pipeline.training.device import resolve_device


def prepare_images(workspace: Workspace, data: Data) -> Prepared:
    """Read, split and decode the images with progress; what is there already is used again."""
    with Counter() as counter:
        prepared = prepare(data, workspace.prepared, counter)
    counts = prepared.counts()
    sizes = ", ".join(f"{sum(count[split] for count in counts.values())} {split}" for split in SPLITS)
    say(
        f"{len(prepared.manifest)} images of {len(prepared.classes)} classes from {prepared.source}: {sizes}; "
        f"data {prepared.digest[:8]} in {prepared.folder}"
    )
    return prepared


def images_for(workspace: Workspace, data: Data, base: Data, prepared: Prepared) -> Prepared:
    """Return base's images; those of another size or interpolation are decoded first."""
    same = (data.image_size, data.stored_size, data.interpolation) == (base.image_size, base.stored_size, base.interpolation)
    return prepared if same else prepare_images(workspace, data)


def log_preparation(workspace: Workspace, data: Data) -> Prepared:
    """Prepare the images in a run of its own, with manifest, classes and dataset input."""
    prepared = prepare_images(workspace, data)
    with TrackedRun(workspace, "prepare", f"prepare {data.name}", single=True) as run:
        run.params({f"data.{name}": value for name, value in data.model_dump(mode="json").items()})
        log_dataset(run, prepared, data)
        for name in ("manifest.csv", "classes.json", "data.json"):
            run.file(prepared.folder / name, "prepare")
    return prepared


def log_dataset(run: TrackedRun, prepared: Prepared, data: Data) -> None:
    """Log the images as dataset inputs of a run."""
    run.dataset(data.name, prepared.source, prepared.digest, ["training", "validation"])


def check(configuration: Configuration, prepared: Prepared, where: str) -> dict[str, str]:
    """Find every mistake that can be found before training.

    Returns:
        The model's origin, which enters the configuration's hash.

    Raises:
        UserError: Its message starts with `where`.
    """
    try:
        resolve_device(configuration.training.device)
        build_augmentation(configuration.data)
        origin = models.origin(configuration.model)
        models.check(configuration.model, len(prepared.classes), configuration.data.image_size)
    except UserError as error:
        raise UserError(f"{where}: {error.message}" if where else error.message, error.findings) from None
    return origin
