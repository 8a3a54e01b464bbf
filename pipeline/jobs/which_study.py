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
"""Where images are, what a list of them calls its columns, and what is done about bad ones may change; their digest, compared before
they are used, tells what they are."""
_RANKS = "training.best_metric"
"""Ranks single trainings, which belong to no study."""
_MOST_LISTED = 10


class Chosen(NamedTuple):
    """The study that a step follows.

    Attributes:
        name: Empty where the experiment has no study: a step then takes all trainings of the experiment.
        described: Which one it is, on which images, and why, as far as that is not plain; for people.
    """

    name: str
    described: str


def find_study(workspace: Workspace, experiment: Experiment, reads_images: bool = False) -> Chosen:
    """Return the study that a step follows.

    It is the one named by ``study.name``; else the one whose name follows from base, space and the study's own data digest, so that no
    image is read; before those of the same base and space that were given a name. Of several, on several sets of images, it is the one of
    the same source, then the latest. Where none has that configuration the latest study is taken, unless options were given that none has.

    Args:
        workspace: The open store.
        experiment: File and options.
        reads_images: The step reads images: those that ``data.source`` of the options names are looked at where no study names them.

    Raises:
        UserError: No study has that name, or these options; those that there are, are listed. Or there is none that options could find.
    """
    if experiment.study.name:
        name = experiment.study.name
        if others := _finding(experiment.overrides):
            raise UserError(
                f"study.name: study {name!r} is named, and {_as_options(others)} would find another; leave one of them out"
            )
        # Where that name was another store's, the study stands beside it; the latest does.
        beside = [
            one.name
            for one in study_runs.find_studies(workspace)
            if re.fullmatch(rf"{re.escape(name)}~\d+", one.name)
        ]
        is_there = any(one.name == name for one in study_runs.find_studies(workspace))
        named = study_runs.get_study(workspace, beside[0] if beside and not is_there else name)
        return Chosen(named.name, _described(named))
    studies = study_runs.find_studies(workspace)
    finding = _finding(experiment.overrides)
    if not studies:
        idle = [name for name in finding if name != _RANKS]
        if idle and find_runs.find_trainings(workspace):
            raise UserError(
                f"experiment {workspace.experiment!r} has no study that {_as_options(idle)} could find, only single trainings; "
                "leave that out, or name one to evaluate or register by --run_id"
            )
        return Chosen("", "")
    found = [
        study
        for study in studies
        if _is_of(workspace, experiment, study)
        and _has_images_as_given(workspace, experiment, study)
    ]
    if found:
        # First those that `tune` would go on with: not under a name of their own, and of those that ``data.white auto`` may mean, a number.
        found.sort(
            key=lambda study: (_has_own_name(study), _white(workspace, experiment, study) == "type")
        )
        first = _on_images(workspace, experiment, found, reads_images)
        return Chosen(first.name, _described(first))
    if finding:
        options = _as_options(
            [name for name, _ in flatten(experiment.overrides) if identifies_study(name)]
        )
        more = [f"and {len(studies) - _MOST_LISTED} more"] if len(studies) > _MOST_LISTED else []
        listed = [*map(_described, studies[:_MOST_LISTED]), *more]
        raise UserError(
            f"no study of experiment {workspace.experiment!r} is of {experiment.path} with {options}; there are:",
            listed,
        )
    return Chosen(
        studies[0].name,
        f"{_described(studies[0])}; the latest, since none has base and space of {experiment.path}",
    )


def _has_own_name(study: study_runs.Study) -> bool:
    return bool(study.identity) and re.sub(r"~\d+$", "", study.name) != study.identity


def _on_images(
    workspace: Workspace,
    experiment: Experiment,
    found: Sequence[study_runs.Study],
    reads_images: bool,
) -> study_runs.Study:
    """Return the first of some studies that is of the images as file and options name them."""
    source = experiment.base.data.source
    of_source = [study for study in found if study.source == source]
    if of_source or not is_source_given(experiment):
        return (of_source or found)[0]
    if len({study.data_digest for study in found}) == 1:
        # Whoever uses the images finds out whether they are the ones.
        return found[0]
    digests = compute_digests(workspace, experiment) if reads_images else ()
    if of_digest := [study for study in found if study.data_digest in digests]:
        return of_digest[0]
    listed = [_described(study) for study in found[:_MOST_LISTED]]
    raise UserError(
        f"data.source: no study of experiment {workspace.experiment!r} is of the images {source!r}; there are:",
        listed,
    )


def is_source_given(experiment: Experiment) -> bool:
    """Whether an option, and not only the file, says where the images are."""
    return "source" in experiment.overrides.get("data", {})


