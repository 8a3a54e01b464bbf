"""Entry point init."""

from __future__ import annotations

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
    data: Data = Data()
    training: Training = Training()
    summary = (
        "Look at your images, time networks on this machine, "
        "and write a commented experiment file for them."
    )
    example = "python -m pipeline init --data.source folder:photos"

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

    write_experiment(data, out, training.device, say)
    say(f"{out} is written; read it, then: python -m pipeline main --config {out}")
