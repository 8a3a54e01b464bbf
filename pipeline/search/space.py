"""A search space as Optuna samples it, and list entries as points in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna import Trial
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from pipeline.config import Configuration
from pipeline.errors import UserError
from pipeline.experiment import Experiment, Range, Space, is_integer
from pipeline.jobs.check import replace_unreachable_weights

Point = dict[str, Any]
"""Values by dotted field as Optuna has them: numbers, truth values, texts and None.

A list or a dict is its JSON text.
"""


def suggest(trial: Trial, space: Space) -> Point:
    """Return the values of one trial."""
    values: Point = {}
    for name, value in space.items():
        if not isinstance(value, Range):
            values[name] = trial.suggest_categorical(name, [_encode(choice) for choice in value])
        elif is_integer(name):
            values[name] = trial.suggest_int(name, int(value.low), int(value.high), log=value.log)
        else:
            values[name] = trial.suggest_float(name, value.low, value.high, log=value.log)
    return values


def decode_point(point: Point, space: Space) -> dict[str, Any]:
    """Return the values of a point as a configuration has them."""
    values = dict(point)
    for name, choices in space.items():
        if name in point and not isinstance(choices, Range):
            values[name] = next(one for one in choices if _is_equal(_encode(one), point[name]))
    return values


def build_configuration(point: Point, experiment: Experiment) -> Configuration:
    """Return the configuration of a point.

    Raises:
        UserError: The values are right alone but do not fit together.
    """
    sampled = experiment.sampled(decode_point(point, experiment.space))
    return replace_unreachable_weights(sampled) if experiment.fast else sampled


def as_point(entry: Configuration, experiment: Experiment) -> Point | None:
    """Return an entry's values in the space, or None if the entry lies outside.

    It lies inside if the space allows its values of the searched fields, and if sampling them would
    give the entry, but for its seed: then the sampler can learn from its score.
    """
    values = entry.flat()
    point = {}
    try:
        for name, allowed in experiment.space.items():
            point[name] = _encode_allowed(allowed, values[name])
        sampled = build_configuration(point, experiment)
    except (LookupError, UserError):
        return None
    return point if _without_seed(sampled) == _without_seed(entry) else None


def holds_lists(trial: FrozenTrial) -> bool:
    """Whether a trial has lists among its choices or fixed values.

    Trials of release 0.1.0 have them. Optuna's importances fail on them.
    """
    values = list(trial.system_attrs.get("fixed_params", {}).values())
    for distribution in trial.distributions.values():
        if isinstance(distribution, CategoricalDistribution):
            values += distribution.choices
    return any(isinstance(value, list | tuple | dict) for value in values)


def _encode(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _is_equal(first: Any, second: Any) -> bool:
    # True == 1, and a field may have both among its choices.
    return first == second and isinstance(first, bool) == isinstance(second, bool)


def _encode_allowed(allowed: Range | list[Any], value: Any) -> Any:
    """Return a value of a configuration as Optuna has it.

    Raises:
        LookupError: The value lies outside of what is allowed.
    """
    if isinstance(allowed, Range):
        if isinstance(value, int | float) and allowed.low <= value <= allowed.high:
            return value
        raise LookupError(value)
    for choice in allowed:
        # A configuration that was read back has lists where the space has tuples.
        plain = list(choice) if isinstance(choice, tuple) else choice
        if _is_equal(plain, value):
            return _encode(choice)
    raise LookupError(value)


def _without_seed(configuration: Configuration) -> Mapping[str, Any]:
    return {name: value for name, value in configuration.flat().items() if name != "training.seed"}
