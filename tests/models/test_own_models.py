"""One's own network and the files beside it."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import models
from pipeline.config import Configuration, Model
from pipeline.errors import UserError
from pipeline.files import sha256_over
from pipeline.identity import FIRST_RELEASE, config_hash
from pipeline.models.own_models import find_sources
from pipeline.tracking import find_runs
from pipeline.tracking.workspace import Workspace

BLOCK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward(self, images):
        return self.fc(images.mean((2, 3))) * 0 + VALUE
"""
BUILD = """
def build(num_classes):
    return Block(num_classes)
"""


def write(folder: Path, files: dict[str, str], value: float = 1.0) -> Path:
    """Write files of a network, `net.py` among them; what it answers is `value`."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("VALUE", str(value)))
    return folder / "net.py"


def model(file: Path, function: str = "build") -> Model:
    return Model(name=f"file:{file}:{function}")


def answer(module: nn.Module) -> float:
    return module(torch.zeros(2, 3, 8, 8))[0, 0].item()


def answer_of(file: Path) -> float:
    models.check(model(file), 3, 8)
    return answer(models.build(model(file), 3, 8).module)


def files_of(file: Path) -> set[str]:
    return set(models.source_files(model(file), models.origin(model(file), 3, 8), 3, 8))


LAZY = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.classes = nn.Parameter(nn.Linear(3, classes).weight)

    def forward(self, images):
        IMPORT
        return Block(len(self.classes))(images)

def build(num_classes):
    return Net(num_classes)
"""
FORMS = {
    "from": ("from blocks import Block", {"blocks.py": BLOCK}),
    "plain": ("import blocks; Block = blocks.Block", {"blocks.py": BLOCK}),
    "as": ("import blocks as b; Block = b.Block", {"blocks.py": BLOCK}),
    "relative": ("from .blocks import Block", {"blocks.py": BLOCK}),
    "relative module": ("from . import blocks; Block = blocks.Block", {"blocks.py": BLOCK}),
    "package": (
        "from layers.conv import Block",
        {"layers/__init__.py": "", "layers/conv.py": BLOCK},
    ),
    "package dotted": (
        "import layers.conv; Block = layers.conv.Block",
        {"layers/__init__.py": "", "layers/conv.py": BLOCK},
    ),
    "package dotted as": (
        "import layers.conv as c; Block = c.Block",
        {"layers/__init__.py": "", "layers/conv.py": BLOCK},
    ),
    "package passes on": (
        "from layers import Block",
        {"layers/__init__.py": "from .conv import Block", "layers/conv.py": BLOCK},
    ),
    "package from": (
        "from layers import conv; Block = conv.Block",
        {"layers/__init__.py": "", "layers/conv.py": BLOCK},
    ),
    "folder without init": ("from layers.conv import Block", {"layers/conv.py": BLOCK}),
    "neighbour of neighbour": (
        "from blocks import Block",
        {"blocks.py": "from layers.conv import Block", "layers/conv.py": BLOCK},
    ),
    "project": ("from nets.blocks import Block", {"blocks.py": BLOCK}),
    "project above": ("from src.nets.blocks import Block", {"blocks.py": BLOCK}),
    "project dotted": ("import nets.blocks; Block = nets.blocks.Block", {"blocks.py": BLOCK}),
    "project itself": (
        "from nets import blocks; Block = blocks.Block",
        {"__init__.py": "", "blocks.py": BLOCK},
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("when", ["at once", "in forward"])
def test_two_folders_have_their_own_neighbours_in_every_form_of_import(
    tmp_path: Path, form: str, when: str
) -> None:
    statement, neighbours = FORMS[form]
    net = f"{statement}\n{BUILD}" if when == "at once" else LAZY.replace("IMPORT", statement)
    one, two = (
        write(tmp_path / name / "src" / "nets", {"net.py": net, **neighbours}, value)
        for name, value in (("one", 1.0), ("two", 2.0))
    )
    built = models.build(model(one), 3, 8).module, models.build(model(two), 3, 8).module
    assert [answer(module) for module in built] == [1.0, 2.0]
    assert (answer_of(one), answer_of(two), answer_of(one)) == (1.0, 2.0, 1.0)
    assert files_of(one) == {"net.py", *neighbours}
    assert not {"blocks", "layers", "nets", "src"} & set(sys.modules)
    assert str(one.parent) not in sys.path


@pytest.mark.parametrize("statement", ['importlib.import_module("blocks")', '__import__("blocks")'])
def test_what_is_imported_by_a_call_while_building_is_found_too(
    tmp_path: Path, statement: str
) -> None:
    net = (
        f"import importlib\n\ndef build(num_classes):\n    return {statement}.Block(num_classes)\n"
    )
    one, two = (
        write(tmp_path / str(value), {"net.py": net, "blocks.py": BLOCK}, value)
        for value in (1.0, 2.0)
    )
    assert (answer_of(one), answer_of(two), answer_of(one)) == (1.0, 2.0, 1.0)
    assert files_of(one) == {"net.py", "blocks.py"}


def test_every_form_of_import_is_kept_where_the_name_is_not_a_neighbours(tmp_path: Path) -> None:
    net = (
        "import os.path, json as j, torch.nn.functional as F\n"
        "from importlib import metadata\n"
        "import blocks, sys\n"
        f"{BUILD}"
    )
    net += (
        "Block = blocks.Block\n"
        "assert os.path.join and j.dumps and F.relu and metadata.version and sys.path\n"
    )
    file = write(
        tmp_path,
        {"net.py": net, "blocks.py": BLOCK, "json.py": "raise SystemError", "torch/readme.txt": ""},
    )
    assert answer_of(file) == 1.0
    assert files_of(file) == {"net.py", "blocks.py"}


def test_a_network_beside_the_pipeline_uses_the_pipeline(tmp_path: Path) -> None:
    files = {
        "net.py": "from pipeline.models import SmallCNN as build",
        "pipeline/__init__.py": "",
        "pipeline/models.py": "raise SystemError",
    }
    file = write(tmp_path, files)
    assert isinstance(models.build(model(file), 3, 8).module, models.SmallCNN)
    assert files_of(file) == {"net.py"}


@pytest.mark.parametrize("name", ["my net-2.py", "net.v1.py", "123.py", "größe.py"])
def test_files_and_folders_may_have_any_name(tmp_path: Path, name: str) -> None:
    write(
        tmp_path / "a folder (1).zip",
        {
            "net.py": f"from blocks import Block\n{BUILD}",
            "blocks.py": f"from .layers import x\n{BLOCK}",
            "layers.py": "x = 1",
        },
    )
    file = (tmp_path / "a folder (1).zip" / "net.py").rename(tmp_path / "a folder (1).zip" / name)
    assert answer_of(file) == 1.0
    assert files_of(file) == {name, "blocks.py", "layers.py"}


def test_a_neighbour_may_import_the_network(tmp_path: Path) -> None:
    files = {
        "net.py": f"WIDTH = 4\nfrom blocks import Block\n{BUILD}",
        "blocks.py": f"from net import WIDTH\nassert WIDTH == 4\n{BLOCK}",
    }
    assert answer_of(write(tmp_path, files)) == 1.0


def test_each_build_has_modules_of_its_own(tmp_path: Path) -> None:
    net = (
        "from blocks import SHARED\n"
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    return nn.Sequential(SHARED)"
    )
    file = write(tmp_path, {"net.py": net, "blocks.py": f"{BLOCK}\nSHARED = Block(3)"})
    one, two = (models.build(model(file), 3, 8).module for _ in range(2))
    # A layer that one training has changed is no start for the next.
    assert one[0] is not two[0] and type(one[0]) is not type(two[0])  # type: ignore[index]
    own = [name for name in sys.modules if name.startswith("own_network_")]
    assert len([name for name in own if name.endswith(".blocks")]) >= 2
    del one, two
    gc.collect()
    models.build(model(file), 3, 8)
    assert not set(own) & set(sys.modules)


def test_a_copy_goes_on_without_its_original(tmp_path: Path) -> None:
    file = write(
        tmp_path, {"net.py": LAZY.replace("IMPORT", "from blocks import Block"), "blocks.py": BLOCK}
    )
    copied = copy.deepcopy(models.build(model(file), 3, 8).module)
    gc.collect()
    models.build(model(file), 3, 8)
    assert answer(copied) == 1.0


def test_export_and_dataclasses_work_with_neighbours(tmp_path: Path) -> None:
    blocks = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        f"{BLOCK}\n"
        "@dataclass\n"
        "class Width:\n"
        "    channels: int = 4\n"
    )
    file = write(
        tmp_path,
        {
            "net.py": LAZY.replace("IMPORT", "from blocks import Block, Width; Width()"),
            "blocks.py": blocks,
        },
    )
    module = models.build(model(file), 3, 8).module.eval()
    with torch.no_grad():
        exported = torch.export.export(module, (torch.zeros(2, 3, 8, 8),)).module()
    assert answer(exported) == answer(module) == 1.0


@pytest.mark.parametrize(
    "statement", ["from blocks import Block", "import blocks; Block = blocks.Block"]
)
def test_a_compiled_network_finds_its_own_neighbours(
    tmp_path: Path, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "elsewhere", {"blocks.py": f"{BLOCK}\nBlock.V = VALUE\n"}, 7.0)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    net = LAZY.replace("IMPORT", statement).replace(
        "Block(len(self.classes))(images)", "images.new_zeros(2, 3) + Block.V"
    )
    file = write(
        tmp_path / "here", {"net.py": net, "blocks.py": f"{BLOCK}\nBlock.V = VALUE\n"}, 2.0
    )
    module = models.build(model(file), 3, 8).module
    assert answer(torch.compile(module, backend="eager")) == 2.0  # type: ignore[arg-type]


def test_what_is_edited_is_loaded_anew_at_once(tmp_path: Path) -> None:
    file = write(
        tmp_path, {"net.py": f"from blocks import Block\n{BUILD}", "blocks.py": BLOCK}, 1.0
    )
    assert answer_of(file) == 1.0
    # Of the same length within the same second: a kept .pyc would pass for it.
    write(tmp_path, {"blocks.py": BLOCK}, 2.0)
    assert answer_of(file) == 2.0
    assert not list(tmp_path.rglob("*.pyc"))


def hash_of(file: Path, release: str = "") -> str:
    return config_hash(Configuration(model=model(file)), models.origin(model(file), 3, 8), release)


@pytest.mark.parametrize("form", ["from", "package passes on", "project"])
@pytest.mark.parametrize("when", ["at once", "in forward"])
def test_an_edited_neighbour_is_another_configuration(tmp_path: Path, form: str, when: str) -> None:
    statement, neighbours = FORMS[form]
    net = f"{statement}\n{BUILD}" if when == "at once" else LAZY.replace("IMPORT", statement)
    files = {"net.py": net, **neighbours, "other.py": "x = 1"}
    file = write(tmp_path / "nets", files)
    before = hash_of(file)
    assert before == hash_of(file) == hash_of(write(tmp_path / "moved" / "nets", files))
    (tmp_path / "nets" / "other.py").write_text("x = 2")
    assert hash_of(file) == before
    for name in neighbours:
        text = (tmp_path / "nets" / name).read_text()
        (tmp_path / "nets" / name).write_text(f"{text}# edited\n")
        assert hash_of(file) != before
        (tmp_path / "nets" / name).write_text(text)
        assert hash_of(file) == before
    assert hash_of(file, FIRST_RELEASE) == config_hash(
        Configuration(model=model(file)), models.origin(model(file))
    )


def test_a_neighbour_that_appears_is_another_configuration(tmp_path: Path) -> None:
    otherwise = (
        "from torch import nn\n    Block = lambda n: nn.Sequential(nn.Flatten(), nn.Linear(192, n))"
    )
    net = f"try:\n    from blocks import Block\nexcept ImportError:\n    {otherwise}\n{BUILD}"
    file = write(tmp_path, {"net.py": net})
    before = hash_of(file)
    assert files_of(file) == {"net.py"}
    write(tmp_path, {"blocks.py": BLOCK})
    assert hash_of(file) != before
    assert files_of(file) == {"net.py", "blocks.py"}


def test_a_network_without_neighbours_keeps_its_hash(tmp_path: Path) -> None:
    file = write(tmp_path, {"net.py": BLOCK + BUILD, "blocks.py": BLOCK})
    assert (
        models.origin(model(file), 3, 8)
        == models.origin(model(file))
        == {"name": f"file:{sha256sum(file)[:16]}:build", "weights": "none"}
    )


def test_a_search_that_fails_leaves_the_hash_of_what_was_found(tmp_path: Path) -> None:
    file = write(tmp_path, {"net.py": "from blocks import Missing", "blocks.py": BLOCK})
    assert files_of(file) == {"net.py", "blocks.py"}
    with pytest.raises(
        UserError, match=r"line 1: ImportError: cannot import name 'Missing' from 'blocks' "
    ):
        models.check(model(file), 3, 8)


def test_the_generator_of_weights_is_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path, {"net.py": f"from blocks import Block\n{BUILD}", "blocks.py": BLOCK})
    torch.manual_seed(0)
    state = torch.get_rng_state()
    models.origin(model(file), 3, 8)
    assert torch.equal(torch.get_rng_state(), state)


