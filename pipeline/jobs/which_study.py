"""Which study a step follows: the one that its own file, options and data identify."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeline import models
from pipeline.config import Configuration, Raw, facts_of, field_info, flatten, identifies_study
from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.identity import FIRST_RELEASE, study_name
from pipeline.jobs.prepare import REPORT, prepare_images
from pipeline.tracking import artifacts, find_runs, names, stored_weights, study_runs
from pipeline.tracking.workspace import Workspace

_COLUMNS = tuple(f"data.{name}_column" for name in ("image", "label", "split", "group"))
_WHERE = (
    "data.source",
    "data.root",
    "data.labels",
    *_COLUMNS,
    "data.bad",
    "data.duplicates",
    "data.near_distance",
)
"""Fields that may change without making another study.

They say where images are, what a list of them calls its columns, and what is done about bad images.
Which images they are, their digest tells; it is compared before they are used.
"""
_RANKS = "training.best_metric"
"""The field that ranks single trainings, which belong to no study."""
_MOST_LISTED = 10


class Chosen(NamedTuple):
    """The study that a step follows.

    Attributes:
        name: Name of the study. It is empty if the experiment has no study: a step then takes all
            trainings of the experiment.
        described: Text for people that says which study it is, on which images, and why it was
            taken if that is not plain.
        is_own: Whether file and options identify the study, so that `tune` goes on with it.
    """

    name: str
    described: str
    is_own: bool = True


def find_study(workspace: Workspace, experiment: Experiment, reads_images: bool = False) -> Chosen:
    """Return the study that a step follows.

    It is the study that ``study.name`` names. Without that option it is the study whose name
    follows from base, space and the study's own data digest, so that no image is read. Studies of
    the same base and space that were given a name come after it. Of several studies on several sets
    of images it is the study of the same source, then the latest. If none has that configuration
    the latest study is taken, unless options were given that no study has.

    Args:
        workspace: The open store.
        experiment: The experiment file with the options applied.
        reads_images: Whether the step reads images. If so, and no study names the images that the
            option ``data.source`` names, these are looked at.

    Raises:
        UserError: No study has that name, or these options; the message lists the studies that
            there are. Or there is no study that options could find.
    """
    if experiment.study.name:
        named = _get_named_study(workspace, experiment)
        return Chosen(named.name, _describe(named))
    studies = study_runs.find_studies(workspace)
    if not studies:
        _need_no_study(workspace, experiment)
        return Chosen("", "", is_own=False)
    found = _find_matching(workspace, experiment, studies)
    if found:
        first = _choose_by_images(workspace, experiment, found, reads_images)
        return Chosen(first.name, _describe(first))
    if _finding_options(experiment.overrides):
        raise _no_matching_study(workspace, experiment, studies)
    latest = studies[0]
    why = f"the latest, since none has base and space of {experiment.path}"
    return Chosen(latest.name, f"{_describe(latest)}; {why}", is_own=False)


def _get_named_study(workspace: Workspace, experiment: Experiment) -> study_runs.Study:
    name = experiment.study.name
    others = _finding_options(experiment.overrides)
    if others:
        raise UserError(
            f"study.name: study {name!r} is named, and {_on_command_line(others)} would find "
            "another; leave one of them out"
        )
    there = [study.name for study in study_runs.find_studies(workspace)]
    if name not in there:
        # If that name was another store's, the study stands beside it; of several it is the latest.
        beside = [one for one in there if re.fullmatch(rf"{re.escape(name)}~\d+", one)]
        name = beside[0] if beside else name
    return study_runs.get_study(workspace, name)


def _need_no_study(workspace: Workspace, experiment: Experiment) -> None:
    """Check that no options look for a study in an experiment that has only single trainings."""
    finding = _finding_options(experiment.overrides)
    idle = [name for name in finding if name != _RANKS]
    if idle and find_runs.find_trainings(workspace):
        raise UserError(
            f"experiment {workspace.experiment!r} has no study that {_on_command_line(idle)} "
            "could find, only single trainings; "
            "leave that out, or name one to evaluate or register by --run_id"
        )


def _find_matching(
    workspace: Workspace, experiment: Experiment, studies: Sequence[study_runs.Study]
) -> list[study_runs.Study]:
    """Return the studies of an experiment's base, space and options, the most likely first."""
    found = [
        study
        for study in studies
        if _is_of(workspace, experiment, study)
        and _has_images_as_given(workspace, experiment, study)
    ]
    # First the studies that `tune` would go on with: those without a name of their own, and of what
    # ``data.white auto`` may mean those where it is a number.
    return sorted(
        found,
        key=lambda study: (
            _has_own_name(study),
            _find_white(workspace, experiment, study) == "type",
        ),
    )


