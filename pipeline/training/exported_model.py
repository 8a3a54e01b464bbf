"""A trained network as files that need none of the code that made it.

`torch.export` writes them. They can be read safely, whoever wrote them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.export.passes
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError, first_line
from pipeline.scores.temperature import HIGHEST, LOWEST, valid_temperature
from pipeline.training.device import is_out_of_memory
from pipeline.training.exported_archive import UnsafeArchive, write_checked

# Files of an exported classifier.
NETWORK = "network.pt2"
CLASSES = "classes.json"
PREPROCESSING = "preprocessing.json"
CALIBRATION = "calibration.json"
"""It holds the temperature. Models of earlier releases have none."""

BATCH_SIZE = 64
_ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""Fields of an exported network that tell which code it came from.

They hold paths of this machine, and are a third of the time that the network takes to load.
"""
_LARGEST_BATCH = 4096


def save_exported(network: nn.Module, image_size: int, file: Path) -> None:
    """Export a network for batches of any size up to 4,096; the file has no pickled part.

    Args:
        network: The network, from normalised images (batch, 3, image_size, image_size) to logits
            (batch, classes). After the call it is on the CPU in evaluation mode.
        image_size: Side of its square input, in pixels.
        file: File that is written; its name ends in ``.pt2``.

    Raises:
        UserError: The network computes with what `load_exported` would not read.
    """
    # The memory format must be the plain one: for another one torch.export warns that it does not
    # know the weights' storage.
    network = network.to("cpu").to(memory_format=torch.contiguous_format).eval()
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with torch.no_grad():
        program = torch.export.export(
            network, (torch.zeros(2, 3, image_size, image_size),), dynamic_shapes=({0: batch},)
        )
    for node in program.graph.nodes:
        for name in _ORIGINS:
            node.meta.pop(name, None)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        whole = Path(folder, file.name)
        torch.export.save(program, whole)
        try:
            write_checked(whole, file)
        except UnsafeArchive as error:
            raise UserError(f"the network cannot be exported: {error}") from error


def load_exported(file: Path | str, device: torch.device | str) -> nn.Module:
    """Return a network that `save_exported` has written, on a device.

    Raises:
        UserError: The file holds more than a plain network, or is damaged.
        OSError: It cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        checked = Path(folder, NETWORK)
        try:
            write_checked(Path(file), checked)
            program = torch.export.load(checked)
        except UnsafeArchive as error:
            raise UserError(f"{NETWORK}: {error}") from error
        except Exception as error:
            # A graph of allowed operators that do not fit together may fail in any way.
            raise UserError(f"{NETWORK}: torch cannot read it: {first_line(error)}") from error
    if torch.device(device).type != "cpu":
        program = torch.export.passes.move_to_device_pass(program, str(device))
    return program.module()


class Classifier:
    """An exported network with the names of its classes and its preprocessing.

    Args:
        folder: Folder of ``network.pt2``, ``classes.json``, ``preprocessing.json`` and perhaps
            ``calibration.json``, from whatever source: nothing of them is executed.
        device: The device that computes; empty: a GPU if there is one.

    Attributes:
        classes: Names of the classes in the order of the probabilities.
        preprocessing: The preprocessing that the network was trained with.
        temperature: What the logits are divided by, so that confidence is nearer to accuracy.

    Raises:
        UserError: A file is missing, or holds something else.
    """

    def __init__(self, folder: Path, device: str = "") -> None:
        if not device:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = device
        try:
            self.classes = classes_from(json.loads((folder / CLASSES).read_text(encoding="utf-8")))
            self.preprocessing = Preprocessing.from_dict(
                json.loads((folder / PREPROCESSING).read_text(encoding="utf-8"))
            )
            self.temperature = _load_temperature(folder / CALIBRATION)
            self._network = load_exported(folder / NETWORK, self._device)
        except FileNotFoundError as error:
            raise UserError(f"there is no {Path(error.filename).name} in it") from error
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"a file is no JSON: {first_line(error)}") from error

    def classify(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """Return probabilities of shape (images, classes).

        Args:
            images: Images as `Preprocessing.pixels` has made them.

        Raises:
            UserError: The network does not give as many scores as there are classes.
        """
        parts = [np.zeros((0, len(self.classes)))]
        for start in range(0, len(images), BATCH_SIZE):
            pixels = np.stack(images[start : start + BATCH_SIZE])
            logits = self._compute_logits(pixels)
            if logits.shape != (len(pixels), len(self.classes)):
                raise UserError(
                    f"the network gives {tuple(logits.shape)} for {len(pixels)} images "
                    f"and {len(self.classes)} classes"
                )
            parts.append((logits.double() / self.temperature).softmax(1).cpu().numpy())
        return np.concatenate(parts)

    def _compute_logits(self, pixels: NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(pixels).to(self._device)
        images = self.preprocessing.normalise(images)
        try:
            with torch.inference_mode():
                logits: Tensor = self._network(images)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"the network cannot take images of {self.preprocessing.image_size} pixels: "
                f"{first_line(error)}"
            ) from error
        return logits


def _load_temperature(file: Path) -> float:
    """Return the temperature that stands in a file, 1 if there is no file.

    Raises:
        UserError: The file holds no temperature.
    """
    if not file.is_file():
        return 1.0
    raw = json.loads(file.read_text(encoding="utf-8"))
    temperature = valid_temperature(raw.get("temperature") if isinstance(raw, dict) else None)
    if temperature is None:
        raise UserError(
            f"{CALIBRATION}: a temperature from {LOWEST:g} to {HIGHEST:g} is needed, "
            f"got {str(raw)[:200]}"
        )
    return temperature


def classes_from(raw: object) -> list[str]:
    """Return the names of the classes from what was read.

    Raises:
        UserError: It is no list of names, or an empty one.
    """
    if not isinstance(raw, list) or not raw or not all(isinstance(name, str) for name in raw):
        raise UserError(f"{CLASSES}: a list of names is needed, got {str(raw)[:200]}")
    return raw
