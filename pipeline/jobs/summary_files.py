"""A comparison written down: tables for programs, pages and a figure for people."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pandas as pd

from pipeline.data.prepared import Prepared
from pipeline.experiment import Experiment
from pipeline.files import new_file
from pipeline.jobs import label_review
from pipeline.jobs.comparison_parts import describe_parts
from pipeline.jobs.setting_effects import effects_of
from pipeline.jobs.summary import Summary, summarise, with_verdicts
from pipeline.ranking import title
from pipeline.report import comparison_figure, people_table, tables
from pipeline.report.comparison_page import to_html
from pipeline.report.console import say, show_table
from pipeline.report.merged import Row
from pipeline.report.settings_text import differing_names
from pipeline.safe_text import escape_markdown
from pipeline.tracking import names
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.ui_views import write_views
from pipeline.tracking.workspace import Workspace


def summarise_and_write(
    workspace: Workspace,
    study: str = "",
    metric: str = "",
    experiment: Experiment | None = None,
    images: Prepared | None = None,
) -> Summary:
    """Compare runs (see `summarise`) and write the comparison (see `write_summary`).

    The experiment says how to type the next command, and whether images may be shown.
    """
    compared = summarise(workspace, study, metric)
    if experiment is not None:
        compared = compared.asked_by(experiment)
    compared = with_verdicts(workspace, compared)
    write_summary(workspace, compared, images)
    return compared


def write_summary(workspace: Workspace, compared: Summary, images: Prepared | None = None) -> None:
    """Write tables, pages and figure into ``outputs/EXPERIMENT/``, and to the study's run.

    Args:
        workspace: The open store.
        compared: The comparison.
        images: The images of its runs. With them, labels that may be wrong are looked for too.
    """
    workspace.need_writable(workspace.outputs, *workspace.artifacts)
    is_new = images is not None and images.digest == compared.data_digest
    review = _review_labels(workspace, compared, images if is_new else None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_files(workspace, folder, compared, review)
        if review is not None and is_new:
            review.write(folder)
        outputs = workspace.outputs / compared.folder
        outputs.mkdir(parents=True, exist_ok=True)
        with ExitStack() as written:
            # All or none: a table of today beside a figure of yesterday would mislead.
            for file in folder.iterdir():
                partial = written.enter_context(new_file(outputs / file.name))
                partial.write_bytes(file.read_bytes())
        if review is None and compared.parent:
            # What is there is of another study, whose own run has it too.
            for kind in ("csv", "html"):
                (outputs / f"{label_review.NAME}.{kind}").unlink(missing_ok=True)
        elif review is not None and not is_new:
            _keep_review(outputs, review, compared.shows_images)
        if compared.parent:
            run = RunLog(workspace, compared.parent)
            run.files(folder, "summary")
            if compared.conclusion and compared.ranked():
                run.tag({names.NOTE: _describe_for_ui(workspace, compared)})
            write_views(workspace, compared.metric, _find_differing(compared.configurations))


def _review_labels(
    workspace: Workspace, compared: Summary, images: Prepared | None
) -> label_review.LabelReview | None:
    """Return which labels may be wrong; without images, what the study's run has kept of it."""
    if images is not None:
        return label_review.review_labels(
            workspace, compared.ranked(), images, compared.study, compared.shows_images
        )
    if not compared.parent:
        return None
    return label_review.load_review(workspace, compared.parent, compared.study)


def _keep_review(outputs: Path, review: label_review.LabelReview, shows_images: bool) -> None:
    """Write a review that the study has kept; its page with pictures stays if it is there."""
    with suppress(OSError, ValueError):
        table = (outputs / f"{label_review.NAME}.csv").read_text(encoding="utf-8")
        if shows_images and table == review.table:
            return
    review.write(outputs)


def _write_files(
    workspace: Workspace,
    folder: Path,
    compared: Summary,
    review: label_review.LabelReview | None,
) -> None:
    people = people_table.table_for_people(compared.configurations, compared.metric)
    whole = tables.comparison_table(compared.rows)
    whole.to_csv(folder / "comparison.csv", index=False)
    configurations = tables.configurations_table(compared.rows, compared.verdicts)
    configurations.to_csv(folder / "configurations.csv", index=False)
    effects = effects_of(compared.ranked())
    tables.effects_table(effects).to_csv(folder / "effects.csv", index=False)
    _draw_comparison(folder / "comparison.png", compared, people)
    paragraphs = [*compared.conclusion, *compared.notes]
    markdown = people_table.to_markdown(people, compared.title, paragraphs)
    (folder / "comparison.md").write_text(markdown, encoding="utf-8")
    parts = describe_parts(
        workspace,
        compared.configurations,
        compared.metric,
        effects,
        (folder / "comparison.png").read_bytes(),
        compared.shows_images,
    )
    if review is not None:
        parts.append(review.part)
    page = to_html(compared.title, compared.conclusion, compared.notes, people, parts)
    (folder / "comparison.html").write_text(page, encoding="utf-8")


def _draw_comparison(file: Path, compared: Summary, people: pd.DataFrame) -> None:
    """Draw the configurations that can be compared, and other runs that have a value.

    Args:
        file: The figure.
        compared: The comparison.
        people: The table for people, with a row for each of them.
    """
    rows = []
    labels = []
    texts = zip(people["#"], people["run"], people["settings"], strict=True)
    for row, (place, run, settings) in zip(compared.configurations, texts, strict=True):
        if row["value"] is not None and not row["apart"]:
            rows.append(row)
            labels.append(_shorten(f"{place}  {run}  {settings}"))
    comparison_figure.draw_comparison(file, rows, labels, compared.majority_rate, compared.metric)


def _shorten(text: str) -> str:
    return text if len(text) <= 70 else text[:69] + "…"


def _find_differing(rows: Sequence[Row]) -> list[str]:
    """Return the dotted names of the settings that differ, the network first."""
    params = [row["params"] for row in rows]
    networks = {some.get("model.name") for some in params}
    return [*(["model.name"] if len(networks) > 1 else []), *differing_names(params)]


def _describe_for_ui(workspace: Workspace, compared: Summary) -> str:
    """Return the description of a study's run: what follows from it, and the figure."""
    best = compared.ranked()[0]
    experiment_id = workspace.client.get_run(best["run_id"]).info.experiment_id
    link = f"#/experiments/{experiment_id}/runs/{best['run_id']}"
    value = f"{title(best['metric'])} {people_table.best_value_text(best)}"
    figure = f"get-artifact?path=summary%2Fcomparison.png&run_uuid={compared.parent}"
    paragraphs = [
        f"Best: [{escape_markdown(best['run_name'])}]({link}), {value}.",
        *map(people_table.markdown_sentence, compared.conclusion),
        f"![comparison]({figure})",
        "The whole comparison is `summary/comparison.html` among the artifacts.",
    ]
    return "\n\n".join(paragraphs)


def show_summary(compared: Summary) -> None:
    """Print the comparison, and below it what follows from it."""
    table = people_table.table_for_people(compared.configurations, compared.metric)
    show_table(
        table,
        compared.title,
        expendable=people_table.least_important(compared.metric),
    )
    for sentence in compared.conclusion:
        say(sentence)
