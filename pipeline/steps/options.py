"""Options of each step, their parsing and their help; nothing heavy is imported here."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from pipeline.config import (
    SECTIONS,
    Data,
    Model,
    Optimizer,
    Raw,
    Schedule,
    Study,
    Tracking,
    Training,
    essential,
    facts_of,
    field_names,
    merge,
    parse,
    parse_yaml,
)
from pipeline.errors import UserError, first_line, nearest
from pipeline.experiment import Experiment, load_experiment

DEFAULT_FILE = "experiments/digits.yaml"
PROJECT = Path(__file__).resolve().parents[2]


class Options(BaseSettings):
    """Parameters of one step. Subclasses add theirs; section fields become dotted options."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix="PIPELINE_UNUSED_")
    summary: ClassVar[str] = ""
    example: ClassVar[str] = ""

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration, by dotted name: only such fields are options of it."""
        return bool(name)


class ExperimentOptions(Options):
    """Parameters of the steps that read an experiment file."""

    config: str = essential(DEFAULT_FILE, "Experiment file.")
    experiment: str = essential(
        "", "Name of runs, folders and registered model; empty: the file's, else the data's."
    )
    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training = Training()
    tracking: Tracking = Tracking()
    study: Study = Study()


class FastOptions(ExperimentOptions):
    """Parameters of the steps that can be scaled down."""

    fast: bool = essential(
        False,
        "The scaled-down run, for trying out: at most 300 images of 64 pixels and two epochs. It is an experiment of its own, NAME-fast.",
    )


class TrustOptions(FastOptions):
    """Parameters of the steps that use what a run keeps."""

    trust: str = essential(
        "",
        "SHA-256 of Python code that a run keeps and that may be executed, as the refusal names it.",
    )


def list_given(own: ExperimentOptions, *fields: str) -> list[str]:
    """Return those of a step's own fields that have another value than their default."""
    return [name for name in fields if getattr(own, name) != type(own).model_fields[name].default]


class PredictSection(BaseModel):
    """How predict writes its CSV."""

    id: Literal["name", "stem", "path"] = essential(
        "name",
        "What the id column holds: the file's name (the path, where names repeat), its name without ending, or its path.",
    )
    bad: Literal["row", "error"] = essential(
        "row",
        "An image that cannot be read is a row with the reason in a column error, or an error: nothing is written then.",
    )
    probabilities: bool = essential(False, "Add a column p_CLASS for each class.")


