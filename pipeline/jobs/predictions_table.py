"""The answers of a network to the images of a split, as a table that its run keeps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.data.prepared import Prepared
from pipeline.metrics import Labels, probabilities
from pipeline.tracking.run_log import RunLog

OF_TEST = "test/predictions.parquet"
"""Artifact of an evaluated run: its answers to the test images."""
PROBABILITY = "p_"
"""What the columns of probabilities begin with; the name of the class follows."""
OF_VALIDATION = "val/predictions.parquet"
"""Artifact of a complete training: the answers of its best epoch to the validation images."""
MOST_KEPT = 20_000_000
"""Most probabilities that a training keeps of its validation images: 80 MB."""


def tabulate_predictions(
    prepared: Prepared,
    split: str,
    labels: Labels,
    shares: NDArray[np.floating[Any]],
    classes: list[str],
) -> pd.DataFrame:
    """Return a row per image: path, group, true and predicted class, their probabilities.

    There is a column ``group`` only if images have groups.

    Args:
        prepared: The images.
        split: ``val`` or ``test``.
        labels: True classes, shape (images,).
        shares: Probabilities, shape (images, classes).
        classes: Names of the classes, in the order of the network's outputs.
    """
    names = np.array(classes)
    manifest = prepared.manifest.iloc[prepared.positions(split)]
    columns = {"path": manifest["path"].to_numpy()}
    if prepared.groups(split) is not None:
        columns["group"] = manifest["group"].to_numpy(dtype=object)
    columns["true"] = names[labels]
    columns["predicted"] = names[shares.argmax(axis=1)]
    for number, name in enumerate(classes):
        columns[f"{PROBABILITY}{name}"] = shares[:, number]
    return pd.DataFrame(columns)


def log_validation(
    run: RunLog, prepared: Prepared, labels: Labels, logits: NDArray[np.float32]
) -> None:
    """Log the answers to the validation images, unless they are very many.

    Args:
        run: The run of the training.
        prepared: Its images.
        labels: True classes of the validation images, shape (images,).
        logits: Logits of shape (images, classes).
    """
    if logits.size > MOST_KEPT:
        return
    shares = probabilities(logits).astype(np.float32)
    table = tabulate_predictions(prepared, "val", labels, shares, prepared.classes)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(OF_VALIDATION).name
        table.to_parquet(file, index=False)
        run.file(file, str(Path(OF_VALIDATION).parent))
        run.flush()
