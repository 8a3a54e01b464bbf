"""The file that init writes says what was planned, and is read as it was meant."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.experiment import Experiment, load_experiment
from pipeline.jobs.experiment_text import Findings, compose_text, list_changes
from pipeline.jobs.image_survey import Survey
from pipeline.jobs.study_plan import Rung, Subject, make_plan
from pipeline.jobs.study_seconds import Images
from tests.jobs.test_study_plan import speeds_of

SURVEY = Survey(
    name="photos",
    source="folder:my photos",
    changed={"duplicates": "warn"},
    is_long=False,
    counts={"cat": 900, "it's a dog": 1000},
    train_images=1330,
    val_images=285,
    test_images=285,
    num_folds=1,
    median_side=250,
    image_size=224,
    reading_seconds=0.01,
)


def findings(hours: float, has_weights: bool = False, survey: Survey = SURVEY) -> Findings:
    images = Images(1330, 285, 285)
    subject = Subject(images, survey.image_size, has_weights, is_cpu=True)
    plan = make_plan(hours, subject, speeds_of())
    return Findings(
        survey=survey,
        hours=hours,
        plan=plan,
        doubled=make_plan(2 * hours, subject, speeds_of()),
        speeds=speeds_of(),
        device="cpu",
        is_disturbed=False,
        unfit={},
        weights_comment="a comment",
        has_weights=has_weights,
    )


def load(found: Findings, folder: Path) -> Experiment:
    file = folder / "photos.yaml"
    file.write_text(compose_text(found, file), encoding="utf-8")
    return load_experiment(str(file), {})


@pytest.mark.parametrize("has_weights", [True, False], ids=["weights", "none"])
@pytest.mark.parametrize("hours", [0.1, 0.5, 2, 10, 1000])
def test_what_is_planned_is_what_is_written(
    hours: float, has_weights: bool, tmp_path: Path
) -> None:
    found = findings(hours, has_weights)
    rung = found.plan.rung
    experiment = load(found, tmp_path)
    assert len(experiment.entries) == rung.num_listed
    assert experiment.trials == rung.num_listed + rung.num_searched
    assert bool(experiment.space) == bool(rung.num_searched)
    assert (experiment.study.pruner, experiment.study.hours) == (rung.pruner, hours)
    base = experiment.base
    assert (base.training.epochs, base.data.image_size) == (rung.epochs, rung.image_size)
    assert base.data.batch_size == found.plan.batch_size
    assert base.data.duplicates == "warn"
    assert base.model.weights == ("DEFAULT" if has_weights else "none")
    assert base.model.freeze == ("backbone" if rung.is_frozen else "none")
    # Features of images that are changed in each epoch could not be computed once.
    assert bool(base.data.augment) != rung.is_frozen


@pytest.mark.parametrize("hours", [0.3, 10, 1000])
def test_the_list_has_each_network_at_two_learning_rates_and_nothing_twice(
    hours: float, tmp_path: Path
) -> None:
    found = findings(hours)
    entries = load(found, tmp_path).entries
    assert {entry.model.name for entry in entries} == set(found.plan.networks)
    for name in found.plan.networks:
        assert len({one.optimizer.lr for one in entries if one.model.name == name}) == 2
    assert len({entry.model_dump_json() for entry in entries}) == len(entries)


def test_the_comment_says_what_it_takes_and_where_each_time_is_from() -> None:
    found = findings(10)
    text = compose_text(found, Path("photos.yaml"))
    assert "# 1900 images of 2 classes, from 900 of 'cat' to 1000 of \"it's a dog\";" in text
    assert "# Planned for 10 hours on this machine (cpu): about " in text
    assert f"# The list of {found.plan.rung.num_listed} takes " in text
    for name in (*found.plan.networks, *found.plan.left_out):
        assert len(re.findall(rf"^#   {name} .* images a second", text, re.MULTILINE)) == 1
    assert text.count("; left out") == len(found.plan.left_out) > 0
    assert "(estimated by its multiply-adds)" in text


def test_the_comment_says_what_was_given_up_and_what_twice_the_time_buys() -> None:
    text = compose_text(findings(10), Path("photos.yaml"))
    given_up, _, bought = text.partition("# Twice the time would buy")
    assert "#   224 pixels as the side of an image, instead of 160" in given_up
    assert "#   30 epochs a training, instead of 20" in given_up
    assert "instead of" in bought
    much = compose_text(findings(1e5), Path("photos.yaml"))
    assert "# Given up for these hours: nothing." in much
    assert "# Twice the time would buy: nothing." in much


@pytest.mark.parametrize(
    ("more", "less", "expected"),
    [
        (Rung(64, 8, 2, 2, 4), Rung(64, 8, 2, 2, 4), []),
        (
            Rung(96, 8, 3, 2, 4),
            Rung(64, 8, 2, 2, 4),
            [
                "96 pixels as the side of an image, instead of 64",
                "3 networks, instead of 2",
                "6 configurations in the list, instead of 4",
            ],
        ),
        (
            Rung(64, 30, 2, 2, 4, saves_epochs=False),
            Rung(64, 30, 2, 2, 4),
            ["searched trainings to their end, also of those that are behind"],
        ),
        (
            Rung(64, 3, 2, 2, 0),
            Rung(64, 20, 2, 2, 0, is_frozen=True),
            ["whole networks that are trained, instead of their heads alone"],
        ),
    ],
)
def test_what_a_study_has_beyond_another_is_said_in_words(
    more: Rung, less: Rung, expected: list[str]
) -> None:
    assert list_changes(more, less) == expected


def test_disturbed_times_and_networks_that_do_not_fit_are_said() -> None:
    found = replace(findings(10), is_disturbed=True, unfit={"resnet101": "it is too large"})
    text = compose_text(found, Path("photos.yaml"))
    assert "# Other work has disturbed the timing" in text
    assert "#   resnet101    left out: it is too large" in text


def test_long_pictures_are_kept_whole(tmp_path: Path) -> None:
    experiment = load(findings(10, survey=replace(SURVEY, is_long=True)), tmp_path)
    assert experiment.base.data.fit == "pad"


def test_a_path_with_spaces_can_be_typed() -> None:
    text = compose_text(findings(10), Path("my studies/photos.yaml"))
    assert "--config 'my studies/photos.yaml'" in text
    assert "source: 'folder:my photos'" in text
