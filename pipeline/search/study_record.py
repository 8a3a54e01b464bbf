"""What a study's parent run records: its settings at first, its outcome at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna

from pipeline import ranking
from pipeline.config import Configuration
from pipeline.data.prepared import Prepared
from pipeline.errors import PipelineError, UserError
from pipeline.experiment import Experiment
from pipeline.jobs.augmentation_preview import log_previews
from pipeline.jobs.evaluate import evaluate_runs
from pipeline.jobs.keep_weights import export_best
from pipeline.jobs.prepare import log_report, majority_rate
from pipeline.jobs.summary import Summary, summarise
from pipeline.jobs.summary_files import summarise_and_write
from pipeline.safe_text import hide_passwords
from pipeline.search.optuna_figures import write_figures
from pipeline.tracking import artifacts, names
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace


def log_study(run: TrackedRun, experiment: Experiment, prepared: Prepared, identity: str) -> None:
    """Log the settings of a study to its parent, with its images, its file and previews.

    Args:
        run: The parent.
        experiment: List, space and settings.
        prepared: Images of the experiment's base.
        identity: The name that follows from experiment, base, space and images.
    """
    run.params(
        {
            "study.trials": experiment.trials,
            "study.list": len(experiment.entries),
            "study.pruner": experiment.study.pruner,
            "study.sampler": experiment.study.sampler,
            "data.source": experiment.base.data.source,
        }
    )
    run.tag(
        {
            names.DATA_DIGEST: prepared.digest,
            names.TARGET: str(experiment.study.target),
            names.IDENTITY: identity,
        }
    )
    run.dataset(
        experiment.base.data.name, prepared.source, prepared.digest, ["training", "validation"]
    )
    if experiment.path.is_file():
        # The password that study.storage may hold is left out.
        run.text(experiment.path.name, hide_passwords(experiment.path.read_text(encoding="utf-8")))
    log_report(run, prepared)
    run.metrics({"majority_rate": majority_rate(prepared)})
    choices = _choices_of_augmentation(experiment)
    log_previews(run, prepared, [experiment.base, *experiment.entries, *choices])


def _choices_of_augmentation(experiment: Experiment) -> list[Configuration]:
    choices = experiment.space.get("data.augment", [])
    if not isinstance(choices, list):
        return []
    return [experiment.sampled({"data.augment": choice}) for choice in choices]


def conclude_study(
    workspace: Workspace,
    experiment: Experiment,
    study: optuna.Study,
    run: TrackedRun,
    prepared: Prepared,
) -> Summary:
    """Evaluate the trainings as `study.evaluate` says, and log the outcome to the parent.

    That is comparison, figures and best configuration. The best network is exported.

    Returns:
        The comparison of the study's trainings.

    Raises:
        PipelineError: No training is complete.
    """
    name = study.study_name
    _evaluate(workspace, experiment, summarise(workspace, name).asked_by(experiment))
    compared = summarise_and_write(workspace, name, "", experiment, prepared)
    with tempfile.TemporaryDirectory() as folder:
        for figure in write_figures(study, Path(folder), compared.metric, compared.majority_rate):
            run.file(figure, "optuna")
        run.flush()
    ranked = compared.ranked()
    if not ranked:
        raise PipelineError(
            f"none of the {len(compared.rows)} trainings of study {name} is complete; "
            f"the first says: {compared.rows[0]['reason']}"
        )
    best = ranked[0]
    export_best(workspace, best)
    _log_best(workspace, best, run)
    return compared


def _evaluate(workspace: Workspace, experiment: Experiment, compared: Summary) -> None:
    """Evaluate trainings on this process's own images; one that cannot be is named and left out."""
    which, base = experiment.study.evaluate, experiment.base
    with suppress(UserError):
        evaluate_runs(workspace, compared, which, base.training.device, base.data.model_dump())


def _log_best(workspace: Workspace, best: Mapping[str, Any], run: TrackedRun) -> None:
    run.metrics(
        {
            ranking.best_name(best["metric"]): best["value"],
            "best/val_accuracy": best["val_accuracy"],
            "best/val_loss": best["val_loss"],
        }
    )
    run_id = best["run_id"]
    with tempfile.TemporaryDirectory() as folder:
        file = artifacts.download_artifact(workspace, run_id, names.CONFIG, Path(folder))
        run.text("best_config.yaml", file.read_text(encoding="utf-8"))
    run.tag({names.BEST_RUN: run_id})