def _no_matching_study(
    workspace: Workspace, experiment: Experiment, studies: Sequence[study_runs.Study]
) -> UserError:
    given = [name for name, _ in flatten(experiment.overrides) if identifies_study(name)]
    listed = [_describe(study) for study in studies[:_MOST_LISTED]]
    if len(studies) > _MOST_LISTED:
        listed.append(f"and {len(studies) - _MOST_LISTED} more")
    return UserError(
        f"no study of experiment {workspace.experiment!r} is of {experiment.path} "
        f"with {_on_command_line(given)}; there are:",
        listed,
    )


def _has_own_name(study: study_runs.Study) -> bool:
    return bool(study.identity) and _without_number(study.name) != study.identity


def _without_number(name: str) -> str:
    return re.sub(r"~\d+$", "", name)


def _choose_by_images(
    workspace: Workspace,
    experiment: Experiment,
    found: Sequence[study_runs.Study],
    reads_images: bool,
) -> study_runs.Study:
    """Return the first of some studies that is of the images which file and options name."""
    source = experiment.base.data.source
    of_source = [study for study in found if study.source == source]
    if of_source or not is_source_given(experiment):
        return (of_source or found)[0]
    if len({study.data_digest for study in found}) == 1:
        # Whoever uses the images finds out whether they are the same.
        return found[0]
    digests = compute_digests(workspace, experiment) if reads_images else ()
    of_digest = [study for study in found if study.data_digest in digests]
    if of_digest:
        return of_digest[0]
    listed = [_describe(study) for study in found[:_MOST_LISTED]]
    raise UserError(
        f"data.source: no study of experiment {workspace.experiment!r} is of the images "
        f"{source!r}; there are:",
        listed,
    )


def is_source_given(experiment: Experiment) -> bool:
    """Whether an option, and not only the file, says where the images are."""
    return "source" in experiment.overrides.get("data", {})


def compute_digests(workspace: Workspace, experiment: Experiment) -> tuple[str, str]:
    """Prepare an experiment's images and return their digests.

    The first digest is that of the images as they are decoded now, the second that of the images as
    release 0.1.0 decoded them.
    """
    prepared = prepare_images(workspace, experiment.base.data)
    return prepared.digest, prepared.first_digest()


def need_own_experiment(workspace: Workspace, run_id: str, options: Sequence[str]) -> str:
    """Return the experiment that a run is of; the text is empty if the run does not say it.

    Args:
        workspace: The open store of the experiment that file and options name.
        run_id: Id of the run.
        options: Names of the options that were given and name an experiment.

    Raises:
        UserError: The options name another experiment.
    """
    experiment = find_runs.get_run(workspace, run_id).data.tags.get(names.EXPERIMENT, "")
    if options and experiment and experiment != workspace.experiment:
        raise UserError(
            f"run_id: run {run_id} is of experiment {experiment!r}, "
            f"and {_on_command_line(options)} of {workspace.experiment!r}; "
            "leave one of them out"
        )
    return experiment


def need_no_other_options(run_id: str, overrides: Raw) -> None:
    """Check that no options which would find a study are given together with a run.

    They would be passed over in silence.

    Args:
        run_id: Id of the run.
        overrides: Options on sections, nested.

    Raises:
        UserError: There are options which would find a study.
    """
    finding = _finding_options(overrides)
    if "name" in overrides.get("study", {}):
        finding.append("study.name")
    if finding:
        raise UserError(
            f"run_id: run {run_id} is named, and {_on_command_line(finding)} would find a study; "
            "leave one of them out"
        )


