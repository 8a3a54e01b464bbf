"""The model as MLflow serves it: base64 images in, labels and probabilities out.

MLflow runs this file when it loads the model ("model from code"); nothing is unpickled. Who asks is a stranger: what a request may
take is limited by environment variables of the server, and no answer tells of the machine.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import logging
import os
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from pipeline.data.decode import UNREADABLE, TooCostly, TooLarge, claimed_pixels
from pipeline.training.exported_model import Classifier

MAX_ROWS = ("PIPELINE_MAX_ROWS", 1_000)
"""Images of a request."""
MAX_BYTES = ("PIPELINE_MAX_IMAGE_BYTES", 20_000_000)
"""Of an image's file."""
MAX_PIXELS = ("PIPELINE_MAX_REQUEST_PIXELS", 256_000_000)
"""Of all images of a request together, as many as of some twenty photographs."""

_LOG = logging.getLogger(__name__)


class Refused(Exception):
    """A row that gets an error instead of an answer.

    Args:
        reason: What is answered.
        pixels: How many were decoded for it all the same.
    """

    def __init__(self, reason: str, pixels: int = 0) -> None:
        super().__init__(reason)
        self.pixels = pixels


class ImageClassifier(PythonModel):
    """Decodes and preprocesses images as in training, and classifies them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the exported network, its class names and its preprocessing, which stand in one folder."""
        self._classifier = Classifier(Path(context.artifacts["network"]).parent)
        self._decodes = threading.Lock()

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Classify the base64 files in column ``image``.

        Returns:
            Columns label, confidence and probabilities, one row per image. What cannot be decoded, or is beyond a limit, has
            empty ones, and the reason in a fourth column ``error``: an exception would show a caller our stack.
        """
        texts = list(model_input["image"])
        errors: dict[int, str] = {}
        pixels: dict[int, NDArray[np.uint8]] = {}
        left = limit(MAX_PIXELS)
        most_rows = limit(MAX_ROWS)
        for number, text in enumerate(texts[:most_rows]):
            try:
                pixels[number], used = self._pixels(_content(text), left)
            except Refused as error:
                errors[number], used = str(error), error.pixels
            left -= used
        errors |= dict.fromkeys(
            range(most_rows, len(texts)), f"beyond the {most_rows} images of a request"
        )
        shares: dict[int, NDArray[np.float64]] = {}
        try:
            shares = dict(
                zip(pixels, self._classifier.classify(list(pixels.values())), strict=True)
            )
        except Exception:
            # For whoever runs the server; a caller learns that it is not the request.
            _LOG.exception("the network failed")
            errors |= dict.fromkeys(pixels, "the model failed")
        _give_back()
        return self._answer(len(texts), shares, errors)

    def _answer(
        self, count: int, shares: dict[int, NDArray[np.float64]], errors: dict[int, str]
    ) -> pd.DataFrame:
        classes = self._classifier.classes
        found = [shares.get(number) for number in range(count)]
        columns: dict[str, list[Any]] = {
            "label": [None if row is None else classes[int(row.argmax())] for row in found],
            "confidence": [None if row is None else float(row.max()) for row in found],
            "probabilities": [None if row is None else row.tolist() for row in found],
        }
        if errors:
            columns["error"] = [errors.get(number) for number in range(count)]
        # Of any other type pandas would make NaN of None, which JSON does not have.
        return pd.DataFrame(columns, dtype=object if errors else None)

    def _pixels(self, content: bytes, left: int) -> tuple[NDArray[np.uint8], int]:
        """Return what the network sees of an image, and how many pixels were decoded, of which so many are left to the request.

        Raises:
            Refused: It cannot be decoded, or is too large.
        """
        preprocessing = self._classifier.preprocessing
        most = min(preprocessing.max_pixels, left)
        # One at a time, and reduced at once: decoded, a small file may be large.
        with self._decodes:
            claimed = claimed_pixels(content, preprocessing.max_pixels)
            try:
                image = replace(preprocessing.specification, max_pixels=most).decode(content).image
                return preprocessing.reduced(image), claimed
            except TooCostly as error:
                raise Refused(str(error)) from None
            except TooLarge:
                of = (
                    f"{most} pixels"
                    if most == preprocessing.max_pixels
                    else f"the {limit(MAX_PIXELS)} pixels of a request"
                )
                raise Refused(f"more than {of}") from None
            except MemoryError:
                raise Refused("too large for the server", claimed) from None
            except UNREADABLE:
                # Tried twice, where it has metadata.
                raise Refused("not an image, or a damaged one", 2 * claimed) from None


def _content(text: object) -> bytes:
    """Return an image's file.

    Raises:
        Refused: It is none, or too large.
    """
    most_bytes = limit(MAX_BYTES)
    if not isinstance(text, str | bytes):
        raise Refused("not a base64 image")
    # Line breaks, as many programs write them, are a fortieth part at most.
    if len(text) > most_bytes * 1.4 + 8:
        raise Refused(f"more than {most_bytes} bytes")
    try:
        content = base64.b64decode(
            "".join(text.split()) if isinstance(text, str) else b"".join(text.split()),
            validate=True,
        )
    except (ValueError, binascii.Error):
        raise Refused("not a base64 image") from None
    if len(content) > most_bytes:
        raise Refused(f"more than {most_bytes} bytes")
    return content


def _give_back() -> None:
    """Return freed memory to the system, where the C library keeps it: of large pictures it would be hundreds of megabytes."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def limit(of: tuple[str, int]) -> int:
    """Return a limit: of the environment, where it has a whole number of that name, else the default."""
    name, default = of
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else default


mlflow.models.set_model(ImageClassifier())
