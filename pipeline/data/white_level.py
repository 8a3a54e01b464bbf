"""Which grey level is white, where the training images tell it: known only when they have been looked at and split."""

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
        UserError: They cannot be stored.
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
    """Replace ``white auto`` by what it stands for: the least 2^k - 1 that no training image exceeds.

    With folds that of all images but the test split's: pixels are stored once for all folds. Where only images to validate or test on
    have more than 8 bits, theirs.

    Raises:
        UserError: It is more than `MOST_WHITE`.
    """
    deep = [
        (number, split)
        for number, split in zip(inspection.kept, splits, strict=True)
        if examined.bits[number] > 8
    ]
    trained = [number for number, split in deep if split not in ("val", "test")]
    levels = [
        float(examined.brightest[number]) for number in trained or [number for number, _ in deep]
    ]
    if not levels:
        # Where there are only images of 8 bits it makes no difference, and then it must not make one in the hash.
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
    """Store the images of more than 8 bits, now that it is known which level is white; all others are stored already."""
    numbers = [number for number in inspection.kept if examined.bits[number] > 8]
    stored = examine_or_explain(
        source, [inspection.items[number] for number in numbers], recipe, progress
    )
    if stored.unreadable:
        changed = [
            f"{inspection.items[numbers[place]].path}: {why}"
            for place, why in sorted(stored.unreadable.items())
        ]
        raise UserError(
            f"{len(changed)} images in {source.description} have changed while they were read",
            changed,
        )
    stored.index[:, 0] += len(examined.shards)
    examined.index[numbers] = stored.index
    examined.shards += stored.shards
