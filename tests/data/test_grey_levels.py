"""Grey levels of more than 8 bits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Data
from pipeline.data import prepare_data
from pipeline.data import white_level as module
from pipeline.data.decode import UNREADABLE, Decoding
from pipeline.data.examine import Examined, examine
from pipeline.data.grey_levels import next_white
from pipeline.data.image_store import Store
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError

TWELVE_BITS = np.linspace(0, 4095, 48 * 56).round().astype(np.uint16).reshape(48, 56)


def decoded(levels: np.ndarray, white: str | int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "TIFF")
    return np.asarray(Decoding(white=white).decode(buffer.getvalue()).image)[..., 0]


@pytest.mark.parametrize(
    ("brightest", "white"),
    [
        (0, 1),
        (0.5, 1),
        (1, 1),
        (1.5, 3),
        (250, 255),
        (255, 255),
        (256, 511),
        (4095, 4095),
        (4096, 8191),
        (65535, 65535),
    ],
)
def test_the_next_white_is_the_least_of_so_many_bits(brightest: float, white: int) -> None:
    assert next_white(brightest) == white


def test_twelve_bits_in_sixteen_keep_all_greys_once_it_is_known_which_is_white() -> None:
    assert len(np.unique(decoded(TWELVE_BITS, "type"))) == 17
    assert np.array_equal(decoded(TWELVE_BITS, 4095), np.round(TWELVE_BITS / 4095 * 255))
    assert len(np.unique(decoded(TWELVE_BITS, 4095))) == 256


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_a_grey_of_thirty_two_bits_is_the_same_beside_a_brighter_one_once_white_is_known(
    kind: type,
) -> None:
    dim, bright = (np.array([[200, brightest]], kind) for brightest in (250, 400))
    assert [decoded(levels, "type")[0, 0] for levels in (dim, bright)] == [200, 1]
    assert {decoded(levels, 511)[0, 0] for levels in (dim, bright)} == {100}


def test_what_is_beyond_white_is_white() -> None:
    assert decoded(np.array([[0, 500, 1000, 3071]], np.int32), 1000).tolist() == [
        [0, 128, 255, 255]
    ]


@pytest.mark.parametrize("white", ["auto", 1023, 4095])
def test_levels_below_zero_are_refused_but_for_what_resampling_leaves(white: Any) -> None:
    for levels in (np.array([[-1024, 0, 1000]], np.int32), np.array([[-300, 0, 1000]], np.float32)):
        with pytest.raises(
            UNREADABLE, match=r"^grey levels from -\d+ to 1000; those below 0 would all be black"
        ):
            decoded(levels, white)
    assert decoded(np.array([[-200, 0, 1000]], np.float32), white)[0, :2].tolist() == [0, 0]


def test_levels_that_are_no_numbers_are_refused_whatever_is_white() -> None:
    for white in ("type", "auto", 255):
        with pytest.raises(UNREADABLE, match="not finite"):
            decoded(np.array([[0, np.nan]], np.float32), white)


def test_a_pgm_says_itself_what_is_white() -> None:
    for white in ("type", "auto", 1000):
        found = Decoding(white=white).decode(b"P5 2 1 4095\n\x0f\xff\x00\x10")
        assert np.asarray(found.image)[0, :, 0].tolist() == [255, 1] and found.levels is None


def write(root: Path, brightest: int = 4095, eight: int = 6) -> Data:
    """Write pictures of 16 bits, the brightest of them in the training split, and some of 8."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 6, "val": 2, "test": 2}.items():
        for label in ("cat", "dog"):
            folder = root / "scans" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                top = brightest if split == "train" else 3 * brightest
                levels = rng.integers(
                    0, top // (1 if (label, number) == ("cat", 0) else 2), (20, 20), endpoint=True
                ).astype(np.uint16)
                levels[0, 0] = top if (label, number) == ("cat", 0) else 0
                Image.fromarray(levels).save(folder / f"{number}.png")
            for number in range(eight if split == "train" else 0):
                Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(
                    folder / f"eight{number}.png"
                )
    return Data(source=f"folder:{root / 'scans'}", image_size=16, duplicates="ignore")


def with_white(data: Data, white: Any) -> Data:
    return Data.model_validate({**data.model_dump(), "white": white})


def pixels_of(prepared: Prepared) -> list[bytes]:
    return [prepared.images[number].tobytes() for number in range(len(prepared.manifest))]


