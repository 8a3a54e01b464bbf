"""The model as MLflow serves it: base64 images in, labels and probabilities out.

MLflow runs this file when it loads the model ("model from code"); nothing is unpickled.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.decode import UNREADABLE
from pipeline.data.transforms import Preprocessing
from pipeline.training.exported import load_exported

BATCH_SIZE = 64


class ImageClassifier(PythonModel):
    """Decodes and preprocesses images as in training, and classifies them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the exported network, its class names and its preprocessing."""
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = load_exported(context.artifacts["network"], self._device)
        self.classes: list[str] = json.loads(Path(context.artifacts["classes"]).read_text(encoding="utf-8"))
        self.preprocessing = Preprocessing.from_dict(json.loads(Path(context.artifacts["preprocessing"]).read_text()))

    def classify(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return probabilities of shape (images, classes) for decoded RGB images."""
        parts = [np.zeros((0, len(self.classes)))]
        for start in range(0, len(images), BATCH_SIZE):
            pixels = np.stack([self.preprocessing.pixels(image) for image in images[start : start + BATCH_SIZE]])
            with torch.inference_mode():
                logits = self._network(self.preprocessing.normalise(torch.from_numpy(pixels).to(self._device)))
            parts.append(logits.double().softmax(1).cpu().numpy())
        return np.concatenate(parts)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify the base64 files in column ``image``.

        Returns:
            Columns label, confidence and probabilities, one row per image. What cannot be decoded has
            empty ones, and the reason in a fourth column ``error``: an exception would show a caller our stack.
        """
        answers: list[dict[str, Any]] = []
        readable: list[Image.Image] = []
        for text in model_input["image"]:
            try:
                readable.append(self.preprocessing.decode(io.BytesIO(base64.b64decode(text, validate=True))))
                answers.append({"label": None, "confidence": None, "probabilities": None})
            except (*UNREADABLE, TypeError, binascii.Error):
                answers.append({"label": None, "confidence": None, "probabilities": None, "error": "not a base64 image"})
        classified = iter(self.classify(readable))
        for answer in answers:
            if "error" not in answer:
                row = next(classified)
                answer |= {"label": self.classes[int(row.argmax())], "confidence": float(row.max()), "probabilities": row.tolist()}
        return pd.DataFrame(answers)


mlflow.models.set_model(ImageClassifier())
