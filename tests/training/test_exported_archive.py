"""An exported network from a stranger.

Nothing of it runs before, while or after it is loaded but a network.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import models
from pipeline.config import Model
from pipeline.training.exported_archive import UnsafeArchive, write_checked
from tests.conftest import thorough_of
from tests.recorded.store import unpack

Records = dict[str, bytes]
PROGRAM, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = (
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.mkdir, ("executed",)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "network.pt2"
    network = models.build(Model(name="small_cnn"), 3, 16).module.eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(
        torch.export.export(network, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},)),
        file,
    )
    return file


@pytest.fixture
def records(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    """The parts of a good network, by name; the current folder is an empty one."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with zipfile.ZipFile(exported) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(records: Records, folder: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    file = folder / "stranger.pt2"
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"network/{name}", content)
    return file


def changed(records: Records, part: str, change: Callable[[Any], None]) -> Records:
    raw = json.loads(records[part])
    change(raw)
    return {**records, part: json.dumps(raw).encode()}


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def logits(file: Path) -> torch.Tensor:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.export.load(file).module()(images)


def test_a_good_network_answers_as_before_and_is_without_pickled_parts(
    exported: Path, tmp_path: Path
) -> None:
    write_checked(exported, tmp_path / "copy.pt2")
    assert torch.equal(logits(exported), logits(tmp_path / "copy.pt2"))
    with zipfile.ZipFile(tmp_path / "copy.pt2") as archive:
        assert archive.read("copy/data/sample_inputs/model.pt") == b""


