"""Batches of stored images, in an order and with augmentations that depend on the seed alone."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

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
"""(epoch, number of the image within its split, place of the draw).

The place of the draw is there only if an image may be drawn twice an epoch.
"""


class DecodedImages(Protocol):
    """Random access to decoded images."""

    def __getitem__(self, position: int, /) -> NDArray[np.uint8]:
        """Return one image, of shape (3, height, width)."""
        ...


class Labelled(Protocol):
    """What a `Loader` makes batches of.

    Attributes:
        labels: Labels of the split's images in their own order, shape (images,).
        num_classes: Number of classes of all images, with the images of other splits.
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
    resumed training or another order of batches does not change what the network sees. If an image
    may be drawn twice an epoch, the place of the draw is the fourth argument: else both would look
    the same.

    Args:
        store: All decoded images.
        positions: Places of the split's images in `store`.
        labels: Labels of all images in `store`, as indices of classes.
        size: Side of the square that the network sees, in pixels.
        augmentation: The result of `pipeline.data.transforms.build_augmentation`; None cuts out the
            middle.
        seed: Seed of the augmentation.

    Attributes:
        positions: Places of the split's images in the store.
        labels: Labels of the split's images, shape (images,).
        num_classes: Number of classes of all images, with the images of other splits.
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
        self._store = store
        self.positions = positions
        self._size = size
        self.labels = torch.from_numpy(labels[positions])
        self.num_classes = int(labels.max()) + 1
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """Return images (batch, 3, size, size) and labels (batch,)."""
        numbers = [key[1] for key in keys]
        pixels = [self._store[position] for position in self.positions[numbers].tolist()]
        if self._augmentation is None:
            middles = [center_crop(image, self._size) for image in pixels]
            images = torch.from_numpy(np.stack(middles))
        else:
            augmented = [
                self._augment(key, image, self._augmentation)
                for key, image in zip(keys, pixels, strict=True)
            ]
            images = torch.stack(augmented)
        return images, self.labels[numbers]

    def _augment(self, key: Key, pixels: NDArray[np.uint8], augmentation: v2.Transform) -> Tensor:
        # Only the CPU's generator is seeded: torch.manual_seed would reseed a GPU's dropout too.
        generator = torch.default_generator
        state = generator.get_state()
        try:
            generator.manual_seed(hash((self._seed, *key)) & 0x7FFF_FFFF_FFFF_FFFF)
            return augment(augmentation, pixels, self._size)
        finally:
            generator.set_state(state)


class Share(NamedTuple):
    """The part of each batch that one of the processes that train together gets.

    Attributes:
        rank: Rank of the process; it has every `size`-th key of a batch, from this one on.
        size: Number of processes.
        smallest: Size of the smallest batch; a smaller one is left out if batches are shuffled.
    """

    rank: int = 0
    size: int = 1
    smallest: int = 2


WHOLE = Share()
"""All of each batch: there is one process."""


