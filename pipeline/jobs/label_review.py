"""Labels that are probably wrong, for a person to look at: a table and a page with pictures."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.jobs.predictions_table import OF_TEST, OF_VALIDATION, PROBABILITY
from pipeline.report.comparison_page import Part, Picture, to_html
from pipeline.report.format import format_percent
from pipeline.scores.label_errors import Answers, Suspect, rank_labels
from pipeline.tracking import artifacts
from pipeline.tracking.workspace import Workspace

NAME = "suspect_labels"
MOST_RUNS = 60
"""Runs whose answers count, the best first: more of them change little, and take time to read."""
MOST_ANSWERS = 100_000_000
"""Probabilities that are held at most, in half a gigabyte; the answers of further runs are left."""
MOST_LISTED = 1000
"""Images that the table lists at least; all that are suspected are in it."""
MOST_SHOWN = 60
LEAST_SHOWN = 12
"""Images that the page shows although the label is more probable than any other class."""
IN_COMPARISON = 12
"""Images that the page of the comparison shows."""
_EARLIER = "What was found when the images were at hand."
_COLLAPSE = "collapse"
"""Flag of a network that answers with few of its classes."""
_SIDE = 160
_TITLE = "Labels that may be wrong"


@dataclass(frozen=True)
class LabelReview:
    """Labels that are probably wrong.

    Attributes:
        table: The most doubtful images, a line each, as CSV.
        page: The first of them as a page, with pictures.
        part: The very first, for the page of the comparison.
    """

    table: str
    page: str
    part: Part

    def write(self, folder: Path) -> None:
        """Write ``suspect_labels.csv`` and ``.html`` into a folder."""
        (folder / f"{NAME}.csv").write_text(self.table, encoding="utf-8")
        (folder / f"{NAME}.html").write_text(self.page, encoding="utf-8")


def review_labels(
    workspace: Workspace,
    ranked: Sequence[Mapping[str, Any]],
    images: Prepared,
    study: str = "",
    shows_images: bool = True,
) -> LabelReview | None:
    """Rank the images by how little the networks believe their labels; None without answers.

    Only images count that a network was not trained on: those of the validation and the test split,
    which with ``data.fold: all`` are all of them.

    Args:
        workspace: The open store.
        ranked: The runs, best first.
        images: The images that they were trained on.
        study: Name of their study, or empty.
        shows_images: Whether pictures are shown, if all runs allow it too.
    """
    learned = [run for run in ranked if _has_learned(run)] or ranked
    classes, answers = _load_all(workspace, learned[:MOST_RUNS])
    suspects = rank_labels(answers)
    if not suspects:
        return None
    number = sum(suspect.is_suspected for suspect in suspects)
    table = _tabulate(suspects, classes)
    # People look at those first that are suspected.
    order = sorted(range(len(suspects)), key=lambda place: not suspects[place].is_suspected)
    listed = table[table["suspected"] | (np.arange(len(table)) < MOST_LISTED)]
    if not all(row["params"].get("tracking.log_images") != "false" for row in ranked):
        shows_images = False
    doubtful = sum(one.suggested_confidence > one.given_confidence for one in suspects)
    shown = order[: min(MOST_SHOWN, max(LEAST_SHOWN, doubtful))]
    pictures = []
    if shows_images:
        pictures = _load_pictures([(place, suspects[place]) for place in shown], classes, images)
    looks = f"{number:,} of {len(suspects):,} labels look" if number else "No label looks"
    said = (
        f"{looks} wrong to the networks that were not trained on these images (confident "
        "learning). The lowest confidence in the label comes first, after those that are suspected."
    )
    first = Part("The first ones", pictures=pictures, are_small=True)
    page = to_html(_name_page(study), [said], [], _describe(table.iloc[shown]), [first])
    return LabelReview(
        listed.to_csv(index=False, lineterminator="\n"),
        page,
        _summarise(said, table.iloc[shown[:IN_COMPARISON]], pictures[:IN_COMPARISON]),
    )


def _has_learned(run: Mapping[str, Any]) -> bool:
    """Whether a network is better than always answering the largest class, or few of them."""
    accuracy, majority = run.get("val_accuracy"), run.get("majority_rate")
    is_above = accuracy is None or majority is None or accuracy > majority
    return is_above and _COLLAPSE not in run.get("flags", {})


def _name_page(study: str) -> str:
    return f"{_TITLE}: {study}" if study else _TITLE


def _summarise(said: str, table: pd.DataFrame, pictures: Sequence[Picture]) -> Part:
    """Return the part for the page of the comparison; without pictures it has a line for each."""
    said = f"{said} More: {NAME}.html."
    if pictures:
        return Part(_TITLE, said, pictures, are_small=True)
    entries = {}
    for line in table.to_dict("records"):
        entries[str(line["path"])] = [
            f"labelled {line['label']}; {line['runs_that_agree']} of {line['runs']} runs answer "
            f"{line['answer']}{_mark(line['suspected'])}"
        ]
    return Part(_TITLE, said, (), entries)


def load_review(workspace: Workspace, parent: str, study: str = "") -> LabelReview | None:
    """Return the review that the run of a study has kept, without pictures; None if it has none.

    Its table is read, and nothing else: anybody may have written there.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = artifacts.download_artifact(
                workspace, parent, f"summary/{NAME}.csv", Path(folder)
            )
            text = file.read_text(encoding="utf-8")
            table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
            for name in ("confidence_in_label", "confidence_in_answer"):
                table[name] = pd.to_numeric(table[name], errors="coerce")
            # The suspected ones first, as in the page with pictures.
            table = table.sort_values("suspected", key=lambda found: found != "True", kind="stable")
            page = to_html(_name_page(study), [_EARLIER], [], _describe(table.head(MOST_SHOWN)))
            part = _summarise(_EARLIER, table.head(IN_COMPARISON), ())
        except (UserError, OSError, ValueError, KeyError):
            return None
    return LabelReview(text, page, part)


