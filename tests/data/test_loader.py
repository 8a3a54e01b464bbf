"""Batches: their order, their augmentation, their independence of worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from pipeline.config import Data
from pipeline.data.image_store import Store
from pipeline.data.loader import Batches, Images, Loader, batches_of, preview_views
from pipeline.data.transforms import build_augmentation
from tests.data.conftest import write_store

NUM_IMAGES = 21
AUGMENTED = Data.model_validate(
    {
        "augment": [{"RandomRotation": 30}, {"ColorJitter": {"brightness": 0.5}}, "RandomCrop"],
        "image_size": 8,
        "store_size": 10,
    }
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 3, 10, 12), dtype=np.uint8)
    return write_store(tmp_path_factory.mktemp("store"), images)


def images_of(store: Store, augmented: bool = False, seed: int = 0) -> Images:
    labels = np.arange(NUM_IMAGES, dtype=np.int64)
    return Images(
        store, labels, labels, 8, build_augmentation(AUGMENTED) if augmented else None, seed
    )


def epoch_of(loader: Loader, number: int) -> tuple[Tensor, Tensor]:
    batches = list(loader.epoch(number))
    assert len(batches) == len(loader)
    return torch.cat([images for images, _ in batches]), torch.cat(
        [labels for _, labels in batches]
    )


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_images_without_augmentation_are_the_middles_in_order(store: Store) -> None:
    images, labels = epoch_of(Loader(images_of(store), 4), 1)
    assert labels.tolist() == list(range(NUM_IMAGES))
    assert (images.shape, images.dtype) == ((NUM_IMAGES, 3, 8, 8), torch.uint8)
    assert all(
        np.array_equal(images[number], store[number][:, 1:9, 2:10]) for number in range(NUM_IMAGES)
    )


def test_a_split_is_the_images_at_its_positions(store: Store) -> None:
    labels = np.arange(NUM_IMAGES, dtype=np.int64) * 10
    images, found = epoch_of(Loader(Images(store, np.array([5, 2, 9]), labels, 8), 2), 0)
    assert found.tolist() == [50, 20, 90]
    assert np.array_equal(images[1], store[2][:, 1:9, 2:10])


@pytest.mark.parametrize("shuffle_seed", [None, 3])
@pytest.mark.parametrize("augmented", [False, True])
def test_workers_do_not_change_the_batches(
    store: Store, augmented: bool, shuffle_seed: int | None
) -> None:
    alone, helped = (
        Loader(images_of(store, augmented), 4, shuffle_seed, workers) for workers in (0, 2)
    )
    for number in (1, 2, 1):
        assert same(epoch_of(alone, number), epoch_of(helped, number))


def test_the_same_seed_gives_the_same_epoch(store: Store) -> None:
    one, other = (
        Loader(images_of(store, augmented=True, seed=5), 4, shuffle_seed=5) for _ in range(2)
    )
    epoch_of(one, 1)
    assert same(epoch_of(one, 2), epoch_of(other, 2))


def test_another_epoch_has_another_order_and_other_augmentations(store: Store) -> None:
    loader = Loader(images_of(store, augmented=True), 4, shuffle_seed=0)
    (first_images, first), (second_images, second) = epoch_of(loader, 1), epoch_of(loader, 2)
    assert first.tolist() != second.tolist()
    again = [
        not torch.equal(first_images[first == label], second_images[second == label])
        for label in set(first.tolist()) & set(second.tolist())
    ]
    assert sum(again) > len(again) / 2


def test_another_seed_has_another_order_and_other_augmentations(store: Store) -> None:
    first, second = (
        epoch_of(Loader(images_of(store, augmented=True, seed=seed), 4), 1) for seed in (0, 1)
    )
    assert first[1].tolist() == second[1].tolist()
    assert not torch.equal(first[0], second[0])
    orders = [
        epoch_of(Loader(images_of(store), 4, shuffle_seed=seed), 1)[1].tolist() for seed in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_augmentation_does_not_depend_on_batches_or_order(store: Store) -> None:
    ordered_images, ordered = epoch_of(Loader(images_of(store, augmented=True), 4), 1)
    shuffled_images, shuffled = epoch_of(
        Loader(images_of(store, augmented=True), 5, shuffle_seed=1), 1
    )
    for label in shuffled.tolist():
        assert torch.equal(shuffled_images[shuffled == label], ordered_images[ordered == label])


def test_only_images_with_an_augmentation_change_between_epochs(store: Store) -> None:
    plain, augmented = (Loader(images_of(store, augmented), 4) for augmented in (False, True))
    assert same(epoch_of(plain, 1), epoch_of(plain, 2))
    assert not torch.equal(epoch_of(augmented, 1)[0], epoch_of(augmented, 2)[0])


def next_random_number(loader: Loader) -> float:
    torch.manual_seed(0)
    epoch_of(loader, 1)
    epoch_of(loader, 2)
    return torch.rand(1).item()


def test_augmenting_leaves_the_random_numbers_of_training_alone(store: Store) -> None:
    plain, augmented = (
        next_random_number(Loader(images_of(store, augmented), 4, shuffle_seed=0))
        for augmented in (False, True)
    )
    assert plain == augmented


def test_workers_leave_the_random_numbers_of_training_alone(store: Store) -> None:
    alone, helped = (
        next_random_number(Loader(images_of(store, augmented=True), 4, 0, workers))
        for workers in (0, 2)
    )
    assert alone == helped


def sizes(batches: Batches) -> list[int]:
    return [len(batch) for batch in batches]


def test_a_last_batch_of_one_is_dropped_in_training_only() -> None:
    assert sizes(Batches(21, 4, shuffle_seed=0)) == [4, 4, 4, 4, 4]
    assert sizes(Batches(21, 4)) == [4, 4, 4, 4, 4, 1]


def test_a_last_batch_of_two_is_kept() -> None:
    assert sizes(Batches(22, 4, shuffle_seed=0)) == [4, 4, 4, 4, 4, 2]


def test_a_single_image_is_kept() -> None:
    assert sizes(Batches(1, 4, shuffle_seed=0)) == [1]


def test_batches_of_one_image_are_kept_where_asked_for() -> None:
    assert sizes(Batches(5, 1, shuffle_seed=0)) == [1] * 5


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 60),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(0, 5)),
    st.integers(0, 3),
)
def test_each_image_is_seen_once_an_epoch(
    num_images: int, batch_size: int, seed: int | None, epoch: int
) -> None:
    batches = Batches(num_images, batch_size, seed)
    batches.epoch = epoch
    listed = list(batches)
    numbers = [key[1] for batch in listed for key in batch]
    assert {key[0] for batch in listed for key in batch} <= {epoch}
    assert len(batches) == len(listed)
    assert len(numbers) == len(set(numbers)) and set(numbers) <= set(range(num_images))
    dropped = num_images - len(numbers)
    assert dropped <= (1 if seed is not None and batch_size > 1 else 0)


def test_the_shuffle_of_a_seed_stays_what_it_was() -> None:
    batches = Batches(10, 4, shuffle_seed=3)
    orders = {}
    for batches.epoch in (1, 2):
        orders[batches.epoch] = [[key[1] for key in batch] for batch in batches]
    assert orders == {
        1: [[4, 1, 2, 8], [5, 0, 7, 9], [6, 3]],
        2: [[7, 4, 1, 8], [6, 0, 2, 9], [3, 5]],
    }


class Seeds(v2.Transform):
    """Changes nothing, and notes what the random numbers of each image are seeded by."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, *inputs: Any) -> Any:
        self.seen.append(torch.initial_seed())
        return inputs[0]


