"""Pictures of any shape in a square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Data
from pipeline.data.decode import Decoding
from pipeline.data.prepare_data import prepare
from pipeline.data.transforms import Preprocessing


def marked(width: int, height: int) -> Image.Image:
    """Return a grey picture with red at its beginning and blue at its end."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    along = pixels if height > width else pixels.transpose(1, 0, 2)
    part = len(along) // 10
    along[:part], along[-part:] = (255, 0, 0), (0, 0, 255)
    return Image.fromarray(pixels)


def has(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels.transpose(1, 2, 0).astype(int) - colour).max(axis=2) < 30).any())


@pytest.mark.parametrize("size", [(64, 640), (640, 64), (65, 640), (100, 100), (5, 5000), (1, 300)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
def test_a_padded_picture_is_whole_in_the_middle_of_its_background(
    size: tuple[int, int], interpolation: str
) -> None:
    pixels = Decoding(64, interpolation, "lime", fit="pad").resize(marked(*size))
    assert pixels.shape == (3, 64, 64) and pixels.dtype == np.uint8
    # A side of one pixel at least, whose ends interpolation may mix.
    if min(size) > 1:
        assert has(pixels, (255, 0, 0)) and has(pixels, (0, 0, 255))
    background = (pixels == np.array([0, 255, 0])[:, None, None]).all(axis=0)
    inner = max(1, round(64 * size[0] / max(size))) * max(1, round(64 * size[1] / max(size)))
    assert (~background).sum() == inner
    rows, columns = np.nonzero(~background)
    assert (
        abs(rows.min() - (63 - rows.max())) <= 1 and abs(columns.min() - (63 - columns.max())) <= 1
    )


@pytest.mark.parametrize("size", [(64, 640), (640, 64), (5, 5000)])
def test_a_stretched_picture_fills_the_square(size: tuple[int, int]) -> None:
    pixels = Decoding(64, fit="stretch").resize(marked(*size))
    assert pixels.shape == (3, 64, 64) and has(pixels, (255, 0, 0)) and has(pixels, (0, 0, 255))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_what_is_predicted_sees_what_was_trained_on(tmp_path: Path, fit: Any) -> None:
    for label in ("cat", "dog"):
        folder = tmp_path / "strips" / label
        folder.mkdir(parents=True)
        for number in range(4):
            marked(30 + number, 200).save(folder / f"{number}.png")
    data = Data(
        source=f"folder:{tmp_path / 'strips'}",
        duplicates="ignore",
        image_size=160,
        fit=fit,
        background="navy",
    )
    prepared = prepare(data, tmp_path / "prepared")
    preprocessing = Preprocessing.of(data, prepared.normalisation())
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    seen = preprocessing.pixels(tmp_path / "strips" / prepared.manifest["path"][0])
    stored = prepared.images[0]
    top, left = ((side - 160) // 2 for side in stored.shape[1:])
    assert np.array_equal(seen, stored[:, top : top + 160, left : left + 160])
    assert has(seen, (255, 0, 0)) == has(seen, (0, 0, 255)) == (fit != "crop")


@pytest.mark.parametrize(
    ("fit", "store_size", "stored"),
    [("crop", 0, 256), ("pad", 0, 224), ("stretch", 0, 224), ("pad", 224, 224), ("crop", 300, 300)],
)
def test_what_is_kept_whole_is_stored_as_it_is_seen(fit: Any, store_size: int, stored: int) -> None:
    assert Data(image_size=224, fit=fit, store_size=store_size).stored_size == stored


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_what_is_kept_whole_is_not_stored_larger_since_its_middle_would_be_shown(fit: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"store_size must be 0 or image_size \(224\) with fit {fit}, got 300"
    ):
        Data(image_size=224, fit=fit, store_size=300)


def test_it_is_warned_of_long_pictures_that_the_crop_cuts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, long in (("long", 20), ("some", 3), ("few", 2), ("none", 0)):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(20):
            size = (20, 41) if number < long else (20, 40)
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
                folder / f"{number}.png"
            )
    data = Data(source=f"folder:{tmp_path / 'photos'}", duplicates="ignore", image_size=16)

    def warnings(data: Data) -> list[str]:
        reports: list[dict[str, Any]] = []
        prepare(data, tmp_path / "prepared", on_report=lambda report, _: reports.append(report))
        return [line for line in reports[0]["warnings"] if "twice as long" in line]

    (line,) = warnings(data)
    assert "'long' 100%, 'some' 15%;" in line and "few" not in line and "data.fit pad" in line
    assert warnings(data.model_copy(update={"fit": "pad"})) == []
