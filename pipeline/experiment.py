"""An experiment file and the command line's overrides, as validated configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config import SECTIONS, Configuration, Raw, Study, field_info, field_names, merge, nest, parse
from pipeline.errors import UserError, nearest, unknown_name

FAST = {"epochs": 2, "image_size": 64, "limit": 300}
"""What ``fast`` scales a configuration down to, at most."""

SHARED = ("source", "seed", "val_fraction", "test_fraction", "limit")
"""Fields of data that are the same in all of a study: its trainings see the same images in the same splits."""


class Range(BaseModel):
    """An interval to search: ``{low: 1.0e-5, high: 1.0e-2, log: true}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float
    high: float
    log: bool = Field(False, description="Sample the logarithm uniformly.")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 with log, got {self.low:g}")
        return self


Space = dict[str, Range | list[Any]]


@dataclass(frozen=True)
class Experiment:
    """An experiment file with the overrides applied.

    Attributes:
        path: Where it was read from.
        name: Of folders, study and registered model.
        base: What every training starts from.
        entries: The fixed list, repeats written out.
        space: Dotted field to interval or choices; what an override fixes is not searched.
        study: How many are tried, and how.
        overrides: Nested; these win over everything else.
    """

    path: Path
    name: str
    base: Configuration
    entries: list[Configuration]
    space: Space
    study: Study
    overrides: Raw
    raw_base: Raw

    @property
    def trials(self) -> int:
        """How many trainings the study makes in all."""
        wanted = self.study.trials or max(20 if self.space else 0, len(self.entries))
        return wanted if self.space else min(wanted, len(self.entries))

    def sampled(self, values: Mapping[str, Any]) -> Configuration:
        """Return base with `values` (dotted field to value) put in."""
        return parse(Configuration, merge(self.raw_base, nest(values), self.overrides), "space")


def load(path: str, overrides: Raw, name: str = "", fast: bool = False) -> Experiment:
    """Read an experiment file.

    Args:
        path: Of the YAML file, relative to the current folder.
        overrides: Nested values of the command line, as strings or typed.
        name: Of the experiment; empty: the file's, else the data's.
        fast: Scale every configuration down, for trying out.

    Raises:
        UserError: The file is missing, is no YAML (with its line), or holds a wrong name or value.
    """
    file = Path(path).expanduser()
    raw = _read(file)
    where = str(file)
    unknown = [key for key in raw if key not in _allowed_keys()]
    if unknown:
        raise UserError(f"{where}: {unknown_name('field', unknown[0], _allowed_keys())}")
    _expect(raw, "base", dict, where)
    _expect(raw, "space", dict, where)
    _expect(raw, "configs", list, where)
    sections = {key: raw[key] for key in SECTIONS if key in raw}
    study_layers = [(raw.get("base") or {}).pop("study", {}), sections.pop("study", {}), overrides.get("study", {})]
    study = parse(Study, merge(*({"study": layer or {}} for layer in study_layers))["study"], f"{where}: study")
    raw_base = merge(raw.get("base") or {}, sections)
    fixed = {key: value for key, value in overrides.items() if key != "study"}
    base = _configuration(where, "base", raw_base, fixed)
    if fast:
        fixed = merge(fixed, _scaled_down(base))
        base = _configuration(where, "base", raw_base, fixed)
    entries = [
        _configuration(where, f"configs[{i}]", raw_base, _entry(where, i, entry), fixed) for i, entry in enumerate(raw.get("configs") or [])
    ]
    for index, entry in enumerate(entries):
        for field in SHARED:
            if getattr(entry.data, field) != getattr(base.data, field):
                raise UserError(f"{where}: configs[{index}]: data.{field} differs from base; all trainings of a study see the same images")
    space = _space(where, raw.get("space") or {}, raw_base, fixed)
    return Experiment(file, name or raw.get("experiment") or base.data.name, base, entries * study.repeats, space, study, fixed, raw_base)


def _allowed_keys() -> list[str]:
    return ["experiment", "base", "configs", "space", *SECTIONS]


def _read(file: Path) -> Raw:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = sorted(str(other) for other in file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        raise UserError(f"experiment file {str(file)!r} does not exist{nearest(str(file), siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"experiment file {str(file)!r} cannot be read: {error}") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{file}, line {line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{file}: must hold fields such as base and configs, got a {type(raw).__name__}")
    return raw


def _expect(raw: Raw, key: str, kind: type, where: str) -> None:
    if raw.get(key) is not None and not isinstance(raw[key], kind):
        form = "a list" if kind is list else "a mapping of fields"
        raise UserError(f"{where}: {key} must be {form}, got {raw[key]!r}")


def _entry(where: str, index: int, entry: Any) -> Raw:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: configs[{index}] must be a mapping of sections, got {entry!r}")
    return entry


def _configuration(where: str, part: str, *layers: Raw) -> Configuration:
    return parse(Configuration, merge(*layers), f"{where}: {part}")


def _scaled_down(base: Configuration) -> Raw:
    size = min(base.data.image_size, FAST["image_size"])
    limit = min(base.data.limit or FAST["limit"], FAST["limit"])
    return {
        "data": {"image_size": size, "store_size": 0, "limit": limit},
        "training": {"epochs": min(base.training.epochs, FAST["epochs"])},
    }


def _space(where: str, raw: Raw, raw_base: Raw, fixed: Raw) -> Space:
    searchable = [name for name in field_names() if not name.startswith("study.") and name not in {f"data.{field}" for field in SHARED}]
    space: Space = {}
    for name, value in raw.items():
        if name not in searchable:
            raise UserError(f"{where}: space: {unknown_name('field', str(name), searchable)}")
        section, _, field = name.partition(".")
        if field in fixed.get(section, {}):
            continue
        if isinstance(value, list) and value:
            ends = value
            space[name] = value
        elif isinstance(value, dict):
            limits = parse(Range, value, f"{where}: space: {name}")
            ends = [_as_field(name, limits.low), _as_field(name, limits.high)]
            space[name] = limits
        else:
            raise UserError(f"{where}: space: {name} must be a list of choices or {{low: …, high: …}}, got {value!r}")
        for end in ends:
            _configuration(where, "space", raw_base, nest({name: end}), fixed)
    return space


def is_integer(name: str) -> bool:
    """Whether a dotted field holds whole numbers."""
    field = field_info(name)
    return field is not None and field.annotation is int


def _as_field(name: str, value: float) -> float | int:
    return int(value) if is_integer(name) else value
