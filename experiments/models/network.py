"""What training knows of a network."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(abc.ABC):
    """A network, and what it takes from a batch.

    Attributes:
      name: Its name.
      make: Makes the module from the number of classes and `rngs`.
      size: Of an example: height and width of an image, length of a window.
      classes: How many it tells apart.
    """

    name: str
    make: Callable[..., Any]
    size: int
    classes: int

    def build(self, rngs: nnx.Rngs) -> Any:
        """The module, its weights at random."""
        return self.make(self.classes, rngs=rngs)

    def with_classes(self, classes: int) -> Self:
        """The network with so many classes, for another data set."""
        if classes == self.classes:
            return self
        name = f"{self.name}-{classes}"
        return dataclasses.replace(self, name=name, classes=classes)

    def require_classes(self, dataset: str, classes: int) -> None:
        """Raise `SystemExit` unless a data set has as many classes as the network."""
        if classes != self.classes:
            raise SystemExit(
                f"{dataset} has {classes:,} classes, {self.name} {self.classes:,}: "
                "choose another of the two, or in the config the network's "
                f".with_classes({classes})"
            )

    @abc.abstractmethod
    def inputs(self, batch: Mapping[str, Any]) -> Any:
        """What the module is called with: an array, or a tree of arrays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetwork(Network):
    """A network of images.

    Attributes:
      mean: Of their pixels, 0 to 255; a number or one per channel.
      std: Likewise.
      channels: Of the images.
    """

    classes: int = 1000
    mean: Any = 127.5
    std: Any = 127.5
    channels: int = 3

    def inputs(self, batch: Mapping[str, Any]) -> jax.Array:
        """`image`, pixels from 0 to 255, shifted and scaled to float32.

        Gray images are repeated for networks of three channels.

        Raises:
          SystemExit: Images of other channels, as colour ones for a network of gray.
        """
        image = batch["image"]
        if image.shape[-1] not in (1, self.channels):
            raise SystemExit(
                f"{self.name} takes images of {self.channels} channels, "
                f"got {image.shape[-1]}: choose another network or data set"
            )
        image = jnp.broadcast_to(image, (*image.shape[:-1], self.channels))
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (image.astype(np.float32) - mean) / std


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextNetwork(Network):
    """A network of text; its classes are the tokens of a vocabulary.

    Attributes:
      end: The token that ends a text, if there is one.
    """

    end: int | None = None

    def require_classes(self, dataset: str, classes: int) -> None:
        """Raise `SystemExit` unless a tokenizer has as many tokens as the network."""
        if classes != self.classes:
            raise SystemExit(
                f"the tokenizer of {dataset} has a vocabulary of {classes:,}, "
                f"{self.name} one of {self.classes:,}: choose another of the two"
            )

    def inputs(self, batch: Mapping[str, Any]) -> jax.Array:
        """`tokens`."""
        return batch["tokens"]
