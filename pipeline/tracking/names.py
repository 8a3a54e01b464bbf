"""Names of tags, states and artifacts that dashboards and scripts rely on."""

from __future__ import annotations

import re

STEP = "pipeline.step"
EXPERIMENT = "pipeline.experiment"
UID = "pipeline.uid"
CONFIG_HASH = "pipeline.config_hash"
DATA_DIGEST = "pipeline.data_digest"
TRIAL = "pipeline.trial"
STATE = "pipeline.state"
STUDY = "pipeline.study"
IDENTITY = "pipeline.identity"
JOINS = "pipeline.joins"
REASON = "pipeline.reason"
RETRY = "pipeline.retry"
"""On failed trainings, true or false: whether the next start of their study tries them again."""
HEARTBEAT = "pipeline.heartbeat"
NUMERICS_USED = "pipeline.numerics"
FEATURES = "pipeline.features"
FLAG = "pipeline.flag."
TARGET = "pipeline.target"
BEST_RUN = "pipeline.best_run"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"

RUNNING, COMPLETE, PRUNED, FAILED, INTERRUPTED = (
    "running",
    "complete",
    "pruned",
    "failed",
    "interrupted",
)
STATUS_OF_STATE = {
    COMPLETE: "FINISHED",
    PRUNED: "FINISHED",
    FAILED: "FAILED",
    INTERRUPTED: "KILLED",
}
"""Pruning is no failure: the trial did what it was meant to do."""

CHECKPOINT = "checkpoint/best.safetensors"
CONFIG = "config.yaml"
CLASSES = "classes.json"
PREPROCESSING = "preprocessing.json"
NUMERICS = "numerics.json"
SOURCE = "source"
MODEL = "model"


def is_uid(text: str) -> bool:
    """Whether a text has the form of `UID`'s values, which name folders of checkpoints: 32 hex digits."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None
