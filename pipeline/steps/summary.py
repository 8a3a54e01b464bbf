"""Entry point summary."""

from __future__ import annotations

from typing import Literal

from pipeline.config import Raw, essential
from pipeline.errors import Unwritable
from pipeline.steps.options import ExperimentOptions, read_experiment


class SummaryOptions(ExperimentOptions):
    """Options of summary."""

    evaluate: Literal["none", "all"] = essential("none", "all evaluates every complete run that is not evaluated yet; none: nothing.")
    summary = "Write and print the comparison of a study: the one named by study.name, or the experiment's latest."
    example = "python -m pipeline summary --evaluate all"


OPTIONS = SummaryOptions


def run(own: SummaryOptions, overrides: Raw) -> None:
    """Compare the runs of a study."""
    experiment = read_experiment(own, overrides)
    from pipeline.jobs.evaluate import evaluate
    from pipeline.jobs.summarise import compare, show, summarise
    from pipeline.report.console import say
    from pipeline.tracking.run import launched
    from pipeline.tracking.store import open_workspace

    metric = experiment.base.training.best_metric
    try:
        workspace = open_workspace(experiment.name)
    except Unwritable as refused:
        show(compare(open_workspace(experiment.name, reads_only=True), experiment.study.name, metric))
        raise Unwritable(f"nothing is written: {refused}") from None
    with launched(workspace, "summary"):
        if own.evaluate == "all":
            for row in compare(workspace, experiment.study.name, metric).ranked():
                if row["test_accuracy"] is None:
                    say(f"evaluating {row['run_name']}")
                    evaluate(workspace, row["run_id"], experiment.base.training.device)
        compared = summarise(workspace, experiment.study.name, metric)
    show(compared)
    for note in compared.notes:
        say(note)
    say(f"tables and figure in {workspace.outputs}")
