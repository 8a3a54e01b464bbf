"""Entry point train."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pipeline.config import Raw, essential
from pipeline.errors import UserError
from pipeline.steps.options import TrustOptions, list_given, read_experiment
from pipeline.trust import trust_here

if TYPE_CHECKING:
    from pipeline.tracking.workspace import Workspace


class TrainOptions(TrustOptions):
    """Options of train."""

    run_id: str = essential(
        "",
        "Run id of an interrupted training to go on with, by its recorded configuration; "
        "it takes no other option.",
    )
    summary = (
        "Train one configuration, the experiment's base with overrides, and export the network."
    )
    example = "python -m pipeline train --model.name resnet34 --optimizer.lr 3e-4"

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration."""
        return not name.startswith("study.") and name != "tracking.keep_weights"


OPTIONS = TrainOptions


def run(own: TrainOptions, overrides: Raw) -> None:
    """Train the experiment's base, or go on with an interrupted run."""
    trust_here(own.trust)
    if own.run_id:
        _resume(own, overrides)
        return
    experiment = read_experiment(own, overrides)
    from pipeline.training.torchrun import need_processes

    need_processes(experiment.base.training)
    from pipeline.jobs.check import check, replace_unreachable_weights
    from pipeline.jobs.disk_space import need_space_for_training
    from pipeline.jobs.prepare import prepare_images, with_white
    from pipeline.jobs.same_training import find_same_training
    from pipeline.jobs.train import Placement, TrackedTraining
    from pipeline.jobs.training_job import Job
    from pipeline.report.console import say
    from pipeline.report.people_table import best_value_text
    from pipeline.tracking.leftover import send_left
    from pipeline.tracking.sending import finish_sending
    from pipeline.tracking.ui_views import write_views_if_there
    from pipeline.tracking.workspace import open_workspace

    configuration = experiment.base
    if configuration.data.fold == "all":
        last = configuration.data.folds - 1
        raise UserError(f"data.fold: all is for tune; train takes one fold, 0 to {last}")
    workspace = open_workspace(experiment.name)
    send_left(workspace, experiment.name)
    workspace.need_writable(workspace.checkpoints, *workspace.artifacts)
    if experiment.fast:
        configuration = replace_unreachable_weights(configuration)
    prepared = prepare_images(workspace, configuration.data, configuration.tracking.log_images)
    configuration = with_white(configuration, prepared)
    job = Job(configuration, check(configuration, prepared, ""), prepared)
    write_views_if_there(workspace, configuration.training.best_metric)
    same = find_same_training(workspace, job)
    if same is not None:
        _point_to(workspace, f"same as {same['run_name']}", same["run_id"])
        say(
            f"trained before as run {same['run_id']}, {best_value_text(same)}; "
            "another training.seed repeats it"
        )
        return
    need_space_for_training(workspace, job)
    name = configuration.model.name.rpartition("/")[2]
    done = TrackedTraining(workspace, job, Placement(name, export=True, single=True)).run()
    finish_sending()
    say(f"run {done.run_id}: {done}; model runs:/{done.run_id}/model")


def _point_to(workspace: Workspace, name: str, run_id: str) -> None:
    """Under ``mlflow run``, have the launcher's run point to the run that holds the results."""
    from pipeline.tracking import names
    from pipeline.tracking.tracked_run import TrackedRun

    if workspace.launched_run:
        with TrackedRun(workspace, "train", name, tags={names.JOINS: run_id}, single=True):
            pass


def _resume(own: TrainOptions, overrides: Raw) -> None:
    """Go on with a run in itself; under ``mlflow run`` the launcher's run points to it."""
    from contextlib import ExitStack

    from pipeline.jobs.disk_space import need_space_for_training
    from pipeline.jobs.resume import load_interrupted_job, lock_run
    from pipeline.jobs.train import Placement, TrackedTraining
    from pipeline.report.console import say
    from pipeline.tracking import find_runs, names
    from pipeline.tracking.leftover import send_left
    from pipeline.tracking.tracked_run import TrackedRun
    from pipeline.tracking.workspace import open_workspace
    from pipeline.training.distributed import join_group
    from pipeline.training.torchrun import need_processes

    workspace = open_workspace("")
    send_left(workspace)
    tags = find_runs.get_run(workspace, own.run_id).data.tags
    _need_no_options(own, overrides, workspace)
    if not tags.get(names.EXPERIMENT):
        raise UserError(
            f"run_id: run {own.run_id} is no training of this pipeline: "
            f"it has no tag {names.EXPERIMENT}"
        )
    workspace = open_workspace(tags[names.EXPERIMENT])
    with lock_run(workspace, own.run_id), ExitStack() as launched:
        job = load_interrupted_job(workspace, own.run_id)
        processes = job.configuration.training.processes
        need_processes(job.configuration.training)
        if join_group().size != processes:
            say(
                f"begun by {processes} processes, it goes on by {join_group().size}: "
                "to other numbers than uninterrupted"
            )
        if workspace.launched_run:
            joins = {names.JOINS: own.run_id}
            name = f"resumes {own.run_id[:8]}"
            launched.enter_context(TrackedRun(workspace, "train", name, tags=joins, single=True))
        need_space_for_training(workspace, job)
        name = str(find_runs.get_run(workspace, own.run_id).info.run_name)
        placement = Placement(name, export=names.TRIAL not in tags, run_id=own.run_id)
        done = TrackedTraining(workspace, job, placement).run()
    say(f"run {done.run_id}: {done}")


def _need_no_options(own: TrainOptions, overrides: Raw, workspace: Workspace) -> None:
    """Refuse other options beside a run: it goes on by what it has recorded.

    Raises:
        UserError: Another option is given.
    """
    from pipeline.jobs.resume import refuse_ended
    from pipeline.tracking import find_runs

    values = {}
    for section, fields in overrides.items():
        for name, value in fields.items():
            values[f"{section}.{name}"] = value
    named = [*values, *list_given(own, "config", "experiment", "fast")]
    if not named:
        return
    options = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in values.items())
    run = find_runs.get_run(workspace, own.run_id)
    state = find_runs.to_row(run)["state"]
    refuse_ended(own.run_id, str(run.info.run_name), state, options)
    raise UserError(
        "run_id: a run goes on by its recorded configuration and takes no other option; "
        f"got {', '.join(named)}"
    )
