"""State dicts from the files that people have: read, unwrapped, refused, loaded."""

from __future__ import annotations

import argparse
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pipeline import models
from pipeline.config import Model
from pipeline.errors import UserError
from pipeline.models.state_dicts import load_state, read_state
from pipeline.training.checkpoint import save_weights, weights_of
from tests.conftest import Cli
from tests.models.test_network import SMALL, equal


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_weights_file_is_loaded(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    state = models.SmallCNN(4).state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file)
    torch.manual_seed(2)
    network = models.build(Model(name="small_cnn", weights=f"file:{file}"), 4, 32)
    assert equal(network.module.state_dict(), state)
    models.check(Model(name="small_cnn", weights=f"file:{file}"), 4, 32)


def test_a_state_dict_inside_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    state = models.SmallCNN(4).state_dict()
    torch.save({"state_dict": state}, tmp_path / "checkpoint.pt")
    network = models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/checkpoint.pt"), 4, 32)
    assert equal(network.module.state_dict(), state)


def test_load_false_leaves_the_weights_file_alone(tmp_path: Path) -> None:
    network = models.build(
        Model(name="small_cnn", weights=f"file:{tmp_path}/gone.pt"), 4, 32, load=False
    )
    assert network.module(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize("name", [*SMALL, "regnet_y_400mf"])
def test_saved_weights_are_loaded_back(tmp_path: Path, name: str) -> None:
    trained = models.build(Model(name=name), 3, 64).module
    save_weights(weights_of(trained), tmp_path / "best.safetensors")
    again = models.build(Model(name=name), 3, 64, load=False).module
    load_state(again, tmp_path / "best.safetensors", name)
    assert equal(again.state_dict(), trained.state_dict())


@pytest.mark.parametrize(
    "act",
    [lambda model: models.check(model, 4, 32), lambda model: models.build(model, 4, 32)],
    ids=["check", "build"],
)
def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path, act: object) -> None:
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(
        UserError, match=r"of another architecture than resnet18: \d+ tensors differ"
    ) as caught:
        act(Model(name="resnet18", weights=f"file:{tmp_path}/weights.pt"))  # type: ignore[operator]
    assert caught.value.findings[0] == "missing: bn1.weight"
    assert re.fullmatch(r"and \d+ more", caught.value.findings[-1])


@pytest.mark.parametrize(
    "act",
    [lambda model: models.check(model, 4, 32), lambda model: models.build(model, 4, 32)],
    ids=["check", "build"],
)
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (
            "conv2.weight",
            (32, 16, 5, 5),
            "conv2.weight: (32, 16, 5, 5) in the file, (32, 16, 3, 3) in small_cnn",
        ),
        ("fc.weight", (4, 99), "fc.weight: (4, 99) in the file, (4, 256) in small_cnn"),
        ("conv2.weight", None, "missing: conv2.weight"),
        ("fc.bias", None, "missing: fc.bias"),
        ("conv9.weight", (1,), "not in small_cnn: conv9.weight"),
    ],
)
def test_any_other_difference_is_refused_by_name_and_shape(
    tmp_path: Path, act: object, name: str, shape: tuple[int, ...] | None, expected: str
) -> None:
    state = models.SmallCNN(4).state_dict()
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(
        UserError, match=r"weights\.pt' is of another architecture than small_cnn: 1 tensor differs"
    ) as caught:
        model = Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pt")
        act(model)  # type: ignore[operator]
    assert caught.value.findings == [expected]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", SMALL)
def test_a_head_for_another_number_of_classes_is_replaced_and_said(
    tmp_path: Path, name: str, dropout: float
) -> None:
    trained = models.build(Model(name=name), 7, 64)
    save_weights(weights_of(trained.module), tmp_path / "best.safetensors")
    model = Model(name=name, weights=f"file:{tmp_path}/best.safetensors", dropout=dropout)
    network = models.build(model, 4, 64)
    assert (
        network.notes[0]
        == f"its head ({network.head}) is for 7 classes; a new random one for 4 is trained"
    )
    assert models.check(model, 4, 64) == network.notes
    loaded, state = network.module.state_dict(), trained.module.state_dict()
    backbone = [key for key in state if not key.startswith(f"{network.head}.")]
    assert backbone and all(torch.equal(loaded[key], state[key]) for key in backbone)
    assert network.module.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 4)


