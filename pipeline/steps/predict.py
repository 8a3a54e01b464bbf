"""Entry point predict."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Raw, essential
from pipeline.errors import UserError
from pipeline.steps.options import Options, PredictSection


class PredictOptions(Options):
    """Options of predict."""

    model_uri: str = essential(
        "", "The model: models:/NAME@champion, models:/NAME/VERSION or runs:/RUN_ID/model."
    )
    images: str = essential("", "A folder of images, or a text file with one path per line.")
    out: str = essential(
        "predictions.csv", "CSV file to write; OUT.json beside it records what made it."
    )
    predict: PredictSection = PredictSection()
    summary = (
        "Classify unlabelled images with a registered or logged model; "
        "its preprocessing is the model's own."
    )
    example = (
        "python -m pipeline predict --model_uri models:/digits@champion "
        "--images photos/new --out predictions.csv"
    )


OPTIONS = PredictOptions


def run(own: PredictOptions, overrides: Raw) -> None:
    """Write the predictions."""
    for name in ("model_uri", "images"):
        if not getattr(own, name):
            raise UserError(f"option --{name} is needed; example: {PredictOptions.example}")
    from pipeline.jobs.predict import Output, predict
    from pipeline.report.console import Counter, say
    from pipeline.tracking.tracked_run import keep_launched_run
    from pipeline.tracking.workspace import open_workspace

    workspace = open_workspace("predict", reads_only=True)
    out = Path(own.out).expanduser()
    with keep_launched_run(workspace, "predict"), Counter() as counter:
        identifier = own.predict.id if "id" in own.predict.model_fields_set else None
        output = Output(out, identifier, own.predict.probabilities, own.predict.bad)
        done = predict(own.model_uri, own.images, output, counter)
    without = ""
    if done.bad > 0:
        without = f", {done.bad} of them without a label since the image cannot be read"
    say(f"{done.rows} predictions in {out}{without}; what made them in {out}.json")