def compute_digests(workspace: Workspace, experiment: Experiment) -> tuple[str, str]:
    """Return the digests of an experiment's images, as they are decoded now and by release 0.1.0; prepares them."""
    prepared = prepare_images(workspace, experiment.base.data)
    return prepared.digest, prepared.first_digest()


def need_own_experiment(workspace: Workspace, run_id: str, options: Sequence[str]) -> str:
    """Return the experiment that a run is of, an empty text where it does not say.

    Args:
        workspace: Of the experiment that file and options name.
        run_id: The run.
        options: That were given and name an experiment.

    Raises:
        UserError: They name another one.
    """
    experiment = find_runs.get_run(workspace, run_id).data.tags.get(names.EXPERIMENT, "")
    if options and experiment and experiment != workspace.experiment:
        raise UserError(
            f"run_id: run {run_id} is of experiment {experiment!r}, and {', '.join(f'--{name}' for name in options)} of "
            f"{workspace.experiment!r}; leave one of them out"
        )
    return experiment


def need_no_other_options(run_id: str, overrides: Raw) -> None:
    """Check that with a run no options are given that would find a study: they would be passed over in silence.

    Args:
        run_id: The run.
        overrides: Options on sections, nested.

    Raises:
        UserError: There are some.
    """
    named = ["study.name"] if "name" in overrides.get("study", {}) else []
    if finding := [*_finding(overrides), *named]:
        raise UserError(
            f"run_id: run {run_id} is named, and {_as_options(finding)} would find a study; leave one of them out"
        )


def _finding(overrides: Raw) -> list[str]:
    """Return the options, by dotted name, that were given to find a study."""
    return [name for name, _ in flatten(overrides) if identifies_study(name) and name not in _WHERE]


def _as_options(fields: Sequence[str]) -> str:
    return ", ".join(f"--{name}" for name in fields)


def _described(study: study_runs.Study) -> str:
    source = f" from {study.source}" if study.source else ""
    return f"study {study.name}, data {study.data_digest[:8]}{source}"


def _is_of(workspace: Workspace, experiment: Experiment, study: study_runs.Study) -> bool:
    identity = study.identity or re.sub(r"~\d+$", "", study.name)
    return identity in _names(workspace, experiment, study)


def _names(workspace: Workspace, experiment: Experiment, study: study_runs.Study) -> Iterator[str]:
    """Yield the names that a study of an experiment may have on another study's images: of this release and of the first one."""
    for base in _bases(experiment.with_white(_white(workspace, experiment, study))):
        model = stored_weights.resolve_weights(base.model)
        # Which files a network of one's own is made of, building it tells.
        num_classes = _num_classes(workspace, study.parent) if model.is_own else 0
        origin = models.origin(model, num_classes, base.data.image_size)
        for release in ("", FIRST_RELEASE):
            yield study_name(
                experiment.name, base, origin, experiment.space, study.data_digest, release
            )


def _white(workspace: Workspace, experiment: Experiment, study: study_runs.Study) -> int | str:
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


def _num_classes(workspace: Workspace, parent: str) -> int:
    with tempfile.TemporaryDirectory() as folder, suppress(UserError):
        file = artifacts.download_artifact(
            workspace, parent, f"{REPORT}/{names.CLASSES}", Path(folder)
        )
        return len(json.loads(file.read_text(encoding="utf-8")))
    return 0


def _bases(experiment: Experiment) -> Iterator[Configuration]:
    yield experiment.base
    if experiment.fast and experiment.base.model.weights != "none":
        # Where published weights cannot be downloaded a try-out takes random ones.
        yield experiment.base.change("model", weights="none")


def _has_images_as_given(
    workspace: Workspace, experiment: Experiment, study: study_runs.Study
) -> bool:
    """Whether a study's trainings have the options on images, of which its name holds the digest only."""
    given: Raw = experiment.overrides.get("data", {})
    wanted = {
        f"data.{name}": getattr(experiment.base.data, name)
        for name in given
        if _is_of_images(f"data.{name}")
    }
    rows = find_runs.find_trainings(workspace, study.name) if wanted else []
    return all(_has(row["params"], wanted) for row in rows[:1])


def _is_of_images(name: str) -> bool:
    """Whether a field decides which images are used, and is the same in all trainings of a study as they record it."""
    field = field_info(name)
    return (
        field is not None
        and not facts_of(field).hashed
        and identifies_study(name)
        and name not in (*_WHERE, "data.fold")
    )


def _has(params: Mapping[str, str], wanted: Mapping[str, object]) -> bool:
    return all(
        find_runs.typed(name, params[name]) == value
        for name, value in wanted.items()
        if name in params
    )
