"""Trainings in which several processes take part: the first one logs, the others help it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import Configuration, parse
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.transforms import Preprocessing
from pipeline.errors import TrainingFailed, UserError
from pipeline.jobs.frozen_backbone import use_cached_features
from pipeline.jobs.training_job import Job, open_job_context
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import results_folder
from pipeline.training.callback import Callback
from pipeline.training.context import TrainingContext
from pipeline.training.distributed import Group, is_peer_lost, join_group
from pipeline.training.fit import fit
from pipeline.training.fit_result import FitResult
from pipeline.training.malloc import clear_frames, release_memory
from pipeline.training.precision import Numerics


def train_in_group(
    job: Job,
    context: TrainingContext,
    run: TrackedRun | None = None,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train in all processes of the group, which may be this one alone.

    The first process and its helpers all call this function after `call_helpers`, so that their
    messages to one another come in the same order.

    Args:
        job: What is trained.
        context: This process's context, its number format chosen.
        run: The first process's run; None in a helper.
        callbacks: The callbacks for every step and epoch; only the first process has any.

    Raises:
        OutOfMemory: The memory does not suffice for the backbone and even one image.
        Exception: Whatever `pipeline.training.fit.fit` raises.
    """
    return fit(job.configuration, use_cached_features(job, context, run), callbacks)


def call_helpers(job: Job, numerics: Numerics) -> None:
    """Have the other processes of the group, if there are any, call `train_in_group` for a job."""
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
    """Tell the other processes of the group that there is no more to do, and leave the group."""
    group = join_group()
    group.share(b"")
    group.close()


def help_out() -> None:
    """Take part in the trainings of the group's first process until it has no more or has ended."""
    group = join_group()
    known: dict[str, Prepared] = {}
    try:
        while content := group.share(b""):
            _help_with(json.loads(content), known, group)
            release_memory()
            if group.is_broken:
                return
        group.close()
    except RuntimeError as error:
        # The first process has told why.
        if not is_peer_lost(error):
            raise


def _help_with(message: dict[str, Any], known: dict[str, Prepared], group: Group) -> None:
    """Take part in one training.

    Args:
        message: The message that `call_helpers` has sent.
        known: Images of earlier trainings; the images of this one are added.
        group: Processes that train together.
    """
    job = _read_job(message, known)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            open_job_context(job, Path(folder), group) as opened,
        ):
            numerics = Numerics(**message["numerics"])
            train_in_group(job, replace(opened, numerics=numerics, resume=None))
    except TrainingFailed as error:
        # The error ends the training in every process; the first one tells why.
        clear_frames(error)


def _read_job(message: dict[str, Any], known: dict[str, Prepared]) -> Job:
    configuration = parse(Configuration, message["configuration"], "configuration")
    version = message["decoding"]
    key = f"{version} {configuration.data.model_dump_json(exclude={'fold'})}"
    if key not in known:
        folder = results_folder() / "prepared"
        known[key] = prepare(configuration.data, folder, version=version)
    prepared = known[key].with_fold(message["fold"])
    if prepared.digest != message["digest"]:
        raise UserError(f"{prepared.source} has changed while the training began; start again")
    preprocessing = None
    if message["preprocessing"]:
        preprocessing = Preprocessing.from_dict(message["preprocessing"])
    return Job(configuration, message["origin"], prepared, preprocessing)
