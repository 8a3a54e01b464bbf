"""Fuzzing of all that strangers hand over.

Whatever it is, it is used, or refused in one line, within time and memory.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st
from PIL import Image

from pipeline import models
from pipeline.config import Data, Model
from pipeline.data.decode import UNREADABLE, Decoding
from pipeline.data.sources.csv_file import open_csv
from pipeline.data.sources.npz_file import open_npz
from pipeline.errors import UserError
from pipeline.experiment import load_experiment
from pipeline.models.state_dicts import read_state
from pipeline.steps.options import parse_options
from pipeline.steps.train import TrainOptions
from pipeline.training.exported_model import load_exported, save_exported
from tests.data import profiles
from tests.fuzz.inputs import changed, fuzz
from tests.model_server import encoded

pytestmark = [pytest.mark.timeout(4000), pytest.mark.slow]


def one_line(error: UserError) -> None:
    shown = str(UserError(error.message))
    assert len(shown.splitlines()) == 1 and len(shown) < 5000, shown


def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    grey = Image.fromarray(rng.integers(0, 60_000, (12, 9)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = profiles.grey_profile(1.8)
    found = [
        encoded(kind, rgb) for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF")
    ]
    found += [
        encoded("JPEG", rgb, progressive=True, exif=exif),
        encoded("JPEG", rgb.convert("CMYK")),
        encoded("MPO", rgb, save_all=True),
    ]
    found += [
        encoded("PNG", grey),
        encoded("TIFF", grey),
        encoded("TIFF", Image.fromarray(np.float32(rng.random((9, 12))))),
    ]
    found += [
        encoded("TIFF", rgb, compression=kind)
        for kind in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
    ]
    found += [
        encoded("PNG", rgb.convert("L"), icc_profile=profile, exif=exif),
        encoded("PNG", rgb.convert("P"), transparency=3),
    ]
    found += [
        encoded("PNG", rgb.convert("RGBA")),
        b"P2 3 2 255\n1 2 3\n4 5 6\n",
        b"P5 2 2 65535\n" + bytes(range(8)),
    ]
    rle = (
        b"BM"
        + (1078 + 40).to_bytes(4, "little")
        + bytes(4)
        + (1078).to_bytes(4, "little")
        + (40).to_bytes(4, "little")
    )
    rle += (
        (16).to_bytes(4, "little") * 2
        + b"\1\0\x08\0"
        + (1).to_bytes(4, "little")
        + bytes(12)
        + (256).to_bytes(4, "little")
        + bytes(4 + 1024)
    )
    return [*found, rle + b"\5\1\0\0\0\2\3\3\6\2\0\1" + bytes(28)]


def test_decoding() -> None:
    def check(content: bytes) -> None:
        for decoding in (
            Decoding(16),
            Decoding(16, white="auto", fit="pad"),
            Decoding(16, white=4095, fit="stretch", version=1),
        ):
            try:
                image = decoding.decode(content).image
            except UNREADABLE:
                continue
            assert image.mode == "RGB" and image.width * image.height <= decoding.max_pixels
            assert decoding.resize(image).nbytes <= 3 * 16 * 48

    assert (
        fuzz(
            "decode",
            changed(pictures(), [b"IHDR", b"eXIf", b"\xff\xda", b"\xff\xe1", b"II*\0", b"acTL"]),
            check,
        )
        > 40
    )


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    words = [
        b'"',
        b";",
        b"\t",
        b"\r\n",
        b"sep=;\n",
        b"\\",
        b"..",
        b"/",
        b"image",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        "é".encode(),
    ]
    samples = [
        b"image,label\na.png,cat\nb.png,dog\n",
        "image;label;split\r\na;cat;train\r\n".encode("utf-16"),
        b"image\tlabel\n./a\tcat\n",
    ]
    data = Data(source=f"csv:{tmp_path / 'table.csv'}")

    def check(content: bytes) -> None:
        (tmp_path / "table.csv").write_bytes(content)
        try:
            source = open_csv(str(tmp_path / "table.csv"), data)
        except UserError as error:
            one_line(error)
        else:
            assert all(
                not item.path.startswith("/") and ".." not in item.path.split("/")
                for item in source.items
            )

    assert fuzz("csv", changed(samples, words), check) > 40


def test_arrays(tmp_path: Path) -> None:
    samples = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(
            buffer, train_images=np.zeros((4, 5, 6), np.uint8), train_labels=np.array([0, 1, 0, 1])
        )
        samples.append(buffer.getvalue())
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("train_images.npy", samples[0])
        samples.append(buffer.getvalue())

    def check(content: bytes) -> None:
        (tmp_path / "x.npz").write_bytes(content)
        try:
            source = open_npz(str(tmp_path / "x.npz"))
            for item in source.items[:3]:
                source.reader.image(source.reader.read(item.path), Decoding())
        except UserError as error:
            one_line(error)

    assert (
        fuzz(
            "npz",
            changed(samples, [b"'shape': (", b"PK\1\2", b"PK\5\6", b"train_labels.npy"]),
            check,
        )
        > 40
    )


def test_weights(tmp_path: Path) -> None:
    state = {"conv.weight": torch.ones(2, 3), "head.bias": torch.zeros(4)}
    buffers = []
    for content in (
        state,
        {"model": state, "epoch": 3},
        {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    ):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        buffers.append(buffer.getvalue())
    old = io.BytesIO()
    torch.save(state, old, _use_new_zipfile_serialization=False)
    samples = [*buffers, old.getvalue(), safetensors.torch.save(state)]

    def check(content: bytes) -> None:
        for name in ("weights.pt", "weights.safetensors"):
            (tmp_path / name).write_bytes(content)
            try:
                read_state(tmp_path / name)
            except UserError as error:
                one_line(error)

    assert (
        fuzz(
            "weights",
            changed(samples, [b"cposix\nsystem\n", b"R.", b"c__builtin__\neval\n", b'"shape":[']),
            check,
        )
        > 40
    )


def test_exported_networks(tmp_path: Path) -> None:
    save_exported(models.build(Model(name="small_cnn"), 3, 16).module, 16, tmp_path / "whole.pt2")

    def check(content: bytes) -> None:
        (tmp_path / "network.pt2").write_bytes(content)
        try:
            load_exported(tmp_path / "network.pt2", "cpu")
        except UserError as error:
            one_line(error)

    assert (
        fuzz(
            "pt2",
            changed(
                [(tmp_path / "whole.pt2").read_bytes()],
                [b"PK\1\2", b'"as_int": ', b"torch.ops.aten."],
            ),
            check,
        )
        > 10
    )


def test_experiment_files(tmp_path: Path) -> None:
    samples = [
        (Path(__file__).parents[2] / "experiments" / name).read_bytes()
        for name in ("smoke.yaml", "digits.yaml")
    ]
    words = [
        b"&a ",
        b"*a",
        b"!!python/object/apply:os.system ",
        b"? ",
        b"- ",
        b"{",
        b"}",
        b"\t",
        b"1e999",
        b".nan",
        b"\n---\n",
        b"<<: ",
    ]

    def check(content: bytes) -> None:
        file = tmp_path / "experiment.yaml"
        file.write_bytes(content)
        try:
            load_experiment(str(file), {})
        except UserError as error:
            one_line(error)

    assert fuzz("yaml", changed(samples, words), check) > 40


def test_options() -> None:
    known = [
        "--optimizer.lr",
        "--data.augment",
        "--model.name",
        "--study.trials",
        "--data.white",
        "--fast",
        "--config",
        "--training.epochs",
    ]
    values = st.one_of(
        st.sampled_from(
            [
                "1e-3",
                "[",
                "{a: 1}",
                "null",
                "true",
                "",
                "-1",
                "NaN",
                "[[1]]",
                "file:x.py:f",
                "9" * 400,
            ]
        ),
        st.text(),
    )
    words = st.one_of(st.sampled_from(known), values)
    given = st.lists(words, max_size=6).map(lambda found: json.dumps(found).encode())

    def check(content: bytes) -> None:
        try:
            parse_options(TrainOptions, json.loads(content))
        except UserError as error:
            one_line(error)

    assert fuzz("options", given, check) > 40
