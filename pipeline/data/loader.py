"""Batches of stored images, in an order and with augmentations that depend on the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from pipeline.data.decode import center_crop
from pipeline.data.store import Store
from pipeline.data.transforms import augment

Key = tuple[int, int]
"""(epoch, number of the image within its split)"""


class Images(Dataset[tuple[Tensor, Tensor]]):
    """The images of one split.

    Augmentation is a function of (seed, epoch, image), so that the number of worker processes, a
    resumed training or another order of batches does not change what the network sees.
    """

    def __init__(
        self,
        store: Store,
        positions: NDArray[np.int64],
        labels: NDArray[np.int64],
        size: int,
        augmentation: v2.Transform | None = None,
        seed: int = 0,
    ) -> None:
        self._store, self._positions, self._size = store, positions, size
        self.labels = torch.from_numpy(labels[positions])
        self._augmentation, self._seed = augmentation, seed

    def __len__(self) -> int:
        return len(self._positions)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """Return images (batch, 3, size, size) and labels (batch,)."""
        images = torch.stack([self._image(epoch, number) for epoch, number in keys])
        return images, self.labels[[number for _, number in keys]]

    def _image(self, epoch: int, number: int) -> Tensor:
        pixels = self._store[int(self._positions[number])]
        if self._augmentation is None:
            return torch.from_numpy(center_crop(pixels, self._size).copy())
        # The CPU's generator alone: torch.manual_seed would reseed the dropout of a GPU too.
        generator = torch.default_generator
        state = generator.get_state()
        try:
            generator.manual_seed(hash((self._seed, epoch, number)) & 0x7FFF_FFFF_FFFF_FFFF)
            return augment(self._augmentation, pixels, self._size)
        finally:
            generator.set_state(state)


class Batches(Sampler[list[Key]]):
    """Batches of keys; shuffled anew each epoch where a seed is given.

    Attributes:
        epoch: To be set before each epoch.
    """

    def __init__(self, num_images: int, batch_size: int, shuffle_seed: int | None = None) -> None:
        self._num_images, self._batch_size, self._shuffle_seed = num_images, batch_size, shuffle_seed
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self._num_images, self._batch_size)
        return full + (1 if rest and not self._is_dropped(rest) else 0)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(self._num_images)
        if self._shuffle_seed is not None:
            order = np.random.default_rng((self._shuffle_seed, self.epoch)).permutation(self._num_images)
        for start in range(0, self._num_images, self._batch_size):
            batch = order[start : start + self._batch_size]
            if not self._is_dropped(len(batch)):
                yield [(self.epoch, int(number)) for number in batch]

    def _is_dropped(self, length: int) -> bool:
        # BatchNorm cannot train on a batch of one; another epoch's order brings that image in.
        return self._shuffle_seed is not None and length == 1 and self._batch_size > 1 and self._num_images > 1


class Loader:
    """Iterates over batches ``(images, labels)`` of one split.

    Args:
        images: Of the split.
        batch_size: Images per batch; the last batch may be smaller.
        shuffle_seed: Shuffle each epoch by it; None keeps the order.
        workers: Processes that read and augment; 0 does it in this one.
    """

    def __init__(self, images: Images, batch_size: int, shuffle_seed: int | None = None, workers: int = 0) -> None:
        self.num_images = len(images)
        self._batches = Batches(len(images), batch_size, shuffle_seed)
        self._loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            images,
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=_as_is,
            # Its own, or each epoch would draw from the generator of weights and dropout.
            generator=torch.Generator(),
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (batch, 3, size, size) and labels (batch,) in the order of that epoch."""
        self._batches.epoch = number
        yield from self._loader


def _as_is(batch: Any) -> Any:
    # `Images.__getitems__` has made the batch already.
    return batch
