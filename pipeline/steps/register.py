"""Entry point register."""

from __future__ import annotations

from pipeline.config import Name, Raw, essential, identifies_study
from pipeline.steps.options import TrustOptions, list_given, read_experiment
from pipeline.trust import trust_here


class RegisterOptions(TrustOptions):
    """Options of register."""

    run_id: str = essential(
        "", "Run id of a complete training; empty means the best evaluated one of the study."
    )
    name: Name = essential(
        "",
        "Name of the registered model; empty means the name of the experiment, or of the "
        "experiment of run_id. With fast, -fast is added.",
    )
    summary = "Register a trained network under a name, with alias champion."
    example = "python -m pipeline register --name digits"

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration."""
        return identifies_study(name) or name == "study.name"


OPTIONS = RegisterOptions


def run(own: RegisterOptions, overrides: Raw) -> None:
    """Register a run, or the best evaluated one of the study."""
    trust_here(own.trust)
    experiment = read_experiment(own, overrides)
    from pipeline.experiment import experiment_name
    from pipeline.jobs.register import find_best_evaluated, register
    from pipeline.jobs.summary import summarise_experiment
    from pipeline.jobs.which_study import need_no_other_options, need_own_experiment
    from pipeline.report.console import say
    from pipeline.tracking.tracked_run import keep_launched_run
    from pipeline.tracking.workspace import open_workspace

    name = experiment_name(own.name, own.fast) if own.name else experiment.name
    workspace = open_workspace(experiment.name)
    with keep_launched_run(workspace, "register"):
        run_id = own.run_id
        if run_id:
            need_no_other_options(run_id, overrides)
            if not own.name:
                # The experiment of the run names the model: the default of config says nothing
                # about it.
                given = list_given(own, "config", "experiment", "fast")
                name = need_own_experiment(workspace, run_id, given) or name
        else:
            run_id, passed_over = find_best_evaluated(summarise_experiment(workspace, experiment))
            if passed_over:
                say(f"note: {passed_over} runs rank higher by validation but are not evaluated yet")
        champion = register(workspace, name, run_id)
    say(champion.described)
