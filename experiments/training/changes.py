"""What training has changed: signs, codes."""

from typing import Any

import jax

import ssvq_jax as ssvq
from ssvq_jax.codecs import is_compressed


class Changes:
    """What has changed since the start of a run.

    Args:
      params: Parameters at the start.
    """

    def __init__(self, params: Any):
        self._signs, self._codes = signs(params), _codes(params)

    def shares(self, state: Any, before: list[jax.Array]) -> dict[str, float]:
        """Shares of the signs flipped and frozen, and of the codes moved, if there are.

        Args:
          state: That of the program now.
          before: The `signs` a step ago: "flips" are those of this one step, "flipped"
            those that differ from the start.
        """
        found = {}
        total = sum(x.size for x in self._signs)
        if total:
            now = signs(state.params)
            found["flipped"] = _different(self._signs, now)
            found["flips"] = _different(before, now)
            states = jax.tree.leaves(state.optimizer, is_leaf=_is_freezing)
            masks = jax.tree.leaves([x.frozen for x in states if _is_freezing(x)])
            if masks:
                found["frozen"] = sum(int(mask.sum()) for mask in masks) / total
        if state.targets:
            found["moved"] = _different(self._codes, _codes(state.params))
        return found


def signs(tree: Any) -> list[jax.Array]:
    """Where the latents of a tree's learned signs are plus, as booleans."""
    labels = jax.tree.leaves(ssvq.label_tree(tree))
    leaves = jax.tree.leaves(tree)
    chosen = [x for name, x in zip(labels, leaves, strict=True) if name == "sign"]
    return [x >= 0 for x in chosen]


def has_codes(node: Any) -> bool:
    """Whether something is a compressed parameter with codes."""
    return is_compressed(node) and "codes" in node.leaves()


def _codes(tree: Any) -> list[jax.Array]:
    nodes = jax.tree.leaves(tree, is_leaf=is_compressed)
    return [node.leaves()["codes"] for node in nodes if has_codes(node)]


def _different(before: list[jax.Array], after: list[jax.Array]) -> float:
    """The share of the values that differ."""
    total = sum(x.size for x in before)
    pairs = zip(before, after, strict=True)
    return sum(int((a != b).sum()) for a, b in pairs) / max(total, 1)


def _is_freezing(x: Any) -> bool:
    return isinstance(x, ssvq.FreezeSignsState)
