"""What each setting does among the configurations of a comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pipeline import models
from pipeline.config import Model, declared, facts_of
from pipeline.errors import UserError
from pipeline.ranking import by_configuration
from pipeline.report.settings_text import settings_with_effect
from pipeline.scores.effects import Configuration, Effect, find_effects
from pipeline.tracking import find_runs
from pipeline.tracking.stored_weights import name_as_recorded

VALIDATION, TEST = "validation", "test"
_DEFAULT = "DEFAULT"


def effects_of(ranked: Sequence[find_runs.Row]) -> list[Effect]:
    """Return the effect of each setting that some configurations differ in alone.

    Their metrics are `VALIDATION`, what the runs are ranked by, and `TEST`, the test accuracy.

    Args:
        ranked: Complete runs that can be compared.
    """
    configurations = []
    for repeats in by_configuration(ranked):
        scores = {}
        for metric, column in ((VALIDATION, "value"), (TEST, "test_accuracy")):
            found = [row[column] for row in repeats]
            if all(value is not None and math.isfinite(value) for value in found):
                scores[metric] = statistics.fmean(found)
        is_searched = all(row["is_searched"] for row in repeats)
        configurations.append(Configuration(_settings(repeats[0]["params"]), scores, is_searched))
    return find_effects(configurations, _depend_on)


def _settings(params: Mapping[str, Any]) -> dict[str, Hashable]:
    """Return the settings that change a result, by dotted name."""
    hashed = {name for name, field in declared() if facts_of(field).hashed}
    found: dict[str, Hashable] = {}
    for name, value in settings_with_effect(params).items():
        if name in hashed and value is not None:
            found[name] = str(value)
    if "model.weights" in found:
        name, weights = str(found.get("model.name", "")), str(found["model.weights"])
        found["model.weights"] = _common_name(name, weights)
    return found


@lru_cache(maxsize=1024)
def _common_name(name: str, weights: str) -> str:
    """Return ``DEFAULT`` for the weights that it stands for, and other names as they are.

    Which weights are the default is another name for each network. Without this no two networks
    would have the same weights.
    """
    if ":" in name or ":" in weights or weights in ("none", _DEFAULT):
        # Files are not looked at: they may be those of a stranger's run.
        return weights
    try:
        named = models.origin(Model(name=name, weights=weights))
        default = models.origin(Model(name=name, weights=_DEFAULT))
    except UserError:
        return weights
    return _DEFAULT if named == default else weights


def with_resolved_weights(row: find_runs.Row) -> find_runs.Row:
    """Return a run whose weights, if they are called DEFAULT, have the name they stand for.

    Then two runs of the same weights do not look as if they differed in them.
    """
    params = row["params"]
    if params.get("model.weights") != _DEFAULT:
        return row
    name = _default_weights(str(params.get("model.name", "")))
    return {**row, "params": {**params, "model.weights": name}}


@lru_cache(maxsize=1024)
def _default_weights(network: str) -> str:
    if ":" in network:
        return _DEFAULT
    try:
        model = Model(name=network, weights=_DEFAULT)
        return str(name_as_recorded(model, models.origin(model)).weights)
    except (UserError, ValueError):
        return _DEFAULT


def _depend_on(setting: str) -> Iterable[str]:
    return [name for name, field in declared() if setting in facts_of(field).applies]
