"""Entry point evaluate."""

from __future__ import annotations

from pipeline.config import Raw, essential, identifies_study
from pipeline.report.format import format_percent
from pipeline.steps.options import TrustOptions, list_given, read_experiment
from pipeline.trust import trust_here


class EvaluateOptions(TrustOptions):
    """Options of evaluate."""

    run_id: str = essential(
        "",
        "A complete training; empty: all repeats of the study's best configuration by validation.",
    )
    summary = "Score one trained network on the test split, into its own run."
    example = "python -m pipeline evaluate"

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration."""
        return identifies_study(name) or name in ("study.name", "training.device")


OPTIONS = EvaluateOptions


def run(own: EvaluateOptions, overrides: Raw) -> None:
    """Evaluate a run, or all repeats of the study's best configuration."""
    trust_here(own.trust)
    experiment = read_experiment(own, overrides)
    from pipeline.jobs.evaluate import evaluate
    from pipeline.jobs.summary import leading_runs, summarise_experiment
    from pipeline.jobs.which_study import need_no_other_options, need_own_experiment
    from pipeline.report.console import say, show_table
    from pipeline.report.tables import scores_table
    from pipeline.tracking.tracked_run import keep_launched_run
    from pipeline.tracking.workspace import open_workspace

    workspace = open_workspace(experiment.name)
    with keep_launched_run(workspace, "evaluate"):
        if own.run_id:
            need_no_other_options(own.run_id, overrides)
            need_own_experiment(workspace, own.run_id, list_given(own, "experiment", "fast"))
        for run_id in (
            [own.run_id]
            if own.run_id
            else leading_runs(summarise_experiment(workspace, experiment, reads_images=True))
        ):
            values, per_class = evaluate(
                workspace, run_id, experiment.base.training.device, overrides.get("data", {})
            )
            show_table(
                *scores_table(per_class), texts=["class"], expendable=["images", "precision"]
            )
            interval = f"95% interval {format_percent(values['test/accuracy_low'])} to {format_percent(values['test/accuracy_high'])}"
            say(
                f"run {run_id}: test accuracy {format_percent(values['test/accuracy'])}, {interval}; "
                f"loss {values['test/loss']:.4f}, macro F1 {values['test/f1_macro']:.4f}"
            )
