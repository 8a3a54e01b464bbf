"""A search space as Optuna samples it, and list entries as points in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from optuna import Trial
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from pipeline.config import Configuration, applies, facts_of, field_info
from pipeline.errors import UserError
from pipeline.experiment import Experiment, Range, Space, is_integer
from pipeline.jobs.check import replace_unreachable_weights

NOTHING: Mapping[str, Any] = MappingProxyType({})
Point = dict[str, Any]
"""Values by dotted field as Optuna has them: numbers, truth values, texts and None.

A list or a dict is its JSON text.
"""


def suggest(trial: Trial, space: Space, others: Mapping[str, Any] = NOTHING) -> Point:
    """Return the values of one trial.

    A field that has no effect beside the other values, such as ``schedule.gamma`` without a decay
    that has it, gets none: the sampler would learn from it what is not so.

    Args:
        trial: The trial.
        space: The space.
        others: Values of fields outside the space, by dotted name.
    """
    values: Point = {}
    for name in _dependent_last(space):
        known = {**others, **decode_point(values, space)}
        if not _has_effect(name, known):
            continue
        value = space[name]
        if not isinstance(value, Range):
            values[name] = trial.suggest_categorical(name, [_encode(choice) for choice in value])
        elif is_integer(name):
            values[name] = trial.suggest_int(name, int(value.low), int(value.high), log=value.log)
        else:
            values[name] = trial.suggest_float(name, value.low, value.high, log=value.log)
    return values


def _dependent_last(space: Space) -> list[str]:
    """Return the fields of a space, those last whose effect depends on another one of it."""

    def depends(name: str) -> bool:
        field = field_info(name)
        return field is not None and not space.keys().isdisjoint(facts_of(field).applies)

    return sorted(space, key=depends)


def _has_effect(name: str, known: Mapping[str, Any]) -> bool:
    """Whether a field has an effect beside other values, or may have one as far as they tell."""
    field = field_info(name)
    needed = facts_of(field).applies if field is not None else {}
    return not needed.keys() <= known.keys() or applies(name, known)


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
            if _has_effect(name, values):
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
