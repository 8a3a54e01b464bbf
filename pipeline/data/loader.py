"""Batches of stored images, in an order and with augmentations that depend on the seed alone."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision.transforms import v2

from pipeline.data.resize import center_crop
from pipeline.data.transforms import augment

Key = tuple[int, int] | tuple[int, int, int]
"""(epoch, number of the image within its split), and the place of the draw where an image may be drawn twice an epoch"""


class DecodedImages(Protocol):
    """Random access to decoded images."""

    def __getitem__(self, position: int, /) -> NDArray[np.uint8]:
        """Return one image, of shape (3, height, width)."""
        ...


class Labelled(Protocol):
    """What a `Loader` makes batches of.

    Attributes:
        labels: In the split's own order, shape (images,).
        num_classes: Of all images, those of other splits included.
    """

    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """Return what the network is given, batch first, and labels (batch,)."""
        ...


class Images(Dataset[tuple[Tensor, Tensor]]):
    """The images of one split.

    Augmentation is a function of (seed, epoch, image), so that the number of worker processes, a
    resumed training or another order of batches does not change what the network sees. Where an image
    may be drawn twice an epoch, the place of the draw is the fourth argument, or both would look the same.

    Args:
        store: All decoded images.
        positions: Places of the split's images in `store`.
        labels: Of all images in `store`, as indices of classes.
        size: Side of the square that the network sees, in pixels.
        augmentation: Of `pipeline.data.transforms.build_augmentation`; None cuts out the middle.
        seed: Of the augmentation.

    Attributes:
        positions: As given.
        labels: Of the split's images, shape (images,).
        num_classes: Of all images, those of other splits included.
    """

    def __init__(
        self,
        store: DecodedImages,
        positions: NDArray[np.int64],
        labels: NDArray[np.int64],
        size: int,
        augmentation: v2.Transform | None = None,
        seed: int = 0,
    ) -> None:
        self._store, self.positions, self._size = store, positions, size
        self.labels = torch.from_numpy(labels[positions])
        self.num_classes = int(labels.max()) + 1
        self._augmentation, self._seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """Return images (batch, 3, size, size) and labels (batch,)."""
        numbers = [key[1] for key in keys]
        pixels = [self._store[position] for position in self.positions[numbers].tolist()]
        if self._augmentation is None:
            images = torch.from_numpy(
                np.stack([center_crop(image, self._size) for image in pixels])
            )
        else:
            images = torch.stack(
                [
                    self._augmented(key, image, self._augmentation)
                    for key, image in zip(keys, pixels, strict=True)
                ]
            )
        return images, self.labels[numbers]

    def _augmented(self, key: Key, pixels: NDArray[np.uint8], augmentation: v2.Transform) -> Tensor:
        # The CPU's generator alone: torch.manual_seed would reseed the dropout of a GPU too.
        generator = torch.default_generator
        state = generator.get_state()
        try:
            generator.manual_seed(hash((self._seed, *key)) & 0x7FFF_FFFF_FFFF_FFFF)
            return augment(augmentation, pixels, self._size)
        finally:
            generator.set_state(state)


class Batches(Sampler[list[Key]]):
    """Batches of keys; shuffled anew each epoch where a seed is given, a function of (seed, epoch) alone.

    Args:
        num_images: Of the split; as many are drawn each epoch.
        batch_size: Keys per batch.
        shuffle_seed: None keeps the order.
        probabilities: Shape (images,), sum 1: images are drawn by them, with replacement, instead of shuffled. Needs a seed.
        share: (rank, size) of this process among those that train together: it has every size-th key of each batch.
        smallest: A smaller batch is left out where batches are shuffled.

    Attributes:
        batch_size: As given.
        shuffle_seed: As given.
        probabilities: As given.
        share: As given.
        smallest: As given.
        epoch: To be set before each epoch.
        skip: Batches at the epoch's beginning that are left out, since a resumed training has done them.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        shuffle_seed: int | None = None,
        probabilities: NDArray[np.float64] | None = None,
        share: tuple[int, int] = (0, 1),
        smallest: int = 2,
    ) -> None:
        self._num_images, self.batch_size, self.shuffle_seed = num_images, batch_size, shuffle_seed
        self.probabilities, self.share, self.smallest = probabilities, share, smallest
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        full, rest = divmod(self._num_images, self.batch_size)
        return full + (1 if rest and not self._is_dropped(rest) else 0)

    def __iter__(self) -> Iterator[list[Key]]:
        keys = self._keys()
        for start in range(self.skip * self.batch_size, self._num_images, self.batch_size):
            batch = keys[start : start + self.batch_size]
            if not self._is_dropped(len(batch)):
                rank, size = self.share
                # Every process must have something to compute; where a batch is too small for that, an image that does not count.
                yield batch[rank::size] or batch[:1]

    def _keys(self) -> list[Key]:
        if self.shuffle_seed is None:
            return [(self.epoch, number) for number in range(self._num_images)]
        rng = np.random.default_rng((self.shuffle_seed, self.epoch))
        if self.probabilities is None:
            return [(self.epoch, number) for number in rng.permutation(self._num_images).tolist()]
        drawn = rng.choice(self._num_images, self._num_images, p=self.probabilities)
        return [(self.epoch, number, place) for place, number in enumerate(drawn.tolist())]

    def _is_dropped(self, length: int) -> bool:
        # BatchNorm cannot train on a batch of one; another epoch's order brings that image in.
        return self.shuffle_seed is not None and length < min(
            self.smallest, self.batch_size, self._num_images
        )


