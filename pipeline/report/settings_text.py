"""The settings of runs as people read them: what differs, and what all have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import DEFAULT_GAMMA, applies, declared, facts_of, field_info
from pipeline.report.format import (
    format_short,
)

_SECTIONS = ("model", "optimizer", "schedule", "training", "data")
"""Sections of a configuration, in the order in which people read settings."""

_OWN_WORDS = ("model.name", "optimizer.name")
"""Settings whose values say by themselves what they are."""

_MAIN_SETTINGS = (
    "model.name",
    "model.weights",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "schedule.name",
    "training.epochs",
    "data.image_size",
    "data.batch_size",
)
"""Settings that are told once if all runs have them in common."""


def _setting_labels() -> dict[str, str]:
    """Return the label of each field that may tell runs apart, by its dotted name.

    The fields stand in the order in which they are shown.
    """
    labels = {}
    for name, field in declared(_SECTIONS):
        facts = facts_of(field)
        is_setting = facts.label or facts.hashed or facts.shared
        if is_setting and name not in ("model.name", "data.source"):
            labels[name] = facts.label or name
    return labels


SETTING_LABELS = _setting_labels()
"""Label of each field that may tell runs apart, by its dotted name."""


def differing_settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each run its settings that are not the same in all runs.

    An example is ``lr 0.001, decay cosine``. A setting is looked at only in the runs in which it
    has an effect; a gamma that comes with its schedule is not looked at. Networks of one's own may
    differ in nothing but their code: they are told apart by the hash of the configuration.
    """
    params = [settings_with_effect(row.get("params") or {}) for row in rows]
    names = differing_names(params)
    networks = [Path(str(some.get("model.name", ""))).name for some in params]
    is_named = len(set(networks)) == 1 or _are_named(rows, networks)
    # The text of a run, and the name of its network or of the network's file.
    shown = []
    for some, network in zip(params, networks, strict=True):
        text = describe_some(some, names)
        if not is_named and network:
            text = f"{network}, {text}" if text else network
        shown.append((text, network))
    hashes: dict[tuple[str, str], set[str]] = {}
    for key, row in zip(shown, rows, strict=True):
        found = hashes.setdefault(key, set())
        if row.get("config_hash"):
            found.add(row["config_hash"])
    texts = []
    for key, row in zip(shown, rows, strict=True):
        text, _ = key
        if len(hashes[key]) > 1 and row.get("config_hash"):
            code = f"configuration {row['config_hash'][:6]}"
            text = f"{text}, {code}" if text else code
        texts.append(text)
    return texts


def _are_named(rows: Sequence[Mapping[str, Any]], networks: Sequence[str]) -> bool:
    """Whether the names of runs say which network each of them has."""
    pairs = zip(rows, networks, strict=True)
    return all(network.partition(":")[0] in str(row.get("run_name")) for row, network in pairs)


def common_settings(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the main settings that all runs have in common, as text; empty for one run."""
    if len(rows) < 2:
        return ""
    params = [settings_with_effect(row.get("params") or {}) for row in rows]
    texts = []
    for name in _MAIN_SETTINGS:
        values = {some.get(name) for some in params}
        value = values.pop() if len(values) == 1 else None
        if value is not None:
            shown = format_short(value)
            texts.append(
                shown if name in _OWN_WORDS else f"{SETTING_LABELS.get(name, name)} {shown}"
            )
    return ", ".join(texts)


def differing_names(params: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted names of settings with more than one value; unknown settings come last.

    Args:
        params: The settings of each configuration, by dotted name, as text.
    """
    unknown: set[str] = set()
    for some in params:
        unknown |= {name for name in some if "." in name and field_info(name) is None}
    names = []
    for name in (*SETTING_LABELS, *sorted(unknown)):
        values = {some[name] for some in params if name in some}
        if len(values) > 1:
            names.append(name)
    return names


def describe_some(params: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return some settings as text, such as ``lr 0.001, decay cosine``."""
    texts = []
    for name in names:
        if params.get(name) is not None:
            texts.append(f"{SETTING_LABELS.get(name, name)} {format_short(params[name])}")
    return ", ".join(texts)


def _is_number(value: Any, number: float | None) -> bool:
    try:
        return float(value) == number
    except (TypeError, ValueError):
        # A param that anybody may write.
        return False


def settings_with_effect(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have an effect; a gamma that comes with its schedule is None."""
    found = {name: value for name, value in params.items() if applies(name, params)}
    if "schedule.gamma" in found:
        gamma = found["schedule.gamma"]
        usual = DEFAULT_GAMMA.get(str(params.get("schedule.name")))
        if gamma in (None, "null", "None") or _is_number(gamma, usual):
            found["schedule.gamma"] = None
    return found


def describe_settings(params: Mapping[str, Any]) -> str:
    """Return the settings that tell trainings apart.

    An example is ``resnet18, weights none, lr 0.001, wd 0.0001, decay cosine``.
    """
    texts = [str(params["model.name"])]
    for name in ("model.weights", "optimizer.lr", "optimizer.weight_decay", "schedule.name"):
        texts.append(f"{SETTING_LABELS[name]} {format_short(params[name])}")
    return ", ".join(texts)
