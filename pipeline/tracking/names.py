"""Names of tags, states and artifacts that dashboards and scripts rely on."""

from __future__ import annotations

import re

STEP = "pipeline.step"
EXPERIMENT = "pipeline.experiment"
UID = "pipeline.uid"
CONFIG_HASH = "pipeline.config_hash"
DATA_DIGEST = "pipeline.data_digest"
TRIAL = "pipeline.trial"
SEARCHED = "pipeline.searched"
"""Tag of trainings whose configuration the search drew: true."""
STATE = "pipeline.state"
STUDY = "pipeline.study"
IDENTITY = "pipeline.identity"
JOINS = "pipeline.joins"
REASON = "pipeline.reason"
RETRY = "pipeline.retry"
"""Tag of failed trainings, true or false: whether the next start of their study repeats them."""
HEARTBEAT = "pipeline.heartbeat"
RESUME_STEPS = "pipeline.resume_steps"
"""Tag of trainings that have the artifact `RESUME`: the number of steps that it holds."""
NUMERICS_USED = "pipeline.numerics"
FEATURES = "pipeline.features"
FLAG = "pipeline.flag."
TARGET = "pipeline.target"
BEST_RUN = "pipeline.best_run"
WEIGHTS = "pipeline.weights"
"""Tag of trainings whose weights `tracking.keep_weights` has removed: `REMOVED`."""
REMOVED = "removed"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"

RUNNING = "running"
COMPLETE = "complete"
PRUNED = "pruned"
FAILED = "failed"
INTERRUPTED = "interrupted"
STATUS_OF_STATE = {
    COMPLETE: "FINISHED",
    PRUNED: "FINISHED",
    FAILED: "FAILED",
    INTERRUPTED: "KILLED",
}
"""MLflow's status for each of our states.

Pruning is no failure: the trial did what it was meant to do.
"""

TEST_IMAGES = "test/images"
"""Metric of evaluated runs: number of test images. Runs of other programs may have it as param."""
VAL_IMAGES = "val/images"
"""Metric of evaluated runs: number of validation images. As `TEST_IMAGES`."""
MULTIPLY_ADDS = "cost/multiply_adds"
"""Metric of evaluated runs: multiplications and additions that one image takes, in pairs."""
SPEED = "cost/images_per_second"
"""Metric of evaluated runs: images a second that the network answers on `COST`'s machine."""
WEIGHTS_BYTES = "cost/weights_bytes"
"""Metric of evaluated runs: size of the network's weights in bytes."""
COST = "pipeline.cost"
"""Tag of evaluated runs: network, size of its images and machine that `SPEED` was measured with."""
TEMPERATURE = "temperature"
"""Metric of complete trainings: what logits are divided by, see `pipeline.scores.calibration`."""

CHECKPOINT = "checkpoint/best.safetensors"
RESUME = "resume/checkpoint.pt"
"""Artifact of a training that other machines may go on with, while it runs."""
CONFIG = "config.yaml"
CLASSES = "classes.json"
PREPROCESSING = "preprocessing.json"
NUMERICS = "numerics.json"
SOURCE = "source"
MODEL = "model"


def is_uid(text: str) -> bool:
    """Whether a text has the form of `UID`'s values: 32 hex digits.

    These values name folders of checkpoints.
    """
    return re.fullmatch("[0-9a-f]{32}", text) is not None