def test_a_missing_head_is_replaced_and_said(tmp_path: Path) -> None:
    state = {
        key: value
        for key, value in models.SmallCNN(4).state_dict().items()
        if not key.startswith("fc.")
    }
    torch.save(state, tmp_path / "weights.pt")
    network = models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pt"), 4, 32)
    assert network.notes[0] == "it has no head (fc); a new random one is trained"
    assert all(torch.equal(network.module.state_dict()[key], value) for key, value in state.items())


def test_a_head_of_the_same_shape_is_loaded_and_nothing_said_of_it(tmp_path: Path) -> None:
    torch.save(models.SmallCNN(4).state_dict(), tmp_path / "weights.pt")
    assert models.check(Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pt"), 4, 32) == (
        (
            "images are normalised by mean and standard deviation of the training images: no "
            "preprocessing.json stands with the weights"
        ),
    )


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvisions_published_files_are_loaded_by_path(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    state = torchvision.models.get_model(name).state_dict()
    # The published files are older than the count of batches, and than the network's names of
    # DenseNet's layers.
    torch.save(without_counts(state), tmp_path / "weights.pth")
    network = models.build(Model(name=name, weights=f"file:{tmp_path}/weights.pth"), 3, 64)
    loaded = network.module.state_dict()
    assert all(
        torch.equal(loaded[key], value)
        for key, value in state.items()
        if not key.startswith(f"{network.head}.")
    )


def without_counts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict under the names of torchvision's published files."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
        for key, value in state.items()
        if "tracked" not in key
    }


class Pickled:
    """What must not be unpickled: it would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Pickled()))
    with pytest.raises(UserError, match="is no state dict or safetensors file"):
        read_state(tmp_path / "weights.pt")


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(models.SmallCNN(4), tmp_path / "network.pt")
    with pytest.raises(UserError, match="is no state dict or safetensors file"):
        models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/network.pt"), 4, 32)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights", b"\x00" * 100], ids=["empty", "text", "zeros"]
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is no state dict or safetensors file"):
        read_state(tmp_path / name)


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"epoch": 3, "weight": torch.zeros(2)}, torch.zeros(2)]
)
def test_tensors_that_are_no_state_dict_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state(tmp_path / "weights.pt")


def small(seed: int = 1) -> models.SmallCNN:
    torch.manual_seed(seed)
    return models.SmallCNN(4)


def state_of(prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in small().state_dict().items()}


def with_compiled_part() -> dict[str, Any]:
    module = small()
    module.conv2 = torch.compile(module.conv2)  # type: ignore[assignment]
    return dict(module.state_dict())


REFERENCE = {
    "optimizer": {"state": {}, "param_groups": []},
    "epoch": 3,
    "args": argparse.Namespace(lr=0.1, model="small_cnn"),
    "scaler": {},
}
WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "DataParallel": (
        lambda: nn.DataParallel(small()).state_dict(),
        "the prefix module. is left out of its names",
    ),
    "compiled": (
        lambda: torch.compile(small()).state_dict(),
        "_orig_mod. is left out of its names",
    ),  # type: ignore[attr-defined]
    "compiled part": (with_compiled_part, "_orig_mod. is left out of its names"),
    "compiled, then parallel": (
        lambda: state_of("module._orig_mod."),
        "the prefix module. is left out of its names",
    ),
    "parallel, then compiled": (
        lambda: state_of("_orig_mod.module."),
        "the prefix module. is left out of its names",
    ),
    "parallel twice": (
        lambda: state_of("module.module."),
        "the prefix module. is left out of its names",
    ),
    "averaged": (
        lambda: AveragedModel(small()).state_dict(),
        "the prefix module. is left out of its names",
    ),
    **{
        key: (
            lambda key=key: {key: state_of(), "epoch": 3},
            f"those under '{key}' in the file are taken",
        )  # type: ignore[misc]
        for key in ("state_dict", "model", "model_state_dict", "net", "network")
    },
    **{
        key: (
            lambda key=key: {key: state_of()},
            f"those under '{key}', an average over training steps, in the file are taken",
        )  # type: ignore[misc]
        for key in ("model_ema", "state_dict_ema", "ema_model", "ema_state_dict", "ema")
    },
    "twice": (
        lambda: {"state_dict": {"model": state_of(), "step": 3}},
        "those under 'state_dict' in the file are taken",
    ),
    "torchvision's reference": (
        lambda: {"model": state_of("module."), **REFERENCE},
        "those under 'model' in the file are taken",
    ),
    "Lightning": (
        lambda: {"state_dict": state_of("model."), "hyper_parameters": {"lr": 0.1}},
        "the prefix model. is left out of its names",
    ),
    "scores": (
        lambda: {"model": state_of(), "best": np.float64(0.9), "epochs": np.int64(3)},
        "those under 'model' in the file are taken",
    ),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_what_training_scripts_save_is_loaded_and_said(tmp_path: Path, form: str) -> None:
    content, note = WRAPPED[form]
    torch.save(content(), tmp_path / "weights.pth")
    model = Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pth")
    network = models.build(model, 4, 32)
    assert equal(network.module.state_dict(), state_of())
    assert note in network.notes
    assert models.check(model, 4, 32) == network.notes


def test_of_an_average_and_the_last_weights_the_average_is_taken(tmp_path: Path) -> None:
    average = AveragedModel(small(2))
    torch.save(
        {"model": state_of(), "model_ema": average.state_dict(), **REFERENCE},
        tmp_path / "weights.pth",
    )
    network = models.build(Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pth"), 4, 32)
    assert equal(network.module.state_dict(), dict(small(2).state_dict()))
    expected = (
        "those under 'model_ema', an average over training steps, in the file are taken rather "
        "than those under 'model'"
    )
    assert network.notes[0] == expected


@pytest.mark.parametrize(
    "beside",
    [{"ema": {"decay": 0.99}}, {"model": {"name": "small_cnn"}}, {"model_ema": None}, {"net": {}}],
)
def test_settings_under_such_a_key_are_no_weights(tmp_path: Path, beside: dict[str, Any]) -> None:
    torch.save({"state_dict": state_of(), **beside}, tmp_path / "weights.pth")
    assert read_state(tmp_path / "weights.pth").notes == [
        "those under 'state_dict' in the file are taken"
    ]


WITH_MODULE = """
from pipeline.models import SmallCNN
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.module = SmallCNN(num_classes)

    def forward(self, images):
        return self.module(images)
