"""A trained network as a file that needs none of the code that made it: written by `torch.export`, read onto any device."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.export.passes
from torch import nn

_ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""What an exported network tells of the code it came from: paths of this machine, and a third of the time it takes to load."""
_LARGEST_BATCH = 4096


def save_exported(network: nn.Module, image_size: int, file: Path) -> None:
    """Export a network for batches of any size up to 4,096.

    Args:
        network: Images (batch, 3, image_size, image_size), normalised, to logits (batch, classes); on the CPU in evaluation mode
            after the call.
        image_size: Side of its square input, in pixels.
        file: Ends in ``.pt2``.
    """
    # In the plain memory format: of another one torch.export warns that it does not know the weights' storage.
    network = network.to("cpu").to(memory_format=torch.contiguous_format).eval()
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with torch.no_grad():
        program = torch.export.export(network, (torch.zeros(2, 3, image_size, image_size),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        for name in _ORIGINS:
            node.meta.pop(name, None)
    torch.export.save(program, file)


def load_exported(file: Path | str, device: torch.device | str) -> nn.Module:
    """Return the network that `save_exported` has written, on a device.

    What takes no files of strangers must see to it that this is none: a part of such a file may be pickled.
    """
    program = torch.export.load(file)
    if torch.device(device).type != "cpu":
        program = torch.export.passes.move_to_device_pass(program, str(device))
    return program.module()
