"""The disk space that trainings need: said, and checked, before the first of them starts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from pipeline import models
from pipeline.config import Configuration
from pipeline.data.examine_worker import Recipe
from pipeline.data.prepared import Prepared
from pipeline.errors import Unwritable
from pipeline.experiment import Experiment
from pipeline.files import existing_part
from pipeline.jobs.evaluation_log import MOST_AS_CSV
from pipeline.jobs.predictions_table import MOST_KEPT
from pipeline.jobs.training_job import Job
from pipeline.report.console import say
from pipeline.report.format import format_bytes
from pipeline.tracking import find_runs, names
from pipeline.tracking.workspace import Workspace

_KEPT = 2
"""Resume checkpoints that a training keeps."""
_FIGURES = 420_000
"""Bytes of the figures and tables of a training that is evaluated, measured."""
_EVENTS = 15_000
"""Bytes of TensorBoard's files for an epoch, of at most `_MOST_EPOCHS`, measured."""
_MOST_EPOCHS = 30
_OF_STUDY = 1_400_000
"""Bytes of the comparison, in the study's run and among the outputs, measured."""
_EXPORTED = 1_400_000
"""Bytes of an exported model beside its weights: the package that serves it."""
_MOMENTS = 2
"""Numbers of each parameter that Adam and its relatives keep. SGD keeps one, or none."""
_PER_IMAGE = 40
"""Bytes of the answer to an image beside its probabilities."""


@dataclass(frozen=True)
class Need:
    """Bytes that trainings need.

    Attributes:
        artifacts: Bytes of weights, figures and tables among the artifacts of the runs.
        exported: Bytes of the exported network and the comparison. They are artifacts too, and are
            written after the last training.
        checkpoints: Bytes of what running trainings go on from. It is removed when they end.
        images: Bytes of images that the search decodes.
    """

    artifacts: float = 0.0
    exported: float = 0.0
    checkpoints: float = 0.0
    images: float = 0.0


def need_space_for_study(
    workspace: Workspace,
    experiment: Experiment,
    jobs: Sequence[Job],
    study: str,
    prepared: Prepared,
    workers: int = 1,
) -> None:
    """Say how much disk space the trainings of a study need that are still to do.

    Args:
        workspace: The open store.
        experiment: Its list, its space and the number of its trainings.
        jobs: The checked trainings of the list.
        study: Name of the study.
        prepared: Images of the experiment's base.
        workers: Number of trainings that run at the same time.

    Raises:
        Unwritable: There is less space than that.
    """
    need = estimate_study(workspace, experiment, jobs, study, prepared, workers)
    _need_space(workspace, need, "this study")


def need_space_for_training(workspace: Workspace, job: Job) -> None:
    """Say how much disk space one training needs whose network is exported.

    Raises:
        Unwritable: There is less space than that.
    """
    answers = _estimate_answers(job.prepared, is_tested=False)
    need = _estimate_training(job.configuration, len(job.prepared.classes), answers)
    exported = need.weights + _EXPORTED
    whole = Need(need.weights + need.results, exported, need.running)
    _need_space(workspace, whole, "this training")


def estimate_study(
    workspace: Workspace,
    experiment: Experiment,
    jobs: Sequence[Job],
    study: str,
    prepared: Prepared,
    workers: int = 1,
) -> Need:
    """Return how much disk space the trainings of a study need that are still to do.

    The arguments are those of `need_space_for_study`. Of a searched training only its choices of
    network and optimizer are known; their mean counts.
    """
    rows = find_runs.find_trainings(workspace)
    num_classes = len(prepared.classes)
    answers = _estimate_answers(prepared, experiment.study.evaluate != "none")
    listed = list(jobs) if experiment.study.only else list(jobs[: experiment.trials])
    needs = [
        _estimate_training(job.configuration, num_classes, answers)
        for job in _find_missing(listed, rows)
    ]
    number = len(needs)
    artifacts = sum(need.weights + need.results for need in needs)
    images = 0.0
    searched = 0
    if experiment.space and not experiment.study.only:
        folds = experiment.base.data.folds if experiment.base.data.fold == "all" else 1
        searched = folds * (experiment.trials - len(listed) - _count_searched(rows, study))
        choices = [
            _estimate_training(choice, num_classes, answers) for choice in _choices(experiment)
        ]
        if searched > 0:
            number += searched
            artifacts += searched * fmean(need.weights + need.results for need in choices)
            needs += choices
            images = _estimate_images(workspace, experiment, prepared)
    if not number:
        return Need()
    exported = max(need.weights for need in needs) + _EXPORTED + _OF_STUDY
    begun = workers
    if searched > 0 and experiment.study.pruner == "one_epoch":
        begun += experiment.study.num_finalists(searched)
    checkpoints = min(begun, number) * max(need.running for need in needs)
    return Need(artifacts, exported, checkpoints, images)


class _Training(NamedTuple):
    """Bytes that one training needs.

    Attributes:
        weights: Bytes of its best weights among the artifacts.
        running: Bytes of what it goes on from while it runs.
        results: Bytes of figures, tables and answers among the artifacts.
    """

    weights: float
    running: float
    results: float


