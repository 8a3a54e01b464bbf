"""What makes two trainings the same: configuration hash, data digest, study name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.config import Configuration

CONFIG_HASH_DIGITS = 12
STUDY_HASH_DIGITS = 8
DIGEST_DIGITS = 32
"""MLflow takes a data digest of 36 characters at the most."""

_HASHED_OF_DATA = {"image_size", "batch_size", "augment", "store_size", "interpolation", "background"}
_NOT_HASHED_OF_TRAINING = {"seed", "device", "processes", "deterministic", "checkpoint_seconds"}
"""Which images in which split is the data digest's; the rest of what is left out does not change the result."""


def hashed_fields(configuration: Configuration, origin: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that change the result, by dotted name.

    Args:
        configuration: Of one training.
        origin: ``name`` and ``weights`` of the model as resolved by `pipeline.models.origin`:
            DEFAULT is the name it stands for, a file is its content.
    """
    raw = configuration.model_dump(mode="json")
    raw["data"]["store_size"] = configuration.data.stored_size
    raw["model"] |= origin
    raw["data"] = {name: value for name, value in raw["data"].items() if name in _HASHED_OF_DATA}
    raw["training"] = {name: value for name, value in raw["training"].items() if name not in _NOT_HASHED_OF_TRAINING}
    del raw["tracking"]
    for name in _inapplicable(configuration):
        section, _, field = name.partition(".")
        raw[section].pop(field, None)
    return {f"{section}.{field}": value for section, fields in raw.items() for field, value in fields.items()}


def _inapplicable(configuration: Configuration) -> set[str]:
    names = {"optimizer.betas"} if configuration.optimizer.name == "sgd" else {"optimizer.momentum"}
    if configuration.model.freeze != "backbone" or not configuration.data.augment:
        names.add("training.feature_views")
    schedule = configuration.schedule.name
    if schedule in ("none", "cosine"):
        names.add("schedule.gamma")
    if schedule == "none":
        names.add("schedule.min_lr")
    if schedule != "step":
        names.add("schedule.step_epochs")
    if schedule != "plateau":
        names.add("schedule.plateau_epochs")
    return names


def config_hash(configuration: Configuration, origin: Mapping[str, str]) -> str:
    """Return 12 hex digits over what changes the result of a training (see `hashed_fields`)."""
    return _digits(hashed_fields(configuration, origin), CONFIG_HASH_DIGITS)


def study_name(experiment: str, base: Configuration, origin: Mapping[str, str], space: Mapping[str, Any], data_digest: str) -> str:
    """Return ``EXPERIMENT-`` and 8 hex digits over base's hashed fields, space and data digest, and over the fold where there are folds."""
    plain = {name: value if isinstance(value, list) else value.model_dump() for name, value in space.items()}
    fold = [base.data.fold] if base.data.folds else []
    return f"{experiment}-{_digits([hashed_fields(base, origin), plain, data_digest, *fold], STUDY_HASH_DIGITS)}"


def data_digest(images: Iterable[tuple[str, str, str]]) -> str:
    """Return 32 hex digits over images, labels and splits, whatever the order.

    Args:
        images: ``(content hash, label, split)`` of every image.
    """
    lines = sorted("\t".join(image) for image in images)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGEST_DIGITS]


def _digits(value: Any, count: int) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:count]
