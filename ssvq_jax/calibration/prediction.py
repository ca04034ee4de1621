"""What an error of the weights is expected to cost, before error feedback is run."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from ssvq_jax.calibration.moments import Moment

_DAMPING = 0.1  # as in `refine`


def output_cost(
    moment: Moment, weight: Float[np.ndarray, "*shape"]
) -> Callable[[Float[np.ndarray, "*shape"]], float]:
    """What a weight's error will cost: the share of the output's variance it will be.

    Error feedback moves the error of the weights `E` into the directions that inputs
    have least of, so that of the outputs is near `|E|^2 det(H)^(1/in)` instead of
    `tr(E^T H E)`, where `H` is the second moment of the inputs, damped as `refine`
    does. That is divided by `tr(W^T H W)`, the sum of the squared outputs; both are
    summed over groups. For blocks of `H`, and its diagonal, `H` is 0 outside.

    With factors `H` and `G` of the Fisher information it is what the error does to the
    loss, in one unit for all parameters: near `|E|^2 det(H)^(1/in) det(G)^(1/out)`,
    with `G` of `Moment.output_factor`.

    Args:
      moment: Moments of the inputs, or factors.
      weight: The weight `W`, in float64.

    Raises:
      ValueError: Moments of a parameter of another shape, or that are not finite.
    """
    try:
        matrix = moment.arrange(weight)
    except ValueError as problem:
        raise ValueError(f"moments: {problem}") from problem
    second = _blocks(moment)
    if not np.isfinite(second).all():
        raise ValueError("moments: expected finite values, got NaN or infinite ones")
    *groups, inputs, outputs = matrix.shape
    count, size = second.shape[-3:-1]
    share = np.asarray(moment.damping(_DAMPING))
    mean, added = _mean(second, inputs, share)
    factor = moment.output_factor()
    if factor is None:
        padded = np.zeros((*groups, count * size, outputs))
        padded[..., :inputs, :] = matrix
        padded = padded.reshape(*groups, count, size, outputs)
        whole = np.sum(padded * (second @ padded))
        whole += np.sum(added * np.square(matrix).sum((-2, -1)))
    else:
        own = np.asarray(factor, np.float64)[..., None, :, :]
        if not np.isfinite(own).all():
            raise ValueError(
                "moments: expected finite outputs, got NaN or infinite ones"
            )
        mean, whole = mean * _mean(own, outputs, share)[0], 1.0

    def cost(error: Float[np.ndarray, "*shape"]) -> float:
        squares = np.square(moment.arrange(error)).sum((-2, -1))
        # Inputs, or weights, that are all zero: no error is seen.
        return float(np.sum(mean * squares) / whole) if whole > 0 else 0.0

    return cost


def _mean(
    second: Float[np.ndarray, "*groups n b b"], size: int, share: Any
) -> tuple[Any, Any]:
    """The geometric mean of the damped eigenvalues by group, and what was added.

    Args:
      second: Blocks on the diagonal.
      size: Without padding.
      share: Of the mean on the diagonal, that is added to it.
    """
    *groups, count, block, _ = second.shape
    diagonal = np.diagonal(second, axis1=-2, axis2=-1).reshape(*groups, -1)
    damping = share * diagonal[..., :size].mean(-1)
    # Padded inputs get 1, which leaves a determinant as it is.
    added = np.ones((*groups, count * block))
    added[..., :size] = damping[..., None]
    added = added.reshape(*groups, count, block, 1) * np.eye(block)
    _, volume = np.linalg.slogdet(second + added)
    return np.exp(volume.sum(-1) / size), damping


def _blocks(moment: Moment) -> Float[np.ndarray, "*groups n b b"]:
    """Second moments of any form as blocks: one of all inputs, or of one each."""
    second = np.asarray(moment.second, np.float64)
    extra = second.ndim - np.ndim(moment.mean)
    if extra == 0:
        return second[..., None, None]
    return second[..., None, :, :] if extra == 1 else second