def fields_of(options: type[Options]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield ``(dotted name, definition)`` of every option."""
    for name, field in options.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner = (
                (f"{name}.{part}", definition)
                for part, definition in field.annotation.model_fields.items()
            )
            yield from (
                (dotted, definition)
                for dotted, definition in inner
                if name not in SECTIONS or options.reads(dotted)
            )
        else:
            yield name, field


def parse_options(options: type[Options], arguments: Sequence[str]) -> tuple[Any, Raw]:
    """Parse ``--name value`` pairs.

    Returns:
        The step's own validated parameters, and the section values given, nested and not yet merged.

    Raises:
        UserError: Unknown option, missing value, or a wrong one.
    """
    pairs = list(_pairs(options, arguments))
    written = [f"--{name}={_as_json(options, name, value)}" for name, value in pairs]
    try:
        given: Raw = CliSettingsSource(options, cli_parse_args=written, cli_exit_on_error=False)()
    except SettingsError as error:
        raise UserError(str(error).removeprefix("error parsing CLI: ")) from None
    given = merge(given, *(_with_texts(options, name, value) for name, value in pairs))
    own = {name: value for name, value in given.items() if name not in SECTIONS and value != ""}
    sections = {name: value for name, value in given.items() if name in SECTIONS}
    return parse(_own_parameters(options), own, "options"), sections


def _with_texts(options: type[Options], name: str, value: str) -> Raw:
    """Return ``null`` as the text it is where a field cannot be nothing: an experiment may be called so."""
    annotation = dict(fields_of(options))[name].annotation
    if value != "null" or type(None) in get_args(annotation):
        return {}
    section, dot, field = name.partition(".")
    return {section: {field: value}} if dot else {name: value}


def _own_parameters(options: type[Options]) -> type[BaseModel]:
    from pydantic import ConfigDict, create_model

    kept: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in options.model_fields.items()
        if name not in SECTIONS
    }
    return create_model(options.__name__, __config__=ConfigDict(extra="forbid"), **kept)


def _pairs(options: type[Options], arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of ``--name value`` and ``--name=value``."""
    known = [name for name, _ in fields_of(options)]
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            raise UserError(f"{argument!r} is not an option; options are given as --name value")
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in known and name in field_names():
            raise UserError(
                f"option --{name} is not read by {_step_of(options)}; --help lists what is"
            )
        if name not in known:
            same_field = [
                f"; nearest: {dotted}"
                for dotted in known
                if dotted.rpartition(".")[2] == name.rpartition(".")[2]
            ]
            raise UserError(
                f"unknown option --{name}{(nearest(name, known) or ''.join(same_field[:1]))}; --help lists all"
            )
        if not equals:
            if not remaining or (
                remaining[0].startswith("--") and remaining[0].removeprefix("--") in known
            ):
                raise UserError(f"option --{name} needs a value: --{name} VALUE")
            value = remaining.pop(0)
        yield name, value


def _step_of(options: type[Options]) -> str:
    return options.__name__.removesuffix("Options").lower()


def _as_json(options: type[Options], name: str, value: str) -> str:
    """Let lists be written as in an experiment file: ``[RandomHorizontalFlip, {RandomRotation: {degrees: 15}}]``."""
    if get_origin(dict(fields_of(options))[name].annotation) not in (list, tuple):
        return value
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"option --{name}: {value!r} is no list: {first_line(error)}") from None
    return json.dumps(parsed if isinstance(parsed, list) else [parsed])


def read_experiment(own: Any, overrides: Raw) -> Experiment:
    """Load the experiment file that the parsed options name, of the current folder or else of this project."""
    file = Path(own.config).expanduser()
    path = own.config if file.exists() or not (PROJECT / file).exists() else str(PROJECT / file)
    return load_experiment(path, overrides, own.experiment, fast=getattr(own, "fast", False))


def render_help(step: str, options: type[Options]) -> str:
    """Return the help of a step: essential options first, then the rest, and by name those that only tell which study is meant."""
    listed = list(fields_of(options))
    if follows_study := not options.reads("training.seed") and options.reads("optimizer.lr"):
        listed = [
            item
            for item in listed
            if item[0] in ("study.name", "training.device")
            or item[0].partition(".")[0] not in SECTIONS
        ]
    first = [item for item in listed if facts_of(item[1]).essential or item[0] == "study.name"]
    rest = [item for item in listed if item not in first]
    parts = [
        f"usage: python -m pipeline {step} [--name value ...]",
        textwrap.fill(options.summary, 100),
        f"example:\n  {options.example}",
    ]
    parts.append("options:\n" + "\n".join(_option_lines(*item) for item in first))
    if rest:
        parts.append("more:\n" + "\n".join(_option_lines(*item) for item in rest))
    if follows_study:
        names = ", ".join(f"--{name}" for name, _ in fields_of(options) if name not in dict(listed))
        parts.append(
            "which study, by options that were given to tune or main (which explain them):\n"
            + _indented(names)
        )
    parts.append(
        "The same under MLflow: mlflow run . -e " + step + " --env-manager local -P name=value"
    )
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return textwrap.fill(
        text,
        100,
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _option_lines(name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = (
        ""
        if default in (None, "", []) or default is ...
        else f" [{str(default).lower() if isinstance(default, bool) else default}]"
    )
    if get_origin(field.annotation) is Literal and (
        choices := ", ".join(map(str, get_args(field.annotation)))
    ) not in (field.description or ""):
        shown = f" ({choices}){shown}"
    text = textwrap.fill(
        f"{field.description}{shown}", 100, initial_indent=" " * 30, subsequent_indent=" " * 30
    )
    flag = f"  --{name}"
    return f"{flag:<30}{text.lstrip()}" if len(flag) < 29 else f"{flag}\n{text}"
