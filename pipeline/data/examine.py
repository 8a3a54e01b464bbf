"""Read, hash and decode every image of a source once, in parallel.

What the catalogue knows is not read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pipeline.data.catalogue import Catalogue, Found
from pipeline.data.decode import explain_unreadable, why_too_large
from pipeline.data.examine_worker import Recipe, Unreadable, Worker, examine_chunk, start_worker
from pipeline.data.image_store import find_lost_shards, remove_unnamed, sync
from pipeline.data.sources.source import Item, Source
from pipeline.errors import InUse, PipelineError, UserError
from pipeline.files import lock

_Result = tuple[int, Found | Unreadable]
"""Number of an item, and what was found in the image."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the number of finished images, and the number of all images."""

_ALONE_SECONDS = 0.3
"""Seconds for which this process works alone.

Starting worker processes takes about a second. Less work than this is not worth it.
"""

_MANY = 2000
"""Number of images that take longer than `_ALONE_SECONDS`, however small they are."""

_CHUNK = 32
"""Images that are handed to a worker process at a time."""

_ASKED = 500
"""Images that the catalogue is asked for at a time."""

_COMMIT_SECONDS = 2.0
"""Seconds between two commits: about as much work is lost at most when the process is killed."""


@dataclass
class Examined:
    """What was found in images, by number of the item.

    It is kept in plain arrays, since there may be millions of images.

    Attributes:
        content: SHA-256 of the encoded image, shape (images, 32).
        pixels: Hash of the decoded pixels, shape (images, 16).
        phash: Perceptual hash, shape (images,).
        has_phash: Whether an image has a perceptual hash, shape (images,).
        index: Places in the store, rows (number of the shard, offset, height, width), shape
            (images, 4).
        sizes: Height and width of the decoded images in pixels, shape (images, 2).
        bits: Bits of the grey levels, 8 if the white level is known; shape (images,).
        brightest: The highest grey level if the levels have more than 8 bits, shape (images,).
        is_changed: Whether release 0.1.0 made other pixels of an image, shape (images,).
        shards: Names of the shards by number.
        unreadable: Reasons why an image cannot be used, by number of the item.
        notes: What was passed over in an image that can be used, by number of the item.
    """

    content: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    phash: NDArray[np.uint64]
    has_phash: NDArray[np.bool_]
    index: NDArray[np.int64]
    sizes: NDArray[np.int32]
    bits: NDArray[np.uint8]
    brightest: NDArray[np.float64]
    is_changed: NDArray[np.bool_]
    shards: list[str] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int) -> Examined:
        """Return arrays with room for so many images."""
        return cls(
            np.zeros((count, 32), np.uint8),
            np.zeros((count, 16), np.uint8),
            np.zeros(count, np.uint64),
            np.zeros(count, np.bool_),
            np.zeros((count, 4), np.int64),
            np.zeros((count, 2), np.int32),
            np.full(count, 8, np.uint8),
            np.zeros(count, np.float64),
            np.zeros(count, np.bool_),
        )

    def put(self, number: int, found: Found, shard_numbers: dict[str, int]) -> None:
        """Set what was found in one image."""
        self.content[number] = np.frombuffer(found.content, np.uint8)
        self.pixels[number] = np.frombuffer(found.pixels, np.uint8)
        self.has_phash[number] = found.phash is not None
        self.phash[number] = found.phash or 0
        self.sizes[number] = (found.height, found.width)
        self.bits[number] = found.bits
        self.brightest[number] = found.brightest
        self.is_changed[number] = found.is_changed
        if found.note:
            self.notes[number] = found.note
        if found.shard and found.shard not in shard_numbers:
            shard_numbers[found.shard] = len(self.shards)
            self.shards.append(found.shard)
        self.index[number] = (
            shard_numbers.get(found.shard, 0),
            found.offset,
            found.stored_height,
            found.stored_width,
        )