def test_auto_is_the_number_that_the_training_images_give(tmp_path: Path) -> None:
    data = write(tmp_path)
    auto = prepare_data.prepare(with_white(data, "auto"), tmp_path / "prepared")
    assert auto.data.white == 4095
    given = prepare_data.prepare(with_white(data, 4095), tmp_path / "other")
    assert pixels_of(auto) == pixels_of(given) and auto.digest == given.digest
    assert auto.normalisation() == given.normalisation()
    by_type = prepare_data.prepare(data, tmp_path / "prepared")
    assert by_type.digest == auto.digest and by_type.normalisation() != auto.normalisation()
    assert pixels_of(
        prepare_data.prepare(with_white(data, "auto"), tmp_path / "prepared")
    ) == pixels_of(auto)


def test_only_images_of_more_than_eight_bits_are_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, root = write(tmp_path), tmp_path / "prepared"
    counts: list[int] = []

    def counted(source: Any, items: Any, recipe: Any, progress: Any) -> Examined:
        read: list[int] = []
        found = examine(source, items, recipe, lambda what, done, total: read.append(done))
        counts.append(len(read))
        return found

    monkeypatch.setattr(module, "examine", counted)
    prepare_data.prepare(with_white(data, "auto"), root)
    assert counts == [32, 20]
    counts.clear()
    # All is there, and of another white only those.
    prepare_data.prepare(with_white(data, "auto"), root)
    prepare_data.prepare(with_white(data, 1023), root)
    prepare_data.prepare(data, root)
    assert counts == [0, 0, 20, 20]
    assert len(list(root.glob("images-*"))) == 1


@pytest.mark.parametrize("first", ["type", 1023, "auto"])
def test_pixels_of_another_white_in_the_same_folder_are_not_taken(
    tmp_path: Path, first: Any
) -> None:
    data = write(tmp_path)
    prepare_data.prepare(with_white(data, first), tmp_path / "prepared")
    again = prepare_data.prepare(with_white(data, 4095), tmp_path / "prepared")
    assert pixels_of(again) == pixels_of(
        prepare_data.prepare(with_white(data, 4095), tmp_path / "fresh")
    )


@pytest.mark.parametrize("first", ["auto", 4095])
def test_auto_finds_the_copies_and_makes_the_splits_of_its_number(
    tmp_path: Path, first: Any
) -> None:
    for label, brightest in {"empty": 7, "bright": 4000}.items():
        folder = tmp_path / "scans" / label
        folder.mkdir(parents=True)
        for number in range(20):
            # Pairs that differ in one level of one pixel; of the empty ones eight bits under white
            # keep nothing.
            levels = (
                np.random.default_rng(number // 2)
                .integers(0, brightest, (70, 80), endpoint=True)
                .astype(np.uint16)
            )
            levels[0, 0] = brightest + number % 2
            Image.fromarray(levels).save(folder / f"{number:02d}.png")
    data = with_white(Data(source=f"folder:{tmp_path / 'scans'}", image_size=16), first)
    prepared = prepare_data.prepare(data, tmp_path / "prepared")
    assert prepared.data.white == 4095
    other = prepare_data.prepare(
        with_white(data, 4095 if first == "auto" else "auto"), tmp_path / "other"
    )
    assert other.digest == prepared.digest and pixels_of(other) == pixels_of(prepared)
    assert prepared.manifest["split"].tolist() == other.manifest["split"].tolist()


@pytest.mark.parametrize("bad", ["drop", "warn"])
def test_auto_where_only_images_to_validate_on_have_more_bits(tmp_path: Path, bad: Any) -> None:
    rng = np.random.default_rng(0)
    for split, kind, most in (
        ("train", np.uint8, 255),
        ("val", np.float32, 3e5),
        ("test", np.int32, 3000),
    ):
        for label in ("cat", "dog"):
            folder = tmp_path / "scans" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                levels = rng.integers(
                    -1000 if (split, number) == ("test", 0) else 0, most, (20, 20)
                ).astype(kind)
                Image.fromarray(levels).save(folder / f"{number}.tif")
    prepared = prepare_data.prepare(
        Data(source=f"folder:{tmp_path / 'scans'}", image_size=16, white="auto", bad=bad),
        tmp_path / "prepared",
    )
    assert prepared.data.white == 2**19 - 1 and prepared.counts()["cat"] == {
        "train": 4,
        "val": 4,
        "test": 3,
    }


def test_auto_without_a_store_shows_the_same_pixels(tmp_path: Path) -> None:
    data = with_white(write(tmp_path), "auto")
    stored = prepare_data.prepare(data, tmp_path / "prepared")
    unstored = prepare_data.prepare(
        data.model_copy(update={"store": "none"}), tmp_path / "prepared"
    )
    assert isinstance(stored.images, Store) and not isinstance(unstored.images, Store)
    assert unstored.data.white == 4095 and pixels_of(unstored) == pixels_of(stored)


def test_images_of_eight_bits_alone_have_no_white(tmp_path: Path) -> None:
    data = Data(source="digits", image_size=8, limit=200)
    assert prepare_data.prepare(with_white(data, "auto"), tmp_path).data.white == "type"


def test_with_folds_white_is_that_of_all_that_is_not_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        folder = tmp_path / "scans" / label
        folder.mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 1000, (16, 16)).astype(np.uint16)).save(
                folder / f"{number}.png"
            )
    data = Data(
        source=f"folder:{tmp_path / 'scans'}",
        image_size=16,
        duplicates="ignore",
        folds=3,
        white="auto",
    )
    prepared = prepare_data.prepare(data, tmp_path / "prepared")
    assert prepared.data.white == 1023 and {
        prepared.with_fold(fold).data.white for fold in range(3)
    } == {1023}


