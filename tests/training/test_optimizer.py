"""The optimizer that a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from pipeline import models
from pipeline.config import Model, Optimizer
from pipeline.training.optimizer import build_optimizer


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_each_optimizer_has_its_settings(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = Optimizer.model_validate(
        {"name": name, "lr": 0.02, "weight_decay": 0.03, "momentum": 0.4, "betas": [0.5, 0.6]}
    )
    built = build_optimizer(optimizer, models.SmallCNN(3).parameters())
    (group,) = built.param_groups
    assert type(built) is kind
    assert group["fused"]
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.03)
    assert (group["momentum"] if name == "sgd" else group["betas"]) == (
        0.4 if name == "sgd" else (0.5, 0.6)
    )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_frozen_parameters_are_left_out(name: str) -> None:
    module = models.build(Model(name="resnet18", freeze="backbone"), 3, 32).module
    (group,) = build_optimizer(
        Optimizer.model_validate({"name": name}), module.parameters()
    ).param_groups
    assert [parameter.shape for parameter in group["params"]] == [(3, 512), (3,)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # The parameter is 1, its gradient 2, lr 0.1, weight decay 0.5.
        ("sgd", 1 - 0.1 * (2 + 0.5 * 1)),
        ("adam", 1 - 0.1),
        ("adamw", 1 - 0.1 * 0.5 * 1 - 0.1),
    ],
)
def test_one_step_of_each_optimizer(name: str, expected: float) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    built = build_optimizer(
        Optimizer.model_validate({"name": name, "lr": 0.1, "weight_decay": 0.5}), [parameter]
    )
    (2 * parameter).sum().backward()
    built.step()
    assert parameter.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "plain"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_the_fused_update_is_the_plain_one(
    name: str, plain: Callable[..., torch.optim.Optimizer]
) -> None:
    settings = {"lr": 0.02, "weight_decay": 0.03} | (
        {"momentum": 0.9} if name == "sgd" else {"betas": (0.8, 0.9)}
    )
    weights = []
    for build in (
        lambda tensors: build_optimizer(
            Optimizer.model_validate({"name": name, **settings}), tensors
        ),
        partial(plain, **settings),
    ):
        generator = torch.Generator().manual_seed(0)
        # One whose length no vector of the processor divides.
        parameters = [
            torch.nn.Parameter(torch.randn(shape, generator=generator))
            for shape in ((64, 3, 7, 7), (10007,))
        ]
        optimizer = build(parameters)
        for _ in range(20):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert torch.allclose(*weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_device_without_fused_kernels_gets_the_plain_update(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, device="meta"))
    (group,) = build_optimizer(Optimizer.model_validate({"name": name}), [parameter]).param_groups
    assert not group["fused"]
