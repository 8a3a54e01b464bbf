"""Sets of equal and nearly equal images."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64


class Sets:
    """Disjoint sets of the numbers below `count`.

    The sets are a union-find structure; the root of a set is its smallest number.
    """

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def root(self, number: int) -> int:
        """Return the smallest number of the set that a number belongs to."""
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = int(parent[number])
        return number

    def unite(self, first: int, second: int) -> None:
        """Make one set of the two sets that two numbers belong to."""
        first_root = self.root(first)
        second_root = self.root(second)
        self._parent[max(first_root, second_root)] = min(first_root, second_root)

    def unite_equal(self, keys: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Put the `numbers` that have equal `keys` into one set."""
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        numbers = numbers[order]
        for place in np.flatnonzero(keys[1:] == keys[:-1]).tolist():
            self.unite(int(numbers[place]), int(numbers[place + 1]))

    def roots(self) -> NDArray[np.int64]:
        """Return each number's root, shape (count,)."""
        above = self._parent[self._parent]
        while not np.array_equal(above, self._parent):
            self._parent = above
            above = self._parent[self._parent]
        return self._parent

    def larger_than_one(self) -> list[list[int]]:
        """Return the sets of two or more numbers, each in order."""
        roots = self.roots()
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        return [part.tolist() for part in np.split(order, starts[1:]) if len(part) > 1]


def unite_near_pairs(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """Return for each hash the smallest number of the set that it belongs to, shape (n,).

    Hashes that are near to each other are in one set. A chain of near hashes is one set too.

    Two hashes that differ in at most d of their bits are equal in at least one of d + 1 bands of
    bits. So only hashes that share a band are compared (Manku, G. S. et al. (2007), "Detecting
    near-duplicates for web crawling").

    Args:
        hashes: Distinct hashes, shape (n,).
        distance: Number of differing bits up to which two hashes are near.
    """
    sets = Sets(len(hashes))
    if distance <= 0:
        return sets.roots()
    edges = np.linspace(0, HASH_BITS, distance + 2).astype(int)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        band = (hashes >> np.uint64(low)) & mask
        _unite_near_in_band(sets, hashes, band, distance)
    return sets.roots()


def _unite_near_in_band(
    sets: Sets, hashes: NDArray[np.uint64], band: NDArray[np.uint64], distance: int
) -> None:
    order = np.argsort(band, kind="stable")
    band = band[order]
    hashes = hashes[order]
    # Element i is compared with element i + lag of the sorted band, as long as there are two
    # elements so far apart that share the band.
    places = np.arange(len(hashes))
    for lag in range(1, len(hashes)):
        places = places[places + lag < len(hashes)]
        places = places[band[places] == band[places + lag]]
        if not len(places):
            return
        num_differing = np.bitwise_count(hashes[places] ^ hashes[places + lag])
        near = places[num_differing <= distance]
        if len(near):
            roots = sets.roots()
            near = near[roots[order[near]] != roots[order[near + lag]]]
            pairs = zip(order[near].tolist(), order[near + lag].tolist(), strict=True)
            for first, second in pairs:
                sets.unite(first, second)


def find_duplicate_sets(
    pixels: NDArray[np.uint8],
    phash: NDArray[np.uint64],
    has_phash: NDArray[np.bool_],
    near_distance: int,
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Find images that are equal or nearly equal.

    Args:
        pixels: Hash of the decoded pixels of each image, shape (images, 16).
        phash: Perceptual hash of each image, shape (images,).
        has_phash: Whether an image has a perceptual hash, shape (images,).
        near_distance: Number of differing bits up to which two perceptual hashes are near. If it
            is below 0, only equal pixels count.

    Returns:
        The sets of two or more images, and a number per image that is equal for equal pixels. A
        chain of near images is one set.
    """
    sets = Sets(len(pixels))
    _, equal = np.unique(np.ascontiguousarray(pixels).view("V16").ravel(), return_inverse=True)
    equal = equal.astype(np.int64)
    sets.unite_equal(equal, np.arange(len(pixels)))
    if near_distance >= 0 and has_phash.any():
        numbers = np.flatnonzero(has_phash)
        hashes, which = np.unique(phash[numbers], return_inverse=True)
        sets.unite_equal(unite_near_pairs(hashes, near_distance)[which], numbers)
    return sets.larger_than_one(), equal
