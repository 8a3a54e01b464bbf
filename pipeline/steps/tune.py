"""Entry point tune."""

from __future__ import annotations

from pipeline.config import Raw, essential
from pipeline.steps.options import FastOptions, read_experiment


class TuneOptions(FastOptions):
    """Options of tune."""

    stop: bool = essential(
        False,
        "Train nothing: the study that is being tuned begins no further trial, on no machine, and "
        "ends when the running ones have.",
    )
    summary = (
        "Train the experiment's list of configurations, then search its space; "
        "an interrupted study goes on where it stopped."
    )
    example = "python -m pipeline tune --config experiments/photos.yaml"


OPTIONS = TuneOptions


def run(own: TuneOptions, overrides: Raw) -> None:
    """Run the experiment's study."""
    experiment = read_experiment(own, overrides)
    from pipeline.training.torchrun import need_processes

    if not own.stop:
        need_processes(experiment.base.training)
    from pipeline.jobs.summary_files import show_summary
    from pipeline.report.console import say
    from pipeline.search.study import stop, tune
    from pipeline.search.worker_place import this_worker
    from pipeline.tracking.leftover import send_left
    from pipeline.tracking.tracked_run import keep_launched_run
    from pipeline.tracking.ui_views import write_views
    from pipeline.tracking.workspace import open_workspace

    workspace = open_workspace(experiment.name)
    if own.stop:
        with keep_launched_run(workspace, "tune"):
            say(stop(workspace, experiment))
        return
    send_left(workspace, experiment.name)
    if this_worker() is None:
        write_views(workspace, experiment.base.training.best_metric)
    tuned = tune(workspace, experiment, "tune")
    if tuned is None:
        return
    show_summary(tuned.compared)
    say(
        f"best run {tuned.compared.rows[0]['run_id']}; comparison in {workspace.outputs}; "
        f"study {tuned.name}, parent run {tuned.parent}"
    )
