"""The file of an exported network, checked before torch reads it: it may come from a stranger.

`torch.export.load` trusts its file in several ways:

- Pickled parts are loaded without ``weights_only``.
- Sizes are given to ``sympy.sympify``, which evaluates them.
- Operators are looked up by any name in ``torch``.
- Names of nodes become Python source that is executed.
- Compiled libraries are loaded.

So only a plain graph of ATen operators over plain tensors is let through. torch gets a file that is
written anew from what was checked, since two readers of one ZIP file need not see the same members.
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
"""Bytes of a description at most; that of swin_v2_b has 3 MB."""

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
"""Texts that mean nothing but themselves, even if they become Python source."""
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
"""Operators that take a text, and the texts that they may take.

An operator that opens a file by its name would take a text as well.
"""
_KINDS = ("tensor", "optional_tensor", "int", "float", "bool", "sym_int", "sym_float", "sym_bool")
_SINGLE_ARGUMENTS = {f"as_{kind}" for kind in _KINDS}
_LIST_ARGUMENTS = {f"as_{kind}s" for kind in _KINDS}
_OTHER_ARGUMENTS = {
    "as_none",
    "as_string",
    "as_scalar_type",
    "as_memory_format",
    "as_layout",
    "as_device",
}
_ARGUMENTS = _SINGLE_ARGUMENTS | _LIST_ARGUMENTS | _OTHER_ARGUMENTS

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
"""What zipfile raises, and what is raised if a description has not the form that torch writes."""


class UnsafeArchive(ValueError):
    """A file holds more than a plain network, or is none."""


def write_checked(file: Path, copy: Path) -> None:
    """Write what is safe of an exported network to another file, for `torch.export.load`.

    Args:
        file: File that `torch.export.save` has written, from whatever source.
        copy: File that is written.

    Raises:
        UnsafeArchive: The file holds more than a plain network, or is damaged.
        OSError: The file cannot be read, or the copy cannot be written.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = _check_members(archive)
            missing = _NEEDED - members.keys()
            if missing:
                raise UnsafeArchive(f"no exported network: it lacks {', '.join(sorted(missing))}")
            descriptions = {
                name: _check_description(name, archive, members)
                for name in members
                if name.endswith((".json", ".pt"))
            }
            _write_archive(archive, members, descriptions, copy)
    except UnsafeArchive:
        raise
    except _DAMAGED as error:
        raise UnsafeArchive(
            f"no exported network, or a damaged one: {first_line(error)}"
        ) from error


def _check_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Check the members of an archive; return them by their names below its only folder."""
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


def _check_description(
    name: str, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> bytes:
    """Check a part that describes the network; return what torch may read of it."""
    size = members[name].file_size
    if size > _MOST_JSON:
        raise UnsafeArchive(f"its member {name!r} has {size} bytes, more than {_MOST_JSON}")
    content = archive.read(members[name])
    if name == _PROGRAM:
        program = _check_program(json.loads(content))
        return json.dumps(program).encode()
    if name.endswith(".json"):
        tensors = _check_tensors(json.loads(content), name, archive, members)
        return json.dumps(tensors).encode()
    # The pickled inputs with which the export was tried. Release 0.1.0 has kept them; they are not
    # needed.
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


def _check_tensors(
    raw: Any, name: str, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> Any:
    """Check a list of an archive's tensors, each in a member of its own; return the list."""
    folder = name.rpartition("/")[0]
    for entry in raw["config"].values():
        path = f"{folder}/{entry['path_name']}"
        if path not in members or not _TENSOR.fullmatch(path):
            raise UnsafeArchive(f"a tensor is said to be in {entry['path_name']!r}")
        if entry["use_pickle"]:
            _need_weights_only(archive.read(members[path]), path)
    _need_plain(raw)
    return raw


def _check_program(raw: Any) -> Any:
    """Check all of a graph; return it without what is of no use for computing."""
    module = raw["graph_module"]
    graph = module["graph"]
    if graph.get("custom_obj_values"):
        raise UnsafeArchive("it holds objects that are no tensors")
    for node in graph["nodes"]:
        node["metadata"] = {}
        _need_operator(node)
    module["metadata"] = {}
    module["treespec_namedtuple_fields"] = {}
    module["module_call_graph"] = [
        _check_signature(entry) for entry in module["module_call_graph"] if entry["fqn"] == ""
    ]
    # Python source of conditions on the input, which would be executed.
    raw["guards_code"] = []
    # The specs are checked, but are no plain texts: they are put back afterwards.
    specs: dict[str, str] = {}
    for entry in module["module_call_graph"]:
        for name in ("in_spec", "out_spec"):
            specs.setdefault(name, entry["signature"].pop(name))
    _need_plain(raw)
    for entry in module["module_call_graph"]:
        entry["signature"] |= specs
    return raw


def _check_signature(entry: Any) -> Any:
    signature = entry["signature"]
    takes_one = json.loads(signature["in_spec"]) == _ONE_INPUT
    if not takes_one or json.loads(signature["out_spec"]) != _ONE_OUTPUT:
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
            text = argument["arg"][kind]
            allowed = _TEXTS_OF.get(aten[1] if aten else "")
            if allowed is None or not re.fullmatch(allowed, text):
                raise UnsafeArchive(f"it calls {target!r} with {text!r}")
            # Its characters are allowed here, but not elsewhere.
            argument["arg"][kind] = _CheckedText(text)


class _CheckedText(str):
    """A text that has been checked already, by the rule for its place."""


def _need_plain(value: Any, key: str = "") -> None:
    """Check that every text of a description is harmless, whatever torch makes of it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _need_plain(name)
            _need_plain(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _need_plain(inner, key)
    elif isinstance(value, str) and not isinstance(value, _CheckedText):
        _need_plain_text(value, key)


def _need_plain_text(text: str, key: str) -> None:
    if key == "expr_str":
        _need_size(text)
        return
    is_name = text != "" and key in ("name", "forward_arg_names")
    if not _PLAIN.fullmatch(text) or (is_name and not _IDENTIFIER.fullmatch(text)):
        raise UnsafeArchive(f"it holds the text {text[:60]!r}")


def _need_size(text: str) -> None:
    """Check that an expression is one of sizes.

    An example is ``Mul(Integer(12), Symbol('s31', positive=True, integer=True))``.
    """
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
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    if node.func.id not in _FUNCTIONS or not all(map(_is_assumption, node.keywords)):
        return False
    if node.func.id == "Symbol":
        (name,) = node.args
        return _is_symbol_name(name)
    return all(map(_is_size, node.args))


def _is_assumption(word: ast.keyword) -> bool:
    if word.arg not in _ASSUMPTIONS or not isinstance(word.value, ast.Constant):
        return False
    return word.value.value is True


def _is_symbol_name(node: ast.expr) -> bool:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return False
    return re.fullmatch(r"[a-z]+\d+", node.value) is not None


def _write_archive(
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