def _finding_options(overrides: Raw) -> list[str]:
    """Return the options, by dotted name, that were given to find a study."""
    return [name for name, _ in flatten(overrides) if identifies_study(name) and name not in _WHERE]


def _on_command_line(options: Sequence[str]) -> str:
    return ", ".join(f"--{name}" for name in options)


def _describe(study: study_runs.Study) -> str:
    source = f" from {study.source}" if study.source else ""
    return f"study {study.name}, data {study.data_digest[:8]}{source}"


def _is_of(workspace: Workspace, experiment: Experiment, study: study_runs.Study) -> bool:
    identity = study.identity or _without_number(study.name)
    return identity in _compute_names(workspace, experiment, study)


def _compute_names(
    workspace: Workspace, experiment: Experiment, study: study_runs.Study
) -> Iterator[str]:
    """Yield the names that a study of an experiment has on another study's images.

    For each configuration these are the name by this release and the name by the first release.
    """
    for base in _bases(experiment.with_white(_find_white(workspace, experiment, study))):
        model = stored_weights.resolve_weights(base.model)
        # Only building a network of one's own tells which files it is made of.
        num_classes = _load_num_classes(workspace, study.parent) if model.is_own else 0
        origin = models.origin(model, num_classes, base.data.image_size)
        for release in ("", FIRST_RELEASE):
            yield study_name(
                experiment.name, base, origin, experiment.space, study.data_digest, release
            )


def _find_white(workspace: Workspace, experiment: Experiment, study: study_runs.Study) -> int | str:
    """Return what ``data.white auto`` has become in a study, as its trainings have recorded it."""
    if experiment.base.data.white != "auto":
        return ""
    recorded = [
        row["params"]["data.white"]
        for row in find_runs.find_trainings(workspace, study.name)
        if "data.white" in row["params"]
    ]
    first = recorded[0] if recorded else "auto"
    return int(first) if first.isdecimal() else first


def _load_num_classes(workspace: Workspace, parent: str) -> int:
    with tempfile.TemporaryDirectory() as folder, suppress(UserError):
        name = f"{REPORT}/{names.CLASSES}"
        file = artifacts.download_artifact(workspace, parent, name, Path(folder))
        return len(json.loads(file.read_text(encoding="utf-8")))
    return 0


def _bases(experiment: Experiment) -> Iterator[Configuration]:
    yield experiment.base
    if experiment.fast and experiment.base.model.weights != "none":
        # If published weights cannot be downloaded, a try-out takes random ones.
        yield experiment.base.change("model", weights="none")


def _has_images_as_given(
    workspace: Workspace, experiment: Experiment, study: study_runs.Study
) -> bool:
    """Whether a study's trainings have the given options on images.

    The name of a study holds only the digest of its images.
    """
    given: Raw = experiment.overrides.get("data", {})
    wanted = {
        f"data.{name}": getattr(experiment.base.data, name)
        for name in given
        if _is_of_images(f"data.{name}")
    }
    if not wanted:
        return True
    rows = find_runs.find_trainings(workspace, study.name)
    return not rows or _has_values(rows[0]["params"], wanted)


def _is_of_images(name: str) -> bool:
    """Whether a field decides which images are used, and all trainings of a study record the same.

    Args:
        name: Dotted name of the field.
    """
    field = field_info(name)
    return (
        field is not None
        and not facts_of(field).hashed
        and identifies_study(name)
        and name not in (*_WHERE, "data.fold")
    )


def _has_values(params: Mapping[str, str], wanted: Mapping[str, object]) -> bool:
    """Whether those of some fields that a run has recorded have the wanted values."""
    return all(
        find_runs.typed(name, params[name]) == value
        for name, value in wanted.items()
        if name in params
    )
