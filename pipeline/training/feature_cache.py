"""Features of a frozen backbone, which a training takes instead of images.

They are computed once per image, and kept on disk. A folder ``prepared/features-KEY/`` holds what
one backbone makes of images that are prepared in one way; KEY is a hash over all that decides it.
It has pairs of files: ``NAME.npy``, features (images, views, ...) in fp32, and ``NAME.ids.npy``,
uint8 (images, 16). Each file is written whole or not at all, the ids last, and never changed. The
folders may be deleted by hand while nothing trains; what is missing is computed anew.
"""

from __future__ import annotations

import io
import math
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.data.loader import Images, Key, batches_of
from pipeline.data.transforms import Preprocessing
from pipeline.errors import OutOfMemory
from pipeline.files import lock, write_whole
from pipeline.models import Network
from pipeline.training.device import is_out_of_memory
from pipeline.training.precision import Numerics

_ID_BYTES = 16
_FILE_BYTES = 64 * 2**20
"""A file is ended beyond this size; a kill loses only the file that was being made."""
_FILE_SECONDS = 60.0
"""A file is ended beyond this time, for the same reason."""

Progress = Callable[[str, int, int], None]
"""A function that is called with what is done, the number of finished images, and of all images."""


class Backbone:
    """A network without its head, on a device.

    Args:
        network: The network. `is_head_last` has found that its head is last.
        preprocessing: The way from stored images to its input.
        numerics: Number format and memory format.
        device: The device that computes.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        numerics: Numerics,
        device: torch.device,
    ) -> None:
        self._module = network.module.to(device).to(memory_format=numerics.memory_format)
        self._head = network.module.get_submodule(network.head)
        self._preprocessing = preprocessing
        self._numerics = numerics
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Return the head's input, fp32 on the CPU, for stored images (batch, 3, size, size)."""
        seen: list[Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        self._module.eval()
        try:
            with torch.inference_mode(), self._numerics.autocast(self._device):
                inputs = self._preprocessing.normalise(images.to(self._device))
                inputs = self._numerics.arrange(inputs)
                self._module(inputs)
        finally:
            hook.remove()
        return seen[-1].float().cpu()


def is_head_last(network: Network, image_size: int) -> bool:
    """Whether the network's answer is that of its head, so that the head can be trained alone.

    SqueezeNet, for one, averages after its head.
    """
    answers: list[Any] = []
    head = network.module.get_submodule(network.head)
    hook = head.register_forward_hook(lambda module, inputs, output: answers.append(output))
    parameter = next(network.module.parameters())
    network.module.eval()
    try:
        with torch.inference_mode():
            # Images of zeros would hide what stands beside the head.
            generator = torch.Generator().manual_seed(0)
            images = torch.rand(2, 3, image_size, image_size, generator=generator)
            output = network.module(images.to(parameter.device))
    finally:
        hook.remove()
    return (
        len(answers) == 1
        and isinstance(output, Tensor)
        and output.shape == answers[0].shape
        and torch.equal(output, answers[0])
    )


def hash_backbone(module: nn.Module, head: str) -> str:
    """Return a hash over the names and values of all weights but the head's."""
    digest = xxhash.xxh3_128()
    for name, value in module.state_dict().items():
        if not name.startswith(f"{head}."):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_contents(contents: Sequence[str], numbered: bool) -> NDArray[np.uint8]:
    """Return 16 bytes per image, shape (images, 16).

    Args:
        contents: Hash of each image's content.
        numbered: The number of an image counts too, since its augmentation depends on it.
    """
    texts: Iterable[str] = contents
    if numbered:
        texts = (f"{content} {number}" for number, content in enumerate(contents))
    digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts)
    return np.frombuffer(digests, np.uint8).reshape(-1, _ID_BYTES)


class Features(Dataset[tuple[Tensor, Tensor]]):
    """The features of one split's images, used instead of `pipeline.data.loader.Images`.

    If images have several views, epoch 1 shows the first, epoch 2 the second, and so on, and then
    the first again.

    Attributes:
        labels: Labels of the split's images, shape (images,).
        num_classes: Number of classes of all images, those of other splits included.
    """

    def __init__(
        self, images: Images, files: Sequence[NDArray[np.float32]], places: NDArray[np.int64]
    ) -> None:
        self.labels = images.labels
        self.num_classes = images.num_classes
        self._files = files
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """Return features (batch, ...) and labels (batch,)."""
        epochs, numbers = np.array([key[:2] for key in keys]).T
        files, rows = self._places[numbers].T
        views = (epochs - 1) % self._files[0].shape[1]
        features = np.empty((len(keys), *self._files[0].shape[2:]), np.float32)
        for file in np.unique(files):
            chosen = files == file
            features[chosen] = self._files[file][rows[chosen], views[chosen]]
        return torch.from_numpy(features), self.labels[torch.from_numpy(numbers)]


