"""Number and memory formats: what may be chosen.

The choice is by measurement and leaves no trace.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline import models
from pipeline.config import Configuration, Model, Training
from pipeline.data.prepare_data import prepare
from pipeline.jobs.precision_choice import _make_step
from pipeline.jobs.training_job import Job, open_job_context
from pipeline.tracking import artifacts, names
from pipeline.tracking.workspace import Workspace
from pipeline.training.distributed import SINGLE_PROCESS
from pipeline.training.precision import (
    PLAIN,
    Choice,
    Numerics,
    find_fastest,
    list_candidates,
    take_batches,
)
from tests.conftest import Cli

CPU = torch.device("cpu")
BATCHES = [(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, ["fp32 contiguous", "fp32 channels_last", "bf16 contiguous", "bf16 channels_last"]),
        ({"precision": "fp32"}, ["fp32 contiguous", "fp32 channels_last"]),
        ({"memory_format": "channels_last"}, ["fp32 channels_last", "bf16 channels_last"]),
        ({"precision": "bf16", "memory_format": "contiguous"}, ["bf16 contiguous"]),
    ],
)
def test_candidates_are_what_is_left_open(training: dict[str, str], expected: list[str]) -> None:
    assert [
        str(form) for form in list_candidates(Training.model_validate(training), CPU)
    ] == expected


def test_fp16_is_a_candidate_on_cuda_only() -> None:
    assert Numerics("fp16") in list_candidates(Training(), torch.device("cuda"))
    assert Numerics("fp16") not in list_candidates(Training(), CPU)


class Stub:
    """A step that takes a given time and gives a given loss, by form; and the clock that shows it.

    It notes which networks it was given.
    """

    def __init__(self, seconds: dict[str, float], losses: dict[str, float]) -> None:
        self.seconds, self.losses = seconds, losses
        self.networks: list[nn.Module] = []
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def __call__(self, module: nn.Module, form: Numerics):  # type: ignore[no-untyped-def]
        self.networks.append(module)

        def step(images: Tensor, labels: Tensor) -> float:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(torch.rand_like(parameter))
            self.now += self.seconds.get(str(form), 0.01)
            if str(form) in self.losses and self.losses[str(form)] < 0:
                raise (RuntimeError if self.losses[str(form)] == -1 else ValueError)(
                    "'op' not implemented for 'BFloat16'\nmore"
                )
            return self.losses.get(str(form), 1.0)

        return step


@pytest.mark.parametrize(
    ("seconds", "losses", "expected", "refused"),
    [
        ({"bf16 channels_last": 0.004}, {}, "bf16 channels_last", {}),
        ({"fp32 channels_last": 0.004}, {}, "fp32 channels_last", {}),
        # Without a plain form that works, another one serves.
        (
            {"bf16 contiguous": 0.002},
            {"fp32 contiguous": -1},
            "bf16 contiguous",
            {"fp32 contiguous": "'op' not implemented for 'BFloat16'"},
        ),
        # Hardly faster is no reason.
        ({"bf16 contiguous": 0.0099}, {}, "fp32 contiguous", {}),
        (
            {"bf16 contiguous": 0.002},
            {"bf16 contiguous": float("nan")},
            "fp32 contiguous",
            {"bf16 contiguous": "the loss is not finite"},
        ),
        (
            {"bf16 contiguous": 0.002},
            {"bf16 contiguous": 1.2},
            "fp32 contiguous",
            {"bf16 contiguous": "the loss is 1.2, 1 in fp32 contiguous"},
        ),
        (
            {"bf16 contiguous": 0.002},
            {"bf16 contiguous": -2},
            "fp32 contiguous",
            {"bf16 contiguous": "'op' not implemented for 'BFloat16'"},
        ),
    ],
)
def test_the_fastest_whose_loss_is_close_is_taken(
    seconds: dict[str, float],
    losses: dict[str, float],
    expected: str,
    refused: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = models.build(Model(name="small_cnn"), 3, 16).module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    stub = Stub(seconds, losses)
    monkeypatch.setattr("pipeline.training.precision.time", stub)
    choice = find_fastest(list_candidates(Training(), CPU), module, stub, BATCHES, CPU)
    assert str(choice.numerics) == expected
    assert choice.refused == refused
    # On copies: neither the network nor the random numbers are changed.
    assert all(network is not module for network in stub.networks)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert Choice.from_dict(json.loads(json.dumps(choice.to_dict()))) == choice


def test_a_measurement_that_ends_early_is_compared_by_the_same_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Falling(Stub):
        def __call__(self, module: nn.Module, form: Numerics):  # type: ignore[no-untyped-def]
            step, losses = super().__call__(module, form), iter([2.0, 1.5, 1.2, 1.0])
            return lambda images, labels: step(images, labels) * next(losses)

    stub = Falling({"bf16 contiguous": 0.1}, {})
    monkeypatch.setattr("pipeline.training.precision.time", stub)
    assert (
        find_fastest(list_candidates(Training(), CPU), nn.Linear(1, 1), stub, BATCHES, CPU).refused
        == {}
    )


def test_measuring_moves_no_weights(tmp_path: Path) -> None:
    configuration = Configuration.model_validate(
        {"optimizer": {"lr": 0.1}, "model": {"name": "small_cnn"}, "data": {"image_size": 16}}
    )
    with open_job_context(
        Job(configuration, {}, prepare(configuration.data, tmp_path)),
        tmp_path,
        SINGLE_PROCESS,
    ) as setting:
        step = _make_step(configuration, setting, setting.network.module, PLAIN)
        (batch,) = take_batches(setting.train.epoch(1), 1)
        before = [parameter.clone() for parameter in setting.network.module.parameters()]
        assert step(*batch) == step(*batch)
        assert all(map(torch.equal, before, setting.network.module.parameters()))


def test_one_candidate_is_not_measured() -> None:
    stub = Stub({}, {})
    assert find_fastest([PLAIN], nn.Linear(1, 1), stub, BATCHES, CPU).numerics == PLAIN
    assert stub.networks == []


@pytest.mark.parametrize(
    "form", [Numerics("bf16"), Numerics("bf16", True), Numerics("fp32", True)], ids=str
)
def test_each_form_trains_and_is_recorded(
    cli: Cli, quick: Path, workspace: Workspace, form: Numerics
) -> None:
    layout = "channels_last" if form.channels_last else "contiguous"
    assert (
        cli(
            "train",
            "--config",
            quick,
            "--training.precision",
            form.precision,
            "--training.memory_format",
            layout,
        ).code
        == 0
    )
    (run,) = workspace.client.search_runs([workspace.experiment_id])
    losses = [
        metric.value
        for metric in workspace.client.get_metric_history(run.info.run_id, "train/loss")
    ]
    assert losses[-1] < losses[0]
    assert run.data.tags[names.NUMERICS_USED] == str(form)


@pytest.mark.thorough
def test_auto_is_measured_once_for_a_network_and_recorded_with_its_timings(
    cli: Cli, quick: Path, workspace: Workspace, tmp_path: Path
) -> None:
    auto = (
        "--training.precision",
        "auto",
        "--training.memory_format",
        "auto",
        "--training.epochs",
        "1",
    )
    first = cli("train", "--config", quick, *auto)
    assert first.code == 0, first.err
    assert "ms a step" in first.out
    again = cli("train", "--config", quick, *auto, "--training.seed", "1")
    assert "ms a step" not in again.out
    choices = [
        json.loads(
            artifacts.download_artifact(
                workspace, run.info.run_id, names.NUMERICS, tmp_path / run.info.run_id
            ).read_text()
        )
        for run in workspace.client.search_runs([workspace.experiment_id])
    ]
    assert choices[0] == choices[1]
    assert {"fp32 contiguous", "bf16 channels_last"} <= choices[0]["seconds"].keys()
    # What is damaged is measured again.
    (kept,) = Path("checkpoints").rglob(names.NUMERICS)
    kept.write_text("")
    damaged = cli("train", "--config", quick, *auto, "--training.seed", "2")
    assert damaged.code == 0 and "ms a step" in damaged.out
    other = cli(
        "train",
        "--config",
        quick,
        *auto,
        "--model.name",
        "squeezenet1_1",
        "--data.image_size",
        "32",
    )
    assert "squeezenet1_1: " in other.out and "ms a step" in other.out
