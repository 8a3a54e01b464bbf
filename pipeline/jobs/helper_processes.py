"""Trainings in which several processes take part: the first one logs, the others help it in one training after another."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from pipeline.config import Configuration, parse
from pipeline.data.prepared import Prepared, prepare
from pipeline.data.transforms import Preprocessing
from pipeline.errors import TrainingFailed, UserError
from pipeline.jobs.frozen_backbone import use_cached_features
from pipeline.jobs.training_job import Job, open_job_context
from pipeline.tracking.workspace import results_folder
from pipeline.training.context import FitResult
from pipeline.training.distributed import Group, is_peer_lost, join_group
from pipeline.training.fit import fit
from pipeline.training.malloc import clear_frames, release_memory
from pipeline.training.precision import Numerics


def call_helpers(job: Job, numerics: Numerics) -> None:
    """Have the other processes of the group, if there are any, take part in a training; to be followed by it."""
    message = {
        "configuration": job.configuration.model_dump(mode="json"),
        "origin": dict(job.origin),
        "preprocessing": job.preprocessing.to_dict() if job.preprocessing else None,
        "fold": job.prepared.fold,
        "digest": job.prepared.digest,
        "decoding": job.prepared.version,
        "numerics": numerics.to_dict(),
    }
    join_group().share(json.dumps(message).encode())


def dismiss_helpers() -> None:
    """Tell the other processes of the group that there is no more to do, and leave it."""
    group = join_group()
    group.share(b"")
    group.close()


def help_out() -> None:
    """Take part in the trainings of the group's first process until it has no more, or has ended."""
    try:
        _help_out(join_group())
    except RuntimeError as error:
        # It has told why.
        if not is_peer_lost(error):
            raise


def _help_out(group: Group) -> None:
    images: dict[str, Prepared] = {}
    while content := group.share(b""):
        message = json.loads(content)
        configuration = parse(Configuration, message["configuration"], "configuration")
        version = message["decoding"]
        data = f"{version} {configuration.data.model_dump_json(exclude={'fold'})}"
        if data not in images:
            images[data] = prepare(
                configuration.data, results_folder() / "prepared", version=version
            )
        prepared = images[data].with_fold(message["fold"])
        if prepared.digest != message["digest"]:
            raise UserError(f"{prepared.source} has changed while the training began; start again")
        preprocessing = (
            Preprocessing.from_dict(message["preprocessing"]) if message["preprocessing"] else None
        )
        job = Job(configuration, message["origin"], prepared, preprocessing)
        try:
            _help_in(job, Numerics(**message["numerics"]), group)
        except TrainingFailed as error:
            # What ends it ends it in every process; the first one tells why.
            clear_frames(error)
        release_memory()
        if group.is_broken:
            return
    group.close()


def _help_in(job: Job, numerics: Numerics, group: Group) -> None:
    """Take part in one training."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open_job_context(job, Path(folder), group) as built,
    ):
        setting = replace(built, numerics=numerics, resume=None)
        fit(job.configuration, use_cached_features(None, job, setting), [], FitResult())