def _load_all(
    workspace: Workspace, runs: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[Answers]]:
    """Return the classes and the answers of runs that have kept them, of the same classes."""
    classes: list[str] = []
    answers: list[Answers] = []
    for run in runs:
        if sum(one.probabilities.size for one in answers) > MOST_ANSWERS:
            break
        for path in (OF_VALIDATION, OF_TEST):
            found = _load(workspace, str(run["run_id"]), path)
            if found is None:
                continue
            classes = classes or found[0]
            if found[0] == classes:
                answers.append(found[1])
    return classes, answers


def _load(workspace: Workspace, run_id: str, path: str) -> tuple[list[str], Answers] | None:
    """Return the classes and answers of a run; None if it has kept none, or what is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            table = pd.read_parquet(
                artifacts.download_artifact(workspace, run_id, path, Path(folder))
            )
            columns = [name for name in table.columns if str(name).startswith(PROBABILITY)]
            classes = [name.removeprefix(PROBABILITY) for name in columns]
            labels = pd.Categorical(table["true"], categories=classes).codes.astype(np.int64)
            shares = table[columns].to_numpy(dtype=np.float32)
            paths = table["path"].astype(str)
            is_whole = (labels >= 0).all() and np.isfinite(shares).all()
            if not classes or not is_whole or paths.duplicated().any():
                return None
            return classes, Answers(paths.tolist(), labels, shares)
        except (UserError, ValueError, TypeError, KeyError, OSError):
            # The run has no such file, or it is damaged.
            return None


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
    is_marked = table["suspected"].astype(str) == "True"
    agree = table["runs_that_agree"].astype(str) + " of " + table["runs"].astype(str)
    return pd.DataFrame(
        {
            "#": table.index + 1,
            "suspected": is_marked.map({True: "yes", False: ""}),
            "image": table["path"],
            "label": table["label"],
            "answer": table["answer"],
            "confidence in label": table["confidence_in_label"].map(format_percent),
            "confidence in answer": table["confidence_in_answer"].map(format_percent),
            "runs that agree": agree,
        }
    )


def _mark(is_suspected: Any) -> str:
    return " (suspected)" if str(is_suspected) == "True" else ""


def _load_pictures(
    suspects: Sequence[tuple[int, Suspect]], classes: Sequence[str], images: Prepared
) -> list[Picture]:
    positions = {path: place for place, path in enumerate(images.manifest["path"])}
    pictures = []
    for place, suspect in suspects:
        if suspect.path not in positions:
            continue
        pixels = images.images[positions[suspect.path]].transpose(1, 2, 0)
        given, answer = classes[suspect.given], classes[suspect.suggested]
        caption = (
            f"{place + 1}. {suspect.path}: labelled {given}; {suspect.num_agreeing} of "
            f"{suspect.num_runs} runs answer {answer}{_mark(suspect.is_suspected)}"
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
