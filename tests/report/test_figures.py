"""Figures are written, and show what they are given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.report import comparison_figure, confusion_figures, training_figures

BLUE, ORANGE, GREY, DARKEST = (43, 108, 176), (221, 107, 32), (138, 147, 158), (8, 48, 107)

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.slow]


def pixels_of(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(file: Path, colour: tuple[int, int, int]) -> int:
    return int((pixels_of(file) == colour).all(axis=2).sum())


def matrix(classes: int, wrong: bool = True) -> np.ndarray[Any, np.dtype[np.int64]]:
    rng = np.random.default_rng(0)
    return np.diag(np.full(classes, 50)) + (rng.integers(0, 5, (classes, classes)) if wrong else 0)


@pytest.mark.parametrize("classes", [2, 10, 40, 100])
def test_a_confusion_matrix_is_written(tmp_path: Path, classes: int) -> None:
    names = [f"class {number}" for number in range(classes)]
    confusion_figures.draw_confusion_matrix(
        tmp_path / "matrix.png", matrix(classes), names, "validation"
    )
    pixels = pixels_of(tmp_path / "matrix.png")
    assert min(pixels.shape[:2]) > 200 and max(pixels.shape[:2]) < 6000
    # The diagonal is the darkest blue of the map.
    assert count(tmp_path / "matrix.png", DARKEST) > 20 * classes


def test_of_more_than_a_hundred_classes_some_are_named(tmp_path: Path) -> None:
    names = [f"{number:03d}" for number in range(101)]
    pictures = []
    for changed in (None, 1, 2):
        shown = [*names]
        if changed is not None:
            # Their order stays.
            shown[changed] += "x"
        confusion_figures.draw_confusion_matrix(
            tmp_path / "matrix.png", matrix(101), shown, "validation"
        )
        pictures.append(pixels_of(tmp_path / "matrix.png"))
    assert (pictures[0] == pictures[1]).all()
    assert pictures[0].shape != pictures[2].shape or (pictures[0] != pictures[2]).any()


def test_a_matrix_is_drawn_in_natural_order(tmp_path: Path) -> None:
    counts = np.arange(9).reshape(3, 3)
    as_sorted, natural = [0, 1, 2], [0, 2, 1]
    pictures = []
    for names, order in ((["1", "10", "2"], as_sorted), (["1", "2", "10"], natural)):
        confusion_figures.draw_confusion_matrix(
            tmp_path / "matrix.png", counts[np.ix_(order, order)], names, "validation"
        )
        pictures.append(pixels_of(tmp_path / "matrix.png"))
    assert (pictures[0] == pictures[1]).all()


def test_another_confusion_is_another_picture(tmp_path: Path) -> None:
    for name, counts in (("some.png", matrix(4)), ("none.png", matrix(4, wrong=False))):
        confusion_figures.draw_confusion_matrix(tmp_path / name, counts, list("abcd"), "validation")
    some, none = pixels_of(tmp_path / "some.png"), pixels_of(tmp_path / "none.png")
    assert some.shape == none.shape and (some != none).any()


@pytest.mark.parametrize(
    "names",
    [
        ["$1$ to $a^$", "$x^", "50% off"],
        ["", "\u200b", "a"],
        ["a very long name of a class that no axis has room for " * 2, "b", "c"],
        ["Kätzchen", "œuvre", "naïve"],
        ["<b>", "a&b", "a\\b"],
        ["猫", "고양이", "ネコ"],
        ["قطة", "बिल्ली", "แมว"],
        ["🐈", "❤️ heart", "\U000f0000"],
    ],
    ids=[
        "formulas",
        "blank",
        "long",
        "accents",
        "markup",
        "East Asian",
        "other scripts",
        "no letters",
    ],
)
def test_classes_may_have_any_name(tmp_path: Path, names: list[str]) -> None:
    confusion_figures.draw_confusion_matrix(tmp_path / "matrix.png", matrix(3), names, "validation")
    assert pixels_of(tmp_path / "matrix.png").std() > 0


def test_a_class_without_images_is_drawn_empty(tmp_path: Path) -> None:
    confusion_figures.draw_confusion_matrix(
        tmp_path / "matrix.png", np.array([[3, 0], [0, 0]]), ["cat", "dog"], "validation"
    )
    assert count(tmp_path / "matrix.png", DARKEST) > 1000


def test_a_matrix_without_any_image_is_drawn_empty(tmp_path: Path) -> None:
    confusion_figures.draw_confusion_matrix(
        tmp_path / "matrix.png", np.zeros((2, 2), dtype=np.int64), ["cat", "dog"], "validation"
    )
    assert count(tmp_path / "matrix.png", DARKEST) == 0


def cells_of(classes: int, images: int = 20_000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    answers = np.where(rng.random(images) < 0.2, labels ^ 1, labels)
    cells = pd.DataFrame({"true": labels, "predicted": np.minimum(answers, classes - 1)})
    return cells.value_counts().reset_index()


@pytest.mark.parametrize("classes", [1001, 20_000])
def test_of_very_many_classes_the_most_confused_are_drawn(tmp_path: Path, classes: int) -> None:
    names = [f"class {number}" for number in range(classes)]
    confusion_figures.draw_most_confused(
        tmp_path / "matrix.png", cells_of(classes), names, "test: 80%"
    )
    pixels = pixels_of(tmp_path / "matrix.png")
    assert min(pixels.shape[:2]) > 500 and max(pixels.shape[:2]) < 4000
    assert count(tmp_path / "matrix.png", DARKEST) > 1000


def test_shares_are_of_all_images_of_the_true_class(tmp_path: Path) -> None:
    among = [(number, number + 1, 90) for number in range(0, 24, 2)]
    # A hundred images of the first class are taken for classes that are not drawn.
    beyond = [(0, 100 + number, 1) for number in range(100)]
    pictures = []
    for cells in (among, [*among, *beyond]):
        table = pd.DataFrame(cells, columns=["true", "predicted", "count"])
        confusion_figures.draw_most_confused(
            tmp_path / "matrix.png", table, [str(number) for number in range(1200)], "test"
        )
        pictures.append(pixels_of(tmp_path / "matrix.png"))
    counts, shares = (slice(0, len(pictures[0]) // 2), slice(len(pictures[0]) // 2, None))
    assert (pictures[0][counts] == pictures[1][counts]).all()
    assert (pictures[0][shares] != pictures[1][shares]).any()


@pytest.mark.parametrize("correct", [True, False])
def test_few_or_no_confusions_are_drawn_too(tmp_path: Path, correct: bool) -> None:
    cells = pd.DataFrame({"true": [4], "predicted": [4 if correct else 7], "count": [1]})
    confusion_figures.draw_most_confused(
        tmp_path / "matrix.png", cells, [str(number) for number in range(1200)], "test"
    )
    assert count(tmp_path / "matrix.png", DARKEST) > 1000


def history(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "train/loss": 2 / epoch,
            "val/loss": 3 / epoch,
            "train/accuracy": 1 - 0.5 / epoch,
            "val/accuracy": 1 - 0.7 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_learning_curves_show_training_and_validation(tmp_path: Path, epochs: int) -> None:
    training_figures.draw_learning_curves(
        tmp_path / "curves.png", history(epochs), best_epoch=epochs
    )
    assert count(tmp_path / "curves.png", BLUE) > 50
    assert count(tmp_path / "curves.png", ORANGE) > 50


def test_learning_curves_have_a_gap_where_a_value_is_missing(tmp_path: Path) -> None:
    training_figures.draw_learning_curves(tmp_path / "whole.png", history(3), best_epoch=1)
    training_figures.draw_learning_curves(
        tmp_path / "gap.png", [*history(2), {**history(3)[2], "val/loss": math.nan}], best_epoch=1
    )
    assert 0 < count(tmp_path / "gap.png", ORANGE) < count(tmp_path / "whole.png", ORANGE)


def longest_grey_line(file: Path, axis: int) -> int:
    """Return the most grey pixels of a row (axis 1) or column (axis 0).

    A thin line is paler at its edges.
    """
    grey = (np.abs(pixels_of(file).astype(int) - GREY) < 45).all(axis=2)
    return int(grey.sum(axis=axis).max())


@pytest.mark.parametrize("majority", [0.2, 0.735], ids=["just below", "within"])
def test_learning_curves_have_a_line_at_the_majority(tmp_path: Path, majority: float) -> None:
    training_figures.draw_learning_curves(tmp_path / "with.png", history(10), 10, majority)
    training_figures.draw_learning_curves(tmp_path / "without.png", history(10), 10)
    assert longest_grey_line(tmp_path / "with.png", axis=1) > 200
    assert longest_grey_line(tmp_path / "without.png", axis=1) < 100


def height_of_curves(file: Path) -> int:
    rows = np.flatnonzero((pixels_of(file)[:, 600:] == ORANGE).all(axis=2).any(axis=1))
    return int(np.ptp(rows))


@pytest.mark.parametrize("majority", [0.1, 0.0, 1.0, 0.735, 0.5])
def test_the_majority_does_not_press_the_curves_together(tmp_path: Path, majority: float) -> None:
    high = [
        {**values, "train/accuracy": 0.9 + values["train/accuracy"] / 10, "val/accuracy": 0.9}
        for values in history(10)
    ]
    high = [{**values, "val/accuracy": 0.88 + number / 100} for number, values in enumerate(high)]
    training_figures.draw_learning_curves(tmp_path / "without.png", high, 10)
    training_figures.draw_learning_curves(tmp_path / "with.png", high, 10, majority)
    assert height_of_curves(tmp_path / "with.png") > 0.45 * height_of_curves(
        tmp_path / "without.png"
    )


@pytest.mark.parametrize(
    "lrs", [[1e-3], [1e-3] * 50, [1e-3 * 0.9**step for step in range(50)], [1e-12] * 3]
)
def test_the_learning_rate_is_drawn(tmp_path: Path, lrs: list[float]) -> None:
    training_figures.draw_learning_rate(tmp_path / "lr.png", lrs, steps_per_epoch=10)
    assert count(tmp_path / "lr.png", BLUE) > (0 if len(lrs) > 1 else -1)
    assert pixels_of(tmp_path / "lr.png").std() > 0


def run(**values: Any) -> dict[str, Any]:
    defaults = {
        "state": "complete",
        "val_accuracy": 0.9,
        "test_accuracy": None,
        "test_accuracy_low": None,
        "test_accuracy_high": None,
    }
    return {**defaults, **values}


TESTED = {"test_accuracy": 0.85, "test_accuracy_low": 0.8, "test_accuracy_high": 0.89}


def drawn(file: Path, *rows: dict[str, Any], majority: float | None = None) -> Path:
    comparison_figure.draw_comparison(
        file, rows, [f"{place}  run" for place in range(len(rows))], majority
    )
    return file


def test_the_comparison_shows_validation_and_test(tmp_path: Path) -> None:
    file = drawn(tmp_path / "comparison.png", run(**TESTED), run(val_accuracy=0.8))
    assert count(file, BLUE) > 30 and count(file, ORANGE) > 30


def test_the_comparison_shows_no_test_score_where_there_is_none(tmp_path: Path) -> None:
    file = drawn(tmp_path / "comparison.png", run(), run(val_accuracy=0.8))
    assert count(file, BLUE) > 30 and count(file, ORANGE) == 0


@pytest.mark.parametrize("state", ["pruned", "failed", "interrupted"])
def test_runs_that_are_not_complete_are_grey(tmp_path: Path, state: str) -> None:
    complete, other = (
        drawn(tmp_path / "a.png", run(), run()),
        drawn(tmp_path / "b.png", run(), run(state=state)),
    )
    assert count(other, GREY) > count(complete, GREY)
    assert 0 < count(other, BLUE) < count(complete, BLUE)


def test_a_run_far_below_stands_at_the_edge(tmp_path: Path) -> None:
    near, far = (
        drawn(tmp_path / f"{value}.png", run(), run(), run(state="pruned", val_accuracy=value))
        for value in (0.89, 0.1)
    )
    assert (pixels_of(near) != pixels_of(far)).any()
    assert abs(count(near, BLUE) - count(far, BLUE)) < 0.5 * count(near, BLUE)


@pytest.mark.parametrize(
    "odd",
    [
        {"val_accuracy": math.nan},
        {"val_accuracy": math.nan, "state": "failed"},
        {"test_accuracy": math.nan, "test_accuracy_low": math.nan, "test_accuracy_high": math.nan},
        {"test_accuracy": 0.8},
        {"val_accuracy": 0.0},
        {
            "val_accuracy": 1.0,
            "test_accuracy": 1.0,
            "test_accuracy_low": 0.9,
            "test_accuracy_high": 1.0,
        },
    ],
    ids=["NaN", "failed NaN", "test NaN", "no interval", "zero", "one"],
)
def test_the_comparison_shows_the_others_beside_an_odd_run(
    tmp_path: Path, odd: dict[str, Any]
) -> None:
    first, last = run(**odd), run(**TESTED)
    for rows in ((first, last), (last, first)):
        file = drawn(tmp_path / "comparison.png", *rows)
        assert count(file, BLUE) > 30 and count(file, ORANGE) > 30


@pytest.mark.parametrize(
    ("accuracies", "majority", "is_line"),
    [
        ((0.72, 0.9), 0.735, True),
        ((0.5, 0.65), 0.735, True),
        ((0.9, 0.95), 0.105, False),
        ((0.2, 0.25), 0.9, False),
        ((), 0.5, True),
    ],
    ids=["within", "just above", "far below", "far above", "no runs"],
)
def test_the_comparison_has_a_line_at_the_majority_or_a_note(
    tmp_path: Path, accuracies: tuple[float, ...], majority: float, is_line: bool
) -> None:
    rows = [run(val_accuracy=value) for value in accuracies]
    plain, marked = (
        drawn(tmp_path / "plain.png", *rows),
        drawn(tmp_path / "marked.png", *rows, majority=majority),
    )
    assert (longest_grey_line(marked, axis=0) > 50) == is_line
    assert longest_grey_line(plain, axis=0) < 50
    assert not np.array_equal(pixels_of(marked), pixels_of(plain))


@pytest.mark.parametrize("majority", [0.0, 0.1, 0.5, 0.735, 0.99, 1.0])
def test_the_majority_does_not_press_the_runs_together(tmp_path: Path, majority: float) -> None:
    def width(file: Path) -> int:
        # Above the legend, whose entries are blue too.
        return int(np.ptp(np.flatnonzero((pixels_of(file)[:120] == BLUE).all(axis=2).any(axis=0))))

    rows = [run(), run(val_accuracy=0.8), run(val_accuracy=0.7)]
    plain, marked = (
        drawn(tmp_path / "plain.png", *rows),
        drawn(tmp_path / "marked.png", *rows, majority=majority),
    )
    assert width(marked) > 0.45 * width(plain)


def by_loss(value: float, **values: Any) -> dict[str, Any]:
    return run(value=value, test_value=value + 0.1, **values)


def test_a_comparison_by_loss_shows_the_losses_and_notes_the_worst_at_the_right_edge(
    tmp_path: Path,
) -> None:
    rows = [by_loss(0.2), by_loss(0.3), by_loss(0.25, state="pruned")]
    far = [*rows[:2], by_loss(2.6, state="pruned", test_accuracy=None) | {"test_value": None}]
    for name, shown in (("near.png", rows), ("far.png", far)):
        comparison_figure.draw_comparison(tmp_path / name, shown, ["a", "b", "c"], 0.5, "val/loss")
    assert count(tmp_path / "near.png", BLUE) > 30 and count(tmp_path / "near.png", ORANGE) > 30
    assert abs(
        count(tmp_path / "near.png", BLUE) - count(tmp_path / "far.png", BLUE)
    ) < 0.5 * count(tmp_path / "near.png", BLUE)
    # The accuracy of always answering the largest class is no loss.
    assert longest_grey_line(tmp_path / "near.png", axis=0) < 50


def test_a_comparison_without_a_complete_run_is_drawn(tmp_path: Path) -> None:
    assert (
        count(drawn(tmp_path / "comparison.png", run(state="pruned", val_accuracy=0.3)), GREY) > 30
    )


def test_an_empty_comparison_is_drawn(tmp_path: Path) -> None:
    assert pixels_of(drawn(tmp_path / "comparison.png")).std() > 0


def test_a_long_comparison_is_high_enough_for_its_labels(tmp_path: Path) -> None:
    short, long = (
        pixels_of(drawn(tmp_path / f"{number}.png", *[run()] * number)) for number in (10, 60)
    )
    assert long.shape[0] - short.shape[0] > 50 * 12


@pytest.mark.slow
def test_of_very_many_runs_the_first_have_a_row_each_and_the_last_says_where_the_others_lie(
    tmp_path: Path,
) -> None:
    rows = [run(val_accuracy=0.99 - number / 2000) for number in range(1000)]
    hundred, all_ = (
        pixels_of(drawn(tmp_path / f"{number}.png", *rows[:number])) for number in (100, 1000)
    )
    assert 20 < all_.shape[0] - hundred.shape[0] < 60
    # A grey bar, from the worst to the best of those without a row.
    bar = (np.abs(pixels_of(tmp_path / "1000.png").astype(int) - (202, 205, 209)) < 8).all(axis=2)
    assert bar.sum(axis=1).max() > 150
    again = pixels_of(drawn(tmp_path / "again.png", *rows[:100], *[run(val_accuracy=0.2)] * 900))
    assert again.shape == all_.shape and (again != all_).any()


def test_labels_may_hold_anything(tmp_path: Path) -> None:
    comparison_figure.draw_comparison(
        tmp_path / "comparison.png", [run(), run()], ["$1_$ {x^ $", "Kätzchen, lr 0.001"]
    )
    assert count(tmp_path / "comparison.png", BLUE) > 30


@pytest.mark.filterwarnings("error")
def test_what_a_terminal_acts_on_is_written_out_and_reaches_it_by_no_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b[2J\x07\u202eb"
    confusion_figures.draw_confusion_matrix(
        tmp_path / "matrix.png", matrix(3), [hostile, "b", "c"], hostile
    )
    comparison_figure.draw_comparison(tmp_path / "comparison.png", [run()], [hostile])
    preview(tmp_path / "preview.png", 1, names=[hostile])
    written = r"a\x1b[2J\x07\u202eb"
    confusion_figures.draw_confusion_matrix(
        tmp_path / "other.png", matrix(3), [written, "b", "c"], written
    )
    assert np.array_equal(pixels_of(tmp_path / "matrix.png"), pixels_of(tmp_path / "other.png"))
    printed = capsys.readouterr()
    assert not set("\x1b\x07\u202e") & set(printed.out + printed.err)


def preview(
    file: Path, rows: int, size: int = 16, epochs: int = 8, names: list[str] | None = None
) -> Path:
    rng = np.random.default_rng(0)
    originals = [
        rng.integers(0, 256, (3, size + 4, size + 8 * row), dtype=np.uint8) for row in range(rows)
    ]
    views = rng.integers(0, 256, (rows, epochs, 3, size, size), dtype=np.uint8)
    training_figures.draw_augmentation_preview(
        file, originals, views, names or [f"class {row}" for row in range(rows)]
    )
    return file


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_the_preview_has_a_row_per_image(tmp_path: Path, rows: int) -> None:
    height, width = pixels_of(preview(tmp_path / "preview.png", rows)).shape[:2]
    assert height == pytest.approx(130 * (1.15 * rows + 0.4), abs=2)
    assert width > 1000


def test_the_preview_shows_the_pixels_it_is_given(tmp_path: Path) -> None:
    one_colour = [
        np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, 16, 16))
        for colour in (BLUE, ORANGE)
    ]
    training_figures.draw_augmentation_preview(
        tmp_path / "preview.png", [one_colour[0]], [np.stack([one_colour[1]] * 8)], ["cat"]
    )
    blue, orange = count(tmp_path / "preview.png", BLUE), count(tmp_path / "preview.png", ORANGE)
    assert blue > 90 * 90
    assert orange == pytest.approx(8 * blue, rel=0.05)


def test_the_preview_takes_any_name_of_a_class(tmp_path: Path) -> None:
    names = ["$x^", "a very long name of a class that no figure has room for " * 2, "œuvre & <b>"]
    assert pixels_of(preview(tmp_path / "preview.png", 3, names=names)).std() > 0
