"""One's own network: ``file:PATH.py:FUNCTION``, from the number of classes to a module."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from torch import nn

from pipeline.errors import UserError, first_line, nearest
from pipeline.weights import existing_file


def own_file(name: str) -> tuple[Path, str]:
    """Return file and function of ``file:PATH.py:FUNCTION``.

    Raises:
        UserError: It is written otherwise, or there is no such file.
    """
    path, _, function = name.removeprefix("file:").rpartition(":")
    if not path.endswith(".py") or not function:
        raise UserError(f"model.name: {name!r} must be file:PATH.py:FUNCTION")
    return existing_file(path, "model.name"), function


def build_own(name: str, num_classes: int) -> nn.Module:
    """Run the user's file and build the network.

    Raises:
        UserError: The file or the function fails (with its line), or returns something else.
    """
    path, function = own_file(name)
    spec = importlib.util.spec_from_file_location(f"own_network_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up, and the file may import its neighbours.
    sys.modules[spec.name] = source
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(source)
        build_function = getattr(source, function, None)
        if not callable(build_function):
            functions = [key for key, value in vars(source).items() if callable(value)]
            raise UserError(f"model.name: {path} has no function {function!r}{nearest(function, functions)}")
        module = build_function(num_classes)
    except UserError:
        raise
    except Exception as error:
        # Whatever the user's own code raises.
        line = next((frame.lineno for frame in reversed(traceback.extract_tb(error.__traceback__)) if frame.filename == str(path)), None)
        where = f", line {line}" if line else ""
        raise UserError(f"model.name: {name!r} fails{where}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not isinstance(module, nn.Module):
        raise UserError(f"model.name: {function} must return a torch.nn.Module, got {type(module).__name__}")
    return module