@pytest.mark.parametrize(
    ("white", "brightest", "message"),
    [
        ("type", 4095, "has the grey level 12285, and 65535 is white"),
        ("type", 21845, ""),
        (65535, 1000, "has the grey level 3000, and 65535 is white"),
        (4095, 4095, ""),
        ("auto", 255, ""),
    ],
)
def test_it_is_warned_of_where_white_is_far_above_all_levels(
    tmp_path: Path, white: Any, brightest: int, message: str
) -> None:
    reports: list[dict[str, Any]] = []
    prepare_data.prepare(
        with_white(write(tmp_path, brightest), white),
        tmp_path / "prepared",
        on_report=lambda report, _: reports.append(report),
    )
    warnings = [line for line in reports[0]["warnings"] if "is white: they are" in line]
    assert [message in line for line in warnings] == [True] * bool(message)


@pytest.mark.parametrize(
    ("white", "warnings"),
    [
        (
            4095,
            [
                (
                    "12 images (high/00.tif and others): no grey level above a 32th of 4095, "
                    "which is white: nearly black"
                )
            ],
        ),
        (
            511,
            [
                (
                    "12 images (low/00.tif and others): grey levels above 511, which is white: "
                    "all of these look the same"
                )
            ],
        ),
        (
            "auto",
            [
                (
                    "12 images (high/00.tif and others): no grey level above a 32th of 4095, "
                    "which is white: nearly black"
                )
            ],
        ),
    ],
)
def test_it_is_warned_of_pictures_that_white_leaves_nothing_of(
    tmp_path: Path, white: Any, warnings: list[str]
) -> None:
    for label, top in (("high", 100), ("low", 4000)):
        folder = tmp_path / "scans" / label
        folder.mkdir(parents=True)
        for number in range(12):
            levels = np.random.default_rng(number).integers(0, top, (16, 16)).astype(np.int32)
            levels[0, 0] = top
            Image.fromarray(levels).save(folder / f"{number:02d}.tif")
    data = with_white(
        Data(source=f"folder:{tmp_path / 'scans'}", image_size=16, duplicates="ignore"), white
    )
    reports: list[dict[str, Any]] = []
    prepare_data.prepare(
        data, tmp_path / "prepared", on_report=lambda report, _: reports.append(report)
    )
    assert [line for line in reports[0]["warnings"] if "which is white" in line] == warnings


def test_it_is_warned_of_where_thirty_two_bits_do_not_say_which_is_white(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        folder = tmp_path / "scans" / label
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(
                np.random.default_rng(number).integers(0, 250, (16, 16)).astype(np.float32)
            ).save(folder / f"{number}.tif")
    data = Data(source=f"folder:{tmp_path / 'scans'}", image_size=16, duplicates="ignore")
    for white, count in (("type", 1), ("auto", 0), (255, 0)):
        reports: list[dict[str, Any]] = []
        prepare_data.prepare(
            with_white(data, white),
            tmp_path / "prepared",
            on_report=lambda report, _, reports=reports: reports.append(report),
        )
        assert sum("do not say which is white" in line for line in reports[0]["warnings"]) == count


def test_levels_without_bounds_need_a_given_white(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        folder = tmp_path / "scans" / label
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(
                np.random.default_rng(number).random((16, 16), np.float32) * np.float32(1e20)
            ).save(folder / f"{number}.tif")
    data = Data(
        source=f"folder:{tmp_path / 'scans'}", image_size=16, duplicates="ignore", white="auto"
    )
    with pytest.raises(
        UserError, match=r"^data.white auto: the brightest image has the level .*e\+1"
    ):
        prepare_data.prepare(data, tmp_path / "prepared")
