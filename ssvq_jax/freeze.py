"""Progressive freezing of the signs, as an optax transform (METHOD, section 4)."""

import operator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ssvq_jax.tree.paths import flatten
from ssvq_jax.tree.transforms import label_tree


class FreezeSignsState(NamedTuple):
    """State of `freeze_signs`.

    The trees have the structure of the parameters, with `None` for every leaf that is
    no sign latent.

    Attributes:
      step: Updates so far, `t`, an int32 scalar.
      frequency: Moving average of "the sign flipped", float32.
      votes: Pluses minus minuses so far, int32; with `decide="average"` the moving
        average of the sign, float32.
      frozen: Whether the sign is frozen.
    """

    step: Array
    frequency: Any
    votes: Any
    frozen: Any


class _Step(NamedTuple):
    """What one update gives for one latent."""

    update: Array
    frequency: Array
    votes: Array
    frozen: Array


def freeze_signs(
    *,
    interval: int,
    threshold: float | optax.Schedule,
    momentum: float = 0.01,
    decide: Literal["majority", "average"] = "majority",
) -> optax.GradientTransformationExtraArgs:
    """Freeze, step by step, the signs that keep flipping.

    Comes last in a chain. Per sign latent `L` with incoming update `u`, at update
    `t = 1, 2, ...`:

    1. `L' = L` where frozen, else `L + u`.
    2. `o = (L' >= 0) != (L >= 0)`; `f = momentum * o + (1 - momentum) * f`.
    3. `votes += +1` where `L' >= 0`, else `-1`.
    4. Where `t % interval == 0`: signs with `f > threshold(t)` freeze, at `+` where
       `votes >= 0`, else `-`; their latent becomes that sign times `max(|L'|, tiny)`.
    5. The update is the new latent minus `L`: 0 for a sign frozen earlier.

    Leaves that are not sign latents pass through untouched. Which leaves are latents
    is told from the `Compressed` nodes of the parameters (see `label_tree`).

    Args:
      interval: Updates between two freezings, `F`; 500 in the paper.
      threshold: Flip frequency above which signs freeze: a number, or an optax
        schedule of `t`, such as a cosine decay.
      momentum: `m` of the flip frequency's moving average, above 0, at most 1.
      decide: "majority", or "average" to freeze at the sign of a moving average of
        the sign (same momentum, starts at 0) instead of the vote.

    Returns:
      An `optax.GradientTransformationExtraArgs`; its state is a `FreezeSignsState`.

    Raises:
      TypeError, ValueError: An option of the wrong type or out of range; in `update`,
        missing parameters or trees whose structure is not the optimizer's.

    Example:
      >>> import optax, ssvq_jax as ssvq
      >>> threshold = optax.cosine_decay_schedule(0.1, decay_steps=5000, alpha=0.1)
      >>> tx = optax.chain(
      ...     optax.adamw(1e-4), ssvq.freeze_signs(interval=500, threshold=threshold)
      ... )

    References:
      Li et al., "SSVQ", ICCV 2025, arXiv 2503.08668.
    """
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ValueError(f"interval: expected an integer of 1 or more, got {interval}")
    if not callable(threshold):
        is_number = isinstance(threshold, int | float) and threshold >= 0
        if not is_number:
            raise ValueError(
                f"threshold: expected a number of at least 0, or a schedule, "
                f"got {threshold!r}"
            )
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum: expected above 0 and at most 1, got {momentum}")
    if decide not in ("majority", "average"):
        raise ValueError(f"decide: expected 'majority' or 'average', got {decide!r}")
    votes_dtype = jnp.int32 if decide == "majority" else jnp.float32

    def init(params):
        signs = _signs(params, params)

        def zeros(dtype):
            return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), signs)

        return FreezeSignsState(
            step=jnp.zeros((), jnp.int32),
            frequency=zeros(jnp.float32),
            votes=zeros(votes_dtype),
            frozen=zeros(jnp.bool_),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError("freeze_signs: update needs the parameters: pass params")
        latents = _signs(params, params)
        proposed = _signs(params, updates)
        _require_same_structure(latents, proposed, "updates")
        _require_same_structure(latents, state.frequency, "optimizer state")
        t = jnp.asarray(optax.safe_increment(state.step))
        limit = threshold(t) if callable(threshold) else threshold
        due = t % interval == 0

        def freeze(latent, proposal, frequency, votes, frozen):
            moved = jnp.where(frozen, latent, latent + proposal.astype(latent.dtype))
            plus = moved >= 0
            flipped = plus != (latent >= 0)
            frequency = jnp.where(flipped, momentum, 0.0) + (1 - momentum) * frequency
            if decide == "majority":
                votes = votes + jnp.where(plus, 1, -1)
            else:
                sign = jnp.where(plus, momentum, -momentum)
                votes = sign + (1 - momentum) * votes
            freezing = due & ~frozen & (frequency > limit)
            # The smallest magnitude that `latent + (new - latent)` keeps the sign of.
            limits = jnp.finfo(latent.dtype)
            tiny = jnp.maximum(jnp.abs(latent) * limits.eps, limits.tiny)
            magnitude = jnp.maximum(jnp.abs(moved), tiny)
            decided = jnp.where(votes >= 0, magnitude, -magnitude)
            new = jnp.where(freezing, decided, moved)
            return _Step(new - latent, frequency, votes, frozen | freezing)

        steps = jax.tree.map(
            freeze, latents, proposed, state.frequency, state.votes, state.frozen
        )
        new_updates, *rest = (
            jax.tree.map(operator.itemgetter(i), steps, is_leaf=_is_step)
            for i in range(4)
        )
        updates = jax.tree.map(
            lambda new, incoming: incoming if new is None else new,
            new_updates,
            updates,
            is_leaf=lambda x: x is None,
        )
        return updates, FreezeSignsState(t, *rest)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_step(x: Any) -> bool:
    return isinstance(x, _Step)


def _signs(params: Any, tree: Any) -> Any:
    """The leaves of `tree` that are sign latents in `params`; `None` elsewhere."""
    labels = label_tree(params)
    try:
        return jax.tree.map(
            lambda label, leaf: leaf if label == "sign" else None, labels, tree
        )
    except ValueError as error:
        raise ValueError(
            f"freeze_signs: {_difference(params, tree)} in the updates"
        ) from error


def _require_same_structure(expected: Any, actual: Any, what: str) -> None:
    """Raise `ValueError` unless both trees have the same paths and shapes."""
    if jax.tree.structure(expected) != jax.tree.structure(actual):
        raise ValueError(f"freeze_signs: {_difference(expected, actual)} in the {what}")


def _difference(expected: Any, actual: Any) -> str:
    """What differs between the paths and shapes of two trees, in words."""
    wanted, given = flatten(expected)[0], flatten(actual)[0]
    for path, leaf in wanted.items():
        if path not in given:
            return f"{path}: expected as in the parameters, but it is missing"
        if jnp.shape(leaf) != jnp.shape(given[path]):
            return (
                f"{path}: expected shape {jnp.shape(leaf)} as in the parameters, "
                f"got {jnp.shape(given[path])}"
            )
    for path in given:
        if path not in wanted:
            return f"{path}: not in the parameters, but it is there"
    return "expected the structure of the parameters, but containers differ"
