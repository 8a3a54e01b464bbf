"""Weights and resume checkpoints on disk: written whole or not at all, and checked when read."""

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
"""Resume checkpoints on disk: the last one, and the one before it in case the last is damaged."""
_DIGEST_BYTES = 16
_LENGTH_BYTES = 8
_WITH_WEIGHTS = b"best"
_CHUNK = 2**20
"""Bytes that are read at once."""
_LARGE = 2**20
"""Bytes from which on a tensor is copied into memory of its own."""


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's state dict in the CPU's memory.

    Each tensor is copied, since safetensors refuses tensors that share memory.
    """
    state = module.state_dict()
    return {name: _copy_tensor(value.detach().contiguous()) for name, value in state.items()}


def save_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    with new_file(file, durable=True) as temporary:
        safetensors.torch.save_file(weights, temporary)


def checkpoint_name(steps: int) -> str:
    """Return the name of the file of a resume checkpoint after so many steps."""
    return f"resume-{steps:09d}.pt"


def number_of_steps(file: Path) -> int:
    """Return the number of steps that a resume checkpoint holds, by the name of its file."""
    digits = file.stem.removeprefix("resume-")
    return int(digits) if digits.isdecimal() else -1


class Checkpoints:
    """The resume checkpoints of one training in a folder of its own.

    A file holds, one after another:

    - the xxh3 hash of all that follows, 16 bytes
    - ``best``, the number of bytes of the best weights' file (8 bytes, the lowest first), and that
      file; none of these three if no epoch is finished yet
    - a state written by `torch.save`

    The file is written and read piece by piece: a state is the only large thing in memory. Release
    0.1.0 kept the file of the best weights inside the state, as tensor ``best_weights``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, number: int, best: Path | None = None) -> None:
        """Write a state, and remove all older ones but the latest of them.

        Args:
            state: The state of the training.
            number: Number of steps that are done.
            best: File of the best weights; None before there are any.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (
            new_file(self._folder / checkpoint_name(number), durable=True) as partial,
            partial.open("wb") as file,
        ):
            file.write(bytes(_DIGEST_BYTES))
            hashed = _HashingWriter(file)
            if best is not None:
                with best.open("rb") as weights:
                    length = best.stat().st_size
                    hashed.write(_WITH_WEIGHTS + length.to_bytes(_LENGTH_BYTES, "little"))
                    _copy_bytes(weights, hashed, length)
            try:
                torch.save(state, cast("IO[bytes]", hashed))
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):
                    # torch says at which place it was, not that the disk is full.
                    raise error.__context__ from None
                raise
            file.seek(0)
            file.write(hashed.digest())
        for old in self._files()[_KEPT:]:
            old.unlink(missing_ok=True)

    def load(self, best: Path | None = None) -> State | None:
        """Return the last state that is whole, or None; remove what a kill has left half written.

        Args:
            best: File to which the best weights of that moment are written; if there were none,
                the file is removed.
        """
        remove_partial(self._folder)
        for path in self._files():
            with path.open("rb") as file:
                if not _is_whole(file):
                    continue
                length = _read_length_of_weights(file)
                start = file.tell()
                try:
                    rest = cast("IO[bytes]", _FileFrom(file, start + length))
                    state: State = torch.load(rest, map_location="cpu", weights_only=True)
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


class _HashingWriter(io.RawIOBase):
    """Writes to a file, and hashes what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = xxhash.xxh3_128()

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self._hash.update(content)
        return self._file.write(content)

    def digest(self) -> bytes:
        return self._hash.digest()


class _FileFrom(io.RawIOBase):
    """A file, read as if it began at byte `start`."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._start = start
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET:
            offset += self._start
        return self._file.seek(offset, whence) - self._start

    def readinto(self, buffer: Any, /) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]


def _copy_bytes(source: BinaryIO, target: BinaryIO | _HashingWriter, length: int) -> None:
    """Copy `length` bytes, a chunk at a time.

    Raises:
        EOFError: The source has fewer.
    """
    while length:
        chunk = source.read(min(length, _CHUNK))
        if not chunk:
            raise EOFError("a file has become shorter while it was read")
        target.write(chunk)
        length -= len(chunk)


def is_whole_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint without damage."""
    with path.open("rb") as file:
        return _is_whole(file)


def _is_whole(file: BinaryIO) -> bool:
    """Whether a checkpoint's hash is right.

    The file is read to its end; after that its position is behind the hash.
    """
    digest = file.read(_DIGEST_BYTES)
    hashed = xxhash.xxh3_128()
    while chunk := file.read(_CHUNK):
        hashed.update(chunk)
    file.seek(_DIGEST_BYTES)
    return digest == hashed.digest()


def _read_length_of_weights(file: BinaryIO) -> int:
    """Return the number of bytes of the best weights that follow; 0 if there are none."""
    start = file.tell()
    if file.read(len(_WITH_WEIGHTS)) == _WITH_WEIGHTS:
        return int.from_bytes(file.read(_LENGTH_BYTES), "little")
    file.seek(start)
    return 0


def _put_back(best: Path, file: BinaryIO, length: int, inside: Tensor | None) -> None:
    """Write the best weights of a checkpoint to their file, or remove it if there are none.

    Args:
        best: The file of the best weights.
        file: The checkpoint, at the position of its best weights.
        length: Number of bytes of these.
        inside: The best weights that release 0.1.0 has put inside the state.
    """
    if not length and inside is None:
        best.unlink(missing_ok=True)
        return
    with new_file(best, durable=True) as partial, partial.open("wb") as target:
        if inside is None:
            _copy_bytes(file, target, length)
        else:
            target.write(inside.numpy().data)


def packed(state: State) -> bytes:
    """Return a small state as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(content: bytes | memoryview) -> State:
    """Return the state, on the CPU, from the bytes that `packed` made; unpickle nothing else."""
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a state with each tensor replaced by what `change` makes of it.

    The tensors are visited in the same order each time.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: with_tensors(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_tensors(inner, change) for inner in value]
    return value


def copied(value: Any) -> Any:
    """Return a state with every tensor copied to the CPU's memory.

    The copy does not change while the training goes on.
    """
    return with_tensors(value, lambda tensor: _copy_tensor(tensor.detach()))


def _copy_tensor(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU, a large one into memory of its own.

    That memory goes back to the system with the tensor. In the C library's heap it would lie among
    what the training takes and frees meanwhile, and the heap would grow by half of the weights or
    by all of them.
    """
    size = tensor.numel() * tensor.element_size()
    if size < _LARGE or tensor.layout != torch.strided or tensor.untyped_storage().nbytes() != size:
        return tensor.to("cpu", copy=True)
    storage = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).untyped_storage()
    copy = torch.empty(0, dtype=tensor.dtype)
    copy.set_(storage, 0, tensor.size(), tensor.stride())
    return copy.copy_(tensor)


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
