"""Each flag is raised by a real training, and not by another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import metrics
from pipeline.config import Configuration, merge
from pipeline.data.prepare_data import prepare
from pipeline.data.prepared import Prepared
from pipeline.errors import TrainingFailed
from pipeline.training.callback import Callback
from pipeline.training.context import TrainingContext
from pipeline.training.diagnostics import (
    Diagnostics,
    Flag,
    compare_with_majority,
    find_collapse,
    find_overfitting,
)
from pipeline.training.fit import fit
from pipeline.training.inference import predict_logits
from tests.training.small_training import BASE, build_context


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(Configuration.model_validate(BASE).data, tmp_path_factory.mktemp("prepared"))


class Judged(Callback):
    """Keeps the flags after each epoch."""

    def __init__(self, setting: TrainingContext, epochs: int) -> None:
        self.setting, self.epochs = setting, epochs
        majority_rate = metrics.majority_rate(
            setting.train.labels.numpy(), setting.val.labels.numpy(), setting.train.num_classes
        )
        self.diagnostics = Diagnostics(setting.train.num_classes, majority_rate)
        self.flags: list[dict[str, str]] = []

    def on_epoch(self, epoch: int, values: dict[str, float], is_best: bool) -> None:
        setting = self.setting
        _, logits = predict_logits(
            setting.network.module,
            setting.val,
            setting.preprocessing,
            setting.device,
            setting.numerics,
        )
        self.flags.append(
            dict(self.diagnostics.after_epoch(epoch, self.epochs, values, logits.argmax(axis=1)))
        )


def judge(
    prepared: Prepared, folder: Path, changes: dict[str, Any], labels: Any = None
) -> list[dict[str, str]]:
    """Train; return the flags after each epoch, by name."""
    configuration = Configuration.model_validate(merge(BASE, changes))
    setting = build_context(configuration, prepared, folder, labels)
    judged = Judged(setting, configuration.training.epochs)
    fit(configuration, setting, [judged])
    return judged.flags


def test_a_sound_training_raises_no_flag(digits: Prepared, tmp_path: Path) -> None:
    changes = {"training": {"epochs": 4}, "schedule": {"name": "cosine"}}
    assert [
        set(flags) - {"still_improving", "overfit"} for flags in judge(digits, tmp_path, changes)
    ] == [set()] * 4


def test_collapse(tmp_path: Path) -> None:
    changes = {
        "data": {"image_size": 32, "batch_size": 64},
        "model": {"name": "squeezenet1_1"},
        "optimizer": {"name": "adam", "lr": 1e-3},
        "training": {"epochs": 2},
    }
    larger = prepare(Configuration.model_validate(merge(BASE, changes)).data, tmp_path)
    first, second = judge(larger, tmp_path, changes)
    assert "collapse" not in first
    assert second["collapse"] in ("predicts 1 of 10 classes", "predicts 2 of 10 classes")


def test_a_collapse_that_passes_is_withdrawn(digits: Prepared, tmp_path: Path) -> None:
    flags = judge(
        digits, tmp_path, {"optimizer": {"name": "sgd", "lr": 2e-3}, "training": {"epochs": 25}}
    )
    assert "collapse" in flags[1]
    assert "collapse" not in flags[-1]


def test_baseline(digits: Prepared, tmp_path: Path) -> None:
    # What is learnt from labels that are all wrong is never right.
    flags = judge(digits, tmp_path, {"training": {"epochs": 6}}, labels=(digits.labels() + 1) % 10)
    assert "baseline" not in flags[0]
    assert "is not above that of always answering the largest class, 9.8%" in flags[-1]["baseline"]


@pytest.mark.slow
def test_overfit(digits: Prepared, tmp_path: Path) -> None:
    # Labels at random can only be learnt by heart.
    labels = np.random.default_rng(0).permutation(digits.labels())
    flags = judge(digits, tmp_path, {"training": {"epochs": 40}}, labels=labels)
    assert "points above validation's" in flags[-1]["overfit"]
    assert not any("overfit" in one for one in flags[:2])


def test_no_overfit_while_validation_is_the_better(digits: Prepared, tmp_path: Path) -> None:
    changes = {"optimizer": {"lr": 1e-4}}
    assert [set(flags) & {"overfit"} for flags in judge(digits, tmp_path, changes)] == [set()] * 3


def test_not_finite(digits: Prepared, tmp_path: Path) -> None:
    configuration = Configuration.model_validate(
        merge(BASE, {"optimizer": {"name": "sgd", "lr": 1e12}})
    )
    setting = build_context(configuration, digits, tmp_path)
    judged = Judged(setting, 3)
    with pytest.raises(TrainingFailed) as failed:
        fit(configuration, setting, [judged])
    (flag,) = judged.diagnostics.after_failure(str(failed.value))
    assert flag.name == "not_finite"
    assert flag.text.startswith("the loss is not finite at step")


def test_still_improving(digits: Prepared, tmp_path: Path) -> None:
    configuration = Configuration.model_validate(
        merge(BASE, {"optimizer": {"lr": 1e-4}, "training": {"epochs": 4}})
    )
    setting = build_context(configuration, digits, tmp_path)
    judged = Judged(setting, 4)
    fitted = fit(configuration, setting, [judged])
    assert [set(one) & {"still_improving"} for one in judged.flags[:-1]] == [set()] * 3
    # It does at that rate, but for the rounding of a processor.
    *before, last = [epoch["val/accuracy"] for epoch in fitted.history]
    text = judged.flags[-1].get("still_improving", "")
    assert text.startswith("the last epoch, 4, is the best (validation accuracy ") == (
        last > max(before)
    )


def test_an_equal_score_at_the_end_is_no_improvement(digits: Prepared, tmp_path: Path) -> None:
    assert (
        "still_improving"
        not in judge(digits, tmp_path, {"optimizer": {"name": "sgd", "lr": 1e-12}})[-1]
    )


VALUES = {"train/loss": 1.0, "val/loss": 1.0, "train/accuracy": 0.5, "val/accuracy": 0.5}
ALL = np.arange(100) % 10


@pytest.mark.parametrize(
    ("answered", "num_classes", "images", "is_collapse"),
    [
        *(
            (1, 2, 100, True),
            (2, 2, 100, False),
            (1, 5, 100, True),
            (2, 5, 100, False),
            (2, 10, 100, True),
            (3, 10, 100, False),
        ),
        *((25, 100, 1000, True), (26, 100, 1000, False), (5, 100, 5, False), (1, 100, 5, True)),
    ],
)
def test_a_collapse_is_at_most_a_quarter_of_the_classes(
    answered: int, num_classes: int, images: int, is_collapse: bool
) -> None:
    flag = find_collapse(np.arange(images) % answered, num_classes)
    assert flag == (
        Flag("collapse", f"predicts {answered} of {num_classes} classes") if is_collapse else None
    )


def test_the_numbers_of_the_texts() -> None:
    flag = find_overfitting({"train/accuracy": 0.9757, "val/accuracy": 0.8419}, 0.1)
    assert flag == ("overfit", "training accuracy 97.6% is 13.4 points above validation's 84.2%")
    assert find_overfitting({"train/accuracy": 0.9757, "val/accuracy": 0.8419}, 0.2) is None
    text = (
        "validation accuracy 73.5% is not above that of always answering the largest class, 73.5%"
    )
    assert compare_with_majority({"val/accuracy": 0.735}, 0.735) == ("baseline", text)
    assert compare_with_majority({"val/accuracy": 0.736}, 0.735) is None


@pytest.mark.parametrize("name", ["train/loss", "val/loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_epoch_with_a_loss_that_is_not_finite(name: str, value: float) -> None:
    diagnostics = Diagnostics(10, 0.1)
    flags = diagnostics.after_epoch(1, 3, {**VALUES, name: value}, ALL)
    assert flags == [("not_finite", f"{name} is {value}")]
    assert diagnostics.after_failure("at step 7") == [("not_finite", "at step 7")]
    assert diagnostics.after_epoch(2, 3, VALUES, ALL) == []


def test_one_epoch_alone_is_judged() -> None:
    names = [
        flag.name
        for flag in Diagnostics(10, 0.9).after_epoch(1, 1, {**VALUES, "train/accuracy": 0.9}, ALL)
    ]
    assert names == ["overfit"]
    assert [flag.name for flag in Diagnostics(10, 0.9).after_epoch(1, 1, VALUES, 0 * ALL)] == [
        "collapse"
    ]


@pytest.mark.parametrize(
    ("metric", "worse", "better"), [("val/loss", 2.0, 1.0), ("val/f1_macro", 0.4, 0.6)]
)
def test_improvement_is_by_the_best_metric_and_known_after_a_resume(
    metric: str, worse: float, better: float
) -> None:
    for before, last, expected in (
        (worse, better, ["still_improving"]),
        (better, worse, []),
        (better, better, []),
    ):
        diagnostics = Diagnostics(10, 0.1, best_metric=metric)
        diagnostics.resume([{**VALUES, metric: before}])
        assert [
            flag.name for flag in diagnostics.after_epoch(2, 2, {**VALUES, metric: last}, ALL)
        ] == expected


def ties(*epochs: tuple[float, float], metric: str = "val/accuracy") -> list[str]:
    """Return the text of the flag ``tie`` after each epoch, empty where it is not raised.

    Args:
        epochs: Score and validation loss of each.
        metric: The metric of that score.
    """
    diagnostics = Diagnostics(10, 0.1, best_metric=metric)
    texts = []
    for number, (score, loss) in enumerate(epochs, start=1):
        values = {**VALUES, "val/loss": loss, metric: score}
        flags = dict(diagnostics.after_epoch(number, 100, values, ALL))
        texts.append(flags.get("tie", ""))
    return texts


def test_an_equal_score_hides_a_far_worse_loss() -> None:
    first, second = ties((0.9, 0.1), (0.9, 0.25))
    assert first == ""
    assert second == (
        "epoch 2 is kept, as good as epoch 1 by validation accuracy, but its validation loss "
        "0.2500 is 2.5 times that of epoch 1, 0.1000"
    )


@pytest.mark.parametrize(
    ("loss", "is_tie"), [(0.6251, True), (0.625, False), (0.5, False), (0.1, False)]
)
def test_a_loss_up_to_a_quarter_higher_is_not_told(loss: float, is_tie: bool) -> None:
    assert [bool(text) for text in ties((0.9, 0.5), (0.9, loss))] == [False, is_tie]


def test_epochs_that_are_no_better_than_the_kept_one_change_nothing() -> None:
    told = "epoch 4 is kept, as good as epoch 2 by "
    worse = (0.8, 0.01)
    texts = ties(worse, (0.9, 0.1), worse, (0.9, 0.2), worse)
    assert [text.startswith(told) for text in texts] == [False, False, False, True, True]
    assert texts[4] == texts[3]
    assert ties((0.8, 0.01), (0.9, 1.0), (0.85, 0.01)) == [""] * 3


def test_of_several_equal_epochs_the_last_is_kept_and_that_of_the_lowest_loss_named() -> None:
    texts = ties((0.9, 0.2), (0.9, 0.1), (0.9, 0.15), (0.9, 0.4), (0.9, 0.11))
    # The last but one is the worst, and not kept any more after the last.
    assert [bool(text) for text in texts] == [False, False, True, True, False]
    assert texts[3].startswith("epoch 4 is kept, as good as epoch 2 by ")
    assert texts[3].endswith("0.4000 is 4.0 times that of epoch 2, 0.1000")


def test_a_better_epoch_withdraws_a_tie() -> None:
    assert [bool(text) for text in ties((0.9, 0.1), (0.9, 0.2), (0.91, 5.0), (0.9, 0.1))] == [
        False,
        True,
        False,
        False,
    ]


def test_a_tie_is_by_the_best_metric_and_a_loss_hides_none() -> None:
    assert ties((0.9, 0.1), (0.9, 0.2), metric="val/f1_macro")[1].startswith(
        "epoch 2 is kept, as good as epoch 1 by validation macro F1, but"
    )
    # By the loss itself, equal epochs have equal losses, whatever their accuracy.
    assert ties((0.3, 0.3), (0.3, 0.3), (0.4, 0.4), metric="val/loss") == [""] * 3


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_no_tie(score: float) -> None:
    assert ties((score, 0.1), (score, 0.9)) == [""] * 2


def test_losses_of_zero_have_no_ratio() -> None:
    assert ties((0.9, 0.0), (0.9, 0.5)) == [""] * 2


def test_a_tie_with_an_epoch_before_a_resume_is_told() -> None:
    before = [{**VALUES, "val/loss": loss} for loss in (0.1, 0.3)]
    for history, expected in ((before, ["tie"]), (before[1:], []), ([], [])):
        diagnostics = Diagnostics(10, 0.1)
        diagnostics.resume(history)
        found = diagnostics.after_epoch(3, 100, {**VALUES, "val/loss": 0.3}, ALL)
        assert [flag.name for flag in found] == expected


def test_the_epoch_that_a_tie_names_is_the_one_that_fit_keeps(
    digits: Prepared, tmp_path: Path
) -> None:
    # So small a step changes no answer: all epochs tie.
    configuration = Configuration.model_validate(
        merge(BASE, {"optimizer": {"name": "sgd", "lr": 1e-12}})
    )
    setting = build_context(configuration, digits, tmp_path)
    fitted = fit(configuration, setting, [])
    scores = [epoch["val/accuracy"] for epoch in fitted.history]
    assert len(set(scores)) == 1 and fitted.best_epoch == len(scores)
    diagnostics = Diagnostics(10, 0.1)
    # The loss of the first epoch as it might have been.
    diagnostics.resume([{**fitted.history[0], "val/loss": 0.01}, *fitted.history[1:-1]])
    flags = dict(diagnostics.after_epoch(len(scores), 100, fitted.history[-1], ALL))
    assert flags["tie"].startswith(f"epoch {fitted.best_epoch} is kept, as good as epoch 1 by ")