def test_networks_of_release_0_1_0_are_good(tmp_path: Path) -> None:
    unpack(tmp_path)
    files = sorted(tmp_path.rglob("network.pt2"))
    assert len(files) == 2
    for file in files:
        write_checked(file, tmp_path / "copy.pt2")
        assert torch.equal(logits(file), logits(tmp_path / "copy.pt2"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    thorough_of(
        ["googlenet", "shufflenet_v2_x0_5", "swin_v2_t", "timm/efficientnet_lite0"],
        ["shufflenet_v2_x0_5"],
    ),
)
def test_other_networks_are_good(name: str, tmp_path: Path) -> None:
    network = models.build(Model(name=name), 3, 64).module.eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(
        torch.export.export(network, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=({0: batch},)),
        tmp_path / "network.pt2",
    )
    write_checked(tmp_path / "network.pt2", tmp_path / "copy.pt2")
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        expected, found = (
            torch.export.load(tmp_path / file).module()(images)
            for file in ("network.pt2", "copy.pt2")
        )
    assert torch.equal(expected, found)


def test_torch_itself_would_run_what_an_archive_holds(records: Records, tmp_path: Path) -> None:
    file = written({**records, INPUTS: pickled(((Payload(),), {}))}, tmp_path)
    with contextlib.suppress(Exception):
        torch.export.load(file)
    assert Path("executed").is_dir()


def set_in_program(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(raw: Any) -> None:
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = value

    return change


GRAPH = ("graph_module", "graph")
NODE = (*GRAPH, "nodes", 0)
SIZE = (*GRAPH, "tensor_values", "x")
SIGNATURE = ("graph_module", "module_call_graph", 0, "signature")
CALL = "__import__('os').mkdir('executed')"
OPENS_A_FILE = {
    "target": "torch.ops.aten.from_file.default",
    "inputs": [{"arg": {"as_string": "precious"}}],
    "outputs": [],
}
EVIL: dict[str, tuple[str, Callable[[Any], None]]] = {
    "a size that is code": (
        PROGRAM,
        set_in_program(*SIZE, value={"sizes": [{"as_expr": {"expr_str": CALL}}]}),
    ),
    "a size of other functions": (
        PROGRAM,
        set_in_program(*SIZE, value={"expr_str": "Pow(Integer(9), Integer(9))"}),
    ),
    "a symbol that is code": (
        PROGRAM,
        set_in_program(*SIZE, value={"expr_str": f'Symbol("{CALL}")'}),
    ),
    "an operator that loads code": (
        PROGRAM,
        set_in_program(*NODE, "target", value="torch.hub.load"),
    ),
    "an operator of Python": (
        PROGRAM,
        set_in_program(*NODE, "target", value="_operator.methodcaller"),
    ),
    "an operator behind another": (
        PROGRAM,
        set_in_program(*NODE, "target", value="torch.ops.aten.conv2d.default.__class__"),
    ),
    "an operator that opens a file": (PROGRAM, set_in_program(*NODE, value=OPENS_A_FILE)),
    "a name that is code": (
        PROGRAM,
        set_in_program(*NODE, "outputs", 0, "as_tensor", "name", value=f"x = {CALL}"),
    ),
    "an input that is code": (
        PROGRAM,
        set_in_program(*GRAPH, "inputs", -1, "as_tensor", "name", value=f"x={CALL}"),
    ),
    "an argument name that is code": (
        PROGRAM,
        set_in_program(*SIGNATURE, "forward_arg_names", value=[f"x={CALL}"]),
    ),
    "a tensor name that is code": (
        WEIGHTS,
        lambda raw: raw["config"].update({f'a"+{CALL}+"': raw["config"].pop("conv1.weight")}),
    ),
    "a subgraph": (
        PROGRAM,
        set_in_program(*NODE, "inputs", 0, "arg", value={"as_graph": {"name": "x"}}),
    ),
    "an object": (
        PROGRAM,
        set_in_program(*GRAPH, "custom_obj_values", value={"x": {"class_fqn": "y"}}),
    ),
    "another structure": (
        PROGRAM,
        set_in_program(*SIGNATURE, "in_spec", value='[1, {"type": "collections.defaultdict"}]'),
    ),
    "a tensor elsewhere": (
        WEIGHTS,
        lambda raw: raw["config"]["conv1.weight"].update(path_name="../../weight_0"),
    ),
    "no description": (PROGRAM, lambda raw: raw.clear()),
}


@pytest.mark.parametrize(("part", "change"), EVIL.values(), ids=EVIL)
def test_a_description_that_is_more_than_a_network_is_refused(
    records: Records, tmp_path: Path, part: str, change: Callable[[Any], None]
) -> None:
    file = written(changed(records, part, change), tmp_path)
    with pytest.raises(UnsafeArchive):
        write_checked(file, tmp_path / "copy.pt2")
    assert not Path("executed").exists()


def with_pickled_weight(records: Records, value: Any) -> Records:
    def change(raw: Any) -> None:
        raw["config"]["conv1.bias"]["use_pickle"] = True

    path = f"data/weights/{json.loads(records[WEIGHTS])['config']['conv1.bias']['path_name']}"
    return {**changed(records, WEIGHTS, change), path: pickled(value)}


@pytest.mark.parametrize("where", ["sample inputs", "a weight", "a plain pickle"])
def test_pickled_parts_that_ask_for_more_than_tensors_are_refused(
    records: Records, tmp_path: Path, where: str
) -> None:
    evil = {
        "sample inputs": {**records, INPUTS: pickled(((Payload(),), {}))},
        "a weight": with_pickled_weight(records, Payload()),
        "a plain pickle": {**records, INPUTS: pickle.dumps(Payload())},
    }[where]
    with pytest.raises(UnsafeArchive, match="asks for more than tensors"):
        write_checked(written(evil, tmp_path), tmp_path / "copy.pt2")
    assert not Path("executed").exists()


def test_a_pickled_tensor_is_a_tensor(records: Records, tmp_path: Path) -> None:
    write_checked(
        written(with_pickled_weight(records, torch.nn.Parameter(torch.zeros(16))), tmp_path),
        tmp_path / "copy.pt2",
    )
    assert logits(tmp_path / "copy.pt2").shape == (3, 3)


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/a.so",
        "extra/x",
        "models/other.json",
        "data/weights/../../../x",
        "data/constants/custom_obj_0",
    ],
)
def test_other_parts_are_refused(records: Records, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeArchive, match="which no plain network has"):
        write_checked(written({**records, name: b"x"}, tmp_path), tmp_path / "copy.pt2")


def test_guards_are_source_and_are_left_out(records: Records, tmp_path: Path) -> None:
    file = written(changed(records, PROGRAM, set_in_program("guards_code", value=[CALL])), tmp_path)
    write_checked(file, tmp_path / "copy.pt2")
    assert logits(tmp_path / "copy.pt2").shape == (3, 3)
    assert not Path("executed").exists()


def test_compressed_and_repeated_members_are_refused(records: Records, tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match="compressed"):
        write_checked(written(records, tmp_path, zipfile.ZIP_DEFLATED), tmp_path / "copy.pt2")
    file = written(records, tmp_path)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"network/{PROGRAM}", b"{}")
    with pytest.raises(UnsafeArchive, match="twice"):
        write_checked(file, tmp_path / "copy.pt2")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt2").write_bytes(content)
    with pytest.raises(UnsafeArchive):
        write_checked(tmp_path / "x.pt2", tmp_path / "copy.pt2")


def test_the_older_format_of_torch_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("version", "8.1")
        archive.writestr("serialized_state_dict.pt", pickle.dumps(Payload()))
    with pytest.raises(UnsafeArchive):
        write_checked(tmp_path / "old.pt2", tmp_path / "copy.pt2")