class FeatureCache:
    """The features that one backbone makes of images which are prepared in one way, in a folder.

    Args:
        folder: The folder; processes that need the same folder wait for one another.
        backbone: The network that computes the features.
        batch_size: Number of images in a forward pass.
        workers: Number of processes that read and augment images; with 0 this process does it.
        progress: Called while features are computed.
    """

    def __init__(
        self, folder: Path, backbone: Backbone, batch_size: int, workers: int, progress: Progress
    ) -> None:
        self._folder = folder
        self._backbone = backbone
        self._batch_size = batch_size
        self._workers = workers
        self._progress = progress

    def load_or_compute(
        self, images: Images, ids: NDArray[np.uint8], num_views: int
    ) -> tuple[Features, int]:
        """Return the features of a split, and how many of its images were computed now.

        Args:
            images: The images of the split.
            ids: Ids that tell its images apart in the folder, shape (images, 16). Images of equal
                ids have equal features.
            num_views: Number of features per image: those of what training would show in epochs 1
                to `num_views`.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with lock(self._folder):
            # Each id is computed once, in the split's order: a process that goes on after a kill
            # makes the same batches, and so the same bits.
            _, first = np.unique(ids, axis=0, return_index=True)
            known = _read(self._folder)[1]
            missing = [
                int(number) for number in np.sort(first) if ids[number].tobytes() not in known
            ]
            self._compute(images, ids, missing, num_views)
        files, known = _read(self._folder)
        places = np.array([known[image_id.tobytes()] for image_id in ids], dtype=np.int64)
        return Features(images, files, places), len(missing)

    def _compute(
        self, images: Images, ids: NDArray[np.uint8], missing: list[int], num_views: int
    ) -> None:
        per_batch = max(1, self._batch_size // num_views)
        parts = [missing[start : start + per_batch] for start in range(0, len(missing), per_batch)]
        keys = [_keys(part, num_views) for part in parts]
        made: list[NDArray[np.float32]] = []
        done = 0
        saved = 0
        begun = time.monotonic()
        with closing(batches_of(images, keys, self._workers)) as batches:
            for part, batch in zip(parts, batches, strict=True):
                features = _compute_in_halves(self._backbone, batch).numpy()
                made.append(features.reshape(len(part), num_views, *features.shape[1:]))
                done += len(part)
                self._progress("computing features of", done, len(missing))
                is_full = sum(array.nbytes for array in made) >= _FILE_BYTES
                is_late = time.monotonic() - begun >= _FILE_SECONDS
                if is_full or is_late or done == len(missing):
                    _write(self._folder, ids[missing[saved:done]], np.concatenate(made))
                    made = []
                    saved = done
                    begun = time.monotonic()


def _keys(numbers: Sequence[int], num_views: int) -> list[Key]:
    """Return the keys of all views of some images; the views of an image follow one another."""
    return [(view, number) for number, view in product(numbers, range(1, num_views + 1))]


def _read(folder: Path) -> tuple[list[NDArray[np.float32]], dict[bytes, tuple[int, int]]]:
    """Return the files, mapped into memory, and the file and row of each id.

    Files that are cut off are left out.
    """
    files: list[NDArray[np.float32]] = []
    known: dict[bytes, tuple[int, int]] = {}
    for listed in sorted(folder.glob("*.ids.npy")):
        with suppress(FileNotFoundError, ValueError, EOFError):
            ids = np.load(listed)
            features = _map_file(listed.with_name(listed.name.replace(".ids.npy", ".npy")))
            known |= {image_id.tobytes(): (len(files), row) for row, image_id in enumerate(ids)}
            files.append(features)
    return files, known


def _map_file(file: Path) -> NDArray[np.float32]:
    """Return an fp32 array that `numpy.save` has written, mapped into memory.

    `numpy.load` would keep the file open, and there may be more files than a process may open.

    Raises:
        ValueError: The file is cut off.
    """
    with file.open("rb") as opened:
        np.lib.format.read_magic(opened)
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
        start = opened.tell()
        size = file.stat().st_size
    if dtype != np.float32 or size != start + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{file} is cut off")
    content = torch.from_file(str(file), size=size, dtype=torch.uint8)
    return content[start:].view(torch.float32).view(shape).numpy()


def _compute_in_halves(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the features of images; compute them in halves if all do not fit in memory at once."""
    try:
        return backbone(images)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if len(images) == 1:
        raise OutOfMemory(
            "out of memory: the backbone does not take even one image; "
            "a smaller data.image_size or network may fit"
        )
    return torch.cat([_compute_in_halves(backbone, half) for half in images.tensor_split(2)])


def _write(folder: Path, ids: NDArray[np.uint8], features: NDArray[np.float32]) -> None:
    name = uuid.uuid4().hex
    for suffix, array in ((".npy", features), (".ids.npy", ids)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_whole(folder / f"{name}{suffix}", buffer.getvalue(), durable=True)
