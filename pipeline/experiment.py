"""An experiment file and the command line's overrides, as validated configurations."""

from __future__ import annotations

from collections.abc import Mapping
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
Expected = TypeVar("Expected", bound=list[Any] | dict[str, Any])


MOST_BYTES = 10_000_000
"""Of an experiment file, which people write."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last."""

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


@dataclass(frozen=True)
class Experiment:
    """An experiment file with the overrides applied.

    Attributes:
        path: Where it was read from.
        name: Of folders, study and registered model; with ``-fast`` behind it where it is scaled down.
        base: What every training starts from.
        entries: The fixed list, repeats written out.
        space: Dotted field to interval or choices; what an override fixes is not searched.
        study: How many are tried, and how.
        overrides: Nested; these win over everything else.
        raw_base: Base as the file has it.
        fast: Every configuration is scaled down.
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

    @property
    def trials(self) -> int:
        """How many trainings the study makes in all."""
        wanted = self.study.trials or max(20 if self.space else 0, len(self.entries))
        return wanted if self.space else min(wanted, len(self.entries))

    def with_white(self, white: int | str) -> Experiment:
        """Return the same with ``data.white auto`` replaced by the level that it has become on the study's images."""
        if self.base.data.white != "auto":
            return self

        def put(configuration: Configuration) -> Configuration:
            return configuration.change("data", white=white)

        overrides = merge(self.overrides, {"data": {"white": white}})
        return replace(
            self,
            base=put(self.base),
            entries=[put(entry) for entry in self.entries],
            overrides=overrides,
        )

    def sampled(self, values: Mapping[str, Any]) -> Configuration:
        """Return base with `values` (dotted field to value) put in."""
        found = parse(Configuration, merge(self.raw_base, nest(values), self.overrides), "space")
        return scaled_down(found) if self.fast else found


def load_experiment(path: str, overrides: Raw, name: str = "", fast: bool = False) -> Experiment:
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
    unknown = [str(key) for key in raw if key not in _allowed_keys()]
    if unknown:
        raise UserError(f"{where}: {unknown_name('field', unknown[0], _allowed_keys())}")
    raw_base = merge(
        _sections(where, "base", raw.get("base")),
        _sections(where, "", {key: raw[key] for key in SECTIONS if key in raw}),
    )
    study = parse(
        Study, {**raw_base.pop("study", {}), **overrides.get("study", {})}, f"{where}: study"
    )
    fixed = {key: value for key, value in overrides.items() if key != "study"}
    base = _configuration(where, "base", raw_base, fixed)
    entries = [
        _configuration(
            where,
            f"configs[{index}]",
            raw_base,
            _sections(where, f"configs[{index}]", "nothing" if entry is None else entry),
            fixed,
        )
        for index, entry in enumerate(_expect(where, "configs", raw.get("configs"), list))
    ]
    for index, entry in enumerate(entries):
        values, shared = entry.flat(), base.flat()
        for dotted, field in declared():
            if (why := facts_of(field).shared) and values[dotted] != shared[dotted]:
                raise UserError(f"{where}: configs[{index}]: {dotted} differs from base; {why}")
    space = _space(where, _expect(where, "space", raw.get("space"), dict), raw_base, fixed)
    if fast:
        # Scaled down, all trials have the same.
        space = {
            name: values for name, values in space.items() if name.rpartition(".")[2] not in FAST
        }
        base, entries = scaled_down(base), [scaled_down(entry) for entry in entries]
    choices = space.get("model.name", [])
    for network in (
        base.model.name,
        *(entry.model.name for entry in entries),
        *(map(str, choices) if isinstance(choices, list) else ()),
    ):
        if network.startswith(FILE):
            name_network(network)
    for one in (base, *entries):
        name_images(one.data.source, one.data.root, one.data.labels)
    given_name = parse(
        _Named, {"name": name or _scalar(where, raw.get("experiment"))}, f"{where}: experiment"
    ).name
    full_name = experiment_name(given_name or base.data.name, fast)
    return Experiment(
        file, full_name, base, entries * study.repeats, space, study, fixed, raw_base, fast
    )


def experiment_name(name: str, fast: bool) -> str:
    """Return the name of an experiment, or of its registered model: a scaled-down run is another one in everything.

    Raises:
        UserError: It becomes too long.
    """
    return parse(_Named, {"name": f"{name}-fast"}, "experiment").name if fast else name


class _Named(BaseModel):
    name: Name


def _scalar(where: str, value: Any) -> str:
    if isinstance(value, list | dict):
        raise UserError(f"{where}: experiment must be a name, got {value!r}")
    return "" if value is None else str(value)


def _expect(where: str, part: str, value: Any, kind: type[Expected]) -> Expected:
    """Return `value` where it is of that kind, an empty one where it is missing."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        form = "a list" if kind is list else "a mapping of fields"
        raise UserError(f"{where}: {part} must be {form}, got {value!r}")
    return value


def _sections(where: str, part: str, raw: Any) -> Raw:
    """Return sections by name, each a mapping; other keys are left for the validation to name."""
    sections = _expect(where, part, raw, dict)
    prefix = f"{part}." if part else ""
    return {
        str(key): _expect(where, f"{prefix}{key}", value, dict) if key in SECTIONS else value
        for key, value in sections.items()
    }


def _allowed_keys() -> list[str]:
    return ["experiment", "base", "configs", "space", *SECTIONS]


def _read(file: Path) -> Raw:
    try:
        text = read_regular(file, MOST_BYTES).decode()
    except FileNotFoundError:
        siblings = (
            sorted(str(other) for other in file.parent.glob("*.y*ml"))
            if file.parent.is_dir()
            else []
        )
        raise UserError(
            f"experiment file {str(file)!r} does not exist{nearest(str(file), siblings)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"experiment file {str(file)!r} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
        ) from None
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


def _configuration(where: str, part: str, *layers: Raw) -> Configuration:
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


def _space(where: str, raw: Raw, raw_base: Raw, fixed: Raw) -> Space:
    searchable = [name for name, field in declared() if not facts_of(field).shared]
    space: Space = {}
    for name, value in raw.items():
        if name not in searchable:
            raise UserError(f"{where}: space: {unknown_name('field', str(name), searchable)}")
        section, _, field = name.partition(".")

        def typed(given: Any, name: str = name, section: str = section, field: str = field) -> Any:
            # YAML 1.1 reads 1e-3 as text; what is searched must have the field's own type.
            return getattr(
                getattr(
                    _configuration(where, "space", raw_base, nest({name: given}), fixed), section
                ),
                field,
            )

        if field in fixed.get(section, {}):
            continue
        if isinstance(value, list) and value:
            space[name] = [typed(choice) for choice in value]
        elif isinstance(value, dict):
            limits = parse(Range, value, f"{where}: space: {name}")
            for end in (limits.low, limits.high):
                typed(int(end) if is_integer(name) else end)
            space[name] = limits
        else:
            raise UserError(
                f"{where}: space: {name} must be a list of choices or {{low: …, high: …}}, got {value!r}"
            )
    return space


def is_integer(name: str) -> bool:
    """Whether a dotted field holds whole numbers, perhaps beside a word."""
    field = field_info(name)
    return field is not None and int in (field.annotation, *get_args(field.annotation))
