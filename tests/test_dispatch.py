"""A name that is allowed, but that nothing was written for, is an error.

It is never another one's work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import Optimizer, Schedule, Study, Training
from pipeline.search.pruning import build_pruner, build_sampler
from pipeline.training.imbalance import class_weights, sampling_probabilities
from pipeline.training.optimizer import build_optimizer
from pipeline.training.schedule import lr_at

LABELS = np.array([0, 1, 1])


@pytest.mark.parametrize(
    "dispatch",
    [
        lambda: build_optimizer(
            Optimizer.model_construct(name="lion"), [torch.nn.Parameter(torch.zeros(2))]
        ),  # type: ignore[arg-type]
        lambda: lr_at(0, Schedule.model_construct(name="linear"), 0.1, 10, 100),  # type: ignore[arg-type]
        lambda: build_sampler(Study.model_construct(sampler="grid"), 0),  # type: ignore[arg-type]
        lambda: build_pruner(Study.model_construct(pruner="wilcoxon"), 3),  # type: ignore[arg-type]
        lambda: class_weights(Training.model_construct(class_weights="effective"), LABELS, 2),  # type: ignore[arg-type]
        lambda: sampling_probabilities(Training.model_construct(sampler="stratified"), LABELS),  # type: ignore[arg-type]
    ],
    ids=["optimizer", "schedule", "sampler", "pruner", "class weights", "image sampler"],
)
def test_a_name_that_nothing_was_written_for_is_an_error(dispatch: Callable[[], Any]) -> None:
    with pytest.raises(AssertionError, match="unreachable"):
        dispatch()
