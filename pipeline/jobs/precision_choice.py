"""Number format and memory format of a training: measured once per study, network and machine."""

from __future__ import annotations

import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Configuration
from pipeline.files import lock, write_whole
from pipeline.report.console import say
from pipeline.training.context import TrainingContext
from pipeline.training.inference import set_training_mode
from pipeline.training.precision import (
    Choice,
    Numerics,
    OneStep,
    find_fastest,
    list_candidates,
    take_batches,
)
from pipeline.training.stepper import Stepper


def choose_precision(
    configuration: Configuration, context: TrainingContext, file: Path, study: str
) -> Choice:
    """Return the fastest form for a training.

    What the same study has measured on this machine is taken again.

    Args:
        configuration: What is trained.
        context: Its network and images; afterwards they are as before.
        file: JSON file of earlier choices by what they depend on. It is made if it is missing.
        study: Name of the training's study, or empty.
    """
    forms = list_candidates(configuration.training, context.device)
    if len(forms) == 1:
        return Choice(forms[0], {}, {})
    dependencies = _list_dependencies(configuration, context.device, context.group.size)
    key = " | ".join([study, *dependencies])
    name = configuration.model.name
    file.parent.mkdir(parents=True, exist_ok=True)
    with lock(file):
        kept = _read(file)
        if key in kept:
            return Choice.from_dict(kept[key])
        say(f"  {name}: which of {', '.join(map(str, forms))} is fastest is measured")
        choice = _measure(configuration, context, forms)
        write_whole(file, json.dumps({**kept, key: choice.to_dict()}, indent=1), durable=True)
        times = [f"{form} {1000 * seconds:.0f} ms" for form, seconds in choice.seconds.items()]
        say(f"  {name}: {choice.numerics} is used; {', '.join(times)} a step")
        return choice


def _read(file: Path) -> dict[str, Any]:
    """Return earlier choices by what they depend on.

    If the file is missing or damaged there are none, and they are measured again.
    """
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _list_dependencies(
    configuration: Configuration, device: torch.device, processes: int
) -> list[str]:
    """Return all that a choice depends on beside the study."""
    where = f"{device.type}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    data = configuration.data
    model = configuration.model
    training = configuration.training
    return [
        f"{model.name}, freeze {model.freeze}, {configuration.optimizer.name}",
        f"batches of {data.batch_size} of {data.image_size} pixels, processes: {processes}",
        f"{training.precision}, {training.memory_format}",
        f"{platform.node()}, {where}, torch {torch.__version__}",
    ]


def _measure(
    configuration: Configuration, context: TrainingContext, forms: list[Numerics]
) -> Choice:
    set_training_mode(context.network, frozen=configuration.model.freeze == "backbone")
    return find_fastest(
        forms,
        context.network.module.to(context.device),
        partial(_make_step, configuration, context),
        take_batches(context.train.epoch(1)),
        context.device,
    )


def _make_step(
    configuration: Configuration, context: TrainingContext, module: nn.Module, form: Numerics
) -> OneStep:
    """Return a function that does one step with a copy of the network."""
    # Compiling each form would take longer than the fastest form can save.
    configuration = configuration.change("training", compile=False)
    stepper = Stepper(configuration, module, form, context.device, None)

    def step(images: Tensor, labels: Tensor) -> float:
        loss, _ = stepper.forward(context.inputs(images), labels.to(context.device))
        stepper.backward(loss)
        stepper.update(0.0)
        return loss.item()

    return step
