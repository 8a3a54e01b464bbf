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
        configuration: The configuration: optimizer, label smoothing, gradient clipping, compiling.
        module: The network, on the device already; it is brought into the memory format.
        numerics: Number format and memory format.
        device: The device of the network.
        class_weights: Weights of the classes in the loss, shape (classes,); None weighs all alike.
        group: Processes over which gradients are averaged.

    Attributes:
        class_weights: Weights of the classes in the loss, on the device.
        optimizer: The optimizer of the parameters that require a gradient.
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
        self._numerics = numerics
        self._device = device
        self._training = configuration.training
        self.class_weights: Tensor | None = None
        if class_weights is not None:
            self.class_weights = torch.from_numpy(class_weights).to(device)
        self.optimizer = build_optimizer(configuration.optimizer, module.parameters())
        # Small gradients vanish in fp16 unless the loss is scaled up; bf16 has the range of fp32.
        self._scaler = torch.amp.GradScaler(device.type, enabled=numerics.precision == "fp16")

    def first_step(self, inputs: Tensor, labels: Tensor) -> None:
        """Do all the work of a step as if it were the first one, even if another was broken off.

        The training cannot go on afterwards.
        """
        # The optimizer may have half a state, and the loss scaling may be between two of its calls.
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        # No gradient overflows at a scale of 1; else the update, with all its memory, would be left
        # out.
        self._scaler = torch.amp.GradScaler(
            self._device.type, init_scale=1.0, enabled=self._scaler.is_enabled()
        )
        self.backward(self.forward(inputs, labels)[0])
        self.update(0.0)

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and logits of a batch.

        Args:
            inputs: Normalised images, shape (batch, 3, size, size).
            labels: Their labels, shape (batch,).

        Returns:
            The loss, a scalar, and the logits, shape (batch, classes).
        """
        with self._numerics.autocast(self._device):
            logits = main_output(self._module(self._numerics.arrange(inputs)))
        smoothing = self._training.label_smoothing
        loss = functional.cross_entropy(
            logits.float(), labels, weight=self.class_weights, label_smoothing=smoothing
        )
        return loss, logits

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, without the scaling of the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self.optimizer)

    def update(self, lr: float) -> None:
        """Change the weights at a learning rate, by gradients that are clipped if configured."""
        if self._training.clip_norm:
            trained: list[nn.Parameter] = []
            for group in self.optimizer.param_groups:
                trained += group["params"]
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
