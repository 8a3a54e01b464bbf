"""Saved views of the MLflow UI, which opens an experiment without columns otherwise.

The UI keeps a view as an experiment tag ``mlflow.sharedViewState.KEY``: JSON with name, times and a state,
which is JSON again, compressed with zlib. It is opened by ``?viewStateShareKey=KEY`` on the run list.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import Any
from urllib.parse import quote

from pipeline import ranking
from pipeline.tracking import names
from pipeline.tracking.workspace import Workspace

_TABLE, _CURVES = "trainings", "curves"

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
"""Column and width in pixels, in order; together they fit a window of 1,600 pixels."""

_COMPARED_PARAMS = ["model.name", "optimizer.lr", "schedule.name"]
"""Axes of the parallel coordinates; with more the labels overlap."""


def _chart(kind: str, section: str, metric: str, **options: Any) -> dict[str, Any]:
    identity = {
        "uuid": f"{section}-{kind}-{metric}",
        "type": kind,
        "metricSectionId": section,
        "metricKey": metric,
    }
    return {**identity, "runsCountToCompare": 20, "deleted": False, "isGenerated": False, **options}


def _line(metric: str) -> dict[str, Any]:
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


def _charts(metric: str) -> dict[str, Any]:
    sections = [
        {
            "uuid": uuid,
            "name": title,
            "display": True,
            "isReordered": True,
            "deleted": False,
            "isGenerated": False,
        }
        for uuid, title in (("best", "Comparison"), ("epochs", "Per epoch"))
    ]
    parallel = _chart(
        "PARALLEL",
        "best",
        "",
        showAllRuns=True,
        selectedMetrics=[ranking.best_name(metric)],
        selectedParams=_COMPARED_PARAMS,
    )
    bars = [
        _chart("BAR", "best", name, displayName=name)
        for name in (ranking.best_name(metric), ranking.on_test(metric))
    ]
    lines = [
        _line(name)
        for name in dict.fromkeys(
            (metric, "val/accuracy", "val/loss", "train/accuracy", "train/loss")
        )
    ]
    return {
        "isAccordionReordered": True,
        "compareRunSections": sections,
        "compareRunCharts": [parallel, *bars, *lines],
    }


def _write(workspace: Workspace, key: str, title: str, charts: dict[str, Any], metric: str) -> None:
    first, *others = _COLUMN_WIDTHS.items()
    widths = dict([first, (f"metrics.`{ranking.best_name(metric)}`", 125), *others])
    state = {
        "searchFilter": f"tags.`{names.STEP}` = 'train'",
        "orderByKey": f"metrics.`{ranking.best_name(metric)}`",
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
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    value = json.dumps({"name": title, "createdAt": now, "updatedAt": now, "state": packed})
    workspace.client.set_experiment_tag(
        workspace.experiment_id, f"mlflow.sharedViewState.{key}", value
    )


def write_views(workspace: Workspace, metric: str) -> None:
    """Save two views with the experiment: its trainings as a table, best first by a metric, and their curves."""
    _write(workspace, _CURVES, "Training curves", _charts(metric), metric)
    _write(workspace, _TABLE, "Trainings, best first", {}, metric)
    direction = str(not ranking.is_lower_better(metric)).lower()
    tags = {"name": ranking.best_name(metric), "greaterIsBetter": direction}
    for key, value in tags.items():
        workspace.client.set_experiment_tag(
            workspace.experiment_id, f"mlflow.experiment.primaryMetric.{key}", value
        )


def view_urls(workspace: Workspace) -> dict[str, str]:
    """Return the address of each saved view, for people."""
    server = workspace.uri if workspace.uri.startswith("http") else "http://127.0.0.1:5000"
    runs = f"{server}/#/experiments/{quote(workspace.experiment_id)}/runs?workflowType=machine_learning&viewStateShareKey="
    return {"table": f"{runs}{_TABLE}", "curves": f"{runs}{_CURVES}&compareRunsMode=CHART"}