class Batches(Sampler[list[Key]]):
    """Batches of keys.

    If a seed is given, they are shuffled anew each epoch, as a function of (seed, epoch) alone.

    Args:
        num_images: Number of the split's images; as many are drawn each epoch.
        batch_size: Keys per batch.
        shuffle_seed: Seed of the order; None keeps the order of the split.
        probabilities: Probability of each image, shape (images,), sum 1. Images are drawn by these
            probabilities, with replacement, instead of shuffled. They need a seed.
        share: The part of each batch that this process gets.

    Attributes:
        batch_size: Keys per batch.
        shuffle_seed: Seed of the order, or None.
        probabilities: Probability of each image, or None.
        share: The part of each batch that this process gets.
        epoch: Number of the epoch. The caller sets it before each epoch.
        skip: Number of batches at the epoch's beginning that are left out, since a resumed training
            has done them.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        shuffle_seed: int | None = None,
        probabilities: NDArray[np.float64] | None = None,
        share: Share = WHOLE,
    ) -> None:
        self._num_images = num_images
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.probabilities = probabilities
        self.share = share
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        full, rest = divmod(self._num_images, self.batch_size)
        if rest and not self._is_dropped(rest):
            return full + 1
        return full

    def __iter__(self) -> Iterator[list[Key]]:
        keys = self._draw_keys()
        for start in range(self.skip * self.batch_size, self._num_images, self.batch_size):
            batch = keys[start : start + self.batch_size]
            if not self._is_dropped(len(batch)):
                # Every process must have something to compute. If a batch is too small for that,
                # the process gets an image that does not count.
                yield batch[self.share.rank :: self.share.size] or batch[:1]

    def _draw_keys(self) -> list[Key]:
        if self.shuffle_seed is None:
            return [(self.epoch, number) for number in range(self._num_images)]
        rng = np.random.default_rng((self.shuffle_seed, self.epoch))
        if self.probabilities is None:
            return [(self.epoch, number) for number in rng.permutation(self._num_images).tolist()]
        drawn = rng.choice(self._num_images, self._num_images, p=self.probabilities)
        return [(self.epoch, number, place) for place, number in enumerate(drawn.tolist())]

    def _is_dropped(self, length: int) -> bool:
        # BatchNorm cannot train on a batch of one image. In another epoch's order the image is in
        # another batch.
        return self.shuffle_seed is not None and length < min(
            self.share.smallest, self.batch_size, self._num_images
        )


class Loader:
    """Iterates over batches ``(images, labels)`` of one split.

    Args:
        images: Images of the split.
        batch_size: Images per batch; the last batch may be smaller.
        shuffle_seed: Seed by which each epoch is shuffled; None keeps the order.
        workers: Number of processes that read and augment; with 0 this process does it.
        probabilities: Probability of each image, as in `Batches`; None shows each image once an
            epoch.
        share: The part of each batch that this process gets.

    Attributes:
        images: Images of the split.
        num_images: Number of images of the split, and of an epoch.
        labels: Labels of the split's images in their own order, shape (images,).
        num_classes: Number of classes of the data.
        workers: Number of processes that read and augment.
    """

    def __init__(
        self,
        images: Labelled,
        batch_size: int,
        shuffle_seed: int | None = None,
        workers: int = 0,
        probabilities: NDArray[np.float64] | None = None,
        share: Share = WHOLE,
    ) -> None:
        self.images = images
        self.num_images = len(images)
        self.labels = images.labels
        self.num_classes = images.num_classes
        self.workers = workers
        self._batches = Batches(len(images), batch_size, shuffle_seed, probabilities, share)
        self._loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            cast("Dataset[tuple[Tensor, Tensor]]", images),
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=_as_is,
            # A generator of its own: else each epoch would draw from that of weights and dropout.
            generator=torch.Generator(),
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        return len(self._batches)

    def length_of(self, number: int) -> int:
        """Return how many images a batch has, with the shares of other processes.

        Args:
            number: Number of the batch, from 0.
        """
        return min(self._batches.batch_size, self.num_images - number * self._batches.batch_size)

    def over(self, others: Labelled) -> Loader:
        """Return a loader of the same batches, made of what stands for the images.

        It needs no worker processes.

        Args:
            others: What stands for the images.
        """
        batches = self._batches
        return Loader(
            others,
            batches.batch_size,
            batches.shuffle_seed,
            0,
            batches.probabilities,
            batches.share,
        )

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (batch, 3, size, size) and labels (batch,) in the order of an epoch.

        Args:
            number: Number of the epoch.
            skip: Number of batches at its beginning that are left out.
        """
        self._batches.epoch = number
        self._batches.skip = skip
        yield from self._loader

    def close(self) -> None:
        """End the processes, wherever they are in an epoch. Another epoch would start new ones."""
        iterator = self._loader._iterator
        self._loader._iterator = None
        _end_processes(iterator)


def batches_of(
    images: Images, keys: Sequence[list[Key]], workers: int = 0
) -> Generator[Tensor, None, None]:
    """Yield the images (batch, 3, size, size) of each list of keys in turn.

    The processes end with the generator, also if it is closed before its end.

    Args:
        images: Images of one split.
        keys: One list of keys per batch.
        workers: Number of processes that read and augment; with 0 this process does it.
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

    Nothing public of torch does it. The processes live as long as the iterator does, and an error's
    traceback may hold on to the iterator.
    """
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()


def preview_views(images: Images, numbers: Sequence[int], num_views: int) -> NDArray[np.uint8]:
    """Return images as training sees them in epochs 1 to `num_views`, before normalisation.

    Args:
        images: Images of the training split, with their augmentation and seed.
        numbers: Numbers of the images within the split.
        num_views: Number of epochs.

    Returns:
        Pixels of shape (len(numbers), num_views, 3, size, size). Those that an augmentation leaves
        as floats from 0 to 1 are scaled.
    """
    keys: list[Key] = []
    for number in numbers:
        keys += [(epoch, number) for epoch in range(1, num_views + 1)]
    views, _ = images.__getitems__(keys)
    if views.is_floating_point():
        views = views.clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.asarray(views.numpy()).reshape(len(numbers), num_views, *views.shape[1:])


def _as_is(batch: Any) -> Any:
    # `Images.__getitems__` has made the batch already.
    return batch
