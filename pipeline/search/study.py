"""Run a study: each trial a training nested under the study's one parent run."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import TrialState

from pipeline import ranking
from pipeline.config import Configuration, Study
from pipeline.data.prepared import Prepared
from pipeline.errors import InUse, PipelineError, UserError
from pipeline.experiment import Experiment
from pipeline.identity import FIRST_RELEASE, names_beside, study_name
from pipeline.jobs.augmentation_preview import log_previews
from pipeline.jobs.check import check, replace_unreachable_weights
from pipeline.jobs.prepare import (
    log_report,
    majority_rate,
    prepare_images,
    prepare_variant,
    with_white,
)
from pipeline.jobs.register import export_model
from pipeline.jobs.summary import Summary, summarise_and_write
from pipeline.jobs.training_job import Job
from pipeline.report import tables
from pipeline.report.console import say
from pipeline.safe_text import escape_markdown, hide_passwords
from pipeline.search.optuna_figures import write_figures
from pipeline.search.pruning import build_pruner, build_sampler, first_rung
from pipeline.search.space import holds_lists
from pipeline.search.study_storage import STUDIES, Database
from pipeline.search.trial_runner import TrialRunner
from pipeline.search.trials import RUN_ID, with_repeat_seeds
from pipeline.tracking import artifacts, find_runs, names, study_runs
from pipeline.tracking.abandoned_runs import end_abandoned
from pipeline.tracking.study_parent import parent_run, refuse_if_tuned
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace

PARENT = "parent_run_id"
IDENTITY = "identity"
FIRST_RUNG = "first_rung"
"""User attributes of an Optuna study: the run of its parent, its identity, and where hyperband first judges in it."""


@dataclass(frozen=True)
class Tuned:
    """A finished study."""

    name: str
    parent: str
    compared: Summary


def tune(
    workspace: Workspace,
    experiment: Experiment,
    step: str,
    then: Callable[[str], None] = lambda name: None,
) -> Tuned:
    """Train the list and search the space, going on where an earlier run of the same study stopped.

    Args:
        workspace: The open store.
        experiment: List, space and number of trials.
        step: ``tune`` or ``main``: the parent's ``pipeline.step``.
        then: Called with the study's name at the end, while the parent still runs.

    Raises:
        UserError: A configuration is wrong (all are checked before the first one trains), or another
            process works on the same study.
        StoreAway: The study's database is busy or away, and stays so.
        PipelineError: Every training failed.
    """
    if experiment.trials == 0:
        raise UserError(
            f"{experiment.path}: nothing to tune: configs and space are both empty; train trains base alone"
        )
    workspace.need_writable(
        workspace.checkpoints,
        workspace.outputs,
        *workspace.artifacts,
        file=workspace.home / STUDIES,
    )
    if experiment.fast:
        base, entries = (
            replace_unreachable_weights(experiment.base),
            [replace_unreachable_weights(entry) for entry in experiment.entries],
        )
        experiment = replace(experiment, base=base, entries=entries)
    database = Database(experiment.study.storage, workspace.home)
    prepared = _images(workspace, experiment, database.storage)
    experiment = experiment.with_white(prepared.data.white)
    jobs = _checked(workspace, experiment, prepared)
    origin = check(experiment.base, prepared, f"{experiment.path}: base")
    identity = study_name(
        experiment.name, experiment.base, origin, experiment.space, prepared.digest
    )
    name, found = _own(workspace, database.storage, experiment.study.name or identity)
    recorded = found.user_attrs if found else {}
    if recorded.get(IDENTITY, identity) != identity:
        before = study_name(
            experiment.name,
            experiment.base,
            origin,
            experiment.space,
            prepared.digest,
            FIRST_RELEASE,
        )
        why = "has another base, space, data or fold"
        if recorded[IDENTITY] == before:
            why = f"was begun by release {FIRST_RELEASE}, by which new heads on trained weights started otherwise"
        raise UserError(f"study.name: study {name!r} {why}; give another name, or none")
    refuse_if_tuned(workspace, name)
    in_use = f"study {name!r} is being tuned by another process on this machine; wait for it, or give another study.name"
    parent = recorded.get(PARENT) or study_runs.find_study_parent(workspace, name)
    experiment = _as_begun(workspace, experiment, name, parent)
    with database.lock_study(name, in_use), parent_run(workspace, step, name, parent) as run:
        study = _open(database.storage, experiment, name, is_new=found is None)
        study.set_user_attr(PARENT, run.id)
        study.set_user_attr(IDENTITY, identity)
        _describe(run, experiment, prepared, identity)
        _abandoned(workspace, study)
        TrialRunner(workspace, experiment, study, run, prepared, jobs).run()
        compared = _conclude(workspace, study, name, run)
        then(name)
    return Tuned(name, run.id, compared)


def _images(workspace: Workspace, experiment: Experiment, storage: BaseStorage) -> Prepared:
    """Prepare the images of a study; one of release 0.1.0 that is named goes on with them as it decoded them."""
    data, log_images = experiment.base.data, experiment.base.tracking.log_images
    prepared = prepare_images(workspace, data, log_images)
    if not experiment.study.name and prepared.digest == prepared.first_digest():
        return prepared
    studies = {
        study.study_name: study.user_attrs.get(IDENTITY) for study in storage.get_all_studies()
    }
    base = with_white(experiment.base, prepared)
    origin = check(base, prepared, f"{experiment.path}: base")

    def identities(digest: str) -> set[str]:
        return {
            study_name(experiment.name, base, origin, experiment.space, digest, release)
            for release in ("", FIRST_RELEASE)
        }

    now, before = identities(prepared.digest), identities(prepared.first_digest())
    named = studies.get(experiment.study.name)
    if named is not None and named not in now:
        with suppress(UserError):
            # That release left images out which this one can read: their metadata is damaged. All are decoded to find out which.
            first = prepare_images(workspace, data, log_images, version=1)
            if named in identities(first.digest):
                return first
    for name, identity in studies.items():
        if identity in before - now:
            say(
                f"study {name} was begun on the same images as release {FIRST_RELEASE} decoded them, and is another one; "
                f"--study.name {name} goes on with it"
            )
    return prepared


def _checked(workspace: Workspace, experiment: Experiment, prepared: Prepared) -> list[Job]:
    """Check every entry of the list and every choice of the space; seeds of repeats are given."""
    checked: dict[str, dict[str, str]] = {}

    def origin_of(configuration: Configuration, where: str) -> dict[str, str]:
        key = configuration.change("training", seed=0).model_dump_json()
        if key not in checked:
            checked[key] = check(configuration, prepared, f"{experiment.path}: {where}")
        return checked[key]

    jobs = []
    for number, entry in enumerate(experiment.entries):
        origin = origin_of(entry, f"configs[{number}]")
        images = prepare_variant(workspace, entry.data, prepared)
        jobs.append(Job(entry, origin, images))
    for field, values in experiment.space.items():
        if isinstance(values, list):
            for value in values:
                origin_of(experiment.sampled({field: value}), f"space: {field}")
    seeded = with_repeat_seeds(
        [job.configuration for job in jobs], [job.config_hash for job in jobs]
    )
    return [Job(entry, job.origin, job.prepared) for job, entry in zip(jobs, seeded, strict=True)]


def _own(workspace: Workspace, storage: BaseStorage, wanted: str) -> tuple[str, FrozenStudy | None]:
    """Return the name of the study that this store works on, and the study where it is there already.

    It is the wanted name, or the first beside it, whose study is not another store's. Others are left untouched.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    there = {study.study_name: study for study in storage.get_all_studies()}
    told = ""
    for name in names_beside(wanted):
        study = there.get(name)
        reason = _why_not_ours(workspace, storage, study) if study else ""
        if not reason:
            if told:
                say(f"{told}; study {name} is used")
            return name, study
        told = told or f"study {name} {reason}"
    raise AssertionError("names never end")


