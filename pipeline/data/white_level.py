"""Find out which grey level is white, if the training images tell it.

It is known only when the images have been examined and split.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import MOST_WHITE, Data
from pipeline.data.examine import Examined, Progress, examine
from pipeline.data.examine_worker import Recipe
from pipeline.data.grey_levels import next_white
from pipeline.data.quality_gate import Inspection
from pipeline.data.sources import Item, Source
from pipeline.errors import UserError


def examine_or_explain(
    source: Source, items: Sequence[Item], recipe: Recipe, progress: Progress
) -> Examined:
    """Examine images, and store their pixels.

    Raises:
        UserError: The images cannot be stored.
    """
    try:
        return examine(source, items, recipe, progress)
    except OSError as error:
        raise UserError(
            f"images cannot be stored in {recipe.root}: {error.strerror or error}"
        ) from error


def resolve_white(
    data: Data, inspection: Inspection, examined: Examined, splits: Sequence[str]
) -> Data:
    """Replace ``white auto`` by what it stands for.

    It stands for the least 2^k - 1 that no level of a training image exceeds. With folds all images
    count but those of the test split: pixels are stored once for all folds. If only images to
    validate or test on have more than 8 bits, these count.

    Args:
        data: The part of a configuration about images.
        inspection: The images that are kept.
        examined: What was found in all images.
        splits: Split of each image that is kept.

    Raises:
        UserError: The level is more than `MOST_WHITE`.
    """
    levels = []
    trained_levels = []
    for number, split in zip(inspection.kept, splits, strict=True):
        if examined.bits[number] > 8:
            level = float(examined.brightest[number])
            levels.append(level)
            if split not in ("val", "test"):
                trained_levels.append(level)
    levels = trained_levels or levels
    if not levels:
        # All images have 8 bits: the level makes no difference, so the hash must not differ either.
        return data.model_copy(update={"white": "type"})
    white = next_white(max(levels))
    if white > MOST_WHITE:
        brightest = f"the brightest image has the level {max(levels):g}"
        raise UserError(
            f"data.white auto: {brightest}; give the level that is white, at most {MOST_WHITE}"
        )
    return data.model_copy(update={"white": white})


def store_grey(
    source: Source, inspection: Inspection, examined: Examined, recipe: Recipe, progress: Progress
) -> None:
    """Store the images of more than 8 bits, now that it is known which level is white.

    All others are stored already.

    Raises:
        UserError: Images cannot be stored, or have changed.
    """
    numbers = [number for number in inspection.kept if examined.bits[number] > 8]
    items = [inspection.items[number] for number in numbers]
    stored = examine_or_explain(source, items, recipe, progress)
    if stored.unreadable:
        changed = [
            f"{items[place].path}: {why}" for place, why in sorted(stored.unreadable.items())
        ]
        raise UserError(
            f"{len(changed)} images in {source.description} have changed while they were read",
            changed,
        )
    stored.index[:, 0] += len(examined.shards)
    examined.index[numbers] = stored.index
    examined.shards += stored.shards
