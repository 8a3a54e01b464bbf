"""Networks that are not timed are estimated from the most similar one that is."""

from __future__ import annotations

import pytest

from pipeline.jobs.network_speeds import Speed, Speeds, family

COUNTS = {"resnet18": 1.0, "resnet50": 2.0, "densenet121": 1.5, "densenet201": 3.0}
MEASURED = Speed(0.1, 0.2, 3.0)


def test_what_is_measured_is_taken_as_it_is() -> None:
    speeds = Speeds(COUNTS).with_measured("resnet18", 64, MEASURED)
    assert speeds.of("resnet18", 64) == MEASURED


def test_another_takes_as_long_for_each_multiply_add() -> None:
    speeds = Speeds(COUNTS).with_measured("resnet18", 64, MEASURED)
    assert speeds.of("resnet50", 64) == Speed(0.2, 0.4, 6.0)
    assert speeds.of("resnet18", 128).step == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [
        ("resnet50", 64, ("resnet18", 64)),
        ("densenet201", 64, ("densenet121", 224)),
        ("densenet121", 32, ("densenet121", 224)),
        ("resnet18", 100, ("resnet18", 64)),
        ("resnet18", 200, ("resnet18", 224)),
        ("resnet50", 160, ("resnet18", 224)),
    ],
)
def test_the_most_similar_one_is_of_the_family_then_the_network_then_near_in_work(
    network: str, size: int, expected: tuple[str, int]
) -> None:
    speeds = Speeds(COUNTS)
    for cell in (("resnet18", 64), ("resnet18", 224), ("densenet121", 224)):
        speeds = speeds.with_measured(*cell, MEASURED)
    assert speeds.nearest(network, size) == expected


def test_nothing_is_estimated_from_nothing() -> None:
    with pytest.raises(ValueError):
        Speeds(COUNTS).of("resnet18", 64)


def test_the_least_of_several_measurements_counts() -> None:
    assert MEASURED.least(0.05) == Speed(0.05, 0.1, 1.5)
    assert MEASURED.least(0.3) == MEASURED


def test_a_network_that_does_not_fit_is_gone() -> None:
    speeds = Speeds(COUNTS).with_measured("resnet18", 64, MEASURED).without("resnet18")
    assert "resnet18" not in speeds.multiply_adds and not speeds.measured


def test_a_family_is_a_name_without_its_depth() -> None:
    assert [family(name) for name in COUNTS] == ["resnet", "resnet", "densenet", "densenet"]
