"""Compressed nodes as `flax.serialization` has them: leaves by name."""

from typing import Any

from flax import serialization


def state_dict(node: Any) -> dict[str, Any]:
    """A node's leaves by name, as `flax.serialization` has it."""
    return serialization.to_state_dict(node.leaves())


def from_state_dict(node: Any, state: dict[str, Any]) -> Any:
    """The node with the leaves of a state; `ValueError` for other names."""
    leaves = node.leaves()
    if leaves.keys() != state.keys():
        raise ValueError(f"expected {', '.join(leaves)}, got {', '.join(state)}")
    return node.replace(**serialization.from_state_dict(leaves, state))
