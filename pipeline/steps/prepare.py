"""Entry point prepare."""

from __future__ import annotations

from pipeline.config import Raw
from pipeline.steps.options import FastOptions, read_experiment


class PrepareOptions(FastOptions):
    """Options of prepare."""

    summary = (
        "Read and check the images, split them into train, val and test, and decode them once."
    )
    example = "python -m pipeline prepare --data.source folder:photos"

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration."""
        return name.startswith("data.") or name == "tracking.log_images"


OPTIONS = PrepareOptions


def run(own: PrepareOptions, overrides: Raw) -> None:
    """Prepare the images of the experiment's base."""
    experiment = read_experiment(own, overrides)
    from pipeline.jobs.prepare import log_preparation
    from pipeline.report.console import say
    from pipeline.tracking.workspace import open_workspace

    workspace = open_workspace(experiment.name)
    prepared = log_preparation(workspace, experiment.base.data, experiment.base.tracking.log_images)
    say(f"manifest: {prepared.folder / 'manifest.csv'}")