def _why_not_ours(workspace: Workspace, storage: BaseStorage, study: FrozenStudy) -> str:
    """Return why a study cannot be gone on with; empty where it can."""
    if parent := study.user_attrs.get(PARENT):
        lifecycle = find_runs.get_lifecycle(workspace, parent)
        if not lifecycle:
            return "belongs to another MLflow store"
        if lifecycle != "active":
            return f"has its runs deleted from MLflow (`mlflow runs restore --run-id {parent}` brings it back)"
    with warnings.catch_warnings():
        # Of such choices, which it reads.
        warnings.simplefilter("ignore", UserWarning)
        trials = storage.get_all_trials(study._study_id, deepcopy=False)
    if any(map(holds_lists, trials)):
        return "is of release 0.1.0, which could not search lists"
    return ""


def _open(storage: BaseStorage, experiment: Experiment, name: str, is_new: bool) -> optuna.Study:
    """Load a study; make it first where it is new.

    Raises:
        InUse: Another process has made it since it was looked for.
    """
    try:
        if is_new:
            storage.create_new_study([StudyDirection.MAXIMIZE], name)
    except DuplicatedStudyError:
        raise InUse(f"study {name!r} has just been begun by another process; start again") from None
    study = optuna.load_study(storage=storage, study_name=name)
    # Seeded by what is done, so that a study taken up again does not draw the same points.
    study.sampler = build_sampler(
        experiment.study, experiment.base.training.seed + len(study.get_trials(deepcopy=False))
    )
    epochs = experiment.base.training.epochs
    if is_new:
        study.set_user_attr(FIRST_RUNG, first_rung(epochs))
    # Scores at the rungs of another rule would be compared with those of other epochs. Release 0.1.0 judged after the first one.
    study.pruner = build_pruner(experiment.study, epochs, study.user_attrs.get(FIRST_RUNG, 1))
    return study


