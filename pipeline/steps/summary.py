"""Entry point summary."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from pipeline.config import Evaluated, Raw, essential, identifies_study
from pipeline.errors import Unwritable, UserError
from pipeline.steps.options import TrustOptions, read_experiment, with_order
from pipeline.trust import trust_here


class SummaryOptions(TrustOptions):
    """Options of summary."""

    evaluate: Evaluated = essential(
        "none",
        "Which complete runs that are not evaluated yet are evaluated: all, those of the best "
        "configuration, or none.",
    )
    experiments: str = essential(
        "",
        "Names of experiments, separated by commas: their trainings are compared, instead of a "
        "study's, in outputs/EXPERIMENT/selected.",
    )
    filter: str = essential(
        "",
        "Filter in MLflow's words, such as \"params.`model.name` = 'resnet18'\": the trainings of "
        "the experiment that it finds are compared, or those of the experiments named.",
    )
    summary = (
        "Write and print the comparison of a study: the one of the experiment file, "
        "or the one named by study.name."
    )
    example = "python -m pipeline summary --evaluate all"

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration."""
        return identifies_study(name) or name in _READ


OPTIONS = SummaryOptions
_READ = ("study.name", "training.device", "data.ordered")


def run(own: SummaryOptions, overrides: Raw) -> None:
    """Compare the runs of a study."""
    trust_here(own.trust)
    experiment = read_experiment(own, overrides)
    from pipeline.jobs.evaluate import evaluate_runs
    from pipeline.jobs.prepare import prepare_images
    from pipeline.jobs.selected_runs import summarise_selected
    from pipeline.jobs.summary import summarise_experiment, with_verdicts
    from pipeline.jobs.summary_files import show_summary, write_summary
    from pipeline.report.console import say
    from pipeline.tracking.tracked_run import keep_launched_run
    from pipeline.tracking.workspace import open_workspace

    try:
        workspace = open_workspace(experiment.name)
    except Unwritable as refused:
        workspace = open_workspace(experiment.name, reads_only=True)
        show_summary(summarise_experiment(workspace, experiment))
        raise Unwritable(f"nothing is written: {refused}") from None
    are_selected = bool(own.experiments or own.filter)
    if are_selected and experiment.study.name:
        raise UserError(
            "study.name: a study is named, and filter or experiments select other trainings; "
            "leave one of them out"
        )
    metric = experiment.base.training.best_metric
    select = partial(summarise_selected, workspace, own.experiments, own.filter, metric)
    with keep_launched_run(workspace, "summary"):
        reads_images = own.evaluate != "none"
        if are_selected:
            compared = select().asked_by(experiment, is_own=False)
        else:
            compared = summarise_experiment(workspace, experiment, reads_images)
        given = overrides.get("data", {})
        data_options = given if are_selected else with_order(experiment, given)
        device = experiment.base.training.device
        if evaluate_runs(workspace, compared, own.evaluate, device, data_options):
            if are_selected:
                compared = select().asked_by(experiment, is_own=False)
            else:
                compared = compared.read_again(workspace)
        compared = with_verdicts(workspace, compared)
        images = None
        if reads_images and not are_selected:
            with suppress(UserError):
                images = prepare_images(workspace, experiment.base.data)
        write_summary(workspace, compared, images)
    show_summary(compared)
    for note in compared.notes:
        say(note)
    say(f"tables and figure in {workspace.outputs / compared.folder}")
