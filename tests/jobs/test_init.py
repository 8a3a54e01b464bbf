"""Images and machine are looked at, and a study is planned that fits.

The timing is real, but lasts seconds instead of a minute.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline import models
from pipeline.config import Data, Model, Training
from pipeline.errors import UserError
from pipeline.experiment import load_experiment
from pipeline.jobs import network_timing
from pipeline.jobs.image_survey import look_at_images
from pipeline.jobs.init import write_experiment
from pipeline.jobs.network_speeds import Speed, Speeds
from pipeline.jobs.network_timing import CANDIDATES, Stopwatch, count_candidates
from pipeline.training.precision import list_candidates
from pipeline.training.timing import measure_steps
from tests.conftest import write_digits

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(network_timing, "TOTAL_SECONDS", 3.0)
    monkeypatch.setattr(network_timing, "CANDIDATES", ("resnet18", "resnet34", "densenet121"))


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    monkeypatch.setattr(network_timing, "TOTAL_SECONDS", 60.0)
    counts = {"resnet18": 36_000.0, "resnet34": 74_000.0}
    return Stopwatch(CPU, 3, Speeds(counts), lambda line: None)


def no_progress(line: str) -> None:
    """Say nothing."""


def test_the_images_are_counted_as_a_training_will_use_them(tmp_path: Path) -> None:
    source = f"folder:{write_digits(tmp_path / 'my digits', 20, size=40)}"
    survey = look_at_images(Data(source=source), no_progress)
    assert survey.counts == {"digit 0": 20, "digit 1": 20, "digit 2": 20}
    assert (survey.train_images, survey.val_images, survey.test_images) == (42, 9, 9)
    assert (survey.median_side, survey.image_size, survey.num_folds) == (40, 32, 1)
    assert 0 < survey.reading_seconds < 1
    folds = look_at_images(Data(source=source, folds=5, fold="all"), no_progress)
    assert (folds.num_folds, folds.train_images, folds.val_images) == (5, 41, 10)
    assert folds.test_images == 9
    assert folds.changed == {"folds": 5, "fold": "all"}


@pytest.mark.parametrize(
    ("side", "expected"), [(8, 32), (32, 32), (47, 32), (48, 48), (108, 96), (300, 224)]
)
def test_images_are_not_seen_larger_than_they_are(side: int, expected: int, tmp_path: Path) -> None:
    source = f"folder:{write_digits(tmp_path / 'digits', 5, size=side)}"
    assert look_at_images(Data(source=source), no_progress).image_size == expected


def test_multiply_adds_grow_with_the_depth_of_a_network() -> None:
    counts = count_candidates(10)
    assert counts["resnet34"] > 1.9 * counts["resnet18"]
    # torchvision's documentation: 1.81 billion for an image of 224 pixels.
    assert 224**2 * counts["resnet18"] == pytest.approx(1.81e9, rel=0.02)


@pytest.mark.parametrize("all_forms", [True, False], ids=["auto", "one form"])
def test_steps_are_timed_in_the_form_that_auto_would_take(all_forms: bool) -> None:
    forms = list_candidates(Training(), CPU)
    network = models.build(Model(name="small_cnn"), 3, 16)
    images = torch.rand(4, 3, 16, 16)
    times = measure_steps(network, images, CPU, forms if all_forms else forms[:1])
    assert times is not None
    assert 0 < times.fastest <= times.plain < times.choice
    assert times.form in (forms if all_forms else forms[:1])


def test_the_first_look_gives_way_to_a_real_measurement(stopwatch: Stopwatch) -> None:
    stopwatch.look_first(32)
    assert set(stopwatch.speeds.measured) == {("resnet18", 32)}
    looked = stopwatch.speeds.of("resnet18", 32)
    assert stopwatch.time_next([("resnet18", 32)], 16)
    assert stopwatch.speeds.of("resnet18", 32) != looked
    assert not stopwatch.time_next([("resnet18", 32)], 16)


def test_what_there_is_no_time_for_is_not_timed(
    stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopwatch, "_ends", 0.0)
    stopwatch.look_first(32)
    # The first look alone says too little to plan by.
    assert stopwatch.time_next([("resnet18", 32)], 16)
    before = stopwatch.speeds
    assert not stopwatch.time_next([("resnet18", 32), ("resnet34", 32)], 16)
    stopwatch.time_again([("resnet18", 32)])
    assert stopwatch.speeds == before


def test_a_short_minute_still_times_one_form(
    stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopwatch.look_first(32)
    known = stopwatch.speeds.of("resnet18", 32)
    slow = Speed(known.step, known.plain, 1e6)
    stopwatch.speeds = stopwatch.speeds.with_measured("resnet18", 32, slow)
    assert stopwatch.time_next([("resnet34", 32)], 4)
    timed = stopwatch.speeds.of("resnet34", 32)
    # What was not measured of it is as much more than a step as the first look's.
    assert timed.choice / timed.step == pytest.approx(1e6 / known.step)


def test_the_least_of_the_rounds_counts_and_disturbed_ones_are_said(
    stopwatch: Stopwatch,
) -> None:
    stopwatch.look_first(32)
    stopwatch.time_next([("resnet18", 32)], 16)
    real = stopwatch.speeds.of("resnet18", 32)
    stopwatch.is_disturbed = False
    slow = real.scaled(100)
    stopwatch.speeds = stopwatch.speeds.with_measured("resnet18", 32, slow)
    stopwatch.time_again([("resnet18", 32)])
    assert stopwatch.speeds.of("resnet18", 32).step < slow.step / 10
    assert stopwatch.is_disturbed


def test_a_network_that_does_not_fit_is_left_out(
    stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pipeline.training.stepper.Stepper.forward", no_memory)
    stopwatch.look_first(32)
    assert not stopwatch.speeds.measured
    assert set(stopwatch.left_out) == {"resnet18", "resnet34"}


@pytest.mark.slow
def test_the_file_of_few_hours_has_less_than_that_of_many(folder: Path) -> None:
    data = Data(source=f"folder:{write_digits(folder / 'digits', 30, size=64)}")
    few = write_experiment(data, Path("few.yaml"), 0.15, "cpu", no_progress)
    many = write_experiment(data, Path("many.yaml"), 1e5, "cpu", no_progress)
    assert few.seconds.total <= 540
    assert few.rung.epochs < many.rung.epochs
    experiment = load_experiment("few.yaml", {})
    assert (experiment.study.hours, len(experiment.entries)) == (0.15, few.rung.num_listed)
    assert load_experiment("many.yaml", {}).base.data.image_size == 64


@pytest.mark.slow
def test_hours_that_no_study_fits_into_are_refused_with_the_least_that_do(folder: Path) -> None:
    data = Data(source=f"folder:{write_digits(folder / 'digits', 12)}")
    with pytest.raises(UserError) as refused:
        write_experiment(data, Path("none.yaml"), 0.001, "cpu", no_progress)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("hours: 0.001 given; the least that makes sense here takes 0.0")
    assert "2 networks with 2 learning rates each, 30 epochs at 32 pixels" in message
    assert list(folder.glob("*.yaml")) == []


def test_a_network_is_not_planned_with_if_it_does_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    counts = {"resnet18": 1.0, "resnet34": 1.0, "densenet121": 1.0}
    monkeypatch.setattr("pipeline.jobs.init.count_candidates", lambda num_classes: counts)
    monkeypatch.setattr("torchvision.models.resnet.ResNet.forward", no_memory)
    data = Data(source=f"folder:{write_digits(folder / 'digits', 12)}")
    plan = write_experiment(data, Path("one.yaml"), 10, "cpu", no_progress)
    assert list(plan.networks) == ["densenet121"]
    assert "resnet18     left out: a batch of" in Path("one.yaml").read_text()


def test_candidates_are_networks() -> None:
    assert set(CANDIDATES) <= set(models.names())
