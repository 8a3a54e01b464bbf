"""Several processes that train one network together: the group that torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.models.batch_norm import synchronise_batch_norm, trains_batch_norm
from pipeline.training.checkpoint import State, packed, unpacked, with_tensors

_PATIENCE = timedelta(days=7)
"""Time that processes wait for one another.

The first one prepares images while the others wait. If one has died, torchrun ends the others.
"""


class Group:
    """Processes of which each takes its share of every batch; a single process is a group of one.

    Args:
        rank: Rank of this process; rank 0 alone logs and writes.
        size: Number of processes.
        is_joined: The processes have joined to talk to one another; a single process need not.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
        is_broken: This process has stopped while the others wait for it: nothing more can be done
            together.
    """

    def __init__(self, rank: int = 0, size: int = 1, is_joined: bool = False) -> None:
        self.rank = rank
        self.size = size
        self._is_joined = is_joined
        self.is_broken = False

    @property
    def is_first(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, the same bits in each."""
        if not self._is_joined:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def share(self, content: bytes) -> bytes:
        """Return the content that rank 0 gives; that of the others is ignored."""
        if not self._is_joined:
            return content
        length = torch.tensor([len(content)])
        dist.broadcast(length, 0)
        data = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_first:
            data[:] = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
        dist.broadcast(data, 0)
        return data.numpy().tobytes()

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, on the CPU, by rank.

        Their shapes may differ in the first dimension only.
        """
        if not self._is_joined:
            return [tensor]
        lengths = [int(length) for length in self._gather(torch.tensor([len(tensor)]))]
        padded = torch.zeros((max(lengths), *tensor.shape[1:]), dtype=tensor.dtype)
        padded[: len(tensor)] = tensor
        return [one[:length] for one, length in zip(self._gather(padded), lengths, strict=True)]

    def interleaved(self, share: NDArray[Any]) -> NDArray[Any]:
        """Return the rows of all processes; each gives every `size`-th row, from its rank on."""
        if not self._is_joined:
            return share
        parts = self.collect(torch.from_numpy(share))
        whole = np.empty((sum(map(len, parts)), *share.shape[1:]), share.dtype)
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part.numpy()
        return whole

    def share_state(self, state: State | None) -> State | None:
        """Return rank 0's state.

        It is sent tensor by tensor, so that no process has all of it in memory twice.
        """
        if not self._is_joined:
            return state
        # The state without the values of its tensors; empty if there is no state.
        outline = b""
        if state is not None:
            outline = packed(with_tensors(state, lambda tensor: tensor.to("meta")))
        outline = self.share(outline)
        if not outline:
            return None
        if state is None:
            state = with_tensors(
                unpacked(outline), lambda tensor: torch.empty_like(tensor, device="cpu")
            )
        with_tensors(state, _broadcast)
        return state

    def collect_states(self, state: State) -> list[State]:
        """Return the states of all processes, by rank."""
        if not self._is_joined:
            return [state]
        contents = self.collect(torch.frombuffer(bytearray(packed(state)), dtype=torch.uint8))
        return [unpacked(content.numpy().tobytes()) for content in contents]

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor)
        return found

    def parallel(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Return the network with gradients averaged over the processes.

        BatchNorm takes its statistics over all processes if the device can do that.
        """
        if not self._is_joined:
            return module
        on_gpu = device.type == "cuda"
        if on_gpu and trains_batch_norm(module):
            module = synchronise_batch_norm(module)
        return DistributedDataParallel(module, device_ids=[device] if on_gpu else None)

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process rank 0's buffers.

        After a step each has its own BatchNorm statistics, and those of rank 0 are kept.
        """
        if not self._is_joined:
            return
        for buffer in module.buffers():
            values = buffer.contiguous()
            dist.broadcast(values, 0)
            buffer.copy_(values)

    def close(self) -> None:
        """Leave the group."""
        if self._is_joined:
            dist.destroy_process_group()


def _broadcast(tensor: Tensor) -> Tensor:
    """Give rank 0's values to all processes.

    They are sent as the bytes of its memory: type and order in memory do not matter.
    """
    dist.broadcast(torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()), 0)
    return tensor


SINGLE_PROCESS = Group()
_joined: dict[str, Group] = {}


def is_one_of_several() -> bool:
    """Whether torchrun has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join_group() -> Group:
    """Join the processes that torchrun has started, or return a group of one."""
    if not is_one_of_several():
        return SINGLE_PROCESS
    if "group" not in _joined:
        _joined["group"] = init_group(timeout=_PATIENCE)
    return _joined["group"]


def init_group(**options: Any) -> Group:
    """Join the processes of a group, which may be this one alone.

    The options are those of `torch.distributed.init_process_group`.
    """
    # Gradients are exchanged on the network's device, all else on the CPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, **options)
    return Group(dist.get_rank(), dist.get_world_size(), is_joined=True)


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error says that another process of the group has ended."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()
