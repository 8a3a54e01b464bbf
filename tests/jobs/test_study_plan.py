"""The planning of a study is arithmetic: it needs neither images nor a machine."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.jobs.image_survey import SIZES
from pipeline.jobs.network_speeds import Speed, Speeds
from pipeline.jobs.study_plan import (
    SETTINGS,
    Plan,
    Rung,
    Subject,
    list_rungs,
    list_sizes,
    make_plan,
)
from pipeline.jobs.study_seconds import PRUNERS, Images

COUNTS = {
    "resnet18": 1.8,
    "resnet34": 3.7,
    "resnet50": 4.1,
    "resnet101": 7.8,
    "densenet121": 2.9,
    "densenet169": 3.4,
    "densenet201": 4.3,
}
"""Billions of multiply-adds of an image of 224 pixels."""


def speeds_of(seconds: float = 0.09, size: int = 224, names: int = 7) -> Speeds:
    """Return the speeds of a machine that takes `seconds` for a training step of resnet18."""
    counts = {name: COUNTS[name] * 1e9 / 224**2 for name in list(COUNTS)[:names]}
    return Speeds(counts).with_measured("resnet18", size, Speed(seconds, 2 * seconds, 20 * seconds))


PHOTOS = Subject(Images(1351, 290, 290), 224, has_weights=False, is_cpu=True)
DIGITS = Subject(Images(1259, 269, 269), 32, has_weights=False, is_cpu=True)
WITH_WEIGHTS = replace(PHOTOS, has_weights=True)

subjects = st.builds(
    Subject,
    st.builds(
        Images,
        train=st.integers(2, 100_000),
        val=st.integers(1, 20_000),
        test=st.integers(1, 20_000),
        num_folds=st.integers(1, 5),
        reading_seconds=st.floats(0, 0.1),
    ),
    st.sampled_from(SIZES),
    st.booleans(),
    st.booleans(),
)
machines = st.builds(
    speeds_of, st.floats(1e-5, 2), st.sampled_from([32, 64, 224]), st.integers(2, 7)
)
hours = st.floats(0.001, 1e5)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(hours, subjects, machines)
def test_no_plan_takes_more_than_its_hours(given: float, subject: Subject, speeds: Speeds) -> None:
    plan = make_plan(given, subject, speeds)
    assert plan.fits == (plan.seconds.total <= 3600 * given)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(hours, subjects, machines)
def test_every_plan_compares_two_networks_at_two_learning_rates(
    given: float, subject: Subject, speeds: Speeds
) -> None:
    plan = make_plan(given, subject, speeds)
    assert len(plan.networks) == plan.rung.num_networks >= 2
    assert plan.rung.num_settings >= 2
    assert plan.rung.num_listed <= 20 and plan.rung.num_searched <= 20
    assert plan.rung.image_size <= subject.image_size
    assert plan.rung.epochs <= 30


@settings(max_examples=200, deadline=None, derandomize=True)
@given(hours, st.floats(1, 100), subjects, machines)
def test_more_hours_never_plan_less(
    given: float, factor: float, subject: Subject, speeds: Speeds
) -> None:
    less = make_plan(given, subject, speeds)
    assume(less.fits)
    more = make_plan(factor * given, subject, speeds)
    assert more.fits and not is_less(more.rung, less.rung)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(hours, subjects, machines)
def test_a_network_that_is_left_out_takes_at_least_as_long_as_those_taken(
    given: float, subject: Subject, speeds: Speeds
) -> None:
    plan = make_plan(given, subject, speeds)
    assert not set(plan.networks) & set(plan.left_out)
    assert set(plan.networks) | set(plan.left_out) == set(speeds.multiply_adds)
    for seconds in plan.left_out.values():
        assert seconds >= max(plan.networks.values())


def is_less(rung: Rung, than: Rung) -> bool:
    """Whether a rung has less of something; training heads only is less than all else."""
    if than.is_frozen and not rung.is_frozen:
        return False
    values = [(getattr(rung, one.name), getattr(than, one.name)) for one in fields(Rung)]
    named = dict(zip([one.name for one in fields(Rung)], values, strict=True))
    gained = {
        name: pair for name, pair in named.items() if name not in ("saves_epochs", "is_frozen")
    }
    return (rung.is_frozen and not than.is_frozen) or any(one < two for one, two in gained.values())


@pytest.mark.parametrize(
    "subject", [PHOTOS, DIGITS, WITH_WEIGHTS], ids=["photos", "digits", "heads"]
)
def test_a_rung_has_more_than_the_one_below_it(subject: Subject) -> None:
    rungs = list_rungs(subject, 7)
    for below, above in pairwise(rungs):
        assert below != above and not is_less(above, below)


def test_where_time_does_not_matter_all_is_wanted_and_no_more() -> None:
    plan = make_plan(1e6, PHOTOS, speeds_of())
    assert plan.rung == plan.best == Rung(224, 30, 5, 4, 20, saves_epochs=False)
    assert (plan.rung.num_listed, plan.rung.pruner) == (20, "none")
    assert make_plan(1e6, WITH_WEIGHTS, speeds_of()).rung.epochs == 10
    assert make_plan(1e6, DIGITS, speeds_of(0.0025, 32)).rung.image_size == 32


def test_few_images_are_shown_often_enough_to_learn_from() -> None:
    for train, epochs in ((10_000, 2), (1000, 3), (100, 8), (10, 30)):
        subject = Subject(Images(train, 20, 20), 32, has_weights=False, is_cpu=True)
        assert list_rungs(subject, 7)[0].epochs == epochs


def test_little_time_trains_heads_only_where_weights_can_be_had() -> None:
    assert make_plan(0.12, WITH_WEIGHTS, speeds_of()).rung.is_frozen
    assert not make_plan(10, WITH_WEIGHTS, speeds_of()).rung.is_frozen
    assert not make_plan(0.12, PHOTOS, speeds_of()).rung.is_frozen


def test_what_does_not_fit_is_the_least_study_and_says_so() -> None:
    plan = make_plan(0.001, PHOTOS, speeds_of())
    assert not plan.fits
    assert plan.rung == Rung(64, 2, 2, 2, 0)
    again = make_plan(plan.seconds.total / 3600, PHOTOS, speeds_of())
    assert again.fits and again.rung == plan.rung


@pytest.mark.parametrize("subject", [PHOTOS, WITH_WEIGHTS], ids=["photos", "weights"])
def test_a_night_is_used(subject: Subject) -> None:
    assert 18_000 < make_plan(10, subject, speeds_of()).seconds.total <= 36_000


def test_pruning_saves_epochs_from_four_on_and_only_of_searched_trials() -> None:
    assert Rung(64, 4, 2, 2, 4).pruner == "one_epoch"
    assert Rung(64, 3, 2, 2, 4).pruner == "none"
    assert Rung(64, 8, 2, 2, 0).pruner == "none"
    assert Rung(64, 20, 2, 2, 4, is_frozen=True).pruner == "none"
    assert Rung(64, 30, 5, 4, 20, saves_epochs=False).pruner == "none"


def test_every_planned_pruner_has_its_count_of_epochs() -> None:
    planned = set()
    for subject in (PHOTOS, WITH_WEIGHTS):
        planned |= {rung.pruner for rung in list_rungs(subject, 7)}
    assert planned <= set(PRUNERS)


@pytest.mark.parametrize(
    ("size", "has_weights", "expected"),
    [
        (32, False, [32]),
        (64, False, [32, 48, 64]),
        (128, False, [48, 64, 80, 96, 112, 128]),
        (224, False, [64, 80, 96, 112, 128, 160, 192, 224]),
        (224, True, [112, 128, 160, 192, 224]),
        (32, True, [32]),
    ],
)
def test_images_are_never_planned_larger_than_they_are(
    size: int, has_weights: bool, expected: list[int]
) -> None:
    assert list_sizes(size, has_weights) == expected


@pytest.mark.parametrize(
    ("is_cpu", "train", "size", "expected"),
    [
        (True, 500, 32, 64),
        (True, 499, 32, 16),
        (False, 100, 224, 16),
        (True, 500, 96, 16),
        (True, 5000, 96, 32),
        (False, 500, 224, 64),
    ],
)
def test_batches_are_smaller_where_a_step_would_take_long(
    is_cpu: bool, train: int, size: int, expected: int
) -> None:
    subject = Subject(Images(train, 10, 10), 224, has_weights=False, is_cpu=is_cpu)
    assert subject.batch_size(size) == expected


def test_a_single_network_that_fits_is_planned_with() -> None:
    plan = make_plan(10, PHOTOS, speeds_of(names=1))
    assert list(plan.networks) == ["resnet18"]
    assert plan.rung.num_settings in SETTINGS


def test_a_plan_is_made_in_no_time() -> None:
    plans: list[Plan] = [make_plan(number, PHOTOS, speeds_of()) for number in range(1, 50)]
    sizes = [plan.rung.image_size for plan in plans]
    assert sizes == sorted(sizes)