def source_sha256(folder: Path) -> str:
    return sha256_over(
        {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
    )


def sha256sum(file: Path) -> str:
    return subprocess.run(
        ["sha256sum", file], capture_output=True, text=True, check=True
    ).stdout.split()[0]


def test_the_hash_of_a_folder_is_what_sha256sum_prints(tmp_path: Path) -> None:
    file = write(tmp_path / "one", {"net.py": BLOCK})
    assert source_sha256(tmp_path / "one") == sha256sum(file)
    write(tmp_path / "two", {"net.py": BLOCK, "layers/conv 2.py": BLOCK, "blocks.py": ""})
    command = "find . -type f -printf '%P\\0' | xargs -0 sha256sum | LC_ALL=C sort | sha256sum"
    printed = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path / "two", capture_output=True, text=True, check=True
    ).stdout
    assert source_sha256(tmp_path / "two") == printed.split()[0]
    name = models.origin(
        model(
            write(
                tmp_path / "three",
                {"net.py": f"from blocks import Block\n{BUILD}", "blocks.py": BLOCK},
            )
        ),
        3,
        8,
    )["name"]
    assert name == f"file:{source_sha256(tmp_path / 'three')[:16]}:build"


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("x = 1\nraise KeyError('width')", r"fails, line 2 of blocks\.py: KeyError: 'width'"),
        ("def f(:", r"fails.*: SyntaxError: .*\(blocks\.py, line 1\)"),
        (
            "import layers.missing",
            r"fails, line 1 of blocks\.py: ModuleNotFoundError: No module named 'layers\.missing'",
        ),
        (
            "import sys\nsys.exit('usage: net.py')",
            r"fails, line 2 of blocks\.py: SystemExit: usage: net\.py",
        ),
    ],
)
def test_a_mistake_in_a_neighbour_is_told_with_its_place(
    tmp_path: Path, blocks: str, expected: str
) -> None:
    file = write(
        tmp_path,
        {"net.py": f"import blocks\n{BUILD}", "blocks.py": blocks, "layers/__init__.py": ""},
    )
    with pytest.raises(UserError, match=expected) as caught:
        models.check(model(file), 3, 8)
    assert "own_network_" not in caught.value.message


