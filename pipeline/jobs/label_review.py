"""Labels that are probably wrong, for a person to look at: a table and a page with pictures."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.jobs.predictions_table import OF_TEST, OF_VALIDATION
from pipeline.report.comparison_page import Part, Picture, to_html
from pipeline.report.format import format_percent
from pipeline.scores.label_errors import Answers, Suspect, rank_labels
from pipeline.tracking import artifacts
from pipeline.tracking.workspace import Workspace

NAME = "suspect_labels"
MOST_RUNS = 60
"""Runs whose answers count, the best first: more of them change little, and take time to read."""
MOST_LISTED = 1000
"""Images that the table lists at least; all that are suspected are in it."""
MOST_SHOWN = 60
LEAST_SHOWN = 12
"""Images that the page shows although the label is more probable than any other class."""
_SIDE = 160
_COLUMNS = ("path", "true", "predicted", "group")
_TITLE = "Labels that may be wrong"


def write_label_review(
    workspace: Workspace, folder: Path, ranked: Sequence[Mapping[str, Any]], images: Prepared
) -> None:
    """Write ``suspect_labels.csv`` and ``.html`` into a folder; nothing if no answers are known.

    Only images count that a network was not trained on: those of the validation and the test split,
    which with ``data.fold: all`` are all of them.

    Args:
        workspace: The open store.
        folder: The folder that the files are written into.
        ranked: The runs, best first.
        images: The images that they were trained on.
    """
    classes, answers = _load_all(workspace, ranked[:MOST_RUNS])
    suspects = rank_labels(answers)
    if not suspects:
        return
    number = sum(suspect.is_suspected for suspect in suspects)
    table = _tabulate(suspects, classes)
    listed = table[table["suspected"] | (np.arange(len(table)) < MOST_LISTED)]
    listed.to_csv(folder / f"{NAME}.csv", index=False)
    shows = all(row["params"].get("tracking.log_images") != "false" for row in ranked)
    doubtful = sum(one.suggested_confidence > one.given_confidence for one in suspects)
    shown = min(MOST_SHOWN, max(LEAST_SHOWN, doubtful))
    pictures = _load_pictures(suspects[:shown], classes, images) if shows else []
    said = (
        f"{number:,} of {len(suspects):,} labels look wrong to the networks that were not trained "
        f"on these images (confident learning). The lowest confidence in the label comes first."
    )
    part = Part("The first ones", pictures=pictures, are_small=True)
    page = to_html(_TITLE, [said], [], _describe(table.head(shown)), [part])
    (folder / f"{NAME}.html").write_text(page, encoding="utf-8")


def _load_all(
    workspace: Workspace, runs: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[Answers]]:
    """Return the classes and the answers of runs that have kept them, of the same classes."""
    classes: list[str] = []
    answers = []
    for run in runs:
        for path in (OF_VALIDATION, OF_TEST):
            table = _load(workspace, str(run["run_id"]), path)
            if table is None:
                continue
            columns = [name for name in table.columns if name not in _COLUMNS]
            found = [name.removeprefix("p_") for name in columns]
            classes = classes or found
            labels = pd.Categorical(table["true"], categories=classes).codes.astype(np.int64)
            if found == classes and (labels >= 0).all():
                shares = table[columns].to_numpy(dtype=np.float32)
                answers.append(Answers(table["path"].astype(str).tolist(), labels, shares))
    return classes, answers


def _load(workspace: Workspace, run_id: str, path: str) -> pd.DataFrame | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            table = pd.read_parquet(
                artifacts.download_artifact(workspace, run_id, path, Path(folder))
            )
        except (UserError, ValueError, OSError):
            # The run has no such file, or it is damaged.
            return None
    if not {"path", "true"} <= set(table.columns) or table["path"].duplicated().any():
        return None
    return table


def _tabulate(suspects: Sequence[Suspect], classes: Sequence[str]) -> pd.DataFrame:
    lines = []
    for suspect in suspects:
        line = {
            "path": suspect.path,
            "label": classes[suspect.given],
            "answer": classes[suspect.suggested],
            "confidence_in_label": suspect.given_confidence,
            "confidence_in_answer": suspect.suggested_confidence,
            "runs": suspect.num_runs,
            "runs_that_agree": suspect.num_agreeing,
            "suspected": suspect.is_suspected,
        }
        lines.append(line)
    return pd.DataFrame(lines)


def _describe(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table for people."""
    agree = table["runs_that_agree"].astype(str) + " of " + table["runs"].astype(str)
    return pd.DataFrame(
        {
            "#": range(1, len(table) + 1),
            "image": table["path"],
            "label": table["label"],
            "answer": table["answer"],
            "confidence in label": table["confidence_in_label"].map(format_percent),
            "confidence in answer": table["confidence_in_answer"].map(format_percent),
            "runs that agree": agree,
        }
    )


def _load_pictures(
    suspects: Sequence[Suspect], classes: Sequence[str], images: Prepared
) -> list[Picture]:
    positions = {path: place for place, path in enumerate(images.manifest["path"])}
    pictures = []
    for place, suspect in enumerate(suspects, start=1):
        if suspect.path not in positions:
            continue
        pixels = images.images[positions[suspect.path]].transpose(1, 2, 0)
        given, answer = classes[suspect.given], classes[suspect.suggested]
        caption = (
            f"{place}. {suspect.path}: labelled {given}, looks like {answer} "
            f"({suspect.num_agreeing} of {suspect.num_runs} runs)"
        )
        pictures.append(Picture(_as_png(Image.fromarray(pixels)), caption))
    return pictures


def _as_png(image: Image.Image) -> bytes:
    """Return a picture of a size that can be looked at."""
    scale = _SIDE / max(image.size)
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    content = io.BytesIO()
    image.resize(size, kind).save(content, "PNG")
    return content.getvalue()
