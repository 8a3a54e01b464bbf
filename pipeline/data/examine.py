"""Read, hash and decode every image of a source once, in parallel; what is known already is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import Data
from pipeline.data.catalogue import Catalogue, Found
from pipeline.data.decode import UNREADABLE, reason, resize
from pipeline.data.sources.source import Item, Reader, Source
from pipeline.data.store import ShardWriter, lost_shards, sync
from pipeline.errors import PipelineError

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many of how many."""

SMALLEST_HASHED = 64
"""Shorter side in pixels below which unlike pictures have like perceptual hashes."""

_ALONE_SECONDS = 0.3
"""Work of less is not worth starting worker processes, which takes about a second."""
_CHUNK = 32
"""Images handed to a worker process at a time."""
_COMMIT_SECONDS = 2.0
"""At most about so much work is lost when the process is killed."""


@dataclass(frozen=True)
class Recipe:
    """What the stored pixels depend on beside the content.

    Attributes:
        root: The ``prepared`` folder.
        size: Shorter side in pixels; 0 where nothing is stored.
        interpolation: Of the resizing.
        background: Colour below transparent pixels.
        max_pixels: Larger images are refused.
    """

    root: Path
    size: int
    interpolation: str
    background: str
    max_pixels: int

    @classmethod
    def of(cls, data: Data, root: Path) -> Recipe:
        """Return the recipe of a configuration."""
        stored = data.store == "disk"
        return cls(root, data.stored_size if stored else 0, data.interpolation if stored else "", data.background, data.max_pixels)

    @property
    def name(self) -> str:
        """Of the folder of the shards, and in the catalogue."""
        return f"{self.size}-{self.interpolation}-{self.background.lstrip('#')}" if self.size else f"none-{self.background.lstrip('#')}"

    @property
    def folder(self) -> Path:
        """Of the shards."""
        return self.root / f"images-{self.name}"


class Unreadable(NamedTuple):
    """An image that cannot be used, and why."""

    reason: str


class _CannotWrite(Exception):
    """The store cannot be written; holds the reason."""


@dataclass
class Examined:
    """What was found, by number of the item; plain arrays, since there may be millions.

    Attributes:
        content: SHA-256 of the encoded image, shape (images, 32).
        pixels: Hash of the decoded pixels, shape (images, 16).
        phash: Perceptual hash, shape (images,).
        has_phash: Whether there is one.
        index: Place in the store: rows (number of the shard, offset, height, width), shape (images, 4).
        shards: Names by number.
        unreadable: Reasons by number of the item.
    """

    content: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    phash: NDArray[np.uint64]
    has_phash: NDArray[np.bool_]
    index: NDArray[np.int64]
    shards: list[str] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int) -> Examined:
        """Return room for so many images."""
        return cls(
            np.zeros((count, 32), np.uint8),
            np.zeros((count, 16), np.uint8),
            np.zeros(count, np.uint64),
            np.zeros(count, np.bool_),
            np.zeros((count, 4), np.int64),
        )

    def put(self, number: int, found: Found, shard_numbers: dict[str, int]) -> None:
        """Set what was found in one image."""
        self.content[number] = np.frombuffer(found.content, np.uint8)
        self.pixels[number] = np.frombuffer(found.pixels, np.uint8)
        self.has_phash[number] = found.phash is not None
        self.phash[number] = found.phash or 0
        if found.shard and found.shard not in shard_numbers:
            shard_numbers[found.shard] = len(self.shards)
            self.shards.append(found.shard)
        self.index[number] = (shard_numbers.get(found.shard, 0), found.offset, found.stored_height, found.stored_width)


def examine(source: Source, items: Sequence[Item], recipe: Recipe, progress: Progress = lambda *_: None) -> Examined:
    """Examine images, and store their pixels.

    Args:
        source: Of the items.
        items: What to examine.
        recipe: How the pixels are stored, and where.
        progress: Told how many images are done.

    Raises:
        OSError: The store cannot be written; what was there before is intact.
        PipelineError: A worker process died.
    """
    catalogue = Catalogue(recipe.root)
    try:
        return _Examination(source, items, recipe, catalogue, progress).run()
    finally:
        catalogue.close()


