"""Entry point register."""

from __future__ import annotations

from pipeline.config import Name, Raw, essential
from pipeline.steps.options import ExperimentOptions, read_experiment


class RegisterOptions(ExperimentOptions):
    """Options of register."""

    run_id: str = essential("", "A complete training; empty: the best evaluated one of the study.")
    name: Name = essential("", "Registered model; empty: the experiment's name.")
    summary = "Register a trained network under a name, with alias champion."
    example = "python -m pipeline register --name digits"


OPTIONS = RegisterOptions


def run(own: RegisterOptions, overrides: Raw) -> None:
    """Register a run, or the best evaluated one of the study."""
    experiment = read_experiment(own, overrides)
    from pipeline.jobs.promote import promote
    from pipeline.report.console import say
    from pipeline.tracking.run import launched
    from pipeline.tracking.store import open_workspace

    workspace = open_workspace(experiment.name)
    with launched(workspace, "register"):
        champion = promote(workspace, own.name or experiment.name, own.run_id, experiment.study.name, experiment.base.training.best_metric)
    if champion.passed_over:
        say(f"note: {champion.passed_over} runs rank higher by validation but are not evaluated yet")
    say(f"{champion.uri} is version {champion.version}: run {champion.run_id} ({champion.run_name})")
