"""Entry point main: prepare, tune, evaluate, summary, register in one process."""

from __future__ import annotations

from pipeline.config import Name, Raw, essential
from pipeline.steps.options import FastOptions, read_experiment


class MainOptions(FastOptions):
    """Options of main."""

    name: Name = essential(
        "",
        "Name of the registered model; empty means the experiment's name. "
        "With fast, -fast is added.",
    )
    summary = (
        "Prepare the images, run the study, evaluate its runs, compare, and register the champion."
    )
    example = "python -m pipeline main --config experiments/smoke.yaml"


OPTIONS = MainOptions


def run(own: MainOptions, overrides: Raw) -> None:
    """Do all steps of an experiment."""
    experiment = read_experiment(own, overrides)
    from pipeline.training.torchrun import need_processes

    need_processes(experiment.base.training)
    from pipeline.experiment import experiment_name
    from pipeline.jobs.evaluate import evaluate_runs
    from pipeline.jobs.register import find_best_evaluated, register
    from pipeline.jobs.summary import Summary
    from pipeline.jobs.summary_files import show_summary, summarise_and_write
    from pipeline.report.console import say
    from pipeline.search.study import tune
    from pipeline.tracking.leftover import send_left
    from pipeline.tracking.ui_views import view_urls, write_views
    from pipeline.tracking.workspace import open_workspace

    workspace = open_workspace(experiment.name)
    send_left(workspace, experiment.name)
    write_views(workspace, experiment.base.training.best_metric)
    # A try-out must not take the place of the real champion.
    name = experiment_name(own.name, own.fast) if own.name else experiment.name

    def conclude(compared: Summary) -> None:
        # All repeats are evaluated: the score of a configuration is their mean.
        if evaluate_runs(workspace, compared, "best", experiment.base.training.device, {}):
            compared = summarise_and_write(workspace, compared.study, experiment=experiment)
        best, _ = find_best_evaluated(compared)
        champion = register(workspace, name, best)
        show_summary(compared)
        say(champion.described)

    if tune(workspace, experiment, "main", conclude) is None:
        return
    urls = view_urls(workspace)
    say(f"tables and figure: {workspace.outputs}")
    say(f"MLflow UI: {workspace.ui_command()}")
    say(f"  then open the trainings, best first: {urls['table']}")
    say(f"  and their curves: {urls['curves']}")
