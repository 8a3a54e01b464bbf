"""Images are ranked by how probably their label is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scores.label_errors import Answers, Suspect, find_label_errors, rank_labels


def run_of(scored: dict[str, tuple[int, Sequence[float]]]) -> Answers:
    """Return the answers of a run: label and probabilities of each image, by its path."""
    labels = np.array([label for label, _ in scored.values()], dtype=np.int64)
    probabilities = np.array([row for _, row in scored.values()], dtype=np.float32)
    return Answers(list(scored), labels, probabilities)


def paths_of(suspects: Sequence[Suspect]) -> list[str]:
    return [one.path for one in suspects]


@st.composite
def many_runs(draw: st.DrawFn) -> list[Answers]:
    """Draw runs, each of which has scored some of the images."""
    num_images = draw(st.integers(1, 12))
    num_classes = draw(st.integers(2, 4))
    labels = draw(
        st.lists(st.integers(0, num_classes - 1), min_size=num_images, max_size=num_images)
    )
    numbers = st.sampled_from(range(num_images))
    # Few values, so that there are ties; thirds, so that sums are rounded.
    weights = st.lists(st.sampled_from([1, 2, 7]), min_size=num_classes, max_size=num_classes)
    runs = []
    for _ in range(draw(st.integers(1, 4))):
        scored = {}
        for number in draw(st.lists(numbers, unique=True)):
            row = np.array(draw(weights), dtype=float)
            scored[f"{number:02d}"] = (labels[number], (row / row.sum()).tolist())
        if scored:
            runs.append(run_of(scored))
    return runs


def test_confident_learning_worked_out_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    of_first = np.array([0.9, 0.8, 0.1, 0.2, 0.45, 0.7])
    probabilities = np.stack([of_first, 1 - of_first], axis=1)
    # The thresholds are (0.9 + 0.8 + 0.1) / 3 = 0.6 and (0.8 + 0.55 + 0.3) / 3 = 0.55. The third
    # image reaches that of the second class alone, the last one that of the first class alone.
    assert find_label_errors(labels, probabilities).tolist() == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_of_two_thresholds_that_are_reached_the_more_probable_class_counts() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.45, 0.55], [0.35, 0.65], [0.7, 0.3], [0.4, 0.6]])
    # Thresholds 0.4 and 0.45: the first and the last image reach both.
    assert find_label_errors(labels, probabilities).tolist() == [True, True, True, False]


def test_an_image_that_reaches_no_threshold_is_not_suspected() -> None:
    labels = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.9, 0.1, 0], [0.3, 0.4, 0.3], [0, 0.8, 0.2], [0.1, 0.1, 0.8]])
    assert find_label_errors(labels, probabilities).tolist() == [False] * 4


def test_a_class_that_no_image_is_labelled_with_makes_no_errors() -> None:
    labels = np.array([0, 0, 1])
    probabilities = np.array([[0.5, 0.1, 0.4], [0.1, 0.1, 0.8], [0.1, 0.2, 0.7]])
    assert find_label_errors(labels, probabilities).tolist() == [False] * 3


@pytest.mark.filterwarnings("error")
def test_where_all_images_have_one_label_none_is_suspected() -> None:
    suspects = rank_labels([run_of({"a": (1, [0.1, 0.9]), "b": (1, [0.75, 0.25])})])
    assert paths_of(suspects) == ["b", "a"]
    assert [one.suggested for one in suspects] == [0, 0]
    assert not any(one.is_suspected for one in suspects)


def test_two_runs_worked_out_by_hand() -> None:
    first = run_of(
        {"cat": (0, [0.75, 0.25, 0]), "dog": (1, [0.75, 0.125, 0.125]), "cow": (2, [0, 0.5, 0.5])}
    )
    second = run_of({"dog": (1, [0.25, 0.625, 0.125]), "cow": (2, [0, 0.25, 0.75])})
    assert rank_labels([first, second]) == [
        # The first run answers class 0, the second does not.
        Suspect("dog", 1, 0, 0.375, 0.5, 2, 1, False),
        # The first run answers class 1: of equal ones the first.
        Suspect("cow", 2, 1, 0.625, 0.375, 2, 1, False),
        Suspect("cat", 0, 1, 0.75, 0.25, 1, 0, False),
    ]


def test_a_changed_label_is_first_and_suspected_and_its_class_suggested() -> None:
    scored: dict[str, tuple[int, Sequence[float]]] = {}
    for number in range(20):
        label = number % 2
        scored[f"{number:02d}"] = (label, [0.8, 0.2] if label == 0 else [0.2, 0.8])
    scored["05"] = (0, scored["05"][1])
    suspects = rank_labels([run_of(scored)])
    assert suspects[0].path == "05"
    assert (suspects[0].given, suspects[0].suggested) == (0, 1)
    assert suspects[0].given_confidence == pytest.approx(0.2)
    assert suspects[0].suggested_confidence == pytest.approx(0.8)
    assert [one.path for one in suspects if one.is_suspected] == ["05"]


def test_an_image_that_one_of_several_runs_scored_has_the_confidence_of_that_run() -> None:
    folds = [
        run_of({"a": (0, [0.875, 0.125])}),
        run_of({"b": (0, [0.25, 0.75])}),
        run_of({"c": (1, [0.5, 0.5]), "a": (0, [0.625, 0.375])}),
    ]
    suspects = rank_labels(folds)
    assert [(one.path, one.given_confidence, one.num_runs) for one in suspects] == [
        ("b", 0.25, 1),
        ("c", 0.5, 1),
        ("a", 0.75, 2),
    ]


def test_of_equal_confidences_the_first_path_comes_first() -> None:
    scored = {path: (0, [0.25, 0.75]) for path in ("b", "c", "a")}
    assert paths_of(rank_labels([run_of(scored)])) == ["a", "b", "c"]


def test_the_order_of_the_runs_changes_no_digit_of_a_sum() -> None:
    # In double precision 0.5 + tiny + tiny is 0.5, and tiny + tiny + 0.5 is more.
    tiny = 2.0**-54
    runs = []
    for first, second in ((0.5, tiny), (tiny, tiny), (tiny, 0.5)):
        scored = {"a": (0, [first, 1 - first]), "b": (0, [second, 1 - second])}
        runs.append(run_of(scored))
    expected = rank_labels(runs)
    for order in permutations(runs):
        assert rank_labels(order) == expected


def test_an_image_is_left_out_of_a_run_that_has_nan_for_it() -> None:
    nan = float("nan")
    broken = run_of({"a": (0, [nan, nan]), "b": (1, [0.5, 0.5]), "c": (1, [nan, 0.5])})
    whole = run_of({"a": (0, [0.25, 0.75]), "b": (1, [1.0, 0.0])})
    expected = [("a", 0.25, 1), ("b", 0.25, 2)]
    found = rank_labels([broken, whole])
    assert [(one.path, one.given_confidence, one.num_runs) for one in found] == expected
    assert rank_labels([run_of({"a": (0, [nan, nan])})]) == []


def test_nothing_is_ranked_without_answers_or_with_one_class() -> None:
    assert rank_labels([]) == []
    empty = Answers([], np.zeros(0, np.int64), np.zeros((0, 3), np.float32))
    assert rank_labels([empty]) == []
    assert len(rank_labels([empty, run_of({"a": (0, [0.5, 0.25, 0.25])})])) == 1
    assert rank_labels([run_of({"a": (0, [1.0]), "b": (0, [1.0])})]) == []


@settings(max_examples=150, deadline=None, derandomize=True)
@given(many_runs(), st.randoms(use_true_random=False))
def test_the_order_of_the_runs_changes_nothing(runs: list[Answers], random: Random) -> None:
    others = list(runs)
    random.shuffle(others)
    assert rank_labels(others) == rank_labels(runs)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(many_runs())
def test_each_scored_image_is_ranked_once_and_its_numbers_agree(runs: list[Answers]) -> None:
    suspects = rank_labels(runs)
    assert sorted(paths_of(suspects)) == sorted({path for run in runs for path in run.paths})
    keys = [(one.given_confidence, one.path) for one in suspects]
    assert keys == sorted(keys)
    for one in suspects:
        assert one.suggested != one.given
        assert 0 <= one.suggested_confidence <= 1
        assert one.given_confidence + one.suggested_confidence <= 1 + 1e-6
        scoring = [run for run in runs if one.path in run.paths]
        assert one.num_runs == len(scoring)
        assert 0 <= one.num_agreeing <= one.num_runs
        rows = [run.probabilities[run.paths.index(one.path)] for run in scoring]
        assert one.given_confidence == pytest.approx(np.mean(rows, axis=0)[one.given])
        assert one.num_agreeing == sum(row.argmax() == one.suggested for row in rows)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(many_runs(), st.integers(2, 4))
def test_runs_that_are_given_several_times_weigh_as_once(runs: list[Answers], times: int) -> None:
    once = {one.path: one for one in rank_labels(runs)}
    for one in rank_labels(runs * times):
        before = once[one.path]
        assert one.num_runs == times * before.num_runs
        assert one.num_agreeing == times * before.num_agreeing
        assert one.given_confidence == pytest.approx(before.given_confidence)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(many_runs(), st.data())
def test_what_classes_are_called_changes_nothing(runs: list[Answers], data: st.DataObject) -> None:
    num_classes = runs[0].probabilities.shape[1] if runs else 2
    order = np.array(data.draw(st.permutations(range(num_classes))))
    renamed = [
        Answers(run.paths, order.argsort()[run.labels], run.probabilities[:, order]) for run in runs
    ]
    before = {one.path: one for one in rank_labels(runs)}
    for one in rank_labels(renamed):
        assert order[one.given] == before[one.path].given
        assert one.num_runs == before[one.path].num_runs
        assert one.given_confidence == pytest.approx(before[one.path].given_confidence)