class _Examination:
    def __init__(self, source: Source, items: Sequence[Item], recipe: Recipe, catalogue: Catalogue, progress: Progress) -> None:
        self._source, self._items, self._recipe, self._catalogue, self._progress = source, items, recipe, catalogue, progress
        self._examined = Examined.empty(len(items))
        self._shard_numbers: dict[str, int] = {}
        self._fingerprints: dict[int, str] = {}
        self._pending: list[tuple[int, Found]] = []
        self._committed = time.monotonic()

    def run(self) -> Examined:
        missing = self._known(range(len(self._items)))
        if self._recipe.size and self._examined.shards:
            lost = lost_shards(self._recipe.folder, self._examined.shards, self._examined.index)
            if lost:
                self._catalogue.forget_shards(self._recipe.name, lost)
                self._examined, self._shard_numbers = Examined.empty(len(self._items)), {}
                missing = self._known(range(len(self._items)))
        if missing:
            with self._alone() as waited:
                self._work(self._known(missing) if waited else missing)
        return self._examined

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep two processes from decoding the same images; the operating system frees the lock of a process that dies.

        Yields:
            Whether another process had it first.
        """
        waited = False
        key = hashlib.sha256(f"{self._source.description}\0{self._recipe.name}".encode()).hexdigest()[:16]
        lock = FileLock(self._recipe.root / f".{key}.lock", mode=0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._progress("waiting for another process that prepares the same", 0, len(self._items))
            lock.acquire()
            waited = True
        try:
            yield waited
        finally:
            lock.release()

    def _known(self, numbers: Sequence[int]) -> list[int]:
        """Take over what the catalogue knows; return the numbers of the rest."""
        missing = []
        for number in numbers:
            path = self._items[number].path
            try:
                fingerprint = self._source.reader.fingerprint(path)
            except OSError as error:
                self._examined.unreadable[number] = reason(error)
                continue
            found = self._catalogue.of_file(self._source.description, path, fingerprint, self._recipe.name)
            if found is None:
                self._fingerprints[number] = fingerprint
                missing.append(number)
            else:
                self._examined.put(number, found, self._shard_numbers)
        return missing

    def _work(self, numbers: list[int]) -> None:
        done = len(self._items) - len(numbers)
        try:
            for number, result in self._results(numbers):
                done += 1
                if isinstance(result, Unreadable):
                    self._examined.unreadable[number] = result.reason
                else:
                    self._pending.append((number, result))
                if time.monotonic() - self._committed > _COMMIT_SECONDS:
                    self._commit()
                self._progress("decoding", done, len(self._items))
            self._commit()
        except _CannotWrite as error:
            raise OSError(str(error)) from error
        except BrokenProcessPool as error:
            raise PipelineError("a process that decodes images was killed; perhaps memory ran out") from error

    def _commit(self) -> None:
        for shard in {found.shard for _, found in self._pending if found.shard}:
            sync(self._recipe.folder, shard)
        rows = [(self._items[number].path, self._fingerprints.pop(number), found) for number, found in self._pending]
        self._catalogue.add(self._source.description, self._recipe.name, rows)
        for number, found in self._pending:
            self._examined.put(number, found, self._shard_numbers)
        self._pending.clear()
        self._committed = time.monotonic()

    def _results(self, numbers: list[int]) -> Iterator[tuple[int, Found | Unreadable]]:
        chunks = (numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK))
        alone = _Worker(self._source.reader, self._recipe, self._catalogue)
        started = time.monotonic()
        while time.monotonic() - started < _ALONE_SECONDS and (chunk := next(chunks, None)) is not None:
            yield from zip(chunk, alone.examine(self._paths(chunk)), strict=True)
        if (first := next(chunks, None)) is not None:
            yield from self._in_processes(chain([first], chunks), alone)

    def _paths(self, chunk: list[int]) -> list[str]:
        return [self._items[number].path for number in chunk]

    def _in_processes(self, chunks: Iterator[list[int]], alone: _Worker) -> Iterator[tuple[int, Found | Unreadable]]:
        # Forked from a process of its own: this one has threads, whose locks a fork would copy as they stand.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        count = os.cpu_count() or 1
        context = multiprocessing.get_context(method)
        # Imported once, by the process that the workers are forked from.
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(count, context, _start_worker, (self._source.reader, self._recipe)) as pool:
            pending: dict[Future[list[Found | Unreadable]], list[int]] = {}
            working = False
            try:
                while True:
                    while len(pending) < 3 * count and (chunk := next(chunks, None)) is not None:
                        pending[pool.submit(_examine_chunk, self._paths(chunk))] = chunk
                    # While the processes start.
                    while not any(future.done() for future in pending) and not working and (chunk := next(chunks, None)) is not None:
                        yield from zip(chunk, alone.examine(self._paths(chunk)), strict=True)
                    working = True
                    if not pending:
                        return
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        yield from zip(pending.pop(future), future.result(), strict=True)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class _Worker:
    """Examines images one by one, and appends their pixels to a shard of its own."""

    def __init__(self, reader: Reader, recipe: Recipe, catalogue: Catalogue) -> None:
        self._reader, self._recipe, self._catalogue = reader, recipe, catalogue
        self._shard = ShardWriter(recipe.folder)

    def examine(self, paths: Sequence[str]) -> list[Found | Unreadable]:
        results = [self._examine(path) for path in paths]
        try:
            self._shard.flush()
        except OSError as error:
            raise _CannotWrite(error.strerror or str(error)) from None
        return results

    def _examine(self, path: str) -> Found | Unreadable:
        try:
            content = self._reader.read(path)
            digest = hashlib.sha256(content).digest()
            known = self._catalogue.of_content(digest, self._recipe.name)
            if known is not None:
                return known
            if not content:
                return Unreadable("empty file")
            image = self._reader.image(content, self._recipe.background, self._recipe.max_pixels)
        except UNREADABLE as error:
            return Unreadable(reason(error))
        shard, offset, height, width = "", 0, 0, 0
        if self._recipe.size:
            pixels = resize(image, self._recipe.size, self._recipe.interpolation)
            try:
                shard, offset = self._shard.name, self._shard.append(pixels)
            except OSError as error:
                raise _CannotWrite(error.strerror or str(error)) from None
            height, width = pixels.shape[1:]
        return Found(digest, image.height, image.width, hash_of_pixels(image), perceptual_hash(image), shard, offset, height, width)


def hash_of_pixels(image: Image.Image) -> bytes:
    """Return 16 bytes that are equal for equal pictures."""
    digest = hashlib.sha256(f"{image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.digest()[:16]


def perceptual_hash(image: Image.Image) -> int | None:
    """Return 64 bits of which like pictures differ in few; None for an image too small for it.

    pHash: the signs of the lowest frequencies of the picture's cosine transform, about their median (Zauner, C. (2010),
    "Implementation and benchmarking of perceptual image hash functions"), as imagehash computes it.
    """
    if min(image.size) < SMALLEST_HASHED:
        return None
    # Averaged down first: imagehash, which looks at 32 by 32 pixels, would resize with a filter that takes ten times as long.
    small = image.reduce((image.width // 32, image.height // 32)).convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    return int.from_bytes(np.packbits(imagehash.phash(small).hash).tobytes(), "big")


_worker: _Worker


def _start_worker(reader: Reader, recipe: Recipe) -> None:
    global _worker  # noqa: PLW0603 - a pool's processes have no other place for what they keep
    # Ctrl-C reaches all processes of a terminal; the parent ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = _Worker(reader, recipe, Catalogue(recipe.root))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _examine_chunk(paths: list[str]) -> list[Found | Unreadable]:
    return _worker.examine(paths)
