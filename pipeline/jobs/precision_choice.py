"""Number and memory format of a training: measured once per study, network and machine, and kept."""

from __future__ import annotations

import json
import platform
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
    configuration: Configuration, setting: TrainingContext, file: Path, study: str
) -> Choice:
    """Return the fastest form for a training; what was measured before in the same study on this machine is taken again.

    Args:
        configuration: Of the training.
        setting: Its network and images; as before afterwards.
        file: Where choices are kept, JSON by what they depend on; made when it is missing.
        study: Name, or empty.
    """
    forms = list_candidates(configuration.training, setting.device)
    if len(forms) == 1:
        return Choice(forms[0], {}, {})
    key = " | ".join([study, *_what_decides(configuration, setting.device, setting.group.size)])
    file.parent.mkdir(parents=True, exist_ok=True)
    with lock(file):
        kept = _read(file)
        if key not in kept:
            say(
                f"  {configuration.model.name}: which of {', '.join(map(str, forms))} is fastest is measured"
            )
            choice = _measured(configuration, setting, forms)
            write_whole(file, json.dumps({**kept, key: choice.to_dict()}, indent=1), durable=True)
            say(f"  {configuration.model.name}: {choice.numerics} is used; {_told(choice)}")
            return choice
    return Choice.from_dict(kept[key])


def _read(file: Path) -> dict[str, Any]:
    """Return what was measured before; nothing where the file is missing or damaged: it is measured again."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _what_decides(configuration: Configuration, device: torch.device, processes: int) -> list[str]:
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )
    data, model, training = configuration.data, configuration.model, configuration.training
    shape = f"batches of {data.batch_size} of {data.image_size} pixels, processes: {processes}"
    return [
        f"{model.name}, freeze {model.freeze}, {configuration.optimizer.name}",
        shape,
        f"{training.precision}, {training.memory_format}",
        f"{platform.node()}, {where}, torch {torch.__version__}",
    ]


def _measured(
    configuration: Configuration, setting: TrainingContext, forms: list[Numerics]
) -> Choice:
    set_training_mode(setting.network, frozen=configuration.model.freeze == "backbone")
    batches = take_batches(setting.train.epoch(1))
    module = setting.network.module.to(setting.device)
    return find_fastest(
        forms,
        module,
        lambda copied, form: _one_step(configuration, setting, copied, form),
        batches,
        setting.device,
    )


def _one_step(
    configuration: Configuration, setting: TrainingContext, module: nn.Module, form: Numerics
) -> OneStep:
    # Compiling each form would take longer than what is to be found out is worth.
    configuration = configuration.model_copy(
        update={"training": configuration.training.model_copy(update={"compile": False})}
    )
    stepper = Stepper(configuration, module, form, setting.device, None)

    def step(images: Tensor, labels: Tensor) -> float:
        loss, _ = stepper.forward(setting.inputs(images), labels.to(setting.device))
        stepper.backward(loss)
        stepper.update(0.0)
        return loss.item()

    return step


def _told(choice: Choice) -> str:
    return (
        ", ".join(f"{form} {1000 * seconds:.0f} ms" for form, seconds in choice.seconds.items())
        + " a step"
    )
