"""What every family of networks offers.

The rest of the pipeline need not know which family a name belongs to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NoReturn

from torch import nn

from pipeline.config import Model
from pipeline.errors import UserError
from pipeline.models.heads import HEADS
from pipeline.models.weights import BY_PLACE, Normalisation


class Family(ABC):
    """The networks that come from one place. A subclass overrides what its networks have.

    Attributes:
        check_device: Device on which `pipeline.models.check` feeds a network with zeros. On "meta",
            which computes shapes only, it takes no memory.
        failures: Errors by which a network says that it cannot take images of some size.
    """

    check_device = "meta"
    failures: tuple[type[Exception], ...] = (
        RuntimeError,
        ValueError,
        AssertionError,
        TypeError,
        IndexError,
    )

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether `model.name` is one of this family."""

    @abstractmethod
    def build(
        self, model: Model, num_classes: int, image_size: int, load: bool
    ) -> tuple[nn.Module, str]:
        """Build a network for the classes, and load its published weights.

        Args:
            model: The network and its weights.
            num_classes: Outputs of the network.
            image_size: Side of the images in pixels.
            load: Load the published weights, if `model` asks for some.

        Returns:
            The network, and the name of its head; an empty name if it has several heads or none.

        Raises:
            UserError: The network cannot be built for that image size, or its weights cannot be
                had.
        """

    def identity(self, model: Model, num_classes: int, image_size: int) -> dict[str, str]:
        """Return what of the name enters a configuration's identity (see `pipeline.models.origin`).

        Raises:
            UserError: There is no such network.
        """
        return {"name": model.name}

    def weights_name(self, model: Model) -> str:
        """Return the name of published weights: for ``DEFAULT`` the name that it stands for.

        Raises:
            UserError: The network has no weights of that name.
        """
        self._refuse_weights(model)

    def fetch_weights(self, model: Model) -> None:
        """Download published weights, unless they are here already.

        Raises:
            UserError: The network has no weights of that name.
            Unreachable: The weights cannot be downloaded. The message says where to put the file.
        """
        self._refuse_weights(model)

    def normalisation(self, model: Model) -> tuple[Normalisation, str] | None:
        """Return the normalisation that the weights were trained with, and whose it is.

        None means that the name alone does not tell it, for example for a file of weights.
        """
        return None

    def builds_on_meta(self, name: str) -> bool:
        """Whether the network's constructor works on the meta device."""
        return True

    def source_files(self, name: str, num_classes: int, image_size: int) -> Mapping[str, bytes]:
        """Return the user's files that the network is made of: contents by relative path."""
        return {}

    def libraries(self) -> list[str]:
        """Return names and versions of the libraries whose code computes the network.

        torch and torchvision are not among them.
        """
        return []

    def why_no_head(self, model: Model) -> str:
        """Return what a network without a single head lacks, for a message that ends with it."""
        return f"a head named one of {', '.join(HEADS)}; {model.name} has none"

    @staticmethod
    def _refuse_weights(model: Model) -> NoReturn:
        raise UserError(
            f"model.weights: {model.name} has no pretrained weights; "
            f"allowed: none, {BY_PLACE}; got {model.weights!r}"
        )
