"""What one setting does: configurations that differ in it alone, side by side."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import attrgetter
from typing import Any

Settings = Mapping[str, Hashable]

MOST_VALUES = 20
"""Values of one setting that are compared with each other."""


@dataclass(frozen=True)
class Configuration:
    """A configuration and what it reached.

    Attributes:
        settings: Its settings, by name; a setting that is missing has no effect in it.
        scores: What it reached, by the name of the metric.
        is_searched: Whether the search drew it, and no person chose it.
    """

    settings: Settings
    scores: Mapping[str, float]
    is_searched: bool = False


@dataclass(frozen=True)
class Effect:
    """What changes if one setting is changed from a value to another, and all else stays.

    Attributes:
        setting: Name of the setting.
        before: One value.
        after: The other one.
        differences: For each metric, by how much each pair of configurations differs: the second
            less the first.
        num_searched: Number of pairs in which the search drew one of the two: where it looks
            closer, configurations are better for other reasons too.
        num_pairs: Number of pairs.
    """

    setting: str
    before: Hashable
    after: Hashable
    differences: Mapping[str, Sequence[float]]
    num_searched: int
    num_pairs: int

    def mean(self, metric: str) -> float:
        """Return the mean difference; NaN if no pair has the metric."""
        found = self.differences.get(metric, ())
        return statistics.fmean(found) if found else math.nan

    def deviation(self, metric: str) -> float:
        """Return the standard deviation of the differences; NaN with fewer than two."""
        found = self.differences.get(metric, ())
        return statistics.stdev(found) if len(found) > 1 else math.nan


def find_effects(
    configurations: Sequence[Configuration],
    depend_on: Callable[[str], Iterable[str]] = lambda setting: (),
) -> list[Effect]:
    """Return the effect of each setting, of the setting with the most pairs first.

    Args:
        configurations: The configurations, no two of the same settings.
        depend_on: Function that returns the settings which have an effect only with some values of
            a given one, such as the momentum for the optimizer. They are passed over when that one
            is compared: without them, no two optimizers would differ in nothing else.
    """
    names: list[str] = []
    for one in configurations:
        names += [name for name in one.settings if name not in names]
    effects: list[Effect] = []
    for name in names:
        if len({one.settings.get(name) for one in configurations}) > 1:
            effects += _effects_of(name, configurations, {name, *depend_on(name)})
    return sorted(effects, key=attrgetter("num_pairs"), reverse=True)


def _effects_of(
    name: str, configurations: Sequence[Configuration], left_out: Iterable[str]
) -> list[Effect]:
    """Return the effects of one setting, one for each two of its values."""
    compared = _values_of_interest(name, configurations)
    alike: dict[frozenset[tuple[str, Hashable]], list[Configuration]] = {}
    for one in configurations:
        if one.settings.get(name) in compared:
            rest = {key: value for key, value in one.settings.items() if key not in left_out}
            alike.setdefault(frozenset(rest.items()), []).append(one)
    pairs: dict[tuple[Hashable, Hashable], list[tuple[Configuration, Configuration]]] = {}
    for group in alike.values():
        group.sort(key=lambda one: _sort_key(one.settings[name]))
        for first, second in combinations(group, 2):
            values = first.settings[name], second.settings[name]
            if values[0] != values[1]:
                pairs.setdefault(values, []).append((first, second))
    return [_summarise(name, values, found) for values, found in pairs.items()]


def _values_of_interest(name: str, configurations: Sequence[Configuration]) -> set[Hashable]:
    """Return the values of a setting that a person chose, or that several configurations have.

    A search draws each learning rate once: a thousand of them would make half a million pairs that
    tell nothing. For the same reason no more than `MOST_VALUES` are compared, those that most
    configurations have.
    """
    times = Counter(one.settings.get(name) for one in configurations)
    chosen = {one.settings.get(name) for one in configurations if not one.is_searched}
    values: set[Hashable] = set()
    for value, count in times.most_common():
        is_of_interest = count > 1 or value in chosen
        if value is not None and is_of_interest and len(values) < MOST_VALUES:
            values.add(value)
    return values


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Return the key that sorts numbers before texts, each in its order."""
    try:
        return False, float(value), ""
    except (TypeError, ValueError):
        return True, 0.0, str(value)


def _summarise(
    name: str,
    values: tuple[Hashable, Hashable],
    pairs: Sequence[tuple[Configuration, Configuration]],
) -> Effect:
    differences: dict[str, list[float]] = {}
    num_searched = 0
    for first, second in pairs:
        num_searched += first.is_searched or second.is_searched
        for metric in first.scores.keys() & second.scores.keys():
            gap = second.scores[metric] - first.scores[metric]
            differences.setdefault(metric, []).append(gap)
    return Effect(name, values[0], values[1], differences, num_searched, len(pairs))
