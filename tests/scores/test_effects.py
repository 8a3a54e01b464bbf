"""Effects are those of pairs that differ in one setting alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

from pipeline.scores.effects import MOST_VALUES, Configuration, Effect, find_effects


def configured(score: float, is_searched: bool = False, **settings: Any) -> Configuration:
    return Configuration(settings, {"val": score}, is_searched)


def by_values(effects: list[Effect]) -> dict[tuple[Any, Any, Any], Effect]:
    return {(one.setting, one.before, one.after): one for one in effects}


def test_only_pairs_that_differ_in_one_setting_count() -> None:
    found = by_values(
        find_effects(
            [
                configured(0.90, model="a", lr=0.1),
                configured(0.92, model="a", lr=0.01),
                configured(0.80, model="b", lr=0.1),
                configured(0.86, model="b", lr=0.01),
                # It differs from each of the others in both.
                configured(0.10, model="c", lr=0.5),
            ]
        )
    )
    assert set(found) == {("lr", 0.01, 0.1), ("model", "a", "b")}
    lr = found["lr", 0.01, 0.1]
    assert lr.differences["val"] == pytest.approx([-0.02, -0.06])
    assert lr.mean("val") == pytest.approx(-0.04)
    assert lr.deviation("val") == pytest.approx(0.02 * math.sqrt(2))
    assert found["model", "a", "b"].differences["val"] == pytest.approx([-0.10, -0.06])


def test_numbers_stand_in_their_order_and_texts_after_them() -> None:
    found = find_effects([configured(0, lr=value) for value in (1e-3, "auto", 5e-5, 10.0)])
    assert {(one.before, one.after) for one in found} == {
        (5e-5, 1e-3),
        (5e-5, 10.0),
        (5e-5, "auto"),
        (1e-3, 10.0),
        (1e-3, "auto"),
        (10.0, "auto"),
    }


def test_what_depends_on_the_setting_is_passed_over() -> None:
    def depend_on(setting: str) -> Iterable[str]:
        return ["momentum"] if setting == "optimizer" else []

    rows = [
        configured(0.9, optimizer="adam"),
        configured(0.8, optimizer="sgd", momentum=0.9),
        configured(0.7, optimizer="sgd", momentum=0.5),
    ]
    found = by_values(find_effects(rows, depend_on))
    assert found["optimizer", "adam", "sgd"].differences["val"] == pytest.approx([-0.1, -0.2])
    assert found["momentum", 0.5, 0.9].differences["val"] == pytest.approx([0.1])
    # A momentum and none are not two values of it.
    assert len(found) == 2
    assert ("optimizer", "adam", "sgd") not in by_values(find_effects(rows))


def test_pairs_of_the_search_are_counted_and_the_most_frequent_comes_first() -> None:
    rows = [configured(0.9, True, model="a", lr=0.1), configured(0.9, True, model="c", lr=0.1)]
    rows += [configured(0.8, model=model, lr=0.2) for model in ("a", "b")]
    rows += [configured(0.7, model=model, lr=0.3) for model in ("a", "b")]
    found = find_effects(rows)
    assert len(found[0].differences["val"]) == 2
    assert [len(one.differences["val"]) for one in found] == sorted(
        [len(one.differences["val"]) for one in found], reverse=True
    )
    assert by_values(found)["lr", 0.1, 0.2].num_searched == 1
    assert by_values(found)["lr", 0.2, 0.3].num_searched == 0


def test_a_metric_that_one_of_a_pair_lacks_is_left_out() -> None:
    rows = [
        Configuration({"lr": 1}, {"val": 0.5, "test": 0.4}),
        Configuration({"lr": 2}, {"val": 0.7}),
    ]
    [found] = find_effects(rows)
    assert found.mean("val") == pytest.approx(0.2) and math.isnan(found.mean("test"))
    assert math.isnan(found.deviation("val"))


def test_a_thousand_searched_rates_have_no_pair() -> None:
    rows = [configured(0.5, True, lr=number / 1000) for number in range(1000)]
    assert find_effects(rows) == []
    # Those that a person chose beside them have.
    rows += [configured(0.5, lr=2.0), configured(0.6, lr=3.0)]
    [found] = find_effects(rows)
    assert (found.before, found.after, found.num_searched) == (2.0, 3.0, 0)
    assert find_effects([]) == []


def test_of_a_thousand_chosen_rates_those_of_most_configurations_are_compared() -> None:
    rates = [float(number) for number in range(1000)]
    rows = [configured(0.5, lr=rate, model="a") for rate in rates]
    rows += [configured(0.7, lr=rate, model="b") for rate in rates[500:505]]
    found = [effect for effect in find_effects(rows) if effect.setting == "lr"]
    values = {effect.before for effect in found} | {effect.after for effect in found}
    assert len(values) == MOST_VALUES and values >= set(rates[500:505])
    [model] = [effect for effect in find_effects(rows) if effect.setting == "model"]
    assert model.num_pairs == 5