def test_the_augmentation_of_a_seed_stays_what_it_was(store: Store) -> None:
    seeds = Seeds()
    labels = np.arange(NUM_IMAGES, dtype=np.int64)
    for seed, key in ((0, (1, 0)), (7, (2, 5))):
        Images(store, labels, labels, 8, seeds, seed).__getitems__([key])
    assert seeds.seen == [7619408953831620358, 755249158834696019]


LABELS = np.repeat(np.arange(3), [90, 9, 1])
BALANCED = np.repeat([1 / 3 / 90, 1 / 3 / 9, 1 / 3], [90, 9, 1])


def drawn(epoch: int, seed: int = 0, batch_size: int = 32) -> list[int]:
    batches = Batches(100, batch_size, seed, BALANCED)
    batches.epoch = epoch
    return [key[1] for batch in batches for key in batch]


def test_drawing_by_probability_gives_as_many_images_of_each_class() -> None:
    epochs = [drawn(epoch) for epoch in range(1, 101)]
    assert {len(epoch) for epoch in epochs} == {100}
    shares = np.bincount(LABELS[np.concatenate(epochs)]) / 10_000
    # Six standard deviations of 10,000 draws.
    assert shares == pytest.approx([1 / 3] * 3, abs=0.028)


def test_drawing_depends_on_seed_and_epoch_alone() -> None:
    in_turn = [drawn(epoch) for epoch in (1, 2, 3)]
    assert drawn(3) == in_turn[2]
    assert drawn(3, batch_size=10) == in_turn[2]
    assert in_turn[0] != in_turn[1]
    assert drawn(1, seed=1) != in_turn[0]


def test_a_draw_carries_its_place_in_the_epoch() -> None:
    batches = Batches(100, 32, 0, BALANCED)
    batches.epoch = 4
    keys = [key for batch in batches for key in batch]
    assert [(key[0], key[2:]) for key in keys] == [(4, (place,)) for place in range(100)]


