"""Scores of one pass over a split are those of scikit-learn, and so are those of its resamples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from pipeline.metrics import Floats, Labels
from pipeline.scores import evaluation
from pipeline.scores.evaluation import Evaluation


def random_case(seed: int, images: int, classes: int) -> tuple[Labels, Floats]:
    """Return labels and logits that are right more often than not, some of them equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1
    return labels, logits.round(1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(2, 9), st.booleans(), st.booleans())
def test_scores_of_any_copies_are_those_of_scikit_learn(
    seed: int, classes: int, ordered: bool, copied: bool
) -> None:
    labels, logits = random_case(seed, 40, classes)
    labels[:classes] = np.arange(classes)
    copies = np.ones(40, dtype=np.int64)
    if copied:
        copies[classes:] = np.random.default_rng(seed).integers(0, 4, 40 - classes)
    found = Evaluation(labels, logits, grades=np.arange(classes) if ordered else None)
    given_copies = copies if copied else None
    scores = found.scores(given_copies)
    true, answers = np.repeat(labels, copies), np.repeat(logits.argmax(axis=1), copies)
    names = np.arange(classes)
    assert scores["f1_macro"] == pytest.approx(
        f1_score(true, answers, average="macro", labels=names, zero_division=0)
    )
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, answers))
    assert scores["kappa"] == pytest.approx(
        cohen_kappa_score(true, answers, weights="quadratic" if ordered else None)
    )
    shares = np.repeat(found.probabilities, copies, axis=0)
    areas = [roc_auc_score(true == number, shares[:, number]) for number in names]
    resampled = found.resampled_scores(np.stack([copies, np.ones_like(copies)]))
    assert resampled["roc_auc"].tolist() == pytest.approx([np.mean(areas), found.roc_auc()])
    assert ("top5_accuracy" in scores) == (classes > 5)
    if classes > 5:
        # Among equal logits scikit-learn takes any, and we the first, as for the answer.
        strict = np.repeat(logits - 1e-9 * np.arange(classes), copies, axis=0)
        assert scores["top5_accuracy"] == pytest.approx(
            top_k_accuracy_score(true, strict, k=5, labels=names)
        )


def test_grades_that_are_near_cost_less() -> None:
    labels = np.repeat(np.arange(5), 10)
    near, far = np.eye(5)[labels], np.eye(5)[labels]
    near[:5] = np.eye(5)[1]
    far[:5] = np.eye(5)[4]
    kappas = [Evaluation(labels, one, grades=np.arange(5)).scores()["kappa"] for one in (near, far)]
    assert kappas[0] > kappas[1] + 0.1
    plain = [Evaluation(labels, one).scores()["kappa"] for one in (near, far)]
    assert plain[0] == pytest.approx(plain[1])
    # Where the classes stand in another order than their numbers, the grades say so.
    turned = Evaluation(4 - labels, near[:, ::-1], grades=np.arange(5)[::-1])
    assert turned.scores()["kappa"] == pytest.approx(kappas[0])


@pytest.mark.filterwarnings("error")
def test_of_a_single_class_there_is_no_kappa_and_no_area() -> None:
    found = Evaluation(np.zeros(6, dtype=np.int64), np.eye(3)[[0] * 6])
    assert math.isnan(found.scores()["kappa"]) and math.isnan(found.roc_auc())
    assert set(found.intervals()) == {"accuracy", "f1_macro", "balanced_accuracy"}


@pytest.mark.filterwarnings("error")
def test_a_class_that_does_not_occur_is_left_out_of_the_area() -> None:
    labels, logits = random_case(0, 60, 3)
    two = labels % 2
    found = Evaluation(two, logits)
    shares = found.probabilities
    areas = [roc_auc_score(two == number, shares[:, number]) for number in (0, 1)]
    assert found.roc_auc() == pytest.approx(np.mean(areas))


def test_each_score_lies_in_its_interval() -> None:
    labels, logits = random_case(3, 400, 8)
    found = Evaluation(labels, logits)
    scores = {
        **found.scores(),
        "roc_auc": found.roc_auc(),
        "accuracy": float(found.correct.mean()),
    }
    intervals = found.intervals()
    assert set(intervals) == set(scores)
    for name, (low, high) in intervals.items():
        assert low < scores[name] < high, name
        assert high - low < 0.2


def test_groups_make_intervals_wider_and_few_groups_give_none() -> None:
    labels, logits = random_case(4, 40, 4)
    labels, logits = np.repeat(labels, 10), np.repeat(logits, 10, axis=0)
    alone = Evaluation(labels, logits).intervals()
    grouped = Evaluation(labels, logits, np.repeat(np.arange(40), 10)).intervals()
    assert set(grouped) == set(alone)
    for name, (low, high) in grouped.items():
        assert high - low > 2 * (alone[name][1] - alone[name][0]), name
    assert Evaluation(labels, logits, np.arange(400) % 19).intervals() == {}


def test_of_very_many_probabilities_the_area_has_no_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, logits = random_case(5, 50, 4)
    whole = Evaluation(labels, logits)
    monkeypatch.setattr(evaluation, "MOST_SORTED", 199)
    large = Evaluation(labels, logits)
    assert "roc_auc" in whole.intervals() and "roc_auc" not in large.intervals()
    assert large.roc_auc() == whole.roc_auc()


@pytest.mark.parametrize(("classes", "each"), [(100, 3), (200, 2), (102, 10)])
def test_a_class_that_a_resample_lacks_does_not_count_as_wrong(classes: int, each: int) -> None:
    labels = np.repeat(np.arange(classes), each)
    logits = np.eye(classes, dtype=np.float32)[labels]
    logits[::50] = np.roll(logits[::50], 1, axis=1)
    found = Evaluation(labels, logits)
    low, high = found.intervals()["f1_macro"]
    assert low < found.scores()["f1_macro"] < high


def test_of_equal_logits_the_first_count_as_the_higher() -> None:
    found = Evaluation(np.arange(8), np.zeros((8, 8), np.float32))
    assert found.scores()["top5_accuracy"] == 5 / 8
