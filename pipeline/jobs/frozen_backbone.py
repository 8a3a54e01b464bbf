"""Train a head on the features of its frozen backbone, where that gives what training on images would."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace

import xxhash

from pipeline import models
from pipeline.data.loader import Images
from pipeline.errors import GivenUp, OutOfMemory
from pipeline.jobs.training_job import Job
from pipeline.report.console import Counter
from pipeline.tracking import names
from pipeline.tracking.run import TrackedRun
from pipeline.training.context import TrainingContext
from pipeline.training.feature_cache import (
    Backbone,
    hash_backbone,
    hash_contents,
    is_head_last,
    load_or_compute,
)


def use_cached_features(
    run: TrackedRun | None, job: Job, setting: TrainingContext
) -> TrainingContext:
    """Return what `_use_cached_features` does, if it succeeds in all processes of the group.

    Raises:
        OutOfMemory: The backbone does not take even one image.
        GivenUp: That of another process.
    """
    failed: OutOfMemory | None = None
    featured = setting
    try:
        featured = _use_cached_features(run, job, setting)
    except OutOfMemory as error:
        failed = error
    if setting.group.sum([failed is not None])[0]:
        raise failed or GivenUp("another process cannot compute the features")
    return featured


def _use_cached_features(
    run: TrackedRun | None, job: Job, setting: TrainingContext
) -> TrainingContext:
    """Return a setting that trains the head on features; the setting as it is where the plain loop is needed.

    It is needed where the backbone is trained, where images are augmented and ``training.feature_views`` is 0, and
    where something follows the head.

    Args:
        run: Tagged with what was done; None where another process logs.
        job: What is trained.
        setting: That trains on images, its number format chosen.
    """
    configuration, prepared = job.configuration, job.prepared
    data, training = configuration.data, configuration.training
    views = training.feature_views if data.augment else 1
    if (
        configuration.model.freeze != "backbone"
        or not views
        or not is_head_last(setting.network, data.image_size)
    ):
        return setting
    backbone = Backbone(setting.network, setting.preprocessing, setting.numerics, setting.device)
    decides = {
        "name": job.origin["name"],
        "weights": hash_backbone(setting.network.module, setting.network.head),
        "preprocessing": asdict(setting.preprocessing),
        "decoding": prepared.decoding.key,
        "numerics": f"{setting.numerics}, {setting.device.type}",
        "code": models.code_version(configuration.model, len(prepared.classes), data.image_size),
    }
    augmented = (
        {**decides, "augment": data.augment, "seed": training.seed, "views": views}
        if data.augment
        else decides
    )
    started, computed = time.perf_counter(), 0
    loaders = []
    with Counter() as counter:
        for loader, what, count in ((setting.train, augmented, views), (setting.val, decides, 1)):
            images = loader.images
            assert isinstance(images, Images)
            contents = prepared.manifest["sha256"].iloc[images.positions].tolist()
            folder = (
                prepared.folder.parent
                / f"features-{xxhash.xxh3_128_hexdigest(json.dumps(what, sort_keys=True).encode())}"
            )
            ids = hash_contents(contents, numbered=what is not decides)
            features, new = load_or_compute(
                images, ids, count, backbone, folder, data.batch_size, loader.workers, counter
            )
            loaders.append(loader.over(features))
            computed += new
    # Their images are not looked at again.
    setting.close()
    if run is not None:
        run.tag(
            {
                names.FEATURES: f"{views} per image, {computed} images computed in {time.perf_counter() - started:.1f} s"
            }
        )
    return replace(setting, part=setting.network.head, train=loaders[0], val=loaders[1])
