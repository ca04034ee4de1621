"""Progressive freezing of the signs, as an optax transform."""

import operator
import warnings
from typing import Any, Literal, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array

from ssvq_jax.tree.paths import flatten
from ssvq_jax.tree.transforms import label_tree

_FROZEN = np.uint32(0xFFFFFFFF)
_AVERAGE = 32767.0  # units of 1: what 16 bits hold of a number from -1 to 1


class FreezeSignsState(NamedTuple):
    """State of `freeze_signs`: four bytes per sign.

    Flip frequency `f` and votes of a sign share 32 bits, all ones once it is frozen.
    The lower `split` bits hold the votes, as many as the updates so far can need; after
    32,767 updates votes saturate at that number. The rest holds `sqrt(f)`: 22 bits in
    the first 500 updates, 16 in the end.

    Attributes:
      step: Updates so far, `t`, an int32 scalar.
      split: How many bits hold the votes, an int32 scalar.
      packed: Tree of uint32 with the structure of the parameters, `None` for every
        leaf that is no sign latent.
    """

    step: Array
    split: Array
    packed: Any

    @property
    def frozen(self) -> Any:
        """Tree of booleans: whether the sign is frozen."""
        return jax.tree.map(lambda packed: packed == _FROZEN, self.packed)

    @property
    def frequency(self) -> Any:
        """Tree of float32: moving average of "the sign flipped"; 1 where frozen."""
        return jax.tree.map(lambda packed: _unpack(packed, self.split)[0], self.packed)


class _Step(NamedTuple):
    """What one update gives for one latent."""

    update: Array
    packed: Array


