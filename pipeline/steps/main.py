"""Entry point main: prepare, tune, evaluate, summary, register in one process."""

from __future__ import annotations

from pipeline.config import Name, Raw, essential
from pipeline.steps.options import FastOptions, read_experiment


class MainOptions(FastOptions):
    """Options of main."""

    name: Name = essential("", "Registered model; empty: the experiment's name, with -fast behind it where fast is true.")
    summary = "Prepare the images, run the study, evaluate its best run, compare, and register the champion."
    example = "python -m pipeline main --config experiments/smoke.yaml"


OPTIONS = MainOptions


def run(own: MainOptions, overrides: Raw) -> None:
    """Do all steps of an experiment."""
    experiment = read_experiment(own, overrides)
    from pipeline.training.launch import need_processes

    need_processes(experiment.base.training)
    from pipeline.jobs.evaluate import evaluate
    from pipeline.jobs.promote import promote
    from pipeline.jobs.summarise import best_run, show, summarise
    from pipeline.report.console import say
    from pipeline.search.study import tune
    from pipeline.tracking.store import open_workspace
    from pipeline.tracking.views import view_urls, write_views

    workspace = open_workspace(experiment.name)
    write_views(workspace, experiment.base.training.best_metric)
    # A try-out must not take the place of the real champion.
    default_name = f"{experiment.name}-fast" if own.fast else experiment.name

    def conclude(study: str) -> None:
        evaluate(workspace, best_run(workspace, study), experiment.base.training.device)
        compared = summarise(workspace, study)
        champion = promote(workspace, own.name or default_name, study=study)
        show(compared)
        say(f"champion: {champion.uri}, version {champion.version}: run {champion.run_id} ({champion.run_name})")

    tune(workspace, experiment, "main", conclude)
    urls = view_urls(workspace)
    say(f"tables and figure: {workspace.outputs}")
    say(f"MLflow UI: {workspace.ui_command()}")
    say(f"  then open the trainings, best first: {urls['table']}")
    say(f"  and their curves: {urls['curves']}")
