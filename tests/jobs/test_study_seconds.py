"""What a study takes is the sum of what is counted, part by part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.jobs.network_speeds import Speed
from pipeline.jobs.study_seconds import (
    EPOCH_SECONDS,
    EVALUATION_SECONDS,
    FORWARD,
    HEAD_SECONDS,
    LOADING_SECONDS,
    PRUNERS,
    STUDY_SECONDS,
    TRAINING_SECONDS,
    Images,
    Searching,
    Trainings,
    study_seconds,
    training_seconds,
)

SLOW = Speed(step=0.1, plain=0.2, choice=1.0)
IMAGES = Images(train=1000, val=200, test=100)
TRAININGS = Trainings(10, False, 16, num_settings=2, num_searched=0, pruner="none")


def test_a_training_is_its_epochs_of_training_and_validation() -> None:
    epoch = 1000 * (0.1 + LOADING_SECONDS) + 200 * (FORWARD * 0.1 + LOADING_SECONDS)
    expected = 10 * (epoch + EPOCH_SECONDS) + TRAINING_SECONDS
    assert training_seconds(SLOW, IMAGES, 10, False) == pytest.approx(expected)


def test_images_that_others_load_take_no_time() -> None:
    elsewhere = replace(IMAGES, loading_seconds=0.0)
    less = training_seconds(SLOW, IMAGES, 10, False) - training_seconds(SLOW, elsewhere, 10, False)
    assert less == pytest.approx(10 * 1200 * LOADING_SECONDS)


def test_a_head_does_not_wait_for_its_backbone() -> None:
    expected = 10 * (1200 * HEAD_SECONDS + EPOCH_SECONDS) + TRAINING_SECONDS
    assert training_seconds(SLOW, IMAGES, 10, True) == pytest.approx(expected)
    frozen = replace(TRAININGS, is_frozen=True)
    rest = study_seconds([SLOW], IMAGES, frozen).rest
    # Its features are computed once.
    assert rest > STUDY_SECONDS + FORWARD * 0.1 * 1200


def test_a_study_counts_evaluation_and_choice_of_precision() -> None:
    seconds = study_seconds([SLOW, SLOW], IMAGES, TRAININGS)
    assert seconds.listed == pytest.approx(4 * training_seconds(SLOW, IMAGES, 10, False))
    assert seconds.searched == 0
    assert seconds.evaluation > 4 * (EVALUATION_SECONDS + FORWARD * 0.2 * 100)
    assert seconds.rest > STUDY_SECONDS + 2 * 16 * 1.0
    assert seconds.total == pytest.approx(seconds.listed + seconds.evaluation + seconds.rest)


def test_searched_trials_are_spread_over_the_networks() -> None:
    quick = SLOW.scaled(0.5)
    searched = replace(TRAININGS, num_searched=6)
    one, two = (training_seconds(speed, IMAGES, 10, False) for speed in (SLOW, quick))
    assert study_seconds([SLOW, quick], IMAGES, searched).searched == pytest.approx(
        3 * one + 3 * two
    )


def test_folds_multiply_the_trainings() -> None:
    once = study_seconds([SLOW], IMAGES, TRAININGS)
    folds = study_seconds([SLOW], replace(IMAGES, num_folds=5), TRAININGS)
    assert folds.listed == pytest.approx(5 * once.listed)
    assert folds.evaluation == pytest.approx(5 * once.evaluation)
    assert folds.rest == pytest.approx(once.rest)


def test_reading_the_images_counts() -> None:
    slowly = replace(IMAGES, reading_seconds=0.5)
    more = study_seconds([SLOW], slowly, TRAININGS).rest
    assert more - study_seconds([SLOW], IMAGES, TRAININGS).rest == pytest.approx(0.5 * 1300)


def test_pruned_trials_take_less_and_are_evaluated_less() -> None:
    searched = replace(TRAININGS, num_searched=10)
    whole = study_seconds([SLOW], IMAGES, searched)
    pruned = study_seconds([SLOW], IMAGES, replace(searched, pruner="one_epoch"))
    assert pruned.searched < 0.8 * whole.searched
    assert pruned.evaluation < whole.evaluation
    assert pruned.listed == whole.listed


@pytest.mark.parametrize(("num_searched", "finalists"), [(1, 1), (3, 1), (4, 2), (12, 4), (20, 6)])
def test_a_race_is_one_epoch_of_all_and_the_rest_of_the_best(
    num_searched: int, finalists: int
) -> None:
    planned = PRUNERS["one_epoch"](10, num_searched)
    assert planned.epochs * 10 * num_searched == pytest.approx(num_searched + 9 * finalists)
    assert planned.complete == finalists / num_searched
    assert PRUNERS["none"](10, num_searched) == Searching(1.0, 1.0)