def examine(
    source: Source, items: Sequence[Item], recipe: Recipe, progress: Progress = lambda *_: None
) -> Examined:
    """Examine images, and store their pixels.

    Args:
        source: Source of the items.
        items: Images to examine.
        recipe: How the pixels are stored, and where.
        progress: Called with the number of finished images.

    Raises:
        OSError: The store or the catalogue cannot be used. What was there before is intact.
        UserError: Decoding an image takes more memory or time than there is.
        PipelineError: Worker processes cannot be started.
    """
    catalogue = Catalogue(recipe.root)
    try:
        return _Examination(source, items, recipe, catalogue, progress).run()
    finally:
        catalogue.close()


class _Examination:
    def __init__(
        self,
        source: Source,
        items: Sequence[Item],
        recipe: Recipe,
        catalogue: Catalogue,
        progress: Progress,
    ) -> None:
        self._source = source
        self._items = items
        self._recipe = recipe
        self._catalogue = catalogue
        self._progress = progress
        self._examined = Examined.empty(len(items))
        self._shard_numbers: dict[str, int] = {}
        self._fingerprints: dict[int, str] = {}
        self._pending: list[tuple[int, Found]] = []
        self._committed = time.monotonic()

    def run(self) -> Examined:
        all_numbers = range(len(self._items))
        missing = self._take_known(all_numbers)
        if self._recipe.stores and self._examined.shards:
            lost = find_lost_shards(
                self._recipe.folder, self._examined.shards, self._examined.index
            )
            if lost:
                self._catalogue.forget_shards(self._recipe.names, lost)
                self._examined = Examined.empty(len(self._items))
                self._shard_numbers = {}
                missing = self._take_known(all_numbers)
        if missing:
            with self._hold_lock() as waited:
                if self._recipe.stores:
                    remove_unnamed(self._recipe.folder, self._catalogue.shards(self._recipe.names))
                if waited:
                    # The other process may have examined some of them.
                    missing = self._take_known(missing)
                self._examine_and_commit(missing)
        return self._examined

    def _put(self, number: int, found: Found) -> None:
        # The size is checked here too: an image may have been stored under a higher limit, or come
        # from an array, which has no header to look at.
        problem = why_too_large(found.width, found.height, self._recipe.decoding.max_pixels)
        if problem:
            self._examined.unreadable[number] = problem
        else:
            self._examined.put(number, found, self._shard_numbers)

    @contextlib.contextmanager
    def _hold_lock(self) -> Iterator[bool]:
        """Keep other processes from decoding the same images, by a lock.

        The operating system releases the lock when the process ends.

        Yields:
            Whether another process had the lock first.
        """
        subject = f"{self._source.description}\0{self._recipe.name}"
        key = hashlib.sha256(subject.encode()).hexdigest()[:16]
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(
                    lock(self._recipe.root / key, "another process prepares the same")
                )
                waited = False
            except InUse as error:
                self._progress(f"waiting, since {error}", 0, len(self._items))
                held.enter_context(lock(self._recipe.root / key))
                waited = True
            yield waited

    def _take_known(self, numbers: Sequence[int]) -> list[int]:
        """Take over what the catalogue knows; return the numbers of the other images."""
        names = self._recipe.names
        is_first = self._catalogue.is_new(names)
        missing = []
        for start in range(0, len(numbers), _ASKED):
            fingerprints = self._read_fingerprints(numbers[start : start + _ASKED])
            known: dict[str, Found] = {}
            if not is_first:
                by_path = {
                    self._items[number].path: fingerprint
                    for number, fingerprint in fingerprints.items()
                }
                known = self._catalogue.of_files(self._source.description, by_path, names)
            for number, fingerprint in fingerprints.items():
                found = known.get(self._items[number].path)
                if found is None:
                    self._fingerprints[number] = fingerprint
                    missing.append(number)
                else:
                    self._put(number, found)
        return missing

    def _read_fingerprints(self, numbers: Sequence[int]) -> dict[int, str]:
        fingerprints = {}
        for number in numbers:
            try:
                fingerprints[number] = self._source.reader.fingerprint(self._items[number].path)
            except OSError as error:
                self._examined.unreadable[number] = explain_unreadable(error)
        return fingerprints

    def _examine_and_commit(self, numbers: list[int]) -> None:
        done = len(self._items) - len(numbers)
        for number, result in self._examine(numbers):
            done += 1
            if isinstance(result, Unreadable):
                self._examined.unreadable[number] = result.reason
            else:
                self._pending.append((number, result))
            if time.monotonic() - self._committed > _COMMIT_SECONDS:
                self._commit()
            self._progress("decoding", done, len(self._items))
        self._commit()

    def _commit(self) -> None:
        for shard in {found.shard for _, found in self._pending if found.shard}:
            sync(self._recipe.folder, shard)
        rows = []
        for number, found in self._pending:
            rows.append((self._items[number].path, self._fingerprints.pop(number), found))
        self._catalogue.add(self._source.description, self._recipe.names, rows)
        for number, found in self._pending:
            self._put(number, found)
        self._pending.clear()
        self._committed = time.monotonic()

    def _examine(self, numbers: list[int]) -> Iterator[_Result]:
        starts = range(0, len(numbers), _CHUNK)
        chunks = deque(numbers[start : start + _CHUNK] for start in starts)
        with contextlib.closing(
            Worker(self._source.reader, self._recipe, self._catalogue)
        ) as alone:
            end = time.monotonic()
            if len(numbers) < _MANY:
                end += _ALONE_SECONDS
            while chunks and time.monotonic() < end:
                yield from self._examine_here(chunks.popleft(), alone)
            if chunks:
                yield from self._examine_in_processes(chunks, alone)

    def _examine_here(self, chunk: list[int], worker: Worker) -> Iterator[_Result]:
        return zip(chunk, worker.examine(self._paths(chunk)), strict=True)

    def _paths(self, chunk: list[int]) -> list[str]:
        return [self._items[number].path for number in chunk]

    def _examine_in_processes(self, chunks: deque[list[int]], alone: Worker) -> Iterator[_Result]:
        """Examine images in worker processes.

        Args:
            chunks: Numbers of the images. Chunks are taken from it as they are begun.
            alone: Examines images in this process while the others start.
        """
        num_processes = os.cpu_count() or 1
        # Chunks whose results are not here yet.
        begun: list[list[int]] = []
        with self._open_pool(num_processes) as pool:
            pending: dict[Future[list[Found | Unreadable]], list[int]] = {}
            is_started = False
            try:
                while True:
                    while chunks and len(pending) < 3 * num_processes:
                        chunk = chunks.popleft()
                        begun.append(chunk)
                        pending[pool.submit(examine_chunk, self._paths(chunk))] = chunk
                    # The processes are starting.
                    while (
                        chunks and not is_started and not any(future.done() for future in pending)
                    ):
                        yield from self._examine_here(chunks.popleft(), alone)
                    is_started = True
                    if not pending:
                        return
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        results = future.result()
                        chunk = pending.pop(future)
                        begun.remove(chunk)
                        yield from zip(chunk, results, strict=True)
            except BrokenProcessPool:
                pass
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        yield from self._examine_one_by_one(chain.from_iterable(begun))
        yield from self._examine_in_processes(chunks, alone)

    def _examine_one_by_one(self, numbers: Iterable[int]) -> Iterator[_Result]:
        """Examine images that a process was killed over, one at a time, to find out over which.

        Raises:
            UserError: A process was killed again.
            PipelineError: No process begins at all.
        """
        with self._open_pool(1) as pool:
            try:
                pool.submit(examine_chunk, []).result()
            except BrokenProcessPool:
                raise PipelineError(
                    "processes that decode images end as soon as they begin; "
                    "what they print tells why"
                ) from None
            for number in numbers:
                path = self._items[number].path
                try:
                    (result,) = pool.submit(examine_chunk, [path]).result()
                except BrokenProcessPool:
                    raise UserError(
                        f"{path}: the process that decodes it is killed; "
                        "perhaps memory does not suffice, or it takes too long; "
                        "remove it, or convert it; a lower data.max_pixels refuses it"
                    ) from None
                yield number, result

    def _open_pool(self, num_processes: int) -> ProcessPoolExecutor:
        # Worker processes are forked from a process of their own. A fork of this process would copy
        # the locks of its threads as they stand.
        has_forkserver = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if has_forkserver else "spawn")
        # That process imports the module once, for all worker processes.
        context.set_forkserver_preload([Worker.__module__])
        return ProcessPoolExecutor(
            num_processes, context, start_worker, (self._source.reader, self._recipe)
        )