def freeze_signs(
    *,
    interval: SupportsIndex,
    threshold: ArrayLike | optax.Schedule,
    momentum: ArrayLike = 0.01,
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

    The state takes four bytes per sign (see `FreezeSignsState`): `f` is rounded at
    every update. Where it decays by less than that rounding it stays as it is: below
    `(momentum * 2^16)^-2`, which is 2e-6 for 0.01 and 2e-4 for 0.001, after 16,000
    updates, and 1e-9 and 1e-7 in the first 500.

    With a `sign_code` (see `SSVQ`) it is the latents' own signs, too, that are counted
    and freeze. The word of a block follows from all its latents, and stays once these
    are all frozen.

    Leaves that are not sign latents pass through untouched. Which leaves are latents
    is told from the `Compressed` nodes of the parameters (see `label_tree`); where
    there are none it warns. Under `optax.inject_hyperparams` `interval` and `decide`
    are static arguments.

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

    Examples:
      >>> import optax, ssvq_jax as ssvq
      >>> threshold = optax.cosine_decay_schedule(0.1, decay_steps=5000, alpha=0.1)
      >>> tx = optax.chain(
      ...     optax.adamw(1e-4), ssvq.freeze_signs(interval=500, threshold=threshold)
      ... )

    References:
      Li et al., "SSVQ", ICCV 2025, arXiv 2503.08668.
    """
    interval = _checked_interval(interval)
    if not callable(threshold):
        number = threshold = _number("threshold", threshold)
        if not isinstance(number, Tracer) and not number >= 0:
            raise ValueError(
                f"threshold: expected a number of at least 0, or a schedule, "
                f"got {threshold!r}"
            )
    rate = _number("momentum", momentum)
    if not isinstance(rate, Tracer) and not 0 < rate <= 1:
        raise ValueError(f"momentum: expected above 0 and at most 1, got {momentum}")
    if decide not in ("majority", "average"):
        raise ValueError(f"decide: expected 'majority' or 'average', got {decide!r}")
    majority = decide == "majority"

    def init(params):
        _require_latents(params)
        split = _split(jnp.zeros((), jnp.int32), majority)
        nothing = _pack(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), split)
        packed = jax.tree.map(
            lambda x: jnp.full_like(x, nothing, dtype=jnp.uint32),
            _signs(params, params),
        )
        return FreezeSignsState(jnp.zeros((), jnp.int32), split, packed)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError("freeze_signs: update needs the parameters: pass params")
        latents = _signs(params, params)
        proposed = _signs(params, updates)
        _require_same_structure(latents, proposed, "updates")
        _require_same_structure(latents, state.packed, "optimizer state")
        t = jnp.asarray(optax.safe_increment(state.step))
        split = _split(t, majority)
        limit = jnp.asarray(threshold(t) if callable(threshold) else threshold)
        # Rounded like `f`, which is at least 0: a limit below 0 freezes every sign.
        limit = jnp.where(limit < 0, -1, _quantize(limit.astype(jnp.float32), split))
        due = t % interval == 0

        def freeze(latent, proposal, packed):
            frozen = packed == _FROZEN
            frequency, votes = _unpack(packed, state.split)
            moved = jnp.where(frozen, latent, latent + proposal.astype(latent.dtype))
            plus = moved >= 0
            flipped = plus != (latent >= 0)
            frequency = jnp.where(flipped, rate, 0.0) + (1 - rate) * frequency
            if majority:
                votes = votes + jnp.where(plus, 1, -1)
            else:  # a moving average of the sign, in units of 1 / _AVERAGE
                sign = jnp.where(plus, rate, -rate) * _AVERAGE
                votes = jnp.round(sign + (1 - rate) * votes.astype(jnp.float32)).astype(
                    jnp.int32
                )
            freezing = due & ~frozen & (_quantize(frequency, split) > limit)
            # The smallest magnitude that `latent + (new - latent)` keeps the sign of.
            limits = jnp.finfo(latent.dtype)
            tiny = jnp.maximum(jnp.abs(latent) * limits.eps, limits.tiny)
            magnitude = jnp.maximum(jnp.abs(moved), tiny)
            decided = jnp.where(votes >= 0, magnitude, -magnitude)
            new = jnp.where(freezing, decided, moved)
            packed = _pack(frequency, votes, split)
            return _Step(new - latent, jnp.where(frozen | freezing, _FROZEN, packed))

        steps = jax.tree.map(freeze, latents, proposed, state.packed)
        new_updates, packed = (
            jax.tree.map(operator.itemgetter(i), steps, is_leaf=_is_step)
            for i in range(2)
        )
        updates = jax.tree.map(
            lambda new, incoming: incoming if new is None else new,
            new_updates,
            updates,
            is_leaf=lambda x: x is None,
        )
        return updates, FreezeSignsState(t, split, packed)

    return optax.GradientTransformationExtraArgs(init, update)


def _checked_interval(interval: Any) -> int:
    """An integer of at least 1, also one of NumPy's."""
    expected = "interval: expected an integer of 1 or more"
    if isinstance(interval, Tracer):
        raise TypeError(
            f"{expected}, got {interval}; under optax.inject_hyperparams name it in "
            "static_args"
        )
    try:
        number = operator.index(interval)
    except TypeError:
        number = 0
    if isinstance(interval, bool) or number < 1:
        raise ValueError(f"{expected}, got {interval!r}")
    return number


def _number(name: str, value: Any) -> Any:
    """A Python float, or float32 of a traced number."""
    if isinstance(value, Tracer):
        return value.astype(jnp.float32)
    try:
        if np.ndim(value) == 0 and not isinstance(value, str | bool):
            return float(value)
    except TypeError:
        pass
    raise ValueError(f"{name}: expected a number, got {value!r}")


def _require_latents(params: Any) -> None:
    """Raise `ValueError` for a flattened tree; warn where there are no latents."""
    labels = jax.tree.leaves(label_tree(params))
    if not labels or "sign" in labels:
        return
    if jax.tree.structure(params).num_nodes == 1:
        raise ValueError(
            f"freeze_signs: expected a tree with compressed nodes, got one array of "
            f"shape {jnp.shape(params)}; chain it behind optax.flatten, not inside"
        )
    warnings.warn(
        f"freeze_signs: no sign latents among {len(labels)} parameters: it freezes "
        "nothing",
        stacklevel=3,
    )


def _split(t: Array, majority: bool) -> Array:
    """How many bits the votes of `t` updates need; within limits."""
    if not majority:
        return jnp.full_like(t, 16)
    # Votes are from -t to t: they need a bit more than t itself.
    return jnp.clip(33 - jax.lax.clz(t), 10, 16)


def _quantize(frequency: Array, split: Array) -> Array:
    """The square root of a frequency as an integer of `32 - split` bits.

    The root, since frequencies are small: thresholds lie at some hundredths.
    """
    # The largest integer of so many bits is left for `_FROZEN`.
    largest = (jnp.left_shift(1, 32 - split) - 2).astype(jnp.float32)
    root = jnp.sqrt(jnp.clip(frequency, 0.0, 1.0))
    return jnp.round(root * largest).astype(jnp.int32)


def _pack(frequency: Array, votes: Array, split: Array) -> Array:
    """Frequency and votes in 32 bits, never all ones."""
    half = jnp.left_shift(1, split - 1) - 1
    votes = (jnp.clip(votes, -half, half) + half).astype(jnp.uint32)
    frequency = _quantize(frequency, split).astype(jnp.uint32)
    return frequency << split.astype(jnp.uint32) | votes


def _unpack(packed: Array, split: Array) -> tuple[Array, Array]:
    """Inverse of `_pack`, but for rounding: float32 and int32."""
    largest = (jnp.left_shift(1, 32 - split) - 2).astype(jnp.float32)
    bits = split.astype(jnp.uint32)
    root = (packed >> bits).astype(jnp.float32) / largest
    half = jnp.left_shift(1, split - 1) - 1
    votes = packed & (jnp.left_shift(jnp.uint32(1), bits) - 1)
    return jnp.square(jnp.minimum(root, 1.0)), votes.astype(jnp.int32) - half


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