def _as_begun(workspace: Workspace, experiment: Experiment, name: str, parent: str) -> Experiment:
    """Return the experiment with the pruner that its study was begun with, unless another one is asked for; either is said."""
    begun = (
        find_runs.get_run(workspace, parent).data.params.get("study.pruner", "") if parent else ""
    )
    now = experiment.study.pruner
    if begun == now or begun not in get_args(Study.model_fields["pruner"].annotation):
        return experiment
    if "pruner" in experiment.study.model_fields_set:
        say(f"study {name} was begun with study.pruner {begun}, and goes on with {now}")
        return experiment
    say(
        f"study {name} goes on with study.pruner {begun}, with which it was begun; --study.pruner {now} changes that"
    )
    return replace(experiment, study=experiment.study.model_copy(update={"pruner": begun}))


def _describe(run: TrackedRun, experiment: Experiment, prepared: Prepared, identity: str) -> None:
    settings = {
        "study.trials": experiment.trials,
        "study.list": len(experiment.entries),
        "study.pruner": experiment.study.pruner,
        "study.sampler": experiment.study.sampler,
    }
    run.params({**settings, "data.source": experiment.base.data.source})
    run.tag(
        {
            names.DATA_DIGEST: prepared.digest,
            names.TARGET: str(experiment.study.target),
            names.IDENTITY: identity,
        }
    )
    run.dataset(
        experiment.base.data.name, prepared.source, prepared.digest, ["training", "validation"]
    )
    if experiment.path.is_file():
        # Without the password that study.storage may hold.
        run.text(experiment.path.name, hide_passwords(experiment.path.read_text(encoding="utf-8")))
    log_report(run, prepared)
    run.metrics({"majority_rate": majority_rate(prepared)})
    log_previews(
        run, prepared, [experiment.base, *experiment.entries, *_choices_of_augmentation(experiment)]
    )


def _choices_of_augmentation(experiment: Experiment) -> list[Configuration]:
    choices = experiment.space.get("data.augment", [])
    return (
        [experiment.sampled({"data.augment": choice}) for choice in choices]
        if isinstance(choices, list)
        else []
    )


def _abandoned(workspace: Workspace, study: optuna.Study) -> None:
    """End the runs of trials whose process was killed."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        end_abandoned(workspace, trial.user_attrs.get(RUN_ID, ""))


def _conclude(workspace: Workspace, study: optuna.Study, name: str, run: TrackedRun) -> Summary:
    """Write the comparison, the best configuration and Optuna's figures to the parent; export the winner."""
    compared = summarise_and_write(workspace, name)
    with tempfile.TemporaryDirectory() as folder:
        for figure in write_figures(study, Path(folder), compared.metric, compared.majority_rate):
            run.file(figure, "optuna")
        run.flush()
    ranked = compared.ranked()
    if not ranked:
        raise PipelineError(
            f"none of the {len(compared.rows)} trainings of study {name} is complete; the first says: {compared.rows[0]['reason']}"
        )
    best = ranked[0]
    export_model(workspace, best["run_id"])
    reached = {
        ranking.best_name(best["metric"]): best["value"],
        "best/val_accuracy": best["val_accuracy"],
        "best/val_loss": best["val_loss"],
    }
    run.metrics(reached)
    with tempfile.TemporaryDirectory() as folder:
        run.text(
            "best_config.yaml",
            artifacts.download_artifact(
                workspace, best["run_id"], names.CONFIG, Path(folder)
            ).read_text(encoding="utf-8"),
        )
    experiment_id = workspace.client.get_run(best["run_id"]).info.experiment_id
    link = f"[{escape_markdown(best['run_name'])}](#/experiments/{experiment_id}/runs/{best['run_id']})"
    run.tag(
        {
            names.BEST_RUN: best["run_id"],
            names.NOTE: f"Best: {link}, {ranking.title(best['metric'])} {tables.best_value_text(best)}. Comparison: artifacts, folder `summary`.",
        }
    )
    return compared
