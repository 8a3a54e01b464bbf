"""The comparison of a study's runs: files for programs, pages for people."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, nearest
from pipeline.experiment import Experiment
from pipeline.files import new_file
from pipeline.jobs.summary_notes import describe_ranking, describe_target, logged_majority_rate
from pipeline.jobs.which_study import compute_digests, find_study, is_source_given
from pipeline.ranking import by_configuration, can_be_ranked, rank
from pipeline.report import comparison_figure, tables
from pipeline.report.console import say, show_table
from pipeline.tracking import find_runs, study_runs
from pipeline.tracking.run_log import RunLog
from pipeline.tracking.workspace import Workspace


@dataclass(frozen=True)
class Summary:
    """The runs of a study, best first.

    Attributes:
        study: Its name; empty: all trainings of the experiment.
        parent: Run id of the study, or empty.
        metric: What the runs are ranked by.
        rows: Ranked by `pipeline.ranking.rank`; what cannot be ranked comes last.
        notes: What a reader of the table should know.
        data_digest: Of the images of those that are ranked.
    """

    study: str
    parent: str
    metric: str
    rows: Sequence[find_runs.Row]
    notes: list[str]
    data_digest: str

    def ranked(self, evaluated: bool = False) -> list[find_runs.Row]:
        """Return the complete runs, best first; with `evaluated` those that have test scores."""
        return [
            row
            for row in self.rows
            if can_be_ranked(row)
            and not row["apart"]
            and (not evaluated or row["test_accuracy"] is not None)
        ]

    def read_again(self, workspace: Workspace) -> Summary:
        """Return the comparison of the same runs as they are now."""
        return summarise(
            workspace,
            self.study,
            self.metric,
            lambda row: bool(row["data_digest"] == self.data_digest),
        )

    @property
    def majority_rate(self) -> float | None:
        """Accuracy of always answering the largest class of the ranked rows' images; None where no run has logged it."""
        return logged_majority_rate(self.rows)

    @property
    def title(self) -> str:
        """Heading of the table."""
        return f"Comparison of {self.study or 'all trainings'}"


def summarise(
    workspace: Workspace,
    study: str = "",
    metric: str = "",
    images: Callable[[find_runs.Row], bool] = lambda row: True,
) -> Summary:
    """Rank the runs of a study, of the experiment's latest, or without one of all its trainings.

    Args:
        workspace: The open store.
        study: Its name, or empty.
        metric: What ranks where there is no study: runs of another metric, as those on other data, stand below; empty: the latest run's.
        images: Without a study, which runs are of the images that are asked for; where none is, the latest run tells them.

    Raises:
        UserError: No such study, or nothing has been trained.
    """
    chosen = (
        study_runs.get_study(workspace, study)
        if study
        else next(iter(study_runs.find_studies(workspace)), None)
    )
    name, parent = (chosen.name, chosen.parent) if chosen else ("", "")
    rows = find_runs.find_trainings(workspace, name)
    if not rows:
        known = [
            one for one in find_runs.list_experiments(workspace) if one != workspace.experiment
        ]
        there = f"{nearest(workspace.experiment, known)}; others: {', '.join(known) or 'none'}"
        raise UserError(
            f"experiment {workspace.experiment!r} has no trainings in {workspace.uri}{there}"
        )
    given = metric if not name else ""
    asked = rows if name else [row for row in rows if images(row)] or rows
    latest = max((row for row in asked if row["metric"] == given), key=_start, default=None) or max(
        asked, key=_start
    )
    metric, digest = given or latest["metric"], latest["data_digest"]
    marked: list[find_runs.Row] = [{**row, "apart": _apart(row, digest, metric)} for row in rows]
    marked = [{**row, "comparable": not row["apart"]} for row in marked]
    ranked = [
        dict(row)
        for kind in _APART
        for row in rank([row for row in marked if row["apart"] == kind])
    ]
    notes = describe_ranking(ranked, digest, metric) + describe_target(
        workspace, parent, [row for row in ranked if not row["apart"]]
    )
    return Summary(name, parent, metric, ranked, notes, digest)


_APART = ("", "other metric", "other data")
"""Why a run stands below the others, in the order in which they stand."""


def _start(row: find_runs.Row) -> int:
    return int(row["start_time"])


def _apart(row: find_runs.Row, digest: str, metric: str) -> str:
    """Return why a run cannot be compared with the others; empty where it can."""
    if row["data_digest"] != digest:
        return "other data"
    return "other metric" if row["metric"] != metric else ""


