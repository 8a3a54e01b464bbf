"""Equal and nearly equal images, as sets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64


class Sets:
    """Disjoint sets of the numbers below `count` (union-find; smallest number as root)."""

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
        """Make one set of two."""
        a, b = self.root(first), self.root(second)
        self._parent[max(a, b)] = min(a, b)

    def unite_equal(self, keys: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Put those of `numbers` that have equal `keys` into one set."""
        order = np.argsort(keys, kind="stable")
        keys, numbers = keys[order], numbers[order]
        for place in np.flatnonzero(keys[1:] == keys[:-1]).tolist():
            self.unite(int(numbers[place]), int(numbers[place + 1]))

    def roots(self) -> NDArray[np.int64]:
        """Return each number's root, shape (count,)."""
        while not np.array_equal(above := self._parent[self._parent], self._parent):
            self._parent = above
        return self._parent

    def larger_than_one(self) -> list[list[int]]:
        """Return the sets of two or more, each in order."""
        roots = self.roots()
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        return [part.tolist() for part in np.split(order, starts[1:]) if len(part) > 1]


def unite_near_pairs(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """Return for each of n distinct hashes the smallest number of the set it belongs to, chains of near ones being one set.

    Two hashes that differ in at most d of their bits agree wholly in one of d + 1 bands, so only those that share a
    band are compared (Manku, G. S. et al. (2007), "Detecting near-duplicates for web crawling").

    Args:
        hashes: Distinct, shape (n,).
        distance: Differing bits up to which two are near.
    """
    sets = Sets(len(hashes))
    if distance <= 0:
        return sets.roots()
    edges = np.linspace(0, HASH_BITS, distance + 2).astype(int)
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band, shuffled = band[order], hashes[order]
        # Element i against element i + lag of the sorted band, as long as any two so far apart share it.
        places = np.arange(len(hashes))
        for lag in range(1, len(hashes)):
            places = places[places + lag < len(hashes)]
            places = places[band[places] == band[places + lag]]
            if not len(places):
                break
            near = places[np.bitwise_count(shuffled[places] ^ shuffled[places + lag]) <= distance]
            if len(near):
                roots = sets.roots()
                near = near[roots[order[near]] != roots[order[near + lag]]]
                for first, second in zip(
                    order[near].tolist(), order[near + lag].tolist(), strict=True
                ):
                    sets.unite(first, second)
    return sets.roots()


def find_duplicate_sets(
    pixels: NDArray[np.uint8],
    phash: NDArray[np.uint64],
    has_phash: NDArray[np.bool_],
    near_distance: int,
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Find the same picture twice, and nearly twice.

    Args:
        pixels: Hash of the decoded pixels, shape (images, 16).
        phash: Perceptual hash, shape (images,).
        has_phash: Whether there is one, shape (images,).
        near_distance: Differing bits up to which two perceptual hashes are near; below 0 only equal pixels count.

    Returns:
        The sets of two or more, chains of near images being one; and a number per image, equal for equal pixels.
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
