"""Equal and nearly equal images, as sets."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from pipeline.data.duplicates import Sets, find_duplicate_sets, unite_near_pairs
from pipeline.data.examine_worker import hash_of_pixels, perceptual_hash


def brute_force(hashes: list[int], distance: int) -> list[int]:
    roots = list(range(len(hashes)))
    for first in range(len(hashes)):
        for second in range(first):
            if (hashes[first] ^ hashes[second]).bit_count() <= distance:
                low, high = sorted((roots[first], roots[second]))
                roots = [low if root == high else root for root in roots]
    return roots


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data(), st.integers(0, 16))
def test_near_hashes_are_those_that_comparing_all_pairs_finds(
    data: st.DataObject, distance: int
) -> None:
    centres = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
    flips = data.draw(
        st.lists(
            st.tuples(st.sampled_from(centres), st.sets(st.integers(0, 63), max_size=9)),
            max_size=25,
        )
    )
    hashes = sorted({*centres, *(centre ^ sum(1 << bit for bit in bits) for centre, bits in flips)})
    found = unite_near_pairs(np.array(hashes, dtype=np.uint64), distance)
    assert found.tolist() == brute_force(hashes, distance)


def test_many_hashes_of_one_band_are_compared_too() -> None:
    hashes = np.arange(3000, dtype=np.uint64)
    assert set(unite_near_pairs(hashes, 1).tolist()) == {0}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30))
def test_sets_are_disjoint_and_named_by_their_smallest(pairs: list[tuple[int, int]]) -> None:
    sets = Sets(21)
    for first, second in pairs:
        sets.unite(first, second)
    roots = sets.roots().tolist()
    assert all(roots[first] == roots[second] for first, second in pairs)
    assert all(root <= number and roots[root] == root for number, root in enumerate(roots))
    members = [number for one in sets.larger_than_one() for number in one]
    assert len(members) == len(set(members))
    assert all(
        len({roots[number] for number in one}) == 1 and len(one) > 1
        for one in sets.larger_than_one()
    )


def drawing(seed: int, size: int = 200) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        left, top, right, bottom = sorted(rng.integers(0, size, 2).tolist()) + sorted(
            rng.integers(0, size, 2).tolist()
        )
        draw.ellipse(
            (min(left, right), min(top, bottom), max(left, right) + 20, max(top, bottom) + 20),
            tuple(rng.integers(0, 256, 3).tolist()),
        )
    return image


def found(images: list[Image.Image], distance: int) -> list[list[int]]:
    hashes = [perceptual_hash(image) for image in images]
    pixels = np.array([list(hash_of_pixels(image)) for image in images], dtype=np.uint8)
    has = np.array([value is not None for value in hashes])
    return find_duplicate_sets(
        pixels, np.array([value or 0 for value in hashes], dtype=np.uint64), has, distance
    )[0]


def test_a_resized_a_recompressed_and_a_blurred_copy_are_near_and_other_pictures_are_not() -> None:
    images = [drawing(seed) for seed in range(30)]
    copies = [
        images[0].resize((140, 140)),
        images[0].filter(ImageFilter.GaussianBlur(1)),
        images[0].quantize(64).convert("RGB"),
    ]
    assert found([*images, *copies], 4) == [[0, 30, 31, 32]]


def test_equal_pixels_are_found_without_looking_for_near_ones() -> None:
    images = [drawing(0), drawing(1), drawing(0), drawing(0).resize((190, 190))]
    assert found(images, -1) == [[0, 2]]
    assert found(images, 0) in ([[0, 2]], [[0, 2, 3]])


def test_pictures_of_the_same_bytes_in_other_shapes_differ() -> None:
    assert hash_of_pixels(Image.new("RGB", (10, 20))) != hash_of_pixels(Image.new("RGB", (20, 10)))


@pytest.mark.parametrize(("side", "hashed"), [(63, False), (64, True)])
def test_small_images_have_no_perceptual_hash(side: int, hashed: bool) -> None:
    assert (perceptual_hash(drawing(0).resize((side, 300))) is not None) == hashed


def test_small_images_that_are_equal_are_found() -> None:
    images = [drawing(seed).resize((16, 16)) for seed in (0, 1, 0)]
    assert found(images, 4) == [[0, 2]]


@pytest.mark.parametrize("seed", range(20))
def test_perceptual_hashes_are_those_of_imagehash(seed: int) -> None:
    small = drawing(seed).convert("L").resize((64, 64), Image.Resampling.BOX)
    expected = imagehash.phash(small.reduce(2)).hash
    assert perceptual_hash(small.convert("RGB")) == int(
        "".join("01"[bit] for bit in expected.ravel().astype(int)), 2
    )


@pytest.mark.parametrize("noise", [0, 1])
def test_pages_of_one_colour_are_not_near(noise: int) -> None:
    rng = np.random.default_rng(0)
    pages = [
        Image.fromarray((level + rng.integers(0, noise + 1, (80, 80, 3))).astype(np.uint8))
        for level in (0, 60, 120, 180, 240)
    ]
    assert [perceptual_hash(page) for page in pages] == [None] * 5
    assert found(pages, 16) == []
    assert found([*pages, pages[2].copy()], 4) == [[2, 5]]


def test_a_faint_picture_has_a_perceptual_hash() -> None:
    faint = drawing(0).point(lambda level: 100 + level // 25)
    assert perceptual_hash(faint) is not None
