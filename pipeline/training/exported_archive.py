"""The file of an exported network, checked before torch reads it: it may come from a stranger.

`torch.export.load` trusts its file in more ways than one: pickled parts are loaded without ``weights_only``, sizes are given to
``sympy.sympify``, which evaluates them, operators are looked up by any name in ``torch``, names of nodes become Python source that is
executed, compiled libraries are loaded. So nothing but a plain graph of ATen operators over plain tensors is let through, and torch is
given a file that is written anew from what was checked, since two readers of one ZIP file need not see the same members.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import first_line

_MOST_JSON = 256 * 2**20
"""Bytes of a description; that of swin_v2_b has 3 MB."""

_PROGRAM = "models/model.json"
_MEMBERS = {
    _PROGRAM,
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
    "data/sample_inputs/model.pt",
    "archive_format",
    "archive_version",
    "byteorder",
    "version",
    ".data/version",
    ".data/serialization_id",
    ".format_version",
    ".storage_alignment",
}
_NEEDED = {
    _PROGRAM,
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
    "archive_version",
}
_INPUTS = "data/sample_inputs/model.pt"
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_WRITTEN_BY_TORCH = {
    "byteorder",
    "version",
    ".data/version",
    ".data/serialization_id",
    ".format_version",
    ".storage_alignment",
}

_PLAIN = re.compile(r"[A-Za-z0-9_.:+\-]*")
"""Texts that mean nothing but themselves, also where they become Python source."""
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ATEN = re.compile(r"torch\.ops\.aten\.([a-z0-9_]+)\.[A-Za-z0-9_]+")
_SIZES_BY = (
    "add",
    "sub",
    "mul",
    "floordiv",
    "truediv",
    "mod",
    "neg",
    "getitem",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
)
_ON_SIZES = {f"_operator.{name}" for name in _SIZES_BY}
_TEXTS_OF = {
    "einsum": r"[a-zA-Z.,> \-]*",
    "gelu": "none|tanh",
    "pad": "constant|reflect|replicate|circular",
    "div": "floor|trunc",
}
"""Operators that take a text, and which; one that opens a file by its name would take one as well."""
_KINDS = ("tensor", "optional_tensor", "int", "float", "bool", "sym_int", "sym_float", "sym_bool")
_ARGUMENTS = {
    "as_none",
    "as_string",
    "as_scalar_type",
    "as_memory_format",
    "as_layout",
    "as_device",
} | {f"as_{kind}{plural}" for kind in _KINDS for plural in ("", "s")}

_FUNCTIONS = {
    "Symbol",
    "Integer",
    "Add",
    "Mul",
    "Min",
    "Max",
    "Mod",
    "FloorDiv",
    "CleanDiv",
    "CeilDiv",
    "PythonMod",
}
_ASSUMPTIONS = {"positive", "integer", "nonnegative"}

_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_ONE_INPUT = [
    1,
    {
        "type": "builtins.tuple",
        "context": "null",
        "children_spec": [
            {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF]},
            {"type": "builtins.dict", "context": "[]", "children_spec": []},
        ],
    },
]
_ONE_OUTPUT = [1, _LEAF]


class UnsafeArchive(ValueError):
    """A file holds more than a plain network, or is none."""


def write_checked(file: Path, copy: Path) -> None:
    """Write what is safe of an exported network to another file, for `torch.export.load`.

    Args:
        file: Of `torch.export.save`, from wherever.
        copy: To write.

    Raises:
        UnsafeArchive: The file holds more than a plain network, or is damaged.
        OSError: It cannot be read, or the copy not be written.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = _members(archive)
            if missing := _NEEDED - members.keys():
                raise UnsafeArchive(f"no exported network: it lacks {', '.join(sorted(missing))}")
            descriptions = {
                name: _described(name, archive, members)
                for name in members
                if name.endswith((".json", ".pt"))
            }
            _write(archive, members, descriptions, copy)
    except UnsafeArchive:
        raise
    except _DAMAGED as error:
        raise UnsafeArchive(
            f"no exported network, or a damaged one: {first_line(error)}"
        ) from error


_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
)
"""What zipfile raises, and what is raised where a description is not of the form that torch writes."""


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by their names below the one folder of the archive."""
    found: dict[str, zipfile.ZipInfo] = {}
    roots = set()
    for member in archive.infolist():
        root, _, name = member.filename.partition("/")
        roots.add(root)
        if name in found or len(roots) > 1:
            raise UnsafeArchive(
                f"its member {member.filename!r} is there twice, or beside the network's folder"
            )
        if name not in _MEMBERS and not _TENSOR.fullmatch(name):
            raise UnsafeArchive(f"it holds {name!r}, which no plain network has")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise UnsafeArchive(f"its member {name!r} is compressed or encrypted")
        found[name] = member
    return found


def _described(
    name: str, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> bytes:
    """Return what torch is to read of a part that describes the network."""
    if members[name].file_size > _MOST_JSON:
        raise UnsafeArchive(
            f"its member {name!r} has {members[name].file_size} bytes, more than {_MOST_JSON}"
        )
    content = archive.read(members[name])
    if name == _PROGRAM:
        return json.dumps(_program(json.loads(content))).encode()
    if name.endswith(".json"):
        return json.dumps(_tensors(json.loads(content), name, archive, members)).encode()
    # What the export was tried with, pickled; release 0.1.0 has kept it. It is not needed.
    _need_weights_only(content, name)
    return b""


def _need_weights_only(content: bytes, name: str) -> None:
    """Check that a pickled part holds tensors only."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise UnsafeArchive(
            f"its part {name!r} asks for more than tensors when it is loaded"
        ) from error


