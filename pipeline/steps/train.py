"""Entry point train."""

from __future__ import annotations

from pipeline.config import Raw
from pipeline.errors import UserError
from pipeline.steps.options import FastOptions, read_experiment


class TrainOptions(FastOptions):
    """Options of train."""

    summary = "Train one configuration, the experiment's base with overrides, and export the network."
    example = "python -m pipeline train --model.name resnet34 --optimizer.lr 3e-4"


OPTIONS = TrainOptions


def run(own: TrainOptions, overrides: Raw) -> None:
    """Train the experiment's base."""
    experiment = read_experiment(own, overrides)
    from pipeline.jobs.prepare import check, prepare_images
    from pipeline.jobs.train import Job, Placement, reusable, train
    from pipeline.report.console import say
    from pipeline.report.tables import percent
    from pipeline.tracking import names
    from pipeline.tracking.run import TrackedRun
    from pipeline.tracking.store import open_workspace
    from pipeline.tracking.views import write_views

    configuration = experiment.base
    if configuration.data.fold == "all":
        raise UserError(f"data.fold: all is for tune; train takes one fold, 0 to {configuration.data.folds - 1}")
    workspace = open_workspace(experiment.name)
    prepared = prepare_images(workspace, configuration.data, configuration.tracking.log_images)
    job = Job(configuration, check(configuration, prepared, ""), prepared)
    write_views(workspace)
    same = reusable(workspace, job)
    if same is not None:
        if workspace.launched_run:
            with TrackedRun(workspace, "train", f"same as {same['run_name']}", tags={names.JOINS: same["run_id"]}, single=True):
                pass
        say(
            f"trained before as run {same['run_id']}, validation accuracy {percent(same['val_accuracy'])}; another training.seed repeats it"
        )
        return
    run_id, accuracy = train(workspace, job, Placement(configuration.model.name.rpartition("/")[2], export=True, single=True))
    say(f"run {run_id}: best validation accuracy {percent(accuracy)}; model runs:/{run_id}/model")
