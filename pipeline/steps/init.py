"""Entry point init."""

from __future__ import annotations

import shlex
from pathlib import Path

from pipeline.config import Data, Raw, Training, essential, facts_of, field_info, parse
from pipeline.errors import UserError
from pipeline.steps.options import Options


class InitOptions(Options):
    """Options of init."""

    out: str = essential(
        "",
        "File to write; empty means experiments/NAME.yaml, "
        "or NAME.yaml if there is no such folder.",
    )
    hours: float = essential(
        10.0,
        "Hours that the study may take on this machine, from the images to the comparison. Image "
        "size, epochs, networks and configurations are chosen so that it fits.",
        gt=0,
        allow_inf_nan=False,
    )
    data: Data = Data()
    training: Training = Training()
    summary = (
        "Look at your images, time networks on this machine for a minute, "
        "and write a commented experiment file of a study that fits into your time."
    )
    example = "python -m pipeline init --data.source folder:photos --hours 2"

    @staticmethod
    def reads(name: str) -> bool:
        """Whether the step reads a field of a configuration.

        It reads none that it chooses itself.
        """
        if name == "training.device":
            return True
        field = field_info(name)
        return name.startswith("data.") and field is not None and bool(facts_of(field).shared)


OPTIONS = InitOptions


def run(own: InitOptions, overrides: Raw) -> None:
    """Write the experiment file."""
    if "source" not in overrides.get("data", {}):
        raise UserError(f"option --data.source is needed; example: {InitOptions.example}")
    data = parse(Data, overrides["data"], "data")
    training = parse(Training, overrides.get("training", {}), "training")
    if own.out:
        out = Path(own.out).expanduser()
    else:
        folder = Path("experiments") if Path("experiments").is_dir() else Path()
        out = folder / f"{data.name}.yaml"
    from pipeline.jobs.init import write_experiment
    from pipeline.report.console import say

    write_experiment(data, out, own.hours, training.device, say)
    command = f"python -m pipeline main --config {shlex.quote(str(out))}"
    say(f"{out} is written; read it, then: {command}")
