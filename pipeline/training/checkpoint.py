"""Weights and resume checkpoints on disk: whole or not at all, and checked when read."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import xxhash
from torch import nn

from pipeline.files import remove_partial, whole, write_whole

State = dict[str, Any]
"""Tensors, numbers, texts, lists and dicts: what torch reads without unpickling anything else."""

_KEPT = 2
"""Resume checkpoints on disk: the last one, and the one before where the last is damaged."""
_DIGEST_BYTES = 16


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a network's state dict in the CPU's memory; cloned, since safetensors refuses tensors that share memory."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}


def save_weights(weights: dict[str, torch.Tensor], file: Path) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    with whole(file, durable=True) as temporary:
        safetensors.torch.save_file(weights, temporary)


class Checkpoints:
    """The resume checkpoints of one training in a folder of its own.

    A file is the xxh3 hash of what follows, 16 bytes, and a state written by `torch.save`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, number: int) -> None:
        """Write a state; of the older ones one is kept.

        Args:
            state: Of the training.
            number: Of steps done.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        content = packed(state)
        write_whole(self._folder / f"resume-{number:09d}.pt", xxhash.xxh3_128_digest(content) + content, durable=True)
        for old in self._files()[_KEPT:]:
            old.unlink(missing_ok=True)

    def load(self) -> State | None:
        """Return the last state that is whole; None where there is none. What a kill has left half written is removed."""
        remove_partial(self._folder)
        for file in self._files():
            content = memoryview(file.read_bytes())
            if xxhash.xxh3_128_digest(content[_DIGEST_BYTES:]) != content[:_DIGEST_BYTES]:
                continue
            try:
                return unpacked(content[_DIGEST_BYTES:])
            except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
                continue
        return None

    def _files(self) -> list[Path]:
        """Return the files, the latest first."""
        return sorted(self._folder.glob("resume-*.pt"), reverse=True)


def packed(state: State) -> bytes:
    """Return a state as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(content: bytes | memoryview) -> State:
    """Return the state that `packed` has made bytes of, on the CPU; nothing else is unpickled."""
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def copied(value: Any) -> Any:
    """Return a state with every tensor copied to the CPU's memory, so that it stands still while the training goes on."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [copied(inner) for inner in value]
    return value


def random_states() -> State:
    """Return the states of all random generators that a training may draw from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, list(numbers), gauss],
    }


def set_random_states(state: State) -> None:
    """Go back to the states of `random_states`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
