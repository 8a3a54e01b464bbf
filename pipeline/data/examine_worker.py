"""Read, hash, decode, resize and store one image after another.

A `Worker` does it in this process; `start_worker` and `examine_chunk` do it in those of a pool.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import xxhash
from PIL import Image
from scipy import fft

from pipeline.config import Data
from pipeline.data.catalogue import Catalogue, Found, Names
from pipeline.data.decode import UNREADABLE, VERSION, Decoded, Decoding, explain_unreadable
from pipeline.data.decoding_limits import TooSlow, stopwatch
from pipeline.data.grey_levels import next_white
from pipeline.data.image_store import ShardWriter, shard_size
from pipeline.data.sources.source import Reader
from pipeline.errors import UserError

SMALLEST_HASHED = 64
"""Shorter side in pixels below which unlike pictures have like perceptual hashes."""

FLAT = 4
"""Range of grey levels, of 256, below which a picture has no perceptual hash.

What is left of the picture for the hash is noise: pages of one colour all hash alike.
"""


@dataclass(frozen=True)
class Recipe:
    """What the stored pixels depend on beside the content of the files.

    Attributes:
        root: The ``prepared`` folder.
        decoding: How a file becomes pixels.
        stores: Whether pixels are stored.
    """

    root: Path
    decoding: Decoding
    stores: bool = True

    @classmethod
    def of(cls, data: Data, root: Path, version: int = VERSION) -> Recipe:
        """Return the recipe of a configuration."""
        return cls(root, Decoding.of(data, version), data.store == "disk")

    @property
    def name(self) -> str:
        """Name in the folder of the shards, and name in the catalogue for images of 8 bits.

        Each version of the decoding has another.
        """
        return self.decoding.key if self.stores else f"none-{self.decoding.colours_key}"

    @property
    def names(self) -> Names:
        """Names in the catalogue."""
        return Names(self.name, self.name + self.decoding.grey_key)

    @property
    def folder(self) -> Path:
        """Folder of the shards."""
        return self.root / f"images-{self.name}"

    def stores_of(self, bits: int) -> bool:
        """Whether pixels of an image of so many bits are stored.

        Those of more than 8 bits are stored only if it is known which level is white.
        """
        return self.stores and (bits == 8 or self.decoding.white != "auto")


class Unreadable(NamedTuple):
    """The reason why an image cannot be used."""

    reason: str


class Worker:
    """Examines images one by one, and appends their pixels to a shard of its own."""

    def __init__(self, reader: Reader, recipe: Recipe, catalogue: Catalogue) -> None:
        self._reader = reader
        self._recipe = recipe
        self._catalogue = catalogue
        self._shard = ShardWriter(recipe.folder)
        # If so, images need not be looked up, which would take a moment for each.
        self._is_first = catalogue.is_new(recipe.names)
        self._sizes: dict[str, int] = {}

    def examine(self, paths: Sequence[str]) -> list[Found | Unreadable]:
        """Examine images, and hand their pixels over to the operating system.

        Raises:
            OSError: The store or the catalogue cannot be used, for example since the disk is full.
            UserError: Decoding an image takes more memory or time than there is.
        """
        results = [self._examine(path) for path in paths]
        self._shard.flush()
        return results

    def close(self) -> None:
        """Close the shard."""
        self._shard.close()

    def _examine(self, path: str) -> Found | Unreadable:
        try:
            content = self._reader.read(path)
        except UNREADABLE as error:
            return Unreadable(explain_unreadable(error))
        digest = hashlib.sha256(content).digest()
        if not self._is_first:
            known = self._catalogue.of_content(digest, self._recipe.names)
            if known is not None and self._is_stored(known):
                return known
        if not content:
            return Unreadable("empty file")
        try:
            with stopwatch():
                decoded = self._reader.image(content, self._recipe.decoding)
                compared, scale = self._make_comparable(content, decoded)
        except UNREADABLE as error:
            return Unreadable(explain_unreadable(error))
        except TooSlow as error:
            # The image is not passed over: on a faster machine it would be used.
            raise UserError(f"{path}: {error}; remove it, or convert it") from None
        except MemoryError:
            raise UserError(
                f"{path}: memory does not suffice to decode it; a lower data.max_pixels refuses it"
            ) from None
        bits, brightest = decoded.levels or (8, 0.0)
        shard, offset, height, width = self._store(decoded.image, bits)
        return Found(
            digest,
            decoded.image.height,
            decoded.image.width,
            hash_of_pixels(compared, scale),
            perceptual_hash(compared),
            shard,
            offset,
            height,
            width,
            bits,
            brightest,
            decoded.is_changed,
            decoded.note,
        )

    def _store(self, image: Image.Image, bits: int) -> tuple[str, int, int, int]:
        """Store the resized picture, if the recipe does; return shard, offset, height and width."""
        if not self._recipe.stores_of(bits):
            return "", 0, 0, 0
        pixels = self._recipe.decoding.resize(image)
        offset = self._shard.append(pixels)
        _, height, width = pixels.shape
        return self._shard.name, offset, height, width

    def _make_comparable(self, content: bytes, decoded: Decoded) -> tuple[Image.Image, int]:
        """Return the picture by which copies are found, and the white that it is scaled by.

        The white is 0 for a picture of 8 bits. A picture of more bits is scaled by its own
        brightest level, whichever level is white for all pictures: else ``auto`` and the number
        that it stands for would find other copies, and so make other splits.
        """
        image = decoded.image
        decoding = self._recipe.decoding
        if decoded.levels is None or decoding.white == "type":
            return image, 0
        if decoding.white != "auto":
            image = self._reader.image(content, replace(decoding, white="auto")).image
        return image, next_white(decoded.levels.brightest)

    def _is_stored(self, found: Found) -> bool:
        if not self._recipe.stores_of(found.bits):
            return True
        end = found.offset + 3 * found.stored_height * found.stored_width
        if self._sizes.get(found.shard, 0) < end:
            # The size is read again, since a shard that is written to grows.
            self._sizes[found.shard] = shard_size(self._recipe.folder, found.shard)
        return self._sizes[found.shard] >= end


def hash_of_pixels(image: Image.Image, scale: int = 0) -> bytes:
    """Return 16 bytes that are equal for equal pictures of one scale."""
    # SHA-256 of a photograph's 36 MB would take a quarter of the time of decoding it.
    return xxhash.xxh3_128_digest(image.tobytes(), seed=image.width + (scale % 2**32 << 32))


def perceptual_hash(image: Image.Image) -> int | None:
    """Return 64 bits, of which like pictures differ in few.

    The result is None for an image that is too small, or of one colour. Else it is the picture's
    pHash: for each of the 8 by 8 lowest frequencies of its cosine transform, whether it is above
    their median (Zauner, C. (2010), "Implementation and benchmarking of perceptual image hash
    functions").
    """
    if min(image.size) < SMALLEST_HASHED:
        return None
    # `reduce` takes averages first: a filter over the whole picture would take ten times as long.
    small = (
        image.reduce((image.width // 32, image.height // 32))
        .convert("L")
        .resize((32, 32), Image.Resampling.BILINEAR)
    )
    darkest, lightest = cast("tuple[int, int]", small.getextrema())
    if lightest - darkest < FLAT:
        return None
    lowest = fft.dctn(np.asarray(small))[:8, :8].ravel()
    median = np.sort(lowest)[31:33].mean()
    return int.from_bytes(np.packbits(lowest > median).tobytes(), "big")


_worker: Worker | OSError
"""The worker of this process of a pool, or the reason why there is none."""


def start_worker(reader: Reader, recipe: Recipe) -> None:
    """Make this process of a pool ready for `examine_chunk`."""
    global _worker  # noqa: PLW0603 - a pool's processes have no other place for what they keep
    # Ctrl-C reaches all processes of a terminal; the parent ends its worker processes itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _worker = Worker(reader, recipe, Catalogue(recipe.root))
    except OSError as error:
        # Raised here, the error would break the pool, and nobody would learn the reason.
        _worker = error


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def examine_chunk(paths: list[str]) -> list[Found | Unreadable]:
    """Examine images in a process of a pool.

    Raises:
        OSError: The store or the catalogue cannot be used.
    """
    if isinstance(_worker, OSError):
        raise _worker
    return _worker.examine(paths)