def _tensors(
    raw: Any, name: str, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> Any:
    """Return the list of tensors of an archive, each in a member of its own."""
    folder = name.rpartition("/")[0]
    for entry in raw["config"].values():
        path = f"{folder}/{entry['path_name']}"
        if path not in members or not _TENSOR.fullmatch(path):
            raise UnsafeArchive(f"a tensor is said to be in {entry['path_name']!r}")
        if entry["use_pickle"]:
            _need_weights_only(archive.read(members[path]), path)
    _need_plain(raw)
    return raw


def _program(raw: Any) -> Any:
    """Return a graph without what is of no use for computing, and all of it checked."""
    module = raw["graph_module"]
    graph = module["graph"]
    if graph.get("custom_obj_values"):
        raise UnsafeArchive("it holds objects that are no tensors")
    for node in graph["nodes"]:
        node["metadata"] = {}
        _need_operator(node)
    module["metadata"], module["treespec_namedtuple_fields"] = {}, {}
    module["module_call_graph"] = [
        _signature(entry) for entry in module["module_call_graph"] if entry["fqn"] == ""
    ]
    # Python source of conditions on the input, which would be executed.
    raw["guards_code"] = []
    specs = [
        entry["signature"].pop(name)
        for entry in module["module_call_graph"]
        for name in ("in_spec", "out_spec")
    ]
    _need_plain(raw)
    for entry in module["module_call_graph"]:
        entry["signature"] |= dict(zip(("in_spec", "out_spec"), specs[:2], strict=True))
    return raw


def _signature(entry: Any) -> Any:
    signature = entry["signature"]
    if (
        json.loads(signature["in_spec"]) != _ONE_INPUT
        or json.loads(signature["out_spec"]) != _ONE_OUTPUT
    ):
        raise UnsafeArchive("it is no function from one tensor to one tensor")
    return {"fqn": "", "signature": signature}


def _need_operator(node: Any) -> None:
    """Check that a node is an operator on tensors or their sizes."""
    target = node["target"]
    aten = _ATEN.fullmatch(target)
    if aten is None and target not in _ON_SIZES:
        raise UnsafeArchive(f"it calls {target!r}, which is no operator on tensors")
    for argument in node["inputs"]:
        (kind,) = argument["arg"]
        if kind not in _ARGUMENTS:
            raise UnsafeArchive(f"it calls {target!r} with an argument of kind {kind!r}")
        if kind == "as_string":
            allowed = _TEXTS_OF.get(aten[1] if aten else "")
            if allowed is None or not re.fullmatch(allowed, argument["arg"][kind]):
                raise UnsafeArchive(f"it calls {target!r} with {argument['arg'][kind]!r}")
            # Allowed here; elsewhere such characters are not.
            argument["arg"][kind] = _Text(argument["arg"][kind])


class _Text(str):
    """A text that was checked where it stands."""


def _need_plain(value: Any, key: str = "") -> None:
    """Check every text of a description: what it may become, it must not become anything else."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _need_plain(name)
            _need_plain(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _need_plain(inner, key)
    elif isinstance(value, str) and not isinstance(value, _Text):
        if key == "expr_str":
            _need_size(value)
        elif not _PLAIN.fullmatch(value) or (
            key in ("name", "forward_arg_names") and value and not _IDENTIFIER.fullmatch(value)
        ):
            raise UnsafeArchive(f"it holds the text {value[:60]!r}")


def _need_size(text: str) -> None:
    """Check that an expression is one of sizes, such as ``Mul(Integer(12), Symbol('s31', positive=True, integer=True))``."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise UnsafeArchive(f"it has a size {text[:60]!r}") from error
    if not _is_size(tree):
        raise UnsafeArchive(f"it has a size {text[:60]!r}")


def _is_size(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_size(node.operand)
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    if (
        not isinstance(node, ast.Call)
        or not isinstance(node.func, ast.Name)
        or node.func.id not in _FUNCTIONS
    ):
        return False
    if not all(
        word.arg in _ASSUMPTIONS
        and isinstance(word.value, ast.Constant)
        and word.value.value is True
        for word in node.keywords
    ):
        return False
    if node.func.id == "Symbol":
        (name,) = node.args
        return (
            isinstance(name, ast.Constant)
            and isinstance(name.value, str)
            and re.fullmatch(r"[a-z]+\d+", name.value) is not None
        )
    return all(map(_is_size, node.args))


def _write(
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    descriptions: Mapping[str, bytes],
    copy: Path,
) -> None:
    writer = torch._C.PyTorchFileWriter(str(copy))
    for name, content in {_INPUTS: b"", **descriptions}.items():
        writer.write_record(name, content, len(content))
    for name, member in members.items():
        if name not in descriptions and name not in _WRITTEN_BY_TORCH:
            content = archive.read(member)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
