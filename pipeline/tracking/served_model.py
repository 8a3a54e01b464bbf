"""The model as MLflow serves it: base64 images in, labels and probabilities out.

MLflow runs this file when it loads the model ("model from code"); nothing is unpickled.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from pipeline.data.decode import UNREADABLE
from pipeline.training.exported import Classifier


class ImageClassifier(PythonModel):
    """Decodes and preprocesses images as in training, and classifies them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the exported network, its class names and its preprocessing, which stand in one folder."""
        self._classifier = Classifier(Path(context.artifacts["network"]).parent)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify the base64 files in column ``image``.

        Returns:
            Columns label, confidence and probabilities, one row per image. What cannot be decoded has
            empty ones, and the reason in a fourth column ``error``: an exception would show a caller our stack.
        """
        answers: list[dict[str, Any]] = []
        readable: list[NDArray[np.uint8]] = []
        for text in model_input["image"]:
            try:
                # Reduced at once: decoded, a small file may be large.
                readable.append(self._classifier.preprocessing.pixels(base64.b64decode(text, validate=True)))
                answers.append({"label": None, "confidence": None, "probabilities": None})
            except (*UNREADABLE, TypeError, binascii.Error):
                answers.append({"label": None, "confidence": None, "probabilities": None, "error": "not a base64 image"})
        classified, classes = iter(self._classifier.classify(readable)), self._classifier.classes
        for answer in answers:
            if "error" not in answer:
                row = next(classified)
                answer |= {"label": classes[int(row.argmax())], "confidence": float(row.max()), "probabilities": row.tolist()}
        return pd.DataFrame(answers)


mlflow.models.set_model(ImageClassifier())
