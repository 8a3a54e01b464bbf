"""Saved views of the MLflow UI, which opens an experiment without columns otherwise.

The UI keeps a view as an experiment tag ``mlflow.sharedViewState.KEY``. The value of the tag is
JSON with name, times and a state. The state is again JSON, compressed with zlib. A view is opened
by ``?viewStateShareKey=KEY`` on the run list.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from pipeline import ranking
from pipeline.errors import StoreAway
from pipeline.tracking import names
from pipeline.tracking.patience import few_retries
from pipeline.tracking.workspace import STORE_ERRORS, Workspace, is_away, tag_experiment

_TABLE = "trainings"
_CURVES = "curves"

_COLUMN_WIDTHS = {
    f"tags.`{names.STATE}`": 90,
    "metrics.`best/val_accuracy`": 125,
    "metrics.`best/val_loss`": 100,
    "metrics.`best/epoch`": 80,
    "metrics.`test/accuracy`": 105,
    "params.`model.name`": 105,
    "params.`model.weights`": 110,
    "params.`optimizer.lr`": 90,
    "params.`schedule.name`": 118,
}
"""Columns in their order, with their width in pixels; they fit a window of 1,600 pixels."""

_COMPARED_PARAMS = ["model.name", "optimizer.lr", "schedule.name"]
"""Axes of the parallel coordinates of trainings of which it is not known what differs."""
_MOST_AXES = 4
"""With more axes than this the labels overlap."""
_MOST_SETTINGS = 5


def write_views(workspace: Workspace, metric: str, settings: Sequence[str] = ()) -> None:
    """Save two views with the experiment: its trainings as a table, and their curves.

    The table begins with the training that is best by the metric.

    Args:
        workspace: The open store.
        metric: The metric that ranks the trainings.
        settings: Dotted names of the settings that differ, of which the first have a column each,
            and are axes of the chart. Nothing is known of them before a study is tuned.
    """
    _save_view(workspace, _CURVES, "Training curves", _charts(metric, settings), metric, settings)
    _save_view(workspace, _TABLE, "Trainings, best first", {}, metric, settings)
    direction = str(not ranking.is_lower_better(metric)).lower()
    tags = {"name": ranking.best_name(metric), "greaterIsBetter": direction}
    for key, value in tags.items():
        name = f"mlflow.experiment.primaryMetric.{key}"
        tag_experiment(workspace.client, workspace.experiment_id, name, value)


def write_views_if_there(workspace: Workspace, metric: str) -> None:
    """Save the views, unless the server has gone away: a training goes on without them."""
    try:
        with few_retries():
            write_views(workspace, metric)
    except StoreAway:
        return
    except STORE_ERRORS as error:
        if not is_away(error):
            raise


def view_urls(workspace: Workspace) -> dict[str, str]:
    """Return the addresses of the saved views, for people."""
    server = workspace.uri if workspace.uri.startswith("http") else "http://127.0.0.1:5000"
    runs = (
        f"{server}/#/experiments/{quote(workspace.experiment_id)}/runs"
        "?workflowType=machine_learning&viewStateShareKey="
    )
    return {"table": f"{runs}{_TABLE}", "curves": f"{runs}{_CURVES}&compareRunsMode=CHART"}


def _save_view(
    workspace: Workspace,
    key: str,
    title: str,
    charts: dict[str, Any],
    metric: str,
    settings: Sequence[str],
) -> None:
    ranked_by = f"metrics.`{ranking.best_name(metric)}`"
    first, *others = _COLUMN_WIDTHS.items()
    differing = [(f"params.`{name}`", 105) for name in settings[:_MOST_SETTINGS]]
    if settings:
        others = [column for column in others if not column[0].startswith("params.")]
    widths = dict([first, (ranked_by, 125), *others, *differing])
    state = {
        "searchFilter": f"tags.`{names.STEP}` = 'train'",
        "orderByKey": ranked_by,
        "orderByAsc": ranking.is_lower_better(metric),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(widths),
        "columnOrder": list(widths),
        "columnWidths": widths,
        # By default only the first ten runs are drawn.
        "runsHiddenMode": "SHOW_ALL",
        **charts,
    }
    compressed = zlib.compress(json.dumps(state).encode())
    packed = f"deflate;{base64.b64encode(compressed).decode()}"
    now = int(time.time() * 1000)
    value = json.dumps({"name": title, "createdAt": now, "updatedAt": now, "state": packed})
    name = f"mlflow.sharedViewState.{key}"
    tag_experiment(workspace.client, workspace.experiment_id, name, value)


def _charts(metric: str, settings: Sequence[str]) -> dict[str, Any]:
    best = ranking.best_name(metric)
    parallel = _chart(
        "PARALLEL",
        "best",
        "",
        showAllRuns=True,
        selectedMetrics=[best],
        selectedParams=list(settings[:_MOST_AXES]) or _COMPARED_PARAMS,
    )
    bars = [
        _chart("BAR", "best", name, displayName=name) for name in (best, ranking.on_test(metric))
    ]
    drawn = (metric, "val/accuracy", "val/loss", "train/accuracy", "train/loss")
    # The metric may be one of the others.
    lines = [_line_chart(name) for name in dict.fromkeys(drawn)]
    return {
        "isAccordionReordered": True,
        "compareRunSections": [_section("best", "Comparison"), _section("epochs", "Per epoch")],
        "compareRunCharts": [parallel, *bars, *lines],
    }


def _section(uuid: str, title: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": title,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _chart(kind: str, section: str, metric: str, **options: Any) -> dict[str, Any]:
    identity = {
        "uuid": f"{section}-{kind}-{metric}",
        "type": kind,
        "metricSectionId": section,
        "metricKey": metric,
    }
    return {**identity, "runsCountToCompare": 20, "deleted": False, "isGenerated": False, **options}


def _line_chart(metric: str) -> dict[str, Any]:
    axes = {
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "selectedYAxisMetricKey": "metric",
    }
    drawing = {
        "lineSmoothness": 0,
        "scaleType": "linear",
        "range": {},
        "ignoreOutliers": False,
        "yAxisExpressions": [],
    }
    shared = {"useGlobalXaxisKey": False, "useGlobalLineSmoothing": True}
    return _chart(
        "LINE", "epochs", metric, selectedMetricKeys=[metric], **axes, **drawing, **shared
    )
