"""A search space as Optuna samples it, and list entries as points in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna import Trial

from pipeline.config import Configuration
from pipeline.experiment import Range, Space, is_integer


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Return the values of one trial by dotted field."""
    values: dict[str, Any] = {}
    for name, value in space.items():
        if not isinstance(value, Range):
            values[name] = trial.suggest_categorical(name, value)
        elif is_integer(name):
            values[name] = trial.suggest_int(name, int(value.low), int(value.high), log=value.log)
        else:
            values[name] = trial.suggest_float(name, value.low, value.high, log=value.log)
    return values


def as_point(entry: Configuration, base: Configuration, space: Space) -> dict[str, Any] | None:
    """Return an entry's values in the space, or None where it lies outside.

    It lies inside where it differs from base in searched fields only, and their values are allowed:
    then the sampler can learn from its score.
    """
    values, start = entry.flat(), base.flat()
    if any(values[name] != start[name] for name in values if name not in space and name != "training.seed"):
        return None
    point = {name: values[name] for name in space}
    return point if _contains(point, space) else None


def _contains(point: Mapping[str, Any], space: Space) -> bool:
    for name, value in space.items():
        if isinstance(value, Range):
            if isinstance(point[name], str) or not value.low <= point[name] <= value.high:
                return False
        elif point[name] not in value:
            return False
    return True
