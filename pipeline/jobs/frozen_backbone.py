"""Train a head on the features of its frozen backbone.

This is done only if it gives the same as training on images would.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import xxhash

from pipeline import models
from pipeline.data.loader import Images, Loader
from pipeline.errors import GivenUp, OutOfMemory
from pipeline.jobs.training_job import Job
from pipeline.report.console import Counter
from pipeline.tracking import names
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.training.context import TrainingContext
from pipeline.training.feature_cache import (
    Backbone,
    FeatureCache,
    hash_backbone,
    hash_contents,
    is_head_last,
)


def use_cached_features(
    job: Job, context: TrainingContext, run: TrackedRun | None = None
) -> TrainingContext:
    """Return a context that trains the head on features; the same context if images are needed.

    They are needed if the backbone is trained, if images are augmented and
    ``training.feature_views`` is 0, and if something follows the head.

    Args:
        job: What is trained.
        context: A context that trains on images, its number format chosen.
        run: The run that is tagged with what was done; None if another process logs.

    Raises:
        OutOfMemory: The memory does not suffice for the backbone and even one image.
        GivenUp: This happened in another process of the group.
    """
    data = job.configuration.data
    is_frozen = job.configuration.model.freeze == "backbone"
    if not is_frozen or not _num_views(job) or not is_head_last(context.network, data.image_size):
        return context
    started = time.perf_counter()
    failed: OutOfMemory | None = None
    featured = context
    num_computed = 0
    try:
        featured, num_computed = _replace_images(job, context)
    except OutOfMemory as error:
        failed = error
    if context.group.sum([failed is not None])[0]:
        raise failed or GivenUp("another process cannot compute the features")
    # Their images are not looked at again.
    context.close()
    if run is not None:
        seconds = time.perf_counter() - started
        text = f"{_num_views(job)} per image, {num_computed} images computed in {seconds:.1f} s"
        run.tag({names.FEATURES: text})
    return featured


def _num_views(job: Job) -> int:
    """Return how many features an image has: one for each way in which training shows it."""
    configuration = job.configuration
    return configuration.training.feature_views if configuration.data.augment else 1


def _replace_images(job: Job, context: TrainingContext) -> tuple[TrainingContext, int]:
    """Return a context with features in the place of images, and the number of images computed."""
    backbone = Backbone(context.network, context.preprocessing, context.numerics, context.device)
    dependencies = _describe_dependencies(job, context)
    shown = dependencies
    if job.configuration.data.augment:
        shown = {
            **dependencies,
            "augment": job.configuration.data.augment,
            "seed": job.configuration.training.seed,
            "views": _num_views(job),
        }
    with Counter() as counter:
        train, num_train = _load(job, context.train, backbone, shown, _num_views(job), counter)
        val, num_val = _load(job, context.val, backbone, dependencies, 1, counter)
    featured = replace(context, part=context.network.head, train=train, val=val)
    return featured, num_train + num_val


def _describe_dependencies(job: Job, context: TrainingContext) -> dict[str, Any]:
    """Return all that the features of an image depend on beside its content and augmentation."""
    configuration = job.configuration
    network = context.network
    image_size = configuration.data.image_size
    return {
        "name": job.origin["name"],
        "weights": hash_backbone(network.module, network.head),
        "preprocessing": asdict(context.preprocessing),
        "decoding": job.prepared.decoding.key,
        "numerics": f"{context.numerics}, {context.device.type}",
        "code": models.code_version(configuration.model, len(job.prepared.classes), image_size),
    }


def _load(
    job: Job,
    loader: Loader,
    backbone: Backbone,
    dependencies: dict[str, Any],
    num_views: int,
    counter: Counter,
) -> tuple[Loader, int]:
    """Return a loader of features in the place of one of images, and the number computed."""
    images = loader.images
    assert isinstance(images, Images)
    contents = job.prepared.manifest["sha256"].iloc[images.positions].tolist()
    ids = hash_contents(contents, numbered="augment" in dependencies)
    folder = _folder(job.prepared.folder.parent, dependencies)
    batch_size = job.configuration.data.batch_size
    cache = FeatureCache(folder, backbone, batch_size, loader.workers, counter)
    features, num_computed = cache.load_or_compute(images, ids, num_views)
    return loader.over(features), num_computed


def _folder(root: Path, dependencies: dict[str, Any]) -> Path:
    key = xxhash.xxh3_128_hexdigest(json.dumps(dependencies, sort_keys=True).encode())
    return root / f"features-{key}"
