"""Remove the weights of all but the best trainings of a study that has been evaluated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from pipeline.errors import UserError, first_line
from pipeline.experiment import Experiment
from pipeline.jobs.register import export_model
from pipeline.jobs.summary import Summary, summarise
from pipeline.ranking import by_configuration
from pipeline.report.console import say
from pipeline.report.format import format_bytes
from pipeline.tracking import artifacts, find_runs, names, registry
from pipeline.tracking.find_runs import Row
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.workspace import STORE_ERRORS, Workspace, explain_store_error, is_away

_OPTION = "tracking.keep_weights"


def remove_other_weights(workspace: Workspace, experiment: Experiment, study: str) -> None:
    """Remove the weights of a study's trainings but the best, as ``tracking.keep_weights`` says.

    What happened is said in one line. A training keeps its weights if anything may still need them:
    it is not evaluated although it should be, is registered or exported, belongs to another study
    too, or other trainings start from it. Without ``study.evaluate`` the trainings that are not
    evaluated keep theirs, since nobody could evaluate them later.

    Args:
        workspace: The open store.
        experiment: Whose settings count.
        study: Name of the study, which has been evaluated.
    """
    most = experiment.base.tracking.keep_weights
    if not most:
        return
    compared = summarise(workspace, study)
    others = _find_others(compared, most)
    unevaluated = _find_unevaluated(compared, experiment.study.evaluate)
    needed = _find_needed(workspace, others)
    kept: Counter[str] = Counter()
    removed = freed = 0
    for run_id in others:
        run = find_runs.get_run(workspace, run_id)
        why = "not evaluated" if run_id in unevaluated else _why_kept(run, needed)
        if why:
            kept[why] += 1
            continue
        try:
            freed += _remove_weights(workspace, run_id)
        except Exception as error:
            if is_away(error):
                raise
            say(f"{_OPTION}: weights cannot be removed: {_explain(error)}")
            break
        removed += 1
    _say_what_was_done(most, removed, freed, kept)


def _find_others(compared: Summary, most: int) -> list[str]:
    """Return the run ids of the complete and pruned trainings that are not among the best."""
    pruned = [row for row in compared.rows if row["state"] == names.PRUNED and not row["apart"]]
    others: Sequence[Row] = [*compared.ranked()[most:], *pruned]
    return [str(row["run_id"]) for row in others if row["has_weights"]]


def _find_unevaluated(compared: Summary, which: str) -> set[str]:
    """Return the run ids of the trainings that should be evaluated and are not."""
    asked = compared.ranked()
    if asked and which == "best":
        asked = [dict(row) for row in by_configuration(asked)[0]]
    return {str(row["run_id"]) for row in asked if row["test_accuracy"] is None}


def _find_needed(workspace: Workspace, run_ids: Collection[str]) -> dict[str, str]:
    """Return why some of the runs are needed, by run id."""
    needed = {}
    if run_ids:
        for run in find_runs.search(workspace, "params.`model.weights` LIKE 'runs:/%'"):
            named = run.data.params["model.weights"].removeprefix("runs:/").partition("/")[0]
            needed[named] = "what other trainings start from"
        for run_id in registry.find_registered(workspace, run_ids):
            needed[run_id] = "registered"
    return needed


def _why_kept(run: Any, needed: dict[str, str]) -> str:
    """Return why a run keeps its weights; the text is empty if it does not."""
    tags = run.data.tags
    if run.info.run_id in needed:
        return needed[run.info.run_id]
    if len(tags.get(names.STUDY, "").split(",")) > 1:
        return "of another study too"
    if run.outputs and run.outputs.model_outputs:
        return "exported"
    is_ended = find_runs.to_row(run)["state"] in (names.COMPLETE, names.PRUNED)
    return "" if is_ended else "in use"


def _remove_weights(workspace: Workspace, run_id: str) -> int:
    """Remove the weights of a run; return how many bytes that frees.

    The tag comes first: a run that has no weights always says why.
    """
    run = RunLog(workspace, run_id)
    run.tag({names.WEIGHTS: names.REMOVED})
    try:
        return artifacts.remove_artifact(workspace, run_id, names.CHECKPOINT)
    except BaseException:
        with suppress(*STORE_ERRORS):
            run.delete_tag(names.WEIGHTS)
        raise


def _explain(error: Exception) -> str:
    return first_line(error if isinstance(error, UserError) else explain_store_error(error))


def _say_what_was_done(most: int, removed: int, freed: int, kept: Counter[str]) -> None:
    if not removed and not kept:
        return
    done = "no weights are removed"
    if removed:
        trainings = "1 training" if removed == 1 else f"{removed} trainings"
        done = f"weights of {trainings} removed ({format_bytes(freed)})"
    others = ", ".join(f"{number} {why}" for why, number in sorted(kept.items()))
    beside = f"; beside the best {most}, these keep theirs: {others}" if others else ""
    say(f"{_OPTION} {most}: {done}{beside}")


def export_best(workspace: Workspace, best: Row) -> None:
    """Export the best run of a study, unless its weights have been removed, which is said.

    It may have become the best one after that, when others of its configuration were trained.
    """
    if best["has_weights"]:
        export_model(workspace, best["run_id"])
        return
    say(
        f"the best run {best['run_id']} ({best['run_name']}) is not exported: "
        f"{_OPTION} has removed its weights when others were better"
    )