def test_an_image_drawn_twice_is_augmented_in_two_ways(store: Store) -> None:
    always_the_first = np.eye(NUM_IMAGES)[0]
    images, labels = epoch_of(
        Loader(images_of(store, augmented=True), 5, 0, probabilities=always_the_first), 1
    )
    assert set(labels.tolist()) == {0}
    assert len({image.numpy().tobytes() for image in images}) > NUM_IMAGES / 2


@pytest.mark.parametrize("augmented", [False, True])
def test_workers_do_not_change_what_is_drawn(store: Store, augmented: bool) -> None:
    even = np.full(NUM_IMAGES, 1 / NUM_IMAGES)
    alone, helped = (Loader(images_of(store, augmented), 4, 3, workers, even) for workers in (0, 2))
    for number in (1, 2, 1):
        assert same(epoch_of(alone, number), epoch_of(helped, number))


def test_a_balanced_epoch_has_as_many_batches_as_a_shuffled_one(store: Store) -> None:
    even = np.full(NUM_IMAGES, 1 / NUM_IMAGES)
    assert sizes(Batches(NUM_IMAGES, 4, 0, even)) == sizes(Batches(NUM_IMAGES, 4, 0))
    assert Loader(images_of(store), 4, 0, probabilities=even).num_images == NUM_IMAGES


def test_the_preview_is_what_training_sees(store: Store) -> None:
    views = preview_views(images_of(store, augmented=True, seed=5), [7, 2], 3)
    assert (views.shape, views.dtype) == ((2, 3, 3, 8, 8), np.uint8)
    loader = Loader(images_of(store, augmented=True, seed=5), 4, shuffle_seed=5)
    for epoch in (1, 2, 3):
        images, labels = epoch_of(loader, epoch)
        # A last batch of one is dropped, so that not every image is in each epoch.
        for row, number in enumerate([7, 2]):
            assert all(
                np.array_equal(views[row, epoch - 1], image) for image in images[labels == number]
            )


def test_the_preview_of_pixels_as_fractions_is_in_whole_levels(store: Store) -> None:
    labels = np.arange(NUM_IMAGES, dtype=np.int64)
    as_fractions = v2.ToDtype(torch.float32, scale=True)
    views = preview_views(Images(store, labels, labels, 8, as_fractions), [4], 2)
    assert views.dtype == np.uint8
    assert np.array_equal(views[0, 1], store[4][:, 1:9, 2:10])


def test_images_may_come_from_anything_that_gives_arrays() -> None:
    pixels = [np.full((3, 10, 10), number, dtype=np.uint8) for number in range(4)]
    images, labels = epoch_of(Loader(Images(pixels, np.array([3, 1]), np.arange(4), 8), 2), 1)
    assert images.amax(dim=(1, 2, 3)).tolist() == labels.tolist() == [3, 1]


def test_loader_knows_its_images_labels_and_classes(store: Store) -> None:
    loader = Loader(images_of(store), 4)
    assert (loader.num_images, len(loader), loader.num_classes) == (NUM_IMAGES, 6, NUM_IMAGES)
    part = Loader(
        Images(store, np.array([5, 2]), np.arange(NUM_IMAGES, dtype=np.int64), 8), 2, shuffle_seed=0
    )
    assert (part.labels.tolist(), part.num_classes) == ([5, 2], NUM_IMAGES)


def test_an_abandoned_epoch_does_not_disturb_the_next(store: Store) -> None:
    loader: Any = Loader(images_of(store), 4, shuffle_seed=0)
    expected = epoch_of(loader, 2)
    next(loader.epoch(1))
    assert same(epoch_of(loader, 2), expected)


def processes() -> int:
    return len(psutil.Process().children())


def test_closed_in_the_middle_of_an_epoch_it_leaves_no_process_and_can_be_used_again(
    store: Store,
) -> None:
    loader, before = Loader(images_of(store), 4, shuffle_seed=0, workers=2), processes()
    expected = epoch_of(loader, 2)
    # Whoever has a part of an epoch in hand, as an error's traceback does, keeps what makes it.
    part = loader.epoch(1)
    next(part)
    assert processes() == before + 2
    loader.close()
    assert processes() == before
    assert same(epoch_of(loader, 2), expected)
    loader.close()
    loader.close()
    assert processes() == before
    Loader(images_of(store), 4).close()


def test_batches_that_are_not_wanted_any_more_leave_no_process(store: Store) -> None:
    before = processes()
    batches = batches_of(
        images_of(store), [[(1, number)] for number in range(NUM_IMAGES)], workers=2
    )
    next(batches)
    assert processes() == before + 2
    batches.close()
    assert processes() == before


def test_the_store_of_a_worker_is_not_copied(tmp_path: Path) -> None:
    store = write_store(tmp_path, np.zeros((4, 3, 10, 12), dtype=np.uint8))
    loader = Loader(Images(store, np.arange(4), np.arange(4), 8), 2, workers=1)
    assert epoch_of(loader, 1)[1].tolist() == [0, 1, 2, 3]
