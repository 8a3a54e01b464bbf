"""Entry point train."""

from __future__ import annotations

import shlex

from pipeline.config import Raw, essential
from pipeline.errors import UserError
from pipeline.steps.options import TrustOptions, list_given, read_experiment
from pipeline.trust import trust_here


class TrainOptions(TrustOptions):
    """Options of train."""

    run_id: str = essential(
        "",
        "An interrupted training to go on with, by its recorded configuration: takes no other option.",
    )
    summary = (
        "Train one configuration, the experiment's base with overrides, and export the network."
    )
    example = "python -m pipeline train --model.name resnet34 --optimizer.lr 3e-4"

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration."""
        return not name.startswith("study.")


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
    from pipeline.jobs.prepare import check, prepare_images, replace_unreachable_weights, with_white
    from pipeline.jobs.train import Placement, find_same_training, train
    from pipeline.jobs.training_job import Job
    from pipeline.report.console import say
    from pipeline.report.tables import best_value_text
    from pipeline.tracking import names
    from pipeline.tracking.run import TrackedRun
    from pipeline.tracking.ui_views import write_views
    from pipeline.tracking.workspace import open_workspace

    configuration = experiment.base
    if configuration.data.fold == "all":
        raise UserError(
            f"data.fold: all is for tune; train takes one fold, 0 to {configuration.data.folds - 1}"
        )
    workspace = open_workspace(experiment.name)
    workspace.need_writable(workspace.checkpoints, *workspace.artifacts)
    if experiment.fast:
        configuration = replace_unreachable_weights(configuration)
    prepared = prepare_images(workspace, configuration.data, configuration.tracking.log_images)
    configuration = with_white(configuration, prepared)
    job = Job(configuration, check(configuration, prepared, ""), prepared)
    write_views(workspace, configuration.training.best_metric)
    same = find_same_training(workspace, job)
    if same is not None:
        if workspace.launched_run:
            with TrackedRun(
                workspace,
                "train",
                f"same as {same['run_name']}",
                tags={names.JOINS: same["run_id"]},
                single=True,
            ):
                pass
        say(
            f"trained before as run {same['run_id']}, {best_value_text(same)}; another training.seed repeats it"
        )
        return
    done = train(
        workspace,
        job,
        Placement(configuration.model.name.rpartition("/")[2], export=True, single=True),
    )
    say(f"run {done.run_id}: {done}; model runs:/{done.run_id}/model")


def _resume(own: TrainOptions, overrides: Raw) -> None:
    """Go on with a run in itself; under ``mlflow run`` the launcher's run points to it."""
    named = [f"{section}.{name}" for section, fields in overrides.items() for name in fields]
    named += list_given(own, "config", "experiment", "fast")
    from contextlib import ExitStack

    from pipeline.jobs.resume import load_interrupted_job, lock_run, refuse_ended
    from pipeline.jobs.train import Placement, train
    from pipeline.report.console import say
    from pipeline.tracking import find_runs, names
    from pipeline.tracking.run import TrackedRun
    from pipeline.tracking.workspace import open_workspace
    from pipeline.training.distributed import join_group
    from pipeline.training.torchrun import need_processes

    run = find_runs.get_run(open_workspace(""), own.run_id)
    tags = run.data.tags
    if named:
        values = {
            f"{section}.{name}": value
            for section, fields in overrides.items()
            for name, value in fields.items()
        }
        options = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in values.items())
        refuse_ended(own.run_id, str(run.info.run_name), find_runs.to_row(run)["state"], options)
        raise UserError(
            f"run_id: a run goes on by its recorded configuration and takes no other option; got {', '.join(named)}"
        )
    if not tags.get(names.EXPERIMENT):
        raise UserError(
            f"run_id: run {own.run_id} is no training of this pipeline: it has no tag {names.EXPERIMENT}"
        )
    workspace = open_workspace(tags[names.EXPERIMENT])
    with lock_run(workspace, own.run_id), ExitStack() as launched:
        job = load_interrupted_job(workspace, own.run_id)
        processes = job.configuration.training.processes
        need_processes(job.configuration.training)
        if join_group().size != processes:
            say(
                f"begun by {processes} processes, it goes on by {join_group().size}: to other numbers than uninterrupted"
            )
        if workspace.launched_run:
            joins = {names.JOINS: own.run_id}
            launched.enter_context(
                TrackedRun(workspace, "train", f"resumes {own.run_id[:8]}", tags=joins, single=True)
            )
        name = str(find_runs.get_run(workspace, own.run_id).info.run_name)
        done = train(
            workspace, job, Placement(name, export=names.TRIAL not in tags, run_id=own.run_id)
        )
    say(f"run {done.run_id}: {done}")