def leading_runs(compared: Summary) -> list[str]:
    """Return the run ids of the configuration that leads the ranking: of all its repeats, the best first.

    Raises:
        UserError: No training is complete.
    """
    ranked = compared.ranked()
    if not ranked:
        raise UserError(
            f"none of the {len(compared.rows)} trainings of {compared.study or 'the experiment'} is complete"
        )
    return [str(row["run_id"]) for row in by_configuration(ranked)[0]]


def summarise_experiment(
    workspace: Workspace, experiment: Experiment, reads_images: bool = False
) -> Summary:
    """Compare the runs of the study that an experiment file and options identify (see `find_study`), and say which it is.

    Without a study they are the experiment's trainings; those on the images that file and options name are ranked.

    Raises:
        UserError: As `find_study` and `summarise`; or none of the trainings is on the images that an option names.
    """
    chosen = find_study(workspace, experiment, reads_images)
    if chosen.name:
        compared = summarise(workspace, chosen.name, experiment.base.training.best_metric)
        say(f"{chosen.described}: {_runs(len(compared.rows))}")
        return compared
    source, metric = experiment.base.data.source, experiment.base.training.best_metric
    digests: tuple[str, ...] = ()

    def is_asked(row: find_runs.Row) -> bool:
        return bool(row["params"].get("data.source") == source or row["data_digest"] in digests)

    compared = summarise(workspace, "", metric, is_asked)
    several = len({row["data_digest"] for row in compared.rows}) > 1
    if is_source_given(experiment) and several and not any(map(is_asked, compared.rows)):
        digests = compute_digests(workspace, experiment) if reads_images else ()
        if not any(map(is_asked, compared.rows)):
            there = sorted({str(row["params"].get("data.source")) for row in compared.rows})
            raise UserError(
                f"data.source: no training of experiment {workspace.experiment!r} is on {source!r}; they are on:",
                there,
            )
        compared = summarise(workspace, "", metric, is_asked)
    where = next(
        (
            row["params"].get("data.source")
            for row in compared.rows
            if row["data_digest"] == compared.data_digest
        ),
        source,
    )
    say(
        f"trainings on data {compared.data_digest[:8] or 'unknown'} from {where}: {_runs(len(compared.ranked()))}"
    )
    return compared


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def summarise_and_write(workspace: Workspace, study: str = "", metric: str = "") -> Summary:
    """Write the comparison (see `summarise`) into ``outputs/EXPERIMENT/`` and to the study's run."""
    compared = summarise(workspace, study, metric)
    write_summary(workspace, compared)
    return compared


def write_summary(workspace: Workspace, compared: Summary) -> None:
    """Write tables, pages and figure into ``outputs/EXPERIMENT/``, and to the study's run."""
    workspace.need_writable(workspace.outputs, *workspace.artifacts)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        people = tables.table_for_people(compared.rows, compared.metric)
        tables.comparison_table(compared.rows).to_csv(folder / "comparison.csv", index=False)
        tables.configurations_table(compared.rows).to_csv(
            folder / "configurations.csv", index=False
        )
        labels = [
            _label(*texts)
            for texts in zip(people["#"], people["run"], people["settings"], strict=True)
        ]
        drawn = [
            (row, label)
            for row, label in zip(compared.rows, labels, strict=True)
            if row["value"] is not None and not row["apart"]
        ]
        rows = [row for row, _ in drawn]
        comparison_figure.draw_comparison(
            folder / "comparison.png",
            rows,
            [label for _, label in drawn],
            compared.majority_rate,
            compared.metric,
        )
        (folder / "comparison.md").write_text(
            tables.to_markdown(people, compared.title, compared.notes), encoding="utf-8"
        )
        (folder / "comparison.html").write_text(
            tables.to_html(people, compared.title, compared.notes, "comparison.png"),
            encoding="utf-8",
        )
        workspace.outputs.mkdir(parents=True, exist_ok=True)
        with ExitStack() as written:
            # All or none: a table of today beside a figure of yesterday would mislead.
            for file in folder.iterdir():
                written.enter_context(new_file(workspace.outputs / file.name)).write_bytes(
                    file.read_bytes()
                )
        if compared.parent:
            RunLog(workspace, compared.parent).files(folder, "summary")


def _label(rank: str, run: str, settings: str) -> str:
    text = f"{rank}  {run}  {settings}"
    return text if len(text) <= 70 else text[:69] + "…"


def show_summary(compared: Summary) -> None:
    """Print the comparison."""
    show_table(
        tables.table_for_people(compared.rows, compared.metric),
        compared.title,
        expendable=tables.least_important(compared.metric),
    )
