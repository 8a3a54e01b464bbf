"""Further trainings of configurations that a study has: ``study.only`` with ``study.repeats``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice

from optuna.trial import FrozenTrial, TrialState

from pipeline.config import Configuration
from pipeline.errors import UserError, unknown_name
from pipeline.experiment import Experiment
from pipeline.ranking import can_be_ranked
from pipeline.search.space import build_configuration
from pipeline.search.trials import ENTRY, INTERRUPTED, KEY, RUN_ID, UID, may_succeed
from pipeline.tracking import find_runs


def find_repeated(
    experiment: Experiment,
    trials: Sequence[FrozenTrial],
    rows: Sequence[find_runs.Row],
    digest: str,
) -> list[Configuration]:
    """Return what is to be trained so that each asked configuration has its number of repeats.

    A configuration keeps the seeds that it has, and gets the next ones. Those that the search drew
    can be repeated as those of the list can.

    Args:
        experiment: The experiment; `study.only` names the configurations by their hashes, or by how
            these begin, and `study.repeats` how many trainings each is to have in all.
        trials: The trials of Optuna's study.
        rows: The study's trainings.
        digest: Digest of the study's images.

    Raises:
        UserError: The study has no such configuration, or several.
    """
    known: dict[str, list[find_runs.Row]] = {}
    for row in rows:
        # A run that another program has written may have no seed.
        is_ours = row["data_digest"] == digest and isinstance(row.get("seed"), int)
        if is_ours and can_be_ranked(row):
            known.setdefault(row["config_hash"], []).append(row)
    trial_of_run: dict[str, FrozenTrial] = {}
    for trial in trials:
        # A tracking server that was away may have made the run when its trial had ended.
        for name in (RUN_ID, UID):
            if name in trial.user_attrs:
                trial_of_run[trial.user_attrs[name]] = trial
    entries: list[Configuration] = []
    failed = {str(trial.user_attrs.get(KEY)) for trial in trials if _has_failed_for_good(trial)}
    for config_hash in _resolve(experiment.study.only, known):
        repeats = known[config_hash]
        configuration = _find_configuration(experiment, repeats, trial_of_run)
        complete = _complete_seeds(configuration, repeats)
        missing = experiment.study.repeats - len(complete)
        untried = _untried_seeds(config_hash, repeats, complete, failed)
        for seed in islice(untried, max(0, missing)):
            entries.append(configuration.change("training", seed=seed))
    return entries


def _resolve(asked: str, known: Iterable[str]) -> list[str]:
    """Return the hashes that are asked for, each once."""
    found: dict[str, None] = {}
    hashes = sorted(known)
    for text in filter(None, map(str.strip, asked.split(","))):
        matching = [config_hash for config_hash in hashes if config_hash.startswith(text)]
        if not matching:
            raise unknown_name("configuration in study.only", text, hashes)
        if len(matching) > 1:
            raise UserError(
                f"study.only: {text!r} may be any of {', '.join(matching)}; give more of its digits"
            )
        found[matching[0]] = None
    if not found:
        raise UserError(f"study.only: {asked!r} names no configuration; there are:", hashes)
    return list(found)


def _find_configuration(
    experiment: Experiment,
    repeats: Sequence[find_runs.Row],
    trial_of_run: Mapping[str, FrozenTrial],
) -> Configuration:
    """Return a configuration as Optuna's study has it: nothing of a run's files is trusted."""
    for row in repeats:
        trial = trial_of_run.get(row["run_id"], trial_of_run.get(row["uid"]))
        if trial is None:
            continue
        if ENTRY in trial.user_attrs:
            return Configuration.model_validate(trial.user_attrs[ENTRY])
        return build_configuration(trial.params, experiment)
    raise UserError(
        f"study.only: the runs of {repeats[0]['config_hash']} were trained by another study; "
        "write the configuration into the experiment's list"
    )


def _has_failed_for_good(trial: FrozenTrial) -> bool:
    is_failure = trial.state == TrialState.FAIL and INTERRUPTED not in trial.user_attrs
    return is_failure and not may_succeed(trial)


def _complete_seeds(configuration: Configuration, repeats: Sequence[find_runs.Row]) -> set[int]:
    """Return the seeds of which all folds are complete."""
    data = configuration.data
    num_folds = data.folds if data.fold == "all" else 1
    folds_of = Counter(int(row["seed"]) for row in repeats)
    return {seed for seed, folds in folds_of.items() if folds >= num_folds}


def _untried_seeds(
    config_hash: str,
    repeats: Sequence[find_runs.Row],
    complete: Collection[int],
    failed: Collection[str],
) -> Iterator[int]:
    """Yield seeds from the first one on, but for those that are complete or failed for good.

    Seeds of which some folds are there come first.
    """
    begun = sorted({int(row["seed"]) for row in repeats})
    others = (seed for seed in count(begun[0]) if seed not in begun)
    for seed in chain(begun, others):
        if seed not in complete and f"{config_hash}:{seed}" not in failed:
            yield seed
