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
from pipeline.jobs.frozen_backbone import with_features
from pipeline.jobs.training_job import Job, setting_of
from pipeline.tracking.workspace import home
from pipeline.training.context import Fitted
from pipeline.training.distributed import Group, is_peer_lost, joined
from pipeline.training.fit import fit
from pipeline.training.malloc import let_go, release
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
    joined().share(json.dumps(message).encode())


def dismiss_helpers() -> None:
    """Tell the other processes of the group that there is no more to do, and leave it."""
    group = joined()
    group.share(b"")
    group.close()


def help_out() -> None:
    """Take part in the trainings of the group's first process until it has no more, or has ended."""
    try:
        _help_out(joined())
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
            images[data] = prepare(configuration.data, home() / "prepared", version=version)
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
            let_go(error)
        release()
        if group.is_broken:
            return
    group.close()


def _help_in(job: Job, numerics: Numerics, group: Group) -> None:
    """Take part in one training."""
    with tempfile.TemporaryDirectory() as folder, setting_of(job, Path(folder), group) as built:
        setting = replace(built, numerics=numerics, resume=None)
        fit(job.configuration, with_features(None, job, setting), [], Fitted())
