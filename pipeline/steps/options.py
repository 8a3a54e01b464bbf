"""Options of each step, their parsing and their help; nothing heavy is imported here."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
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
    flatten,
    identifies_study,
    merge,
    parse,
    parse_yaml,
)
from pipeline.errors import UserError, first_line, nearest
from pipeline.experiment import Experiment, load_experiment
from pipeline.safe_text import hide_passwords

DEFAULT_FILE = "experiments/digits.yaml"
_OF_ONE_CALL = ("study.trials", "study.repeats", "study.only", "study.evaluate", "study.hours")
"""Options that say what one call of a step does; they do not tell which study is meant."""
PROJECT = Path(__file__).resolve().parents[2]


class Options(BaseSettings):
    """Parameters of one step. Subclasses add theirs; section fields become dotted options."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix="PIPELINE_UNUSED_")
    summary: ClassVar[str] = ""
    example: ClassVar[str] = ""

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration, given by its dotted name.

        Only fields that it reads are options of it.
        """
        return bool(name)


class ExperimentOptions(Options):
    """Parameters of the steps that read an experiment file."""

    config: str = essential(DEFAULT_FILE, "Experiment file.")
    experiment: str = essential(
        "",
        "Name of runs, folders and registered model; empty means the name in the file, "
        "or else the name of the data.",
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
        "Scale the run down, for trying out: at most 300 images of 64 pixels and two epochs. "
        "It becomes an experiment of its own, NAME-fast.",
    )


class TrustOptions(FastOptions):
    """Parameters of the steps that use what a run keeps."""

    trust: str = essential(
        "",
        "SHA-256 of Python code that a run keeps and that may be executed; "
        "the message that refuses the code names it.",
    )


def list_given(own: ExperimentOptions, *fields: str) -> list[str]:
    """Return those of a step's own fields that have another value than their default."""
    return [name for name in fields if getattr(own, name) != type(own).model_fields[name].default]


class PredictSection(BaseModel):
    """How predict writes its CSV."""

    id: Literal["name", "stem", "path"] = essential(
        "name",
        "What the id column holds: the file's name (its path, if names repeat), "
        "its name without ending, or its path.",
    )
    bad: Literal["row", "error"] = essential(
        "row",
        "What an image that cannot be read becomes: a row with the reason in a column error, "
        "or an error, and then nothing is written.",
    )
    probabilities: bool = essential(False, "Add a column p_CLASS for each class.")


def fields_of(options: type[Options]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield ``(dotted name, definition)`` of every option."""
    for name, field in options.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for part, definition in field.annotation.model_fields.items():
                dotted = f"{name}.{part}"
                if name not in SECTIONS or options.reads(dotted):
                    yield dotted, definition
        else:
            yield name, field


def parse_options(options: type[Options], arguments: Sequence[str]) -> tuple[Any, Raw]:
    """Parse ``--name value`` pairs.

    Returns:
        The step's own validated parameters, and the given values of sections, nested and not yet
        merged.

    Raises:
        UserError: An option is unknown, lacks its value or has a wrong one.
    """
    pairs = list(_split_pairs(options, arguments))
    written = [f"--{name}={_list_as_json(options, name, value)}" for name, value in pairs]
    try:
        given: Raw = CliSettingsSource(options, cli_parse_args=written, cli_exit_on_error=False)()
    except SettingsError as error:
        raise UserError(str(error).removeprefix("error parsing CLI: ")) from None
    for name, value in pairs:
        given = merge(given, _null_as_text(options, name, value))
    own = {name: value for name, value in given.items() if name not in SECTIONS and value != ""}
    sections = {name: value for name, value in given.items() if name in SECTIONS}
    return parse(_own_parameters(options), own, "options"), sections


def _null_as_text(options: type[Options], name: str, value: str) -> Raw:
    """Return the value ``null`` as a text, nested, for a field that cannot be None.

    An experiment may be called so. For other values and fields an empty mapping is returned.
    """
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


def _split_pairs(options: type[Options], arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of ``--name value`` and ``--name=value``."""
    known = [name for name, _ in fields_of(options)]
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            raise UserError(f"{argument!r} is not an option; options are given as --name value")
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in known:
            raise _unknown_option(options, name, known)
        if not equals:
            if not remaining or _is_option(remaining[0], known):
                raise UserError(f"option --{name} needs a value: --{name} VALUE")
            value = remaining.pop(0)
        yield name, value


def _is_option(argument: str, known: Sequence[str]) -> bool:
    return argument.startswith("--") and argument.removeprefix("--") in known


def _unknown_option(options: type[Options], name: str, known: Sequence[str]) -> UserError:
    if name in field_names():
        step = options.__name__.removesuffix("Options").lower()
        return UserError(f"option --{name} is not read by {step}; --help lists what is")
    close = nearest(name, known)
    if not close:
        field = name.rpartition(".")[2]
        same_field = [dotted for dotted in known if dotted.rpartition(".")[2] == field]
        if same_field:
            close = f"; nearest: {same_field[0]}"
    return UserError(f"unknown option --{name}{close}; --help lists all")


def _list_as_json(options: type[Options], name: str, value: str) -> str:
    """Return the value of an option as JSON if the option is a list, else as it is.

    A list is written as in an experiment file:
    ``[RandomHorizontalFlip, {RandomRotation: {degrees: 15}}]``.
    """
    if get_origin(dict(fields_of(options))[name].annotation) not in (list, tuple):
        return value
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"option --{name}: {value!r} is no list: {first_line(error)}") from None
    return json.dumps(parsed if isinstance(parsed, list) else [parsed])