def _estimate_training(configuration: Configuration, num_classes: int, answers: float) -> _Training:
    size = models.find_size(configuration.model, num_classes, configuration.data.image_size)
    optimizer = configuration.optimizer
    moments = _MOMENTS
    if optimizer.name == "sgd":
        moments = 1 if optimizer.momentum else 0
    # A resume checkpoint holds the weights as they are, and the best ones.
    resume = 2 * size.weights + moments * size.trained
    epochs = min(configuration.training.epochs, _MOST_EPOCHS)
    results = _FIGURES + _EVENTS * epochs + answers
    return _Training(size.weights, _KEPT * resume + size.weights, results)


def _estimate_answers(prepared: Prepared, is_tested: bool) -> float:
    """Return bytes of the answers of one training to validation and test images."""
    num_classes = len(prepared.classes)
    validation = len(prepared.positions("val"))
    answers = validation * (4 * num_classes + _PER_IMAGE)
    if validation * num_classes > MOST_KEPT:
        answers = 0
    if is_tested:
        as_csv = 12 * num_classes if num_classes <= MOST_AS_CSV else 0
        answers += len(prepared.positions("test")) * (4 * num_classes + as_csv + _PER_IMAGE)
    return answers


def _find_missing(listed: Sequence[Job], rows: Sequence[find_runs.Row]) -> list[Job]:
    """Return the trainings of a list that no run is of yet, each fold by itself."""
    done = set()
    for row in rows:
        if row["state"] == names.COMPLETE:
            done.add((row["config_hash"], row["seed"], row["fold"], row["data_digest"]))
    missing = []
    for job in listed:
        for one in job.per_fold():
            config_hash, seed, fold, digest = one.identity
            if (config_hash, seed, str(fold), digest) not in done:
                missing.append(one)
    return missing


def _count_searched(rows: Sequence[find_runs.Row], study: str) -> int:
    """Return how many searched trainings of a study have ended."""
    ended = (names.COMPLETE, names.PRUNED, names.FAILED)
    places = set()
    for row in rows:
        if row["is_searched"] and row["state"] in ended and study in row["study"].split(","):
            places.add(row["trial"])
    return len(places)


def _choices(experiment: Experiment) -> list[Configuration]:
    """Return a configuration for each choice of network and optimizer that the search has."""
    chosen = []
    for name in ("model.name", "optimizer.name"):
        values = experiment.space.get(name)
        chosen.append([{name: value} for value in values] if isinstance(values, list) else [{}])
    return [experiment.sampled({**model, **optimizer}) for model, optimizer in product(*chosen)]


def _estimate_images(workspace: Workspace, experiment: Experiment, prepared: Prepared) -> float:
    """Return bytes of the images that the search decodes at sizes which are not there yet."""
    sizes = experiment.space.get("data.image_size", [])
    needed = 0.0
    for size in sizes if isinstance(sizes, list) else []:
        data = experiment.sampled({"data.image_size": size}).data
        recipe = Recipe.of(data, workspace.prepared, prepared.version)
        if recipe.stores and not recipe.folder.exists():
            needed += 3 * data.stored_size**2 * len(prepared.manifest)
    return needed


def _need_space(workspace: Workspace, need: Need, what: str) -> None:
    """Say how much space is needed of each file system, and check that there is so much."""
    parts, short = [], []
    for place, number in _by_file_system(workspace, need).items():
        free = shutil.disk_usage(existing_part(place)).free
        text = f"about {format_bytes(max(number, 1e6))} in {place}"
        parts.append(f"{text} (of {format_bytes(free)} free)")
        if number > free:
            short.append(f"{text}, where {format_bytes(free)} are free")
    if short:
        fewer = "a smaller study.trials, " if what == "this study" else ""
        raise Unwritable(
            f"{what} needs {' and '.join(short)}; make room, choose {fewer}smaller networks or "
            "another folder (MLFLOW_TRACKING_URI=sqlite:////PATH/mlflow.db); "
            "tracking.keep_weights makes room at the end only"
        )
    if parts:
        say(f"{what} needs {' and '.join(parts)}")


def _by_file_system(workspace: Workspace, need: Need) -> dict[Path, float]:
    """Return how many bytes are needed of each file system, by a folder that stands in it."""
    needed = {workspace.checkpoints: need.checkpoints, workspace.prepared: need.images}
    for file in workspace.checkpoints.glob("*/resume-*.pt"):
        # Those of trainings that go on; one that is running may remove its own at this moment.
        with suppress(FileNotFoundError):
            needed[workspace.checkpoints] -= file.stat().st_size
    # With a server there is no such folder: the artifacts are elsewhere.
    for folder in workspace.artifacts:
        needed[folder] = need.artifacts + need.exported
        if _find_device(folder) == _find_device(workspace.checkpoints):
            # What is exported takes the place of the checkpoints.
            needed[workspace.checkpoints] -= need.exported
    places: dict[int, Path] = {_find_device(workspace.home): workspace.home}
    sums: dict[Path, float] = {}
    for folder, number in needed.items():
        place = places.setdefault(_find_device(folder), folder)
        if number > 0:
            sums[place] = sums.get(place, 0.0) + number
    return sums


def _find_device(folder: Path) -> int:
    """Return which file system a folder is in, which need not exist yet."""
    return existing_part(folder).stat().st_dev
