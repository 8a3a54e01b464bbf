"""One optimizer step: forward pass, loss, backward pass, update."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import Configuration
from pipeline.training.distributed import SINGLE_PROCESS, Group
from pipeline.training.inference import main_output
from pipeline.training.optimizer import build_optimizer
from pipeline.training.precision import Numerics


class Stepper:
    """Trains a network batch by batch.

    Args:
        configuration: Optimizer, label smoothing and gradient clipping.
        module: On the device already; brought into the memory format.
        numerics: Number and memory format.
        device: Of the network.
        class_weights: Of the loss, shape (classes,); None weighs all alike.
        group: Processes over which gradients are averaged.

    Attributes:
        class_weights: On the device.
        optimizer: Of the parameters that require a gradient.
    """

    def __init__(
        self,
        configuration: Configuration,
        module: nn.Module,
        numerics: Numerics,
        device: torch.device,
        class_weights: NDArray[np.float32] | None,
        group: Group = SINGLE_PROCESS,
    ) -> None:
        self._module = group.parallel(module.to(memory_format=numerics.memory_format), device)
        if configuration.training.compile:
            self._module = cast(nn.Module, torch.compile(self._module))
        self._numerics, self._device = numerics, device
        self._training = configuration.training
        self.class_weights = (
            None if class_weights is None else torch.from_numpy(class_weights).to(device)
        )
        self.optimizer = build_optimizer(configuration.optimizer, module.parameters())
        # Small gradients vanish in fp16 unless the loss is scaled up; bf16 has the range of fp32.
        self._scaler = torch.amp.GradScaler(device.type, enabled=numerics.precision == "fp16")

    def first_step(self, inputs: Tensor, labels: Tensor) -> None:
        """Do all of a step's work as if it were the first one, also where another was broken off; the training cannot go on afterwards."""
        # The optimizer may have half a state, and the scaling of the loss stand between two of its calls.
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        # A scale of 1, at which no gradient overflows: the update, with all its memory, would be left out.
        self._scaler = torch.amp.GradScaler(
            self._device.type, init_scale=1.0, enabled=self._scaler.is_enabled()
        )
        self.backward(self.forward(inputs, labels)[0])
        self.update(0.0)

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss (scalar) and logits (batch, classes) of normalised images (batch, 3, size, size)."""
        with self._numerics.autocast(self._device):
            logits = main_output(self._module(self._numerics.arrange(inputs)))
        smoothing = self._training.label_smoothing
        loss = functional.cross_entropy(
            logits.float(), labels, weight=self.class_weights, label_smoothing=smoothing
        )
        return loss, logits

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, in true size."""
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self.optimizer)

    def update(self, lr: float) -> None:
        """Change the weights at a learning rate, by gradients clipped as asked."""
        if self._training.clip_norm:
            trained = [
                parameter for group in self.optimizer.param_groups for parameter in group["params"]
            ]
            nn.utils.clip_grad_norm_(trained, self._training.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def state(self) -> dict[str, object]:
        """Return the state of optimizer and loss scaling."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state(self, state: dict[str, dict[str, object]]) -> None:
        """Go back to `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
