"""One's own network: ``file:PATH.py:FUNCTION``, from the number of classes to a module, with the files beside it that it imports."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from pipeline.config import FILE, Model
from pipeline.errors import UserError, first_line, nearest
from pipeline.files import sha256_over
from pipeline.models.family import Family
from pipeline.models.heads import find_head
from pipeline.models.own_package import OwnPackage
from pipeline.models.weights import content_hash, find_file

_built: list[tuple[weakref.ref[nn.Module], OwnPackage]] = []
_traced: dict[tuple[Path, str, int, int], OwnPackage] = {}


class OwnModels(Family):
    """Networks of the user's own files."""

    # Shapes alone do not do: such a network may compute with numbers, and fail in any way.
    check_device = "cpu"
    failures = (Exception,)

    def has(self, name: str) -> bool:
        return name.startswith(FILE)

    def identity(self, model: Model, num_classes: int, image_size: int) -> dict[str, str]:
        path, function = find_own_file(model.name)
        alone = content_hash(path)
        whole = sha256_over(find_sources(model.name, num_classes, image_size))[: len(alone)]
        identity = {"name": f"{FILE}{whole}:{function}"}
        if alone != whole:
            identity["file"] = f"{FILE}{alone}:{function}"
        return identity

    def build(
        self, model: Model, num_classes: int, image_size: int, load: bool
    ) -> tuple[nn.Module, str]:
        module = build_own(model.name, num_classes)
        return module, find_head(module)

    def source_files(self, name: str, num_classes: int, image_size: int) -> Mapping[str, bytes]:
        return find_sources(name, num_classes, image_size)


def find_own_file(name: str) -> tuple[Path, str]:
    """Return file and function of ``file:PATH.py:FUNCTION``.

    Raises:
        UserError: It is written otherwise, or there is no such file.
    """
    path, _, function = name.removeprefix(FILE).rpartition(":")
    if not path.endswith(".py") or not function:
        raise UserError(f"model.name: {name!r} must be file:PATH.py:FUNCTION")
    return find_file(path, "model.name"), function


def build_own(name: str, num_classes: int) -> nn.Module:
    """Run the user's file and build the network.

    Every build runs it anew, with the neighbours that it imports.

    Raises:
        UserError: The file or the function fails (with its line), or returns something else.
    """
    _forget_collected()
    path, function = find_own_file(name)
    package = OwnPackage(path)
    module = _build(package, name, function, num_classes)
    _built.append((weakref.ref(module), package))
    return module


def _forget_collected() -> None:
    """Remove the modules of networks that are gone from sys.modules.

    Not at the moment when a network is collected, since somebody may be going through sys.modules.
    """
    for built in list(_built):
        network, package = built
        if network() is None:
            package.forget()
            _built.remove(built)


def _build(package: OwnPackage, name: str, function: str, num_classes: int) -> nn.Module:
    try:
        with package.importable():
            source = package.run()
            build_function = getattr(source, function, None)
            if not callable(build_function):
                functions = [key for key, value in vars(source).items() if callable(value)]
                raise UserError(
                    f"model.name: {package.file} has no function {function!r}{nearest(function, functions)}"
                )
            module = build_function(num_classes)
    except UserError:
        package.forget()
        raise
    except (Exception, SystemExit) as error:
        package.forget()
        raise UserError(
            f"model.name: {name!r} fails{_place(package, error)}: {_told(package, error)}"
        ) from error
    if not isinstance(module, nn.Module):
        package.forget()
        raise UserError(
            f"model.name: {function} must return a torch.nn.Module, got {type(module).__name__}"
        )
    return module


def _place(package: OwnPackage, error: BaseException) -> str:
    """Return ``, line 3`` or ``, line 3 of blocks.py``: where the user's code was last."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if (file := package.place_of(frame.filename)) is not None:
            return f", line {frame.lineno}" + (f" of {file}" if file != package.file.name else "")
    return ""


def _told(package: OwnPackage, error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}".replace(f"{package.name}.", "")


def describe_failure(module: nn.Module, error: BaseException) -> str:
    """Return place and message of what one's own network has raised while it computed."""
    package = next((package for network, package in _built if network() is module), None)
    return f"{_told(package, error)}{_place(package, error)}" if package else first_line(error)


def find_sources(name: str, num_classes: int, image_size: int) -> Mapping[str, bytes]:
    """Return the files that a network is made of: its own, and those of its folder that building and one forward pass import.

    Args:
        name: ``file:PATH.py:FUNCTION``.
        num_classes: It is built for; 0: its code is not run, and only its own file returned.
        image_size: It is called with, in pixels.

    Returns:
        Contents by path relative to the folder, with ``/``. What fails ends the search; it is told where the network is built in earnest.

    Raises:
        UserError: There is no such file.
    """
    path, function = find_own_file(name)
    if not num_classes:
        return {path.name: path.read_bytes()}
    key = (path.absolute(), function, num_classes, image_size)
    package = _traced.get(key)
    if package is None or not package.is_as_read():
        package = _traced[key] = _trace(path, name, function, num_classes, image_size)
    return package.files


def _trace(path: Path, name: str, function: str, num_classes: int, image_size: int) -> OwnPackage:
    package = OwnPackage(path)
    with suppress(UserError), torch.random.fork_rng(devices=[]):
        module = _build(package, name, function, num_classes)
        for mode in (True, False):
            run_once(module.train(mode), image_size)
    package.forget()
    return package


def run_once(module: nn.Module, image_size: int) -> Exception | None:
    """Let a network compute, so that whatever it imports only then is imported; return what it raises."""
    try:
        with torch.no_grad():
            module(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:
        return error
    return None
