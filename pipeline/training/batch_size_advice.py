"""Which batch would have fitted in memory, found by trying."""

from __future__ import annotations

from torch import Tensor

from pipeline.training.context import TrainingContext
from pipeline.training.device import is_out_of_memory
from pipeline.training.stepper import Stepper


def advise_batch_size(
    stepper: Stepper, context: TrainingContext, images: Tensor, labels: Tensor
) -> str:
    """Return what to do about a batch that does not fit in memory.

    Trains on ever smaller parts of the batch, so that the weights are lost; the training has ended
    anyway.

    Args:
        stepper: The stepper of the training.
        context: The context of the training.
        images: The batch, as the loader gives it.
        labels: Its labels, shape (images,).
    """
    labels = labels.to(context.device)
    size = len(labels) // 2
    while size and not _fits(stepper, context, images[:size], labels[:size]):
        size //= 2
    if not size:
        return "not even one image fits; a smaller data.image_size or network may"
    return f"data.batch_size {size} fits"


def _fits(stepper: Stepper, context: TrainingContext, images: Tensor, labels: Tensor) -> bool:
    try:
        stepper.first_step(context.inputs(images), labels)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
