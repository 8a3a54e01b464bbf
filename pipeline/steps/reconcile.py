"""Entry point reconcile."""

from __future__ import annotations

from pipeline.config import Raw, essential
from pipeline.steps.options import Options


class ReconcileOptions(Options):
    """Options of reconcile."""

    experiment: str = essential("", "Experiment whose runs are ended; empty means all experiments.")
    summary = (
        "End runs that a kill or a power cut has left RUNNING: "
        "those whose process no longer lives, as their heartbeat tells. "
        "They become interrupted, and can be taken up again. "
        "What a tracking server that was away has not taken yet is sent first."
    )
    example = "python -m pipeline reconcile"


OPTIONS = ReconcileOptions


def run(own: ReconcileOptions, overrides: Raw) -> None:
    """Send what is left in journals, and end the runs whose process has died."""
    from pipeline.jobs.resume import need_experiment, reconcile
    from pipeline.report.console import say
    from pipeline.tracking.leftover import send_left
    from pipeline.tracking.tracked_run import keep_launched_run
    from pipeline.tracking.workspace import open_workspace

    workspace = open_workspace(own.experiment or "reconcile")
    sent = send_left(workspace, own.experiment)
    if own.experiment:
        need_experiment(workspace, own.experiment)
    with keep_launched_run(workspace, "reconcile"):
        ended = reconcile(workspace, own.experiment)
    if sent:
        say(f"what {sent} {_runs(sent)} had logged is sent")
    say(f"{ended} {_runs(ended)} ended as interrupted")


def _runs(number: int) -> str:
    return "run" if number == 1 else "runs"
