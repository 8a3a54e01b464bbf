"""What makes two trainings the same: configuration hash, data digest, study name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from pipeline.config import Configuration, applies, declared, facts_of

CONFIG_HASH_DIGITS = 12
STUDY_HASH_DIGITS = 8
DIGEST_DIGITS = 32
"""MLflow takes a data digest of 36 characters at the most."""

FIRST_RELEASE = "0.1.0"
_LATER_ORIGINS = ("head", "normalisation")
"""What of a model's origin release 0.1.0 did not look at."""


class TrainingIdentity(NamedTuple):
    """What makes two trainings the same: one that is complete is reused, not repeated.

    Attributes:
        config_hash: See `config_hash`.
        seed: ``training.seed``.
        fold: The fold that validates.
        data_digest: Digest of the images.
    """

    config_hash: str
    seed: int
    fold: int
    data_digest: str


def hashed_fields(
    configuration: Configuration, origin: Mapping[str, str], release: str = ""
) -> dict[str, Any]:
    """Return the fields that change the result, by dotted name.

    Args:
        configuration: Of one training.
        origin: Of the model as resolved by `pipeline.models.origin`: DEFAULT is the name it stands for, a file is its content.
        release: ``0.1.0`` for the identity that this release gave, by which its runs are recognised; empty: as it is now.
    """
    is_first = release == FIRST_RELEASE
    network = origin.get("file", origin["name"]) if is_first else origin["name"]
    values = configuration.flat() | {"model.name": network, "model.weights": origin["weights"]}
    values["data.store_size"] = configuration.data.stored_size
    fields = {name: values[name] for name, field in declared() if _is_hashed(name, field, values)}
    return fields | {
        f"model.{name}": origin[name] for name in _LATER_ORIGINS if name in origin and not is_first
    }


def _is_hashed(name: str, field: FieldInfo, values: Mapping[str, Any]) -> bool:
    facts = facts_of(field)
    if not facts.hashed or not applies(name, values):
        return False
    return not facts.later or values[name] != field.get_default(call_default_factory=True)


def config_hash(configuration: Configuration, origin: Mapping[str, str], release: str = "") -> str:
    """Return 12 hex digits over what changes the result of a training (see `hashed_fields`)."""
    return _digits(hashed_fields(configuration, origin, release), CONFIG_HASH_DIGITS)


def study_name(
    experiment: str,
    base: Configuration,
    origin: Mapping[str, str],
    space: Mapping[str, Any],
    data_digest: str,
    release: str = "",
) -> str:
    """Return ``EXPERIMENT-`` and 8 hex digits over base's hashed fields, space and data digest, and over the fold where there are folds."""
    plain = {
        name: value if isinstance(value, list) else value.model_dump()
        for name, value in space.items()
    }
    fold = [base.data.fold] if base.data.folds else []
    return f"{experiment}-{_digits([hashed_fields(base, origin, release), plain, data_digest, *fold], STUDY_HASH_DIGITS)}"


def names_beside(study: str) -> Iterator[str]:
    """Yield the name of a study, then ``NAME~2``, ``NAME~3``, …: what it is called where the ones before cannot be used."""
    yield study
    yield from (f"{study}~{number}" for number in count(2))


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