@pytest.mark.parametrize(
    "wrong", ["{}['width']", "images.width", "[][0]", "1 / 0", "nn.Linear(3, 3)(images.missing)"]
)
def test_a_mistake_while_computing_is_told_with_its_place(tmp_path: Path, wrong: str) -> None:
    blocks = BLOCK.replace("return self.fc", f"{wrong}\n        return self.fc")
    file = write(tmp_path, {"net.py": f"from blocks import Block\n{BUILD}", "blocks.py": blocks})
    with pytest.raises(
        UserError,
        match=r"cannot take images of data\.image_size 8: \w+Error: .*, line 11 of blocks\.py",
    ):
        models.check(model(file), 3, 8)


def test_what_has_changed_since_it_was_checked_is_not_kept_as_what_was(tmp_path: Path) -> None:
    file = write(tmp_path, {"net.py": f"from blocks import Block\n{BUILD}", "blocks.py": BLOCK})
    origin = models.origin(model(file), 3, 8)
    write(tmp_path, {"blocks.py": BLOCK}, 2.0)
    with pytest.raises(
        UserError, match=r"was file:.* when it was checked, and is file:.* now; start again"
    ):
        models.source_files(model(file), origin, 3, 8)


def test_only_ones_own_network_has_source_files() -> None:
    assert models.source_files(Model(name="resnet18"), {"name": "resnet18"}, 3, 8) == {}


def test_the_params_of_another_scripts_run_run_no_code(
    workspace: Workspace, tmp_path: Path
) -> None:
    file = write(
        tmp_path,
        {"net.py": f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n{BUILD}"},
    )
    run = workspace.client.create_run(workspace.experiment_id)
    for name, value in (("model.name", f"file:{file}:build"), ("data.image_size", "8")):
        workspace.client.log_param(run.info.run_id, name, value)
    assert find_runs.to_row(workspace.client.get_run(run.info.run_id))["config_hash"] == ""
    assert not (tmp_path / "ran").exists()


def test_the_code_of_a_folder_that_is_a_package_is_run_once_to_find_its_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "__init__.py").touch()
    (tmp_path / "net.py").write_text(
        "from pathlib import Path\n"
        "from pipeline.models import SmallCNN\n"
        "def build(num_classes):\n"
        "    with Path(__file__).with_name('runs').open('a') as runs:\n"
        "        runs.write('x')\n"
        "    return SmallCNN(num_classes)\n"
    )
    for _ in range(3):
        find_sources(f"file:{tmp_path}/net.py:build", 3, 32)
    assert (tmp_path / "runs").read_text() == "x"
