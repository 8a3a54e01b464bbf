"""Read, hash and decode every image of a source once, in parallel; what is known already is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.context import BaseContext

import numpy as np
from numpy.typing import NDArray

from pipeline.data.catalogue import Catalogue, Found
from pipeline.data.decode import explain_unreadable, why_too_large
from pipeline.data.examine_worker import Recipe, Unreadable, Worker, examine_chunk, start_worker
from pipeline.data.image_store import find_lost_shards, remove_unnamed, sync
from pipeline.data.sources.source import Item, Source
from pipeline.errors import InUse, PipelineError, UserError
from pipeline.files import lock

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many of how many."""

_ALONE_SECONDS = 0.3
"""Work of less is not worth starting worker processes, which takes about a second."""
_MANY = 2000
"""Images that take longer than that, however small they are."""
_CHUNK = 32
"""Images handed to a worker process at a time."""
_ASKED = 500
"""Images that the catalogue is asked for at a time."""
_COMMIT_SECONDS = 2.0
"""At most about so much work is lost when the process is killed."""


@dataclass
class Examined:
    """What was found, by number of the item; plain arrays, since there may be millions.

    Attributes:
        content: SHA-256 of the encoded image, shape (images, 32).
        pixels: Hash of the decoded pixels, shape (images, 16).
        phash: Perceptual hash, shape (images,).
        has_phash: Whether there is one.
        index: Place in the store: rows (number of the shard, offset, height, width), shape (images, 4).
        sizes: Height and width of the decoded images in pixels, shape (images, 2).
        bits: Of the grey levels, 8 where white is known; shape (images,).
        brightest: The highest of them where they have more than 8 bits, shape (images,).
        is_changed: Whether release 0.1.0 made other pixels of an image, shape (images,).
        shards: Names by number.
        unreadable: Reasons by number of the item.
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
        """Return room for so many images."""
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
        self.bits[number], self.brightest[number], self.is_changed[number] = (
            found.bits,
            found.brightest,
            found.is_changed,
        )
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
        source: Of the items.
        items: What to examine.
        recipe: How the pixels are stored, and where.
        progress: Told how many images are done.

    Raises:
        OSError: The store or the catalogue cannot be used; what was there before is intact.
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
        self._source, self._items, self._recipe, self._catalogue, self._progress = (
            source,
            items,
            recipe,
            catalogue,
            progress,
        )
        self._examined = Examined.empty(len(items))
        self._shard_numbers: dict[str, int] = {}
        self._fingerprints: dict[int, str] = {}
        self._pending: list[tuple[int, Found]] = []
        self._committed = time.monotonic()

    def run(self) -> Examined:
        missing = self._known(range(len(self._items)))
        if self._recipe.stores and self._examined.shards:
            lost = find_lost_shards(
                self._recipe.folder, self._examined.shards, self._examined.index
            )
            if lost:
                self._catalogue.forget_shards(self._recipe.names, lost)
                self._examined, self._shard_numbers = Examined.empty(len(self._items)), {}
                missing = self._known(range(len(self._items)))
        if missing:
            with self._alone() as waited:
                if self._recipe.stores:
                    remove_unnamed(self._recipe.folder, self._catalogue.shards(self._recipe.names))
                self._work(self._known(missing) if waited else missing)
        return self._examined

    def _put(self, number: int, found: Found) -> None:
        # Here, as an image may have been stored under a higher limit, or come from an array that has no header to look at.
        if problem := why_too_large(found.width, found.height, self._recipe.decoding.max_pixels):
            self._examined.unreadable[number] = problem
        else:
            self._examined.put(number, found, self._shard_numbers)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep two processes from decoding the same images; the operating system frees the lock of a process that dies.

        Yields:
            Whether another process had it first.
        """
        key = hashlib.sha256(
            f"{self._source.description}\0{self._recipe.name}".encode()
        ).hexdigest()[:16]
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

    def _known(self, numbers: Sequence[int]) -> list[int]:
        """Take over what the catalogue knows; return the numbers of the rest."""
        names, missing = self._recipe.names, []
        is_first = self._catalogue.is_new(names)
        for start in range(0, len(numbers), _ASKED):
            fingerprints = {}
            for number in numbers[start : start + _ASKED]:
                try:
                    fingerprints[number] = self._source.reader.fingerprint(self._items[number].path)
                except OSError as error:
                    self._examined.unreadable[number] = explain_unreadable(error)
            by_path = {
                self._items[number].path: fingerprint
                for number, fingerprint in fingerprints.items()
            }
            known = (
                {}
                if is_first
                else self._catalogue.of_files(self._source.description, by_path, names)
            )
            for number, fingerprint in fingerprints.items():
                if (found := known.get(self._items[number].path)) is None:
                    self._fingerprints[number] = fingerprint
                    missing.append(number)
                else:
                    self._put(number, found)
        return missing

    def _work(self, numbers: list[int]) -> None:
        done = len(self._items) - len(numbers)
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

    def _commit(self) -> None:
        for shard in {found.shard for _, found in self._pending if found.shard}:
            sync(self._recipe.folder, shard)
        rows = [
            (self._items[number].path, self._fingerprints.pop(number), found)
            for number, found in self._pending
        ]
        self._catalogue.add(self._source.description, self._recipe.names, rows)
        for number, found in self._pending:
            self._put(number, found)
        self._pending.clear()
        self._committed = time.monotonic()

    def _results(self, numbers: list[int]) -> Iterator[tuple[int, Found | Unreadable]]:
        chunks = (numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK))
        alone = Worker(self._source.reader, self._recipe, self._catalogue)
        until = time.monotonic() + (_ALONE_SECONDS if len(numbers) < _MANY else 0)
        while time.monotonic() < until and (chunk := next(chunks, None)) is not None:
            yield from zip(chunk, alone.examine(self._paths(chunk)), strict=True)
        if (first := next(chunks, None)) is not None:
            yield from self._in_processes(chain([first], chunks), alone)

    def _paths(self, chunk: list[int]) -> list[str]:
        return [self._items[number].path for number in chunk]

    def _in_processes(
        self, chunks: Iterator[list[int]], alone: Worker
    ) -> Iterator[tuple[int, Found | Unreadable]]:
        # Forked from a process of its own: this one has threads, whose locks a fork would copy as they stand.
        method = (
            "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        )
        count = os.cpu_count() or 1
        context = multiprocessing.get_context(method)
        # Imported once, by the process that the workers are forked from.
        context.set_forkserver_preload([Worker.__module__])
        # Chunks whose results are not here yet.
        begun: list[list[int]] = []
        with self._pool(count, context) as pool:
            pending: dict[Future[list[Found | Unreadable]], list[int]] = {}
            working = False
            try:
                while True:
                    while len(pending) < 3 * count and (chunk := next(chunks, None)) is not None:
                        begun.append(chunk)
                        pending[pool.submit(examine_chunk, self._paths(chunk))] = chunk
                    # While the processes start.
                    while (
                        not any(future.done() for future in pending)
                        and not working
                        and (chunk := next(chunks, None)) is not None
                    ):
                        yield from zip(chunk, alone.examine(self._paths(chunk)), strict=True)
                    working = True
                    if not pending:
                        return
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        results, chunk = future.result(), pending.pop(future)
                        begun.remove(chunk)
                        yield from zip(chunk, results, strict=True)
            except BrokenProcessPool:
                pass
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        yield from self._one_by_one([number for chunk in begun for number in chunk], context)
        yield from self._in_processes(chunks, alone)

    def _one_by_one(
        self, numbers: list[int], context: BaseContext
    ) -> Iterator[tuple[int, Found | Unreadable]]:
        """Examine images that a process was killed over, one at a time, so that it is known at which.

        Raises:
            UserError: A process was killed again.
            PipelineError: No process begins at all.
        """
        with self._pool(1, context) as pool:
            try:
                pool.submit(examine_chunk, []).result()
            except BrokenProcessPool:
                raise PipelineError(
                    "processes that decode images end as soon as they begin; what they print tells why"
                ) from None
            for number in numbers:
                path = self._items[number].path
                try:
                    (result,) = pool.submit(examine_chunk, [path]).result()
                except BrokenProcessPool:
                    raise UserError(
                        f"{path}: the process that decodes it is killed; perhaps memory does not suffice, or it takes too long; remove it, "
                        "or convert it; a lower data.max_pixels refuses it"
                    ) from None
                yield number, result

    def _pool(self, count: int, context: BaseContext) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            count, context, start_worker, (self._source.reader, self._recipe)
        )
