"""An experiment file and the command line's overrides, as validated configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config import (
    FILE,
    SECTIONS,
    Configuration,
    Name,
    Raw,
    Study,
    declared,
    facts_of,
    field_info,
    merge,
    nest,
    parse,
    parse_yaml,
)
from pipeline.errors import UserError, first_line, nearest, unknown_name
from pipeline.files import read_regular
from pipeline.trust import name_images, name_network

FAST = {"epochs": 2, "image_size": 64, "limit": 300}
"""What ``fast`` scales a configuration down to, at most."""
_FAST = "-fast"
"""How names of experiments and studies end that are scaled down."""
MOST_BYTES = 10_000_000
"""Largest size in bytes of an experiment file, which people write."""


class Range(BaseModel):
    """An interval to search: ``{low: 1.0e-5, high: 1.0e-2, log: true}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float
    high: float
    log: bool = Field(False, description="Sample the logarithm uniformly.")

    @model_validator(mode="after")
    def _check_order(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 with log, got {self.low:g}")
        return self


Space = dict[str, Range | list[Any]]
Expected = TypeVar("Expected", bound=list[Any] | dict[str, Any])


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice. YAML itself would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a name is needed, got a list or a mapping", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


Command = Callable[[str, str], str]
"""Returns what to type for a step with further options; an empty text if nobody knows it."""


Arguments = Callable[[str], list[str]]
"""Returns the options of a step for the same experiment; none if nobody knows them."""


def no_arguments(step: str) -> list[str]:
    """Return nothing: how the experiment was called is not known."""
    return []


def no_command(step: str, options: str) -> str:
    """Return nothing: how the experiment was called is not known."""
    return ""


@dataclass(frozen=True)
class Experiment:
    """An experiment file with the overrides applied.

    Attributes:
        path: Path of the file.
        name: Name of folders, study and registered model. It ends with ``-fast`` if the experiment
            is scaled down.
        base: The configuration that every training starts from.
        entries: The fixed list, with repeats written out.
        space: Interval or choices by dotted field. A field that an override fixes is not searched.
        study: How many configurations are tried, and how.
        overrides: Nested values that win over everything else.
        raw_base: Base as the file has it.
        fast: Whether every configuration is scaled down.
        command: Returns what to type for a step of this experiment.
        arguments: Returns the options by which another process works on this experiment; they may
            hold a password.
    """

    path: Path
    name: str
    base: Configuration
    entries: list[Configuration]
    space: Space
    study: Study
    overrides: Raw
    raw_base: Raw
    fast: bool
    command: Command = no_command
    arguments: Arguments = no_arguments

    @property
    def trials(self) -> int:
        """How many trainings the study makes in all."""
        num_entries = len(self.entries)
        if not self.space:
            return min(self.study.trials or num_entries, num_entries)
        return self.study.trials or max(20, num_entries)

    def with_white(self, white: int | str) -> Experiment:
        """Return the experiment with ``data.white auto`` replaced.

        Args:
            white: The level that it has become on the study's images.
        """
        if self.base.data.white != "auto":
            return self
        return replace(
            self,
            base=self.base.change("data", white=white),
            entries=[entry.change("data", white=white) for entry in self.entries],
            overrides=merge(self.overrides, {"data": {"white": white}}),
        )

    def sampled(self, values: Mapping[str, Any]) -> Configuration:
        """Return base with `values` (dotted field to value) put in."""
        found = parse(Configuration, merge(self.raw_base, nest(values), self.overrides), "space")
        return scaled_down(found) if self.fast else found


def load_experiment(path: str, overrides: Raw, name: str = "", fast: bool = False) -> Experiment:
    """Read an experiment file.

    Args:
        path: Path of the YAML file, relative to the current folder.
        overrides: Nested values of the command line, as strings or typed.
        name: Name of the experiment. Empty means the name in the file, or else that of the data.
        fast: Scale every configuration down, for trying out.

    Raises:
        UserError: The file is missing, is no YAML (its line is named), or holds a wrong name or
            value.
    """
    file = Path(path).expanduser()
    raw = _read(file)
    where = str(file)
    unknown = [str(key) for key in raw if key not in _allowed_keys()]
    if unknown:
        raise UserError(f"{where}: {unknown_name('field', unknown[0], _allowed_keys())}")
    raw_base = merge(
        _parse_sections(where, "base", raw.get("base")),
        _parse_sections(where, "", {key: raw[key] for key in SECTIONS if key in raw}),
    )
    raw_study = {**raw_base.pop("study", {}), **overrides.get("study", {})}
    study = parse(Study, raw_study, f"{where}: study")
    if fast and study.name and not study.name.endswith(_FAST):
        study = study.model_copy(update={"name": experiment_name(study.name, fast)})
    fixed = {key: value for key, value in overrides.items() if key != "study"}
    base = _parse_configuration(where, "base", raw_base, fixed)
    _need_fitting(where, study, base)
    raw_entries = _expect(where, "configs", raw.get("configs"), list)
    entries = _parse_entries(where, raw_entries, raw_base, fixed)
    _need_shared_values(where, base, entries)
    raw_space = _expect(where, "space", raw.get("space"), dict)
    space = _parse_space(where, raw_space, raw_base, fixed)
    if fast:
        base = scaled_down(base)
        entries = [scaled_down(entry) for entry in entries]
        # Scaled down, all trials have the same values of these fields.
        space = {
            name: values for name, values in space.items() if name.rpartition(".")[2] not in FAST
        }
    _note_names([base, *entries], space)
    raw_name = name or _name_as_text(where, raw.get("experiment"))
    given_name = parse(_Named, {"name": raw_name}, f"{where}: experiment").name
    full_name = experiment_name(given_name or base.data.name, fast)
    return Experiment(
        file, full_name, base, entries * study.repeats, space, study, fixed, raw_base, fast
    )


def _need_fitting(where: str, study: Study, base: Configuration) -> None:
    """Check that the settings of a study fit those of its trainings."""
    training = base.training
    if study.workers != 1 and training.processes > 1:
        raise UserError(
            f"{where}: study.workers {study.workers} and training.processes "
            f"{training.processes} given; either several processes train one network, "
            "or each trains its own"
        )
    if study.target > 1 and not training.best_metric.endswith("loss"):
        raise UserError(
            f"{where}: study.target {study.target:g} given; {training.best_metric} is from 0 to 1 "
            "(0.75 for 75%)"
        )


def _parse_entries(where: str, raw: list[Any], raw_base: Raw, fixed: Raw) -> list[Configuration]:
    entries = []
    for index, entry in enumerate(raw):
        part = f"configs[{index}]"
        sections = _parse_sections(where, part, "nothing" if entry is None else entry)
        entries.append(_parse_configuration(where, part, raw_base, sections, fixed))
    return entries


def _need_shared_values(where: str, base: Configuration, entries: list[Configuration]) -> None:
    """Check that entries have base's values of fields that all trainings of a study share."""
    shared = base.flat()
    for index, entry in enumerate(entries):
        values = entry.flat()
        for dotted, field in declared():
            why = facts_of(field).shared
            if why and values[dotted] != shared[dotted]:
                raise UserError(f"{where}: configs[{index}]: {dotted} differs from base; {why}")


def _note_names(configurations: list[Configuration], space: Space) -> None:
    """Note the files of networks and the places of images that the user's own file names."""
    networks = [one.model.name for one in configurations]
    choices = space.get("model.name", [])
    if isinstance(choices, list):
        networks += map(str, choices)
    for network in networks:
        if network.startswith(FILE):
            name_network(network)
    for one in configurations:
        name_images(one.data.source, one.data.root, one.data.labels)


def experiment_name(name: str, fast: bool) -> str:
    """Return the name of an experiment, or of its registered model.

    A scaled-down run is another experiment in everything.

    Raises:
        UserError: The name becomes too long.
    """
    return parse(_Named, {"name": name + _FAST}, "experiment").name if fast else name


class _Named(BaseModel):
    name: Name


def _name_as_text(where: str, value: Any) -> str:
    if isinstance(value, list | dict):
        raise UserError(f"{where}: experiment must be a name, got {value!r}")
    return "" if value is None else str(value)


def _expect(where: str, part: str, value: Any, kind: type[Expected]) -> Expected:
    """Return `value` if it is of that kind, or an empty one if it is missing."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        form = "a list" if kind is list else "a mapping of fields"
        raise UserError(f"{where}: {part} must be {form}, got {value!r}")
    return value


def _parse_sections(where: str, part: str, raw: Any) -> Raw:
    """Return sections by name, each a mapping; the validation refuses other keys later."""
    prefix = f"{part}." if part else ""
    sections: Raw = {}
    for key, value in _expect(where, part, raw, dict).items():
        if key in SECTIONS:
            value = _expect(where, f"{prefix}{key}", value, dict)
        sections[str(key)] = value
    return sections


def _allowed_keys() -> list[str]:
    return ["experiment", "base", "configs", "space", *SECTIONS]


def _read(file: Path) -> Raw:
    try:
        text = read_regular(file, MOST_BYTES).decode()
    except FileNotFoundError:
        siblings: list[str] = []
        if file.parent.is_dir():
            siblings = sorted(map(str, file.parent.glob("*.y*ml")))
        raise UserError(
            f"experiment file {str(file)!r} does not exist{nearest(str(file), siblings)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"experiment file {str(file)!r} cannot be read: {reason}") from None
    try:
        raw = parse_yaml(text, _UniqueKeys)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(
            f"{file}, line {line}: not valid YAML: {error.problem or error.context}"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {first_line(error)}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(
            f"{file}: must hold fields such as base and configs, got a {type(raw).__name__}"
        )
    return raw


def _parse_configuration(where: str, part: str, *layers: Raw) -> Configuration:
    return parse(Configuration, merge(*layers), f"{where}: {part}")


def scaled_down(configuration: Configuration) -> Configuration:
    """Return a configuration of at most `FAST` images, pixels and epochs."""
    data = configuration.data
    image_size = min(data.image_size, FAST["image_size"])
    store_size = 0 if image_size < data.image_size else data.store_size
    limit = min(data.limit or FAST["limit"], FAST["limit"])
    epochs = min(configuration.training.epochs, FAST["epochs"])
    warmup_epochs = min(configuration.schedule.warmup_epochs, epochs)
    smaller = configuration.change(
        "data", image_size=image_size, store_size=store_size, limit=limit
    )
    return smaller.change("training", epochs=epochs).change("schedule", warmup_epochs=warmup_epochs)


def _parse_space(where: str, raw: Raw, raw_base: Raw, fixed: Raw) -> Space:
    searchable = [name for name, field in declared() if not facts_of(field).shared]
    space: Space = {}
    for name, value in raw.items():
        if name not in searchable:
            raise UserError(f"{where}: space: {unknown_name('field', str(name), searchable)}")
        section, _, field = name.partition(".")
        if field in fixed.get(section, {}):
            continue
        if isinstance(value, list) and value:
            space[name] = [_convert(where, name, choice, raw_base, fixed) for choice in value]
        elif isinstance(value, dict):
            limits = parse(Range, value, f"{where}: space: {name}")
            # Both ends must be values that the field may have.
            for end in (limits.low, limits.high):
                limit = int(end) if is_integer(name) else end
                _convert(where, name, limit, raw_base, fixed)
            space[name] = limits
        else:
            raise UserError(
                f"{where}: space: {name} must be a list of choices or {{low: …, high: …}}, "
                f"got {value!r}"
            )
    return space


def _convert(where: str, name: str, given: Any, raw_base: Raw, fixed: Raw) -> Any:
    """Return a value of a field as the field has it.

    YAML 1.1 reads 1e-3 as text, but values that are searched must have the field's own type.
    """
    configuration = _parse_configuration(where, "space", raw_base, nest({name: given}), fixed)
    section, _, field = name.partition(".")
    return getattr(getattr(configuration, section), field)


def is_integer(name: str) -> bool:
    """Whether a dotted field holds whole numbers, perhaps beside a word."""
    field = field_info(name)
    return field is not None and int in (field.annotation, *get_args(field.annotation))
