"""Look at a user's images, plan a study for the hours that there are, and write its file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipeline import models
from pipeline.config import Data, Model
from pipeline.errors import Unwritable, UserError
from pipeline.experiment import load_experiment
from pipeline.files import new_file, unwritable
from pipeline.jobs.experiment_text import Findings, compose_text
from pipeline.jobs.image_survey import Survey, look_at_images
from pipeline.jobs.network_speeds import Speeds
from pipeline.jobs.network_timing import ROUNDS, Cell, Stopwatch, count_candidates
from pipeline.jobs.study_plan import Plan, Subject, list_sizes, make_plan
from pipeline.jobs.study_seconds import LOADING_SECONDS, Images
from pipeline.report.format import format_duration
from pipeline.training.device import resolve_device


def write_experiment(
    data: Data, out: Path, hours: float, device: str, progress: Callable[[str], None]
) -> Plan:
    """Write a commented experiment file for the images that `data.source` names.

    Args:
        data: Source and fractions of the split; sizes are chosen here.
        out: The experiment file, which must not exist yet.
        hours: Hours that its study may take.
        device: Value of ``training.device``.
        progress: Called with a line that says what is done.

    Raises:
        UserError: The file exists, the images cannot be used, or no study fits into the hours.
    """
    if out.exists():
        raise UserError(f"out: {str(out)!r} exists already; give another --out, or remove it")
    if not out.parent.is_dir():
        raise UserError(f"out: folder {str(out.parent)!r} does not exist")
    problem = unwritable(out.parent)
    if problem:
        raise Unwritable(f"out: {str(out)!r} cannot be written: {problem}")
    found = _find_out(data, hours, device, progress)
    with new_file(out) as partial:
        partial.write_text(compose_text(found, out), encoding="utf-8")
        load_experiment(str(partial), {})
    total = format_duration(found.plan.seconds.total)
    progress(f"the study takes about {total} of {hours:g} hours")
    return found.plan


def _find_out(
    data: Data, hours: float, device_name: str, progress: Callable[[str], None]
) -> Findings:
    """Look at images and machine, and plan.

    Raises:
        UserError: The images cannot be used, no network fits in the memory, or no study fits into
            the hours.
    """
    device = resolve_device(device_name)
    survey = look_at_images(data, progress)
    has_weights, weights_comment = _choose_weights()
    subject = Subject(
        _images_of(survey, device), survey.image_size, has_weights, device.type == "cpu"
    )
    num_classes = len(survey.counts)
    speeds = Speeds(count_candidates(num_classes))
    watch = Stopwatch(device, num_classes, speeds, progress)
    plan = _time_and_plan(hours, subject, watch)
    if not plan.fits:
        raise UserError(f"hours: {hours:g} given; {_describe_least(plan)}")
    return Findings(
        survey=survey,
        hours=hours,
        plan=plan,
        doubled=make_plan(2 * hours, subject, watch.speeds),
        speeds=watch.speeds,
        device=str(device),
        is_disturbed=watch.is_disturbed,
        unfit=watch.left_out,
        weights_comment=weights_comment,
        has_weights=has_weights,
    )


def _images_of(survey: Survey, device: torch.device) -> Images:
    return Images(
        train=survey.train_images,
        val=survey.val_images,
        test=survey.test_images,
        num_folds=survey.num_folds,
        reading_seconds=survey.reading_seconds,
        # Beside a GPU, other processes do it.
        loading_seconds=LOADING_SECONDS if device.type == "cpu" else 0.0,
    )


def _time_and_plan(hours: float, subject: Subject, watch: Stopwatch) -> Plan:
    """Plan, time what the plan rests on, and plan again, until it rests on what is measured.

    Raises:
        UserError: No network fits in the memory.
    """
    watch.look_first(list_sizes(subject.image_size, subject.has_weights)[0])
    plan = _plan_again(hours, subject, watch)
    for number in range(ROUNDS):
        if number:
            watch.time_again(_cells_of(plan))
            plan = _plan_again(hours, subject, watch)
        while watch.time_next(_cells_of(plan), plan.batch_size):
            plan = _plan_again(hours, subject, watch)
    return plan


def _plan_again(hours: float, subject: Subject, watch: Stopwatch) -> Plan:
    _need_networks(watch)
    return make_plan(hours, subject, watch.speeds)


def _cells_of(plan: Plan) -> Sequence[Cell]:
    return [(name, plan.rung.image_size) for name in plan.networks]


def _need_networks(watch: Stopwatch) -> None:
    if not watch.speeds.measured:
        reasons = [f"{name}: {reason}" for name, reason in watch.left_out.items()]
        raise UserError(f"no network fits in the memory of {watch.device}", reasons)


def _describe_least(plan: Plan) -> str:
    """Say how many hours the least study takes, rounded up to two digits."""
    rung = plan.rung
    # The times of the next call will be a little different.
    hours = 1.05 * plan.seconds.total / 3600
    unit = 10.0 ** (math.floor(math.log10(hours)) - 1)
    least = math.ceil(hours / unit) * unit
    return (
        f"the least that makes sense here takes {least:.2g}: {rung.num_networks} networks with "
        f"{rung.num_settings} learning rates each, {rung.epochs} epochs at {rung.image_size} pixels"
    )


def _choose_weights() -> tuple[bool, str]:
    """Return whether trained weights can be had, and a comment on ``model.weights``."""
    try:
        models.fetch(Model(name="resnet18", weights="DEFAULT"))
    except UserError:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return False, (
            f"ImageNet weights cannot be downloaded here; with their files in {folder}, "
            "DEFAULT learns faster and better"
        )
    return True, "torchvision's ImageNet weights; none starts from random ones"