"""
WITH_MASK = """
import torch
from pipeline.models import SmallCNN

class Net(SmallCNN):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("mask", torch.full((2,), -torch.inf))
"""


def test_a_name_of_the_networks_own_is_no_wrapper(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(WITH_MODULE)
    for prefix, notes in (("module.", 1), ("module.module.", 2)):
        torch.save(state_of(prefix), tmp_path / "weights.pth")
        network = models.build(
            Model(name=f"file:{tmp_path}/net.py:Net", weights=f"file:{tmp_path}/weights.pth"), 4, 32
        )
        assert equal(network.module.state_dict(), state_of("module."))
        assert len(network.notes) == notes


def changed(key: str, value: Any) -> dict[Any, Any]:
    return {**state_of(), key: value}


CONV = torch.zeros(32, 16, 3, 3)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "integer keys": (
        lambda: dict(enumerate(state_of().values())),
        "holds no state dict: the key 0 is no name",
    ),
    "meta": (
        lambda: changed("conv2.weight", CONV.to("meta")),
        r"'conv2\.weight' has a shape but no values \(device meta\)",
    ),
    "all meta": (
        lambda: dict(small().to("meta").state_dict()),
        r"'conv1\.weight' has a shape but no values \(device meta\)",
    ),
    "sparse": (
        lambda: changed("fc.weight", torch.eye(4, 256).to_sparse()),
        r"'fc\.weight' is a sparse tensor; dense ones are needed",
    ),
    "sparse rows": (
        lambda: changed("fc.weight", torch.eye(4, 256).to_sparse_csr()),
        r"'fc\.weight' is a sparse tensor; dense ones are needed",
    ),
    "quantized": (
        lambda: changed(
            "fc.weight", torch.quantize_per_tensor(torch.rand(4, 256), 0.1, 0, torch.qint8)
        ),
        r"'fc\.weight' is a quantized tensor; dense ones are needed",
    ),
    "nested": (
        lambda: changed("fc.weight", torch.nested.nested_tensor([CONV[0], CONV[1]])),
        r"'fc\.weight' is a nested tensor",
    ),
    "not a number": (
        lambda: changed("conv2.weight", CONV / 0),
        r"weights\.pth' cannot be used: conv2\.weight holds NaN",
    ),
    "infinite": (
        lambda: changed("fc.bias", torch.tensor([0.0, 1.0, float("inf"), 1.0])),
        r"cannot be used: fc\.bias holds infinite values",
    ),
    "no tensor": (
        lambda: changed("fc.bias", [0.0] * 4),
        r"holds no state dict: 'fc\.bias' is a list, no tensor",
    ),
    "nothing": (dict, "holds no state dict: it is empty"),
    "too deep": (
        lambda: {"model": {"model": {"model": state_of()}}},
        "holds no state dict: 'model' is a dict, no tensor",
    ),
    "network": (
        small,
        (
            r"it holds a Python object \(pipeline\.models\.builtin_models\.SmallCNN\), which "
            r"could run code; save network\.state_dict\(\) alone"
        ),
    ),
    "object": (
        lambda: {"model": state_of(), "path": Path("x")},
        r"it holds a Python object \(pathlib.*PosixPath\), which could run code",
    ),
    "TorchScript": (
        lambda: torch.jit.script(nn.Linear(2, 2)),
        r"it is a TorchScript archive; save network\.state_dict\(\) instead",
    ),
    "exported": (
        lambda: torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)),
        "is no state dict or safetensors file: ",
    ),
}


def save(content: Any, file: Path) -> None:
    if isinstance(content, torch.jit.ScriptModule):
        content.save(str(file))
    elif isinstance(content, torch.export.ExportedProgram):
        with file.open("wb") as opened:
            torch.export.save(content, opened)
    else:
        torch.save(content, file)


@pytest.mark.parametrize("act", [models.check, models.build])
@pytest.mark.parametrize("form", WRONG)
def test_what_cannot_be_used_is_refused_in_one_line_without_advice_to_run_code(
    tmp_path: Path, form: str, act: Callable[..., object], recwarn: pytest.WarningsRecorder
) -> None:
    content, expected = WRONG[form]
    save(content(), tmp_path / "weights.pth")
    recwarn.clear()
    with pytest.raises(UserError, match=expected) as caught:
        act(Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pth"), 4, 32)
    assert str(caught.value).startswith("model.weights: ") and "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert not [
        warning
        for warning in recwarn
        if "weights" in str(warning.message) or "TorchScript" in str(warning.message)
    ]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "fc.weight",
            torch.zeros(4, 256, dtype=torch.int8),
            "fc.weight: torch.int8 in the file, torch.float32 in small_cnn",
        ),
        (
            "fc.weight",
            torch.zeros(4, 256, dtype=torch.complex64),
            "fc.weight: torch.complex64 in the file, torch.float32 in small_cnn",
        ),
        ("fc.bias", torch.zeros(()), "fc.bias: () in the file, (4,) in small_cnn"),
    ],
)
def test_numbers_of_another_kind_are_a_difference(
    tmp_path: Path, key: str, value: torch.Tensor, expected: str
) -> None:
    torch.save(changed(key, value), tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match="is of another architecture than small_cnn: 1 tensor differs"
    ) as caught:
        models.check(Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pth"), 4, 32)
    assert caught.value.findings == [expected]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(tmp_path: Path, kind: torch.dtype) -> None:
    torch.save({key: value.to(kind) for key, value in state_of().items()}, tmp_path / "weights.pth")
    loaded = models.build(
        Model(name="small_cnn", weights=f"file:{tmp_path}/weights.pth"), 4, 32
    ).module.state_dict()
    assert all(
        value.dtype == torch.float32 and torch.allclose(value, state_of()[key], atol=0.01)
        for key, value in loaded.items()
    )


def test_a_mask_of_infinities_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(WITH_MASK)
    torch.save(changed("mask", torch.full((2,), -torch.inf)), tmp_path / "weights.pth")
    model = Model(name=f"file:{tmp_path}/net.py:Net", weights=f"file:{tmp_path}/weights.pth")
    models.check(model, 4, 32)
    assert torch.equal(
        models.build(model, 4, 32).module.state_dict()["mask"], torch.full((2,), -torch.inf)
    )


@pytest.mark.parametrize("form", ["not a number", "network", "integer keys", "sparse"])
def test_a_step_ends_with_one_line(cli: Cli, quick: Path, tmp_path: Path, form: str) -> None:
    content, expected = WRONG[form]
    save(content(), tmp_path / "weights.pth")
    done = cli("train", "--config", quick, "--model.weights", f"file:{tmp_path}/weights.pth")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1
    assert re.search(expected, done.err)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_file_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    torch.save(state_of(), buffer, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(buffer.getvalue())
    # Of the head of the file, where names and shapes stand; damaged numbers look like others.
    for place in data.draw(st.lists(st.integers(0, 600), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("damaged") / "weights.pth"
    file.write_bytes(content)
    try:
        models.build(Model(name="small_cnn", weights=f"file:{file}"), 4, 32)
    except UserError as error:
        # It may be sound all the same.
        assert "\n" not in error.message and "weights_only" not in error.message
