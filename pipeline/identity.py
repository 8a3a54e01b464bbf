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
"""Entries of a model's origin that release 0.1.0 did not look at."""


class TrainingIdentity(NamedTuple):
    """What makes two trainings the same: a complete training is reused, not repeated.

    Attributes:
        config_hash: Hash of the configuration (see `config_hash`).
        seed: The seed ``training.seed``.
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
        configuration: Configuration of one training.
        origin: Origin of the model as `pipeline.models.origin` resolves it: DEFAULT is the name it
            stands for, and a file is its content.
        release: ``0.1.0`` for the identity that this release gave, by which its runs are
            recognised. Empty means the identity of now.
    """
    is_first = release == FIRST_RELEASE
    network = origin["name"]
    if is_first:
        network = origin.get("file", network)
    values = configuration.flat() | {"model.name": network, "model.weights": origin["weights"]}
    values["data.store_size"] = configuration.data.stored_size
    fields = {name: values[name] for name, field in declared() if _is_hashed(name, field, values)}
    if is_first:
        return fields
    return fields | {f"model.{name}": origin[name] for name in _LATER_ORIGINS if name in origin}


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
    """Return the name of a study that the user has not named: ``EXPERIMENT-`` and 8 hex digits.

    The digits are taken over base's hashed fields, the space and the data digest, and over the fold
    if there are folds.
    """
    plain_space = {}
    for name, value in space.items():
        plain_space[name] = value if isinstance(value, list) else value.model_dump()
    hashed: list[Any] = [hashed_fields(base, origin, release), plain_space, data_digest]
    if base.data.folds:
        hashed.append(base.data.fold)
    return f"{experiment}-{_digits(hashed, STUDY_HASH_DIGITS)}"


def names_beside(study: str) -> Iterator[str]:
    """Yield the name of a study, then ``NAME~2``, ``NAME~3``, and so on.

    Each is the study's name if the ones before cannot be used.
    """
    yield study
    for number in count(2):
        yield f"{study}~{number}"


def data_digest(images: Iterable[tuple[str, str, str]]) -> str:
    """Return 32 hex digits over images, labels and splits, whatever the order of the images.

    Args:
        images: ``(content hash, label, split)`` of every image.
    """
    lines = sorted("\t".join(image) for image in images)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGEST_DIGITS]


def _digits(value: Any, num_digits: int) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:num_digits]
