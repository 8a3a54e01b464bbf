"""The comparison of a study's runs: which there are, how they rank, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from pipeline.errors import UserError, nearest
from pipeline.experiment import Command, Experiment, no_command
from pipeline.jobs.setting_effects import with_resolved_weights
from pipeline.jobs.summary_notes import (
    describe_ranking,
    describe_target,
    load_target,
    logged_majority_rate,
)
from pipeline.jobs.verdicts import describe_verdicts, judge_configurations
from pipeline.jobs.which_study import compute_digests, find_study, is_source_given
from pipeline.ranking import by_configuration, can_be_ranked, rank
from pipeline.report.conclusion import write_conclusion
from pipeline.report.console import say
from pipeline.report.merged import Row, merge_repeats
from pipeline.report.settings_text import common_settings
from pipeline.scores.significance import Verdict
from pipeline.tracking import find_runs, study_runs
from pipeline.tracking.workspace import Workspace

_APART = ("", "other metric", "other data")
"""Why a run stands below the others, in the order in which they stand."""


@dataclass(frozen=True)
class Summary:
    """The runs of a study, best first.

    Attributes:
        study: Name of the study; empty: all trainings of the experiment.
        parent: Run id of the study, or empty.
        metric: The metric that the runs are ranked by.
        rows: The runs as ranked by `pipeline.ranking.rank`; those that cannot be ranked come last.
        notes: What a reader of the table should know.
        data_digest: Digest of the images of the runs that are ranked.
        verdicts: How each configuration compares with the leading one on the test images, by the
            run id of its best run; empty before `with_verdicts`.
        conclusion: What follows from the comparison, in sentences; empty before `with_verdicts`.
        target: The score that the study is to reach; 0: none.
        command: Returns what to type for a step of the same study.
        title: Heading of the table.
        folder: Folder below the experiment's outputs that it is written into; empty: these.
        shows_images: Whether its pages show images.
    """

    study: str
    parent: str
    metric: str
    rows: Sequence[find_runs.Row]
    notes: list[str]
    data_digest: str
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    conclusion: Sequence[str] = ()
    target: float = 0.0
    command: Command = no_command
    title: str = ""
    folder: str = ""
    shows_images: bool = True

    @cached_property
    def configurations(self) -> list[Row]:
        """One row for each configuration that is ranked, and for each run that is not."""
        rows = [with_resolved_weights(row) for row in self.rows]
        return merge_repeats(rows, self.verdicts, self.target)

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

        def is_on_same_images(row: find_runs.Row) -> bool:
            return bool(row["data_digest"] == self.data_digest)

        again = summarise(workspace, self.study, self.metric, is_on_same_images)
        return replace(again, command=self.command, shows_images=self.shows_images)

    def asked_by(self, experiment: Experiment, is_own: bool = True) -> Summary:
        """Return the comparison as an experiment file asks for it.

        Args:
            experiment: The file with the options applied.
            is_own: Whether it is the file of the study, which says what is typed next.
        """
        command = experiment.command if is_own else self.command
        return replace(self, command=command, shows_images=experiment.base.tracking.log_images)

    @property
    def majority_rate(self) -> float | None:
        """Accuracy of always answering the largest class of the ranked rows' images.

        It is None if no run has logged it.
        """
        return logged_majority_rate(self.rows)


def summarise(
    workspace: Workspace,
    study: str = "",
    metric: str = "",
    images: Callable[[find_runs.Row], bool] = lambda row: True,
) -> Summary:
    """Rank the runs of a study, of the experiment's latest, or without one of all its trainings.

    Args:
        workspace: The open store.
        study: Name of the study, or empty.
        metric: The metric that ranks if there is no study: runs of another metric stand below, as
            those on other data do. If no run has it, or it is empty, the metric of the latest run.
        images: Function that tells whether a run is on the images that are asked for. It is used
            only if there is no study; if no run is on them, the latest run tells the images.

    Raises:
        UserError: There is no such study, or nothing has been trained.
    """
    chosen = _choose_study(workspace, study)
    name = chosen.name if chosen else ""
    parent = chosen.parent if chosen else ""
    rows = find_runs.find_trainings(workspace, name)
    if not rows:
        raise _no_trainings(workspace)
    if name:
        images, metric = _are_any, ""
    compared = compare_rows(workspace, rows, metric, images, parent)
    title = f"Comparison of {name or 'all trainings'}"
    return replace(compared, study=name, title=title)


def _are_any(row: find_runs.Row) -> bool:
    return True


def compare_rows(
    workspace: Workspace,
    rows: Sequence[find_runs.Row],
    metric: str = "",
    images: Callable[[find_runs.Row], bool] = _are_any,
    parent: str = "",
) -> Summary:
    """Rank runs: those on the images, and by the metric, of the latest one that is asked for.

    Args:
        workspace: The open store.
        rows: The runs.
        metric: The metric that is asked for, if one of the runs has it.
        images: Function that tells whether a run is on the images that are asked for.
        parent: Run id of their study, or empty.
    """
    asked = [row for row in rows if images(row)] or rows
    of_metric = [row for row in asked if row["metric"] == metric]
    latest = max(of_metric or asked, key=_start)
    metric = latest["metric"]
    digest = latest["data_digest"]
    ranked = _rank(rows, digest, metric)
    comparable = [row for row in ranked if not row["apart"]]
    notes = describe_ranking(ranked, digest, metric)
    common = common_settings(comparable)
    if common:
        notes.append(f"The same in all: {common}.")
    target = load_target(workspace, parent) if parent else 0.0
    notes += describe_target(workspace, target, comparable)
    return Summary("", parent, metric, ranked, notes, digest, target=target)


def _choose_study(workspace: Workspace, name: str) -> study_runs.Study | None:
    """Return the study of a name; without a name the latest study, if there is one."""
    if name:
        return study_runs.get_study(workspace, name)
    studies = study_runs.find_studies(workspace)
    return studies[0] if studies else None


def _no_trainings(workspace: Workspace) -> UserError:
    known = [one for one in find_runs.list_experiments(workspace) if one != workspace.experiment]
    return UserError(
        f"experiment {workspace.experiment!r} has no trainings in {workspace.uri}"
        f"{nearest(workspace.experiment, known)}; others: {', '.join(known) or 'none'}"
    )


def _start(row: find_runs.Row) -> int:
    return int(row["start_time"])


def _rank(rows: Sequence[find_runs.Row], digest: str, metric: str) -> list[find_runs.Row]:
    """Rank the runs that can be compared; below them the others, each kind by itself."""
    marked: list[find_runs.Row] = []
    for row in rows:
        apart = _why_apart(row, digest, metric)
        marked.append({**row, "apart": apart, "comparable": not apart})
    ranked: list[find_runs.Row] = []
    for kind in _APART:
        of_kind = [row for row in marked if row["apart"] == kind]
        ranked += map(dict, rank(of_kind))
    return ranked


def _why_apart(row: find_runs.Row, digest: str, metric: str) -> str:
    """Return why a run cannot be compared with the others; empty if it can."""
    if row["data_digest"] != digest:
        return "other data"
    return "other metric" if row["metric"] != metric else ""


def leading_runs(compared: Summary) -> list[str]:
    """Return the run ids of the configuration that leads the ranking.

    They are the ids of all its repeats, the best first.

    Raises:
        UserError: No training is complete.
    """
    ranked = compared.ranked()
    if not ranked:
        raise UserError(
            f"none of the {len(compared.rows)} trainings "
            f"of {compared.study or 'the experiment'} is complete"
        )
    return [str(row["run_id"]) for row in by_configuration(ranked)[0]]


def summarise_experiment(
    workspace: Workspace, experiment: Experiment, reads_images: bool = False
) -> Summary:
    """Compare the runs of the study that file and options identify, and say which study it is.

    See `find_study`. Without a study they are the experiment's trainings; the trainings on the
    images that file and options name are ranked.

    Args:
        workspace: The open store.
        experiment: The experiment file with the options applied.
        reads_images: Whether the step reads images.

    Raises:
        UserError: `find_study` or `summarise` raises it; or none of the trainings is on the images
            that an option names.
    """
    chosen = find_study(workspace, experiment, reads_images)
    if chosen.name:
        compared = summarise(workspace, chosen.name, experiment.base.training.best_metric)
        say(f"{chosen.described}: {_count_runs(compared.rows)}")
        return compared.asked_by(experiment, chosen.is_own)
    compared = _summarise_trainings(workspace, experiment, reads_images)
    digest = compared.data_digest
    sources = [
        row["params"].get("data.source") for row in compared.rows if row["data_digest"] == digest
    ]
    say(
        f"trainings on data {digest[:8] or 'unknown'} from {sources[0]}: "
        f"{_count_runs(compared.ranked())}"
    )
    return compared.asked_by(experiment, is_own=False)


def _summarise_trainings(
    workspace: Workspace, experiment: Experiment, reads_images: bool
) -> Summary:
    """Compare the trainings of an experiment without a study."""
    source = experiment.base.data.source
    metric = experiment.base.training.best_metric
    digests: tuple[str, ...] = ()

    def is_asked(row: find_runs.Row) -> bool:
        return bool(row["params"].get("data.source") == source or row["data_digest"] in digests)

    compared = summarise(workspace, "", metric, is_asked)
    several = len({row["data_digest"] for row in compared.rows}) > 1
    if not is_source_given(experiment) or not several or any(map(is_asked, compared.rows)):
        return compared
    if reads_images:
        # The images may be the same under another name.
        digests = compute_digests(workspace, experiment)
    if not any(map(is_asked, compared.rows)):
        there = sorted({str(row["params"].get("data.source")) for row in compared.rows})
        raise UserError(
            f"data.source: no training of experiment {workspace.experiment!r} "
            f"is on {source!r}; they are on:",
            there,
        )
    return summarise(workspace, "", metric, is_asked)


def _count_runs(rows: Sequence[find_runs.Row]) -> str:
    return "1 run" if len(rows) == 1 else f"{len(rows)} runs"


def with_verdicts(workspace: Workspace, compared: Summary) -> Summary:
    """Return the comparison with a verdict for each configuration, and what follows from them."""
    verdicts = judge_configurations(workspace, compared.ranked())
    judged = replace(
        compared, verdicts=verdicts, notes=[*compared.notes, *describe_verdicts(verdicts)]
    )
    conclusion = write_conclusion(
        judged.configurations, judged.metric, judged.command, judged.target
    )
    return replace(judged, conclusion=conclusion)