class Loader:
    """Iterates over batches ``(images, labels)`` of one split.

    Args:
        images: Of the split.
        batch_size: Images per batch; the last batch may be smaller.
        shuffle_seed: Shuffle each epoch by it; None keeps the order.
        workers: Processes that read and augment; 0 does it in this one.
        probabilities: Of each image to be drawn, as in `Batches`; None shows each once an epoch.
        share: Of this process, as in `Batches`.
        smallest: Batch, as in `Batches`.

    Attributes:
        images: Of the split.
        num_images: Of the split, and of an epoch.
        labels: Of the split's images in their own order, shape (images,).
        num_classes: Of the data.
        workers: As given.
    """

    def __init__(
        self,
        images: Labelled,
        batch_size: int,
        shuffle_seed: int | None = None,
        workers: int = 0,
        probabilities: NDArray[np.float64] | None = None,
        share: tuple[int, int] = (0, 1),
        smallest: int = 2,
    ) -> None:
        self.images, self.workers = images, workers
        self.num_images, self.labels, self.num_classes = (
            len(images),
            images.labels,
            images.num_classes,
        )
        self._batches = Batches(
            len(images), batch_size, shuffle_seed, probabilities, share, smallest
        )
        self._loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            cast("Dataset[tuple[Tensor, Tensor]]", images),
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

    def length_of(self, number: int) -> int:
        """Return how many images the batch of that number has, from 0, the shares of other processes included."""
        return min(self._batches.batch_size, self.num_images - number * self._batches.batch_size)

    def over(self, others: Labelled) -> Loader:
        """Return a loader of the same batches of what stands for the images, which needs no workers."""
        batches = self._batches
        return Loader(
            others,
            batches.batch_size,
            batches.shuffle_seed,
            0,
            batches.probabilities,
            batches.share,
            batches.smallest,
        )

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (batch, 3, size, size) and labels (batch,) in the order of that epoch, without its first `skip` batches."""
        self._batches.epoch, self._batches.skip = number, skip
        yield from self._loader

    def close(self) -> None:
        """End the processes, wherever they are in an epoch; a further epoch would start new ones."""
        iterator, self._loader._iterator = self._loader._iterator, None
        _end_processes(iterator)


def batches_of(
    images: Images, keys: Sequence[list[Key]], workers: int = 0
) -> Generator[Tensor, None, None]:
    """Yield the images (batch, 3, size, size) of each list of keys in turn; closed before its end, it ends its processes too.

    Args:
        images: Of one split.
        keys: One list per batch.
        workers: Processes that read and augment; 0 does it in this one.
    """
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_as_is,
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    try:
        for batch, _ in iterator:
            yield batch
    finally:
        _end_processes(iterator)


def _end_processes(iterator: Any) -> None:
    """End the processes that fill a DataLoader's iterator.

    Nothing public does it, and they live as long as the iterator does: an error's traceback may hold on to it.
    """
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()


def preview_views(images: Images, numbers: Sequence[int], num_views: int) -> NDArray[np.uint8]:
    """Return images as training sees them in epochs 1 to `num_views`, before normalisation.

    Args:
        images: Of the training split, with its augmentation and seed.
        numbers: Of the images within the split.
        num_views: Epochs.

    Returns:
        Shape (len(numbers), num_views, 3, size, size). Pixels that an augmentation leaves as floats from 0 to 1 are scaled.
    """
    views, _ = images.__getitems__(
        [(epoch, number) for number in numbers for epoch in range(1, num_views + 1)]
    )
    if views.is_floating_point():
        views = views.clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.asarray(views.numpy()).reshape(len(numbers), num_views, *views.shape[1:])


def _as_is(batch: Any) -> Any:
    # `Images.__getitems__` has made the batch already.
    return batch
