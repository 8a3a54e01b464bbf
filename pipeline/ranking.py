"""What is better than what: scores of epochs and runs, the order of runs, and names of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

DEFAULT = "val/accuracy"

_NAMES = {
    "accuracy": "accuracy",
    "f1_macro": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "loss": "loss",
}
_SPLITS = {"train": "training", "val": "validation", "test": "test"}


def is_lower_better(metric: str) -> bool:
    """Whether the lower value of a metric, such as ``val/loss``, is the better one."""
    return metric.endswith("loss")


def score(value: float, metric: str) -> float:
    """Return what a metric's value is compared by: the higher the better.

    The function is its own inverse.
    """
    return -value if is_lower_better(metric) else value


def best_name(metric: str) -> str:
    """Return the name by which a run logs a metric of its best epoch: ``best/val_accuracy``."""
    return f"best/{metric.replace('/', '_')}"


def on_test(metric: str) -> str:
    """Return the same metric on the test split, such as ``test/accuracy``."""
    return f"test/{metric.rpartition('/')[2]}"


def title(metric: str) -> str:
    """Return what people call a metric, such as ``validation accuracy``."""
    split, _, name = metric.partition("/")
    return f"{_SPLITS.get(split, split)} {_NAMES.get(name, name)}"


def is_share(metric: str) -> bool:
    """Whether a metric is a share from 0 to 1, which people read as percent."""
    return not is_lower_better(metric)


def text(value: float, metric: str) -> str:
    """Return a metric's value for people, such as ``98.14%``, or ``0.1042`` for a loss."""
    return f"{100 * value:.2f}%" if is_share(metric) else f"{value:.4f}"


def ranking_key(run: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return the sort key of one run; the smallest leads.

    A higher score leads (validation accuracy, or what `training.best_metric` names), then a lower
    validation loss, then fewer parameters, then an earlier start. NaN, infinite and missing values
    come last.

    Args:
        run: A run with the fields ``val_accuracy``, ``val_loss``, ``parameters`` and
            ``start_time``, and with ``score`` if that is not the accuracy.
    """
    reached = run.get("score")
    if reached is None:
        reached = run.get("val_accuracy")
    return (
        -_finite(reached, -np.inf),
        _finite(run.get("val_loss")),
        _finite(run.get("parameters")),
        _finite(run.get("start_time")),
    )


def can_be_ranked(run: Mapping[str, Any]) -> bool:
    """Whether a run is complete and has a validation accuracy."""
    return run.get("state") == "complete" and bool(np.isfinite(_finite(run.get("val_accuracy"))))


def _finite(value: Any, otherwise: float = np.inf) -> float:
    # MLflow stores an infinite metric as the largest double.
    number = float(value) if value is not None else np.nan
    return number if np.isfinite(number) and abs(number) < 1e300 else otherwise


def rank(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Order runs best first: by configuration, each at the mean of its complete repeats.

    Configurations are compared by the mean score of their repeats (then by mean loss, parameters
    and earliest start). Within a configuration its best run leads. A configuration that lacks folds
    which others have comes after those: the mean over the folds that happened to finish is no mean
    over all. Runs that cannot be ranked come last.

    Args:
        runs: Runs with the fields of `ranking_key`, and with ``config_hash``, ``state`` and
            ``fold``.
    """
    groups = by_configuration([run for run in runs if can_be_ranked(run)])
    groups.sort(key=lambda group: (-len(_folds(group)), ranking_key(_mean(group))))
    ordered = []
    for group in groups:
        ordered += sorted(group, key=ranking_key)
    rest = [run for run in runs if not can_be_ranked(run)]
    return ordered + sorted(rest, key=ranking_key)


def by_configuration(runs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the repeats of each configuration on the same images.

    A run whose configuration is not known stands alone.
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for run in runs:
        key = (run.get("config_hash") or run.get("run_id"), run.get("data_digest"))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _folds(group: Sequence[Mapping[str, Any]]) -> set[Any]:
    return {run.get("fold") for run in group}


def _mean(group: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = [ranking_key(run) for run in group]
    negative_scores, losses, parameters, starts = zip(*keys, strict=True)
    return {
        "score": -exact_mean(negative_scores),
        "val_loss": exact_mean(losses),
        "parameters": min(parameters),
        "start_time": min(starts),
    }


def exact_mean(values: Sequence[float]) -> float:
    """Return the mean of some numbers; that of equal ones is the same number."""
    if not np.isfinite(values).all():
        return float(np.mean(values))
    # The floating-point mean of equal numbers may differ from them in the last digit.
    return float(sum(map(Fraction, values)) / len(values))
