"""Weights and resume checkpoints on disk: whole or not at all, and checked when read."""

from __future__ import annotations

import io
import mmap
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import safetensors.torch
import torch
import xxhash
from torch import Tensor, nn

from pipeline.files import new_file, remove_partial

State = dict[str, Any]
"""Tensors, numbers, texts, lists and dicts: what torch reads without unpickling anything else."""

_KEPT = 2
"""Resume checkpoints on disk: the last one, and the one before where the last is damaged."""
_DIGEST_BYTES, _LENGTH_BYTES = 16, 8
_WITH_WEIGHTS = b"best"
_CHUNK = _LARGE = 2**20


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's state dict in the CPU's memory; cloned, since safetensors refuses tensors that share memory."""
    return {
        name: _copied(value.detach().contiguous()) for name, value in module.state_dict().items()
    }


def save_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    with new_file(file, durable=True) as temporary:
        safetensors.torch.save_file(weights, temporary)


class Checkpoints:
    """The resume checkpoints of one training in a folder of its own.

    A file holds, one after another:

    - the xxh3 hash of all that follows, 16 bytes
    - ``best``, the number of bytes of the best weights' file (8 bytes, the lowest first), and that file; or nothing of these three where
      no epoch is finished yet
    - a state written by `torch.save`

    It is written and read piece by piece: a state is the only large thing in memory. Release 0.1.0 kept the file of the best weights
    inside the state, as tensor ``best_weights``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, number: int, best: Path | None = None) -> None:
        """Write a state; of the older ones one is kept.

        Args:
            state: Of the training.
            number: Of steps done.
            best: File of the best weights; None before there are any.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (
            new_file(self._folder / f"resume-{number:09d}.pt", durable=True) as partial,
            partial.open("wb") as file,
        ):
            file.write(bytes(_DIGEST_BYTES))
            hashed = _Hashed(file)
            if best is not None:
                with best.open("rb") as weights:
                    length = best.stat().st_size
                    hashed.write(_WITH_WEIGHTS + length.to_bytes(_LENGTH_BYTES, "little"))
                    _copy(weights, hashed, length)
            try:
                torch.save(state, cast("IO[bytes]", hashed))
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):
                    # torch tells where it was, not that the disk is full.
                    raise error.__context__ from None
                raise
            file.seek(0)
            file.write(hashed.digest())
        for old in self._files()[_KEPT:]:
            old.unlink(missing_ok=True)

    def load(self, best: Path | None = None) -> State | None:
        """Return the last state that is whole; None where there is none. What a kill has left half written is removed.

        Args:
            best: Where the best weights of that moment are put back; where there were none, what is there is removed.
        """
        remove_partial(self._folder)
        for path in self._files():
            with path.open("rb") as file:
                if not _is_whole(file):
                    continue
                length = _length_of_weights(file)
                start = file.tell()
                try:
                    state: State = torch.load(
                        cast("IO[bytes]", _From(file, start + length)),
                        map_location="cpu",
                        weights_only=True,
                    )
                except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
                    continue
                inside = state.pop("best_weights", None)
                if best is not None:
                    file.seek(start)
                    _put_back(best, file, length, inside)
                return state
        return None

    def _files(self) -> list[Path]:
        """Return the files, the latest first."""
        return sorted(self._folder.glob("resume-*.pt"), reverse=True)


class _Hashed(io.RawIOBase):
    """Hashes what is written through it to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, xxhash.xxh3_128()

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self._hash.update(content)
        return self._file.write(content)

    def digest(self) -> bytes:
        return self._hash.digest()


class _From(io.RawIOBase):
    """A file as if it began at a place."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = file, start
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return (
            self._file.seek(offset + (self._start if whence == io.SEEK_SET else 0), whence)
            - self._start
        )

    def readinto(self, buffer: Any, /) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]


def _copy(source: BinaryIO, target: BinaryIO | _Hashed, length: int) -> None:
    """Copy so many bytes, a chunk at a time.

    Raises:
        EOFError: There are fewer.
    """
    while length:
        chunk = source.read(min(length, _CHUNK))
        if not chunk:
            raise EOFError("a file has become shorter while it was read")
        target.write(chunk)
        length -= len(chunk)


def _is_whole(file: BinaryIO) -> bool:
    """Whether a checkpoint's hash is right; the file is read to its end, and then stands behind the hash."""
    digest, hashed = file.read(_DIGEST_BYTES), xxhash.xxh3_128()
    while chunk := file.read(_CHUNK):
        hashed.update(chunk)
    file.seek(_DIGEST_BYTES)
    return digest == hashed.digest()


def _length_of_weights(file: BinaryIO) -> int:
    """Return how long the best weights are that follow; 0 where there are none."""
    start = file.tell()
    if file.read(len(_WITH_WEIGHTS)) == _WITH_WEIGHTS:
        return int.from_bytes(file.read(_LENGTH_BYTES), "little")
    file.seek(start)
    return 0


def _put_back(best: Path, file: BinaryIO, length: int, inside: Tensor | None) -> None:
    """Write the best weights that follow in a checkpoint, or that release 0.1.0 has put inside a state, to their file."""
    if not length and inside is None:
        best.unlink(missing_ok=True)
        return
    with new_file(best, durable=True) as partial, partial.open("wb") as target:
        if inside is None:
            _copy(file, target, length)
        else:
            target.write(inside.numpy().data)


def packed(state: State) -> bytes:
    """Return a small state as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(content: bytes | memoryview) -> State:
    """Return the state that `packed` has made bytes of, on the CPU; nothing else is unpickled."""
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a state with each tensor replaced by what `change` makes of it; the order is the same each time."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: with_tensors(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_tensors(inner, change) for inner in value]
    return value


def copied(value: Any) -> Any:
    """Return a state with every tensor copied to the CPU's memory, so that it stands still while the training goes on."""
    return with_tensors(value, lambda tensor: _copied(tensor.detach()))


def _copied(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU, a large one into memory of its own, which goes back to the system with it.

    Between what a training takes and frees meanwhile, the C library's heap would grow by half of the weights or all of them.
    """
    size = tensor.numel() * tensor.element_size()
    if size < _LARGE or tensor.layout != torch.strided or tensor.untyped_storage().nbytes() != size:
        return tensor.to("cpu", copy=True)
    storage = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).untyped_storage()
    return (
        torch.empty(0, dtype=tensor.dtype)
        .set_(storage, 0, tensor.size(), tensor.stride())
        .copy_(tensor)
    )


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