def read_experiment(own: Any, overrides: Raw) -> Experiment:
    """Load the experiment file that the parsed options name.

    If the current folder does not have it, this project's file of that name is loaded.
    """
    path = own.config
    file = Path(path).expanduser()
    if not file.exists() and (PROJECT / file).exists():
        path = str(PROJECT / file)
    loaded = load_experiment(path, overrides, own.experiment, fast=getattr(own, "fast", False))
    return replace(
        loaded,
        command=partial(_write_command, own, overrides),
        arguments=partial(_list_arguments, own, overrides),
    )


def _write_command(own: Any, overrides: Raw, step: str, further: str) -> str:
    """Return what to type for another step of the same experiment, as this one was called.

    Args:
        own: The own parameters of this step.
        overrides: The options on sections that were given.
        step: Name of the other step.
        further: Options of it that are added.
    """
    # It is written into files and runs that others may read.
    given = hide_passwords(shlex.join(_list_arguments(own, overrides, step)))
    return " ".join(filter(None, ("python -m pipeline", step, given, further)))


def _list_arguments(own: Any, overrides: Raw, step: str) -> list[str]:
    """Return the options of another step of the same experiment; see `_write_command`."""
    options = import_module(f"pipeline.steps.{step}").OPTIONS
    words = []
    for name in ("config", "experiment", "fast"):
        value = getattr(own, name, None)
        if value not in (None, options.model_fields[name].default):
            words += [f"--{name}", str(value).lower() if name == "fast" else str(value)]
    is_named = bool(overrides.get("study", {}).get("name"))
    for name, value in flatten(overrides):
        if is_named and not _starts_trainings(options) and identifies_study(name):
            # The name says which study; a step that follows it takes no other option for that.
            continue
        if options.reads(name) and name not in _OF_ONE_CALL:
            is_text = not isinstance(value, list | tuple | dict | bool)
            words += [f"--{name}", str(value) if is_text else json.dumps(value)]
    return words


def _starts_trainings(options: type[Options]) -> bool:
    return options.reads("training.seed")


def render_help(step: str, options: type[Options]) -> str:
    """Return the help of a step: essential options first, then the rest.

    Options that only tell which study is meant come last, by their names alone.
    """
    every = list(fields_of(options))
    follows_study = not options.reads("training.seed") and options.reads("optimizer.lr")
    listed = every
    if follows_study:
        listed = [item for item in every if _is_more_than_study(item[0])]
    first = [item for item in listed if _stands_first(*item)]
    rest = [item for item in listed if item not in first]
    parts = [
        f"usage: python -m pipeline {step} [--name value ...]",
        textwrap.fill(options.summary, 100),
        f"example:\n  {options.example}",
        _render_options("options", first),
    ]
    if rest:
        parts.append(_render_options("more", rest))
    if follows_study:
        names = ", ".join(f"--{name}" for name, _ in every if not _is_more_than_study(name))
        parts.append(
            "which study, by options that were given to tune or main (which explain them):\n"
            + _indented(names)
        )
    parts.append(f"The same under MLflow: mlflow run . -e {step} --env-manager local -P name=value")
    return "\n\n".join(parts)


def _is_more_than_study(name: str) -> bool:
    """Whether an option of a step that follows a study does more than tell which study is meant."""
    section, _, _ = name.partition(".")
    return name in ("study.name", "training.device") or section not in SECTIONS


def _stands_first(name: str, field: FieldInfo) -> bool:
    return name == "study.name" or facts_of(field).essential


def _render_options(title: str, items: Sequence[tuple[str, FieldInfo]]) -> str:
    lines = [_render_option(name, field) for name, field in items]
    return "\n".join([f"{title}:", *lines])


def _indented(text: str) -> str:
    return textwrap.fill(
        text,
        100,
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _render_option(name: str, field: FieldInfo) -> str:
    text = f"{field.description}{_choices_text(field)}{_default_text(field)}"
    indent = " " * 30
    filled = textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent)
    flag = f"  --{name}"
    if len(flag) < 29:
        return f"{flag:<30}{filled.lstrip()}"
    return f"{flag}\n{filled}"


def _choices_text(field: FieldInfo) -> str:
    """Return the choices of a field in parentheses, unless its description lists them."""
    if get_origin(field.annotation) is not Literal:
        return ""
    choices = ", ".join(map(str, get_args(field.annotation)))
    return "" if choices in (field.description or "") else f" ({choices})"


def _default_text(field: FieldInfo) -> str:
    """Return the default of a field in brackets, unless it is empty."""
    default = field.get_default(call_default_factory=True)
    if default in (None, "", []) or default is ...:
        return ""
    shown = str(default)
    if isinstance(default, bool):
        shown = shown.lower()
    return f" [{shown}]"


def with_order(experiment: Experiment, data_options: Raw) -> Raw:
    """Return options on data, with whether classes are grades if the experiment file says so."""
    data = experiment.base.data
    says = "ordered" in data.model_fields_set
    return {"ordered": data.ordered, **data_options} if says else data_options
