"""The user's own network: ``file:PATH.py:FUNCTION``, with the files beside it that it imports.

The function takes the number of classes and returns a module.
"""

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
"""The networks that are in use, each with the files that it was built from."""
_traced: dict[tuple[Path, str, int, int], OwnPackage] = {}
"""What `find_sources` has found, by absolute path, function, number of classes and image size."""


class OwnModels(Family):
    """Networks of the user's own files."""

    # Shapes alone do not suffice: the network may compute with the numbers, and fail in any way.
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
        UserError: The name is written otherwise, or there is no such file.
    """
    path, _, function = name.removeprefix(FILE).rpartition(":")
    if not path.endswith(".py") or not function:
        raise UserError(f"model.name: {name!r} must be file:PATH.py:FUNCTION")
    return find_file(path, "model.name"), function


def build_own(name: str, num_classes: int) -> nn.Module:
    """Run the user's file and build the network.

    Every build runs the file anew, with the neighbours that it imports.

    Raises:
        UserError: The file or the function fails (the message names the line), or the function
            returns something else than a module.
    """
    _forget_collected()
    path, function = find_own_file(name)
    package = OwnPackage(path)
    module = _build(package, name, function, num_classes)
    _built.append((weakref.ref(module), package))
    return module


def _forget_collected() -> None:
    """Remove from sys.modules the modules of networks that no longer exist.

    This does not happen at the moment when a network is collected, since other code may be
    iterating over sys.modules then.
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
                    f"model.name: {package.file} has no function {function!r}"
                    f"{nearest(function, functions)}"
                )
            module = build_function(num_classes)
    except UserError:
        package.forget()
        raise
    except (Exception, SystemExit) as error:
        package.forget()
        place = _describe_place(package, error)
        raise UserError(
            f"model.name: {name!r} fails{place}: {_describe_error(package, error)}"
        ) from error
    if not isinstance(module, nn.Module):
        package.forget()
        raise UserError(
            f"model.name: {function} must return a torch.nn.Module, got {type(module).__name__}"
        )
    return module


def _describe_place(package: OwnPackage, error: BaseException) -> str:
    """Return ``, line 3`` or ``, line 3 of blocks.py``: the last place in the user's code."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = package.place_of(frame.filename)
        if file == package.file.name:
            return f", line {frame.lineno}"
        if file is not None:
            return f", line {frame.lineno} of {file}"
    return ""


def _describe_error(package: OwnPackage, error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}".replace(f"{package.name}.", "")


def describe_failure(module: nn.Module, error: BaseException) -> str:
    """Return the message of an error that a network has raised while it computed.

    For the user's own network the place in its code is added.
    """
    for network, package in _built:
        if network() is module:
            return f"{_describe_error(package, error)}{_describe_place(package, error)}"
    return first_line(error)


def find_sources(name: str, num_classes: int, image_size: int) -> Mapping[str, bytes]:
    """Return the files that a network is made of.

    They are its own file, and the files of its folder that are imported when it is built and when
    it computes once in each mode.

    Args:
        name: ``file:PATH.py:FUNCTION``.
        num_classes: Number of classes that the network is built for. With 0 its code is not run,
            and only its own file is returned.
        image_size: Side, in pixels, of the images that the network is called with.

    Returns:
        Contents by path relative to the folder, with ``/``. An error ends the search and is not
        reported: it is reported when the network is built for use.

    Raises:
        UserError: There is no such file.
    """
    path, function = find_own_file(name)
    if not num_classes:
        return {path.name: path.read_bytes()}
    key = (path.absolute(), function, num_classes, image_size)
    package = _traced.get(key)
    if package is None or not package.is_as_read():
        package = _trace(path, name, function, num_classes, image_size)
        _traced[key] = package
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
    """Let a network compute once, so that it imports what it imports only then.

    Returns:
        The error that it raises, or None.
    """
    try:
        with torch.no_grad():
            module(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:
        return error
    return None
