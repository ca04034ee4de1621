"""What is found on the way through a program: sums, and reasons why there are none."""

import dataclasses
import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssvq_jax.calibration.views import Factor, View


class Role(enum.IntEnum):
    """What an axis of a parameter is in its product; axes of length 1 are inputs."""

    OUTPUT = 0
    INPUT = 1
    GROUP = 2
    """Every position is a product of its own: stacked layers, batched products."""
    GROUPED = 3
    """Outputs, group after group: of a convolution with groups."""


@dataclasses.dataclass(frozen=True)
class Key:
    """Of which parameter sums are, and how they are laid out.

    Attributes:
      path: Name of the parameter.
      shape: Its shape.
      roles: Of its axes.
      groups: Factors of the parameter's axes that the leading axes of the sums are.
      offsets: Where the groups begin on every axis of the parameter.
      levels: Depths of the scans that add a leading axis when they are left.
      lookup: Whether the second moments are diagonal by nature.
    """

    path: str
    shape: tuple[int, ...]
    roles: tuple[Role, ...]
    groups: tuple[Factor, ...]
    offsets: tuple[int, ...]
    levels: tuple[tuple[int, tuple[Factor, ...]], ...]
    lookup: bool = False


class Sums(NamedTuple):
    """Sums over rows; leading axes are groups."""

    second: Float[Array, "..."]
    total: Float[Array, "*groups in"]
    rows: Float[Array, "*groups"]


class NotFollowedError(Exception):
    """A use of a parameter that tells no moments; its text says why."""


@jax.tree_util.register_pytree_node_class
class Found:
    """What was found: a pytree of sums, in the order of the program.

    Attributes:
      sums: By what they are of.
      notes: Reasons why uses of a parameter told nothing, by its path.
    """

    def __init__(self) -> None:
        self.sums: dict[Key, Sums] = {}
        self.notes: dict[str, list[str]] = {}

    def add(self, key: Key, sums: Sums) -> None:
        """Add to what was found before: a parameter may be used several times."""
        if key in self.sums:
            sums = jax.tree.map(jnp.add, self.sums[key], sums)
        self.sums[key] = sums

    def note(self, view: View, reason: str) -> None:
        """Remember a use that told nothing."""
        reasons = self.notes.setdefault(view.path, [])
        if reason not in reasons:
            reasons.append(reason)

    def merge_notes(self, other: "Found") -> None:
        """Take over the notes of another."""
        for path, reasons in other.notes.items():
            own = self.notes.setdefault(path, [])
            own.extend(reason for reason in reasons if reason not in own)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Sums are children; keys and notes are static."""
        notes = tuple((path, tuple(r)) for path, r in self.notes.items())
        return tuple(self.sums.values()), (tuple(self.sums), notes)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> "Found":
        """Inverse of `tree_flatten`."""
        found, (keys, notes) = cls(), static
        found.sums = dict(zip(keys, children, strict=True))
        found.notes = {path: list(reasons) for path, reasons in notes}
        return found
