"""The model as MLflow serves it: base64 images in, labels and probabilities out.

MLflow runs this file when it loads the model ("model from code"); nothing is unpickled. Anybody may
send a request. So environment variables of the server limit what a request may use, and no answer
tells anything about the machine.
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
"""Most images of a request: environment variable and default."""
MAX_BYTES = ("PIPELINE_MAX_IMAGE_BYTES", 20_000_000)
"""Most bytes of an image's file."""
MAX_PIXELS = ("PIPELINE_MAX_REQUEST_PIXELS", 256_000_000)
"""Most pixels of all images of a request together: those of about twenty photographs."""

_LOG = logging.getLogger(__name__)


class Refused(Exception):
    """A row that gets an error instead of an answer.

    Args:
        reason: The text of the answer.
        pixels: Number of pixels that were decoded for the row nevertheless.
    """

    def __init__(self, reason: str, pixels: int = 0) -> None:
        super().__init__(reason)
        self.pixels = pixels


class ImageClassifier(PythonModel):
    """The served model: it decodes and preprocesses images as in training, and classifies them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the exported network, its class names and its preprocessing from their folder."""
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
            Columns label, confidence and probabilities, with one row for each image. They are empty
            for an image that cannot be decoded or is beyond a limit. A fourth column ``error`` then
            says why: an exception would show our stack to a caller.
        """
        texts = list(model_input["image"])
        errors: dict[int, str] = {}
        pixels: dict[int, NDArray[np.uint8]] = {}
        left = limit(MAX_PIXELS)
        most_rows = limit(MAX_ROWS)
        for number, text in enumerate(texts[:most_rows]):
            try:
                pixels[number], used = self._decode(_read_base64(text), left)
            except Refused as error:
                errors[number] = str(error)
                used = error.pixels
            left -= used
        errors |= dict.fromkeys(
            range(most_rows, len(texts)), f"beyond the {most_rows} images of a request"
        )
        probabilities: dict[int, NDArray[np.float64]] = {}
        try:
            classified = self._classifier.classify(list(pixels.values()))
            probabilities = dict(zip(pixels, classified, strict=True))
        except Exception:
            # The log is for the owner of the server. A caller learns that the request is not at
            # fault.
            _LOG.exception("the network failed")
            errors |= dict.fromkeys(pixels, "the model failed")
        _release_memory()
        return self._answer(len(texts), probabilities, errors)

    def _answer(
        self, count: int, probabilities: dict[int, NDArray[np.float64]], errors: dict[int, str]
    ) -> pd.DataFrame:
        """Return the answer for `count` images, from probabilities and errors by image number."""
        columns: dict[str, list[Any]] = {"label": [], "confidence": [], "probabilities": []}
        for number in range(count):
            found = probabilities.get(number)
            if found is None:
                for column in columns.values():
                    column.append(None)
            else:
                columns["label"].append(self._classifier.classes[int(found.argmax())])
                columns["confidence"].append(float(found.max()))
                columns["probabilities"].append(found.tolist())
        if errors:
            columns["error"] = [errors.get(number) for number in range(count)]
        # With any other type pandas would make NaN of None. JSON has no NaN.
        return pd.DataFrame(columns, dtype=object if errors else None)

    def _decode(self, content: bytes, left: int) -> tuple[NDArray[np.uint8], int]:
        """Return an image as the network sees it, and the number of pixels that were decoded.

        Args:
            content: Content of the image's file.
            left: Number of pixels that the request may still use.

        Raises:
            Refused: The image cannot be decoded, or is too large.
        """
        preprocessing = self._classifier.preprocessing
        most = min(preprocessing.max_pixels, left)
        # One image at a time is decoded, and reduced at once: a small file may be a large image.
        with self._decodes:
            claimed = claimed_pixels(content, preprocessing.max_pixels)
            try:
                image = replace(preprocessing.specification, max_pixels=most).decode(content).image
                return preprocessing.reduced(image), claimed
            except TooCostly as error:
                raise Refused(str(error)) from None
            except TooLarge:
                allowed = f"the {limit(MAX_PIXELS)} pixels of a request"
                if most == preprocessing.max_pixels:
                    allowed = f"{most} pixels"
                raise Refused(f"more than {allowed}") from None
            except MemoryError:
                raise Refused("too large for the server", claimed) from None
            except UNREADABLE:
                # An image with metadata is tried twice.
                raise Refused("not an image, or a damaged one", 2 * claimed) from None


def _read_base64(text: object) -> bytes:
    """Return the content of an image's file.

    Raises:
        Refused: The text is not base64, or the file is too large.
    """
    most_bytes = limit(MAX_BYTES)
    if not isinstance(text, str | bytes):
        raise Refused("not a base64 image")
    # Base64 takes four thirds of the bytes. Line breaks, as many programs write them, are a
    # fortieth part at most.
    if len(text) > most_bytes * 1.4 + 8:
        raise Refused(f"more than {most_bytes} bytes")
    joined = "".join(text.split()) if isinstance(text, str) else b"".join(text.split())
    try:
        content = base64.b64decode(joined, validate=True)
    except (ValueError, binascii.Error):
        raise Refused("not a base64 image") from None
    if len(content) > most_bytes:
        raise Refused(f"more than {most_bytes} bytes")
    return content


def _release_memory() -> None:
    """Return freed memory to the system, if the C library keeps it.

    After large pictures it would be hundreds of megabytes.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def limit(of: tuple[str, int]) -> int:
    """Return a limit: the whole number in its environment variable, or else the default."""
    name, default = of
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else default


mlflow.models.set_model(ImageClassifier())
