"""Entry point evaluate."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import Raw, essential, identifies_study
from pipeline.steps.options import TrustOptions, list_given, read_experiment, with_order
from pipeline.trust import trust_here


class EvaluateOptions(TrustOptions):
    """Options of evaluate."""

    run_id: str = essential(
        "",
        "Run id of a complete training; empty means all repeats of the study's best "
        "configuration by validation.",
    )
    summary = "Score one trained network on the test split, into its own run."
    example = "python -m pipeline evaluate"

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration."""
        return identifies_study(name) or name in _READ


OPTIONS = EvaluateOptions
_READ = ("study.name", "training.device", "data.ordered")


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
            run_ids = [own.run_id]
            data_options = overrides.get("data", {})
        else:
            compared = summarise_experiment(workspace, experiment, reads_images=True)
            run_ids = leading_runs(compared)
            data_options = with_order(experiment, overrides.get("data", {}))
        for run_id in run_ids:
            values, per_class = evaluate(
                workspace,
                run_id,
                experiment.base.training.device,
                data_options,
                experiment.base.tracking.log_images,
            )
            show_table(
                *scores_table(per_class), texts=["class"], expendable=["images", "precision"]
            )
            say(f"run {run_id}: {_describe_scores(values)}")


def _describe_scores(values: Mapping[str, float]) -> str:
    from pipeline.report.format import format_percent

    accuracy = format_percent(values["test/accuracy"])
    interval = "no interval, since there are few groups of images"
    if "test/accuracy_low" in values:
        low = format_percent(values["test/accuracy_low"])
        high = format_percent(values["test/accuracy_high"])
        interval = f"95% interval {low} to {high}"
    return (
        f"test accuracy {accuracy}, {interval}; "
        f"loss {values['test/loss']:.4f}, macro F1 {values['test/f1_macro']:.4f}"
    )
