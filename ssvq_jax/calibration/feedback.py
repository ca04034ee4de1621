"""Error feedback: codes chosen block after block, errors passed on to what follows.

For outputs `y = x W` the error that counts is `tr(E^T H E)`, of `E = W - W_q` and the
second moments `H` of the inputs. A step chooses the blocks of the next inputs for
targets that make up for the errors of the others:

- in the first pass, for those of the inputs before. `H = U U^T`, `U` upper triangular,
  makes the error a sum over steps `|U_bb^T (e_b + U_bb^-T sum_(j < b) U_jb^T e_j)|^2`:
  targets and metric of step `b`. This is GPTQ's feedback, read from its other end.
- in sweeps, for those of all other inputs: coordinate descent,
  `t_b = w_b + H_bb^-1 sum_(j != b) H_bj e_j`, in the metric `H_bb`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssvq_jax.calibration.layout import Layout

EXACT = jax.lax.Precision.HIGHEST


class Pass(NamedTuple):
    """What a pass over the steps needs; steps first.

    Attributes:
      spread: What an error at every input adds to the targets of a step.
      metric: Of a step's blocks; 0 on padding.
    """

    spread: Float[Array, "steps g i s"]
    metric: Float[Array, "steps g s s"]


class Walk(NamedTuple):
    """The steps of one weight, in the order in which they are taken.

    Attributes:
      order: Which step is taken when: that of largest moments first.
      first: The pass that chooses codes from nothing.
      sweep: The pass that improves them.
    """

    order: Int[Array, " steps"]
    first: Pass
    sweep: Pass

    @classmethod
    def plan(cls, second: Float[Array, "g i i"], layout: Layout) -> "Walk":
        """For damped second moments of the rows of a layout, padding included."""
        size = layout.step
        steps = second.shape[1] // size
        valid = jnp.asarray(layout.inputs >= 0)
        diagonal = jnp.diagonal(second, axis1=1, axis2=2)
        moments = jnp.sum(jnp.where(valid[None], diagonal, 0.0), axis=0)
        order = jnp.argsort(-jnp.sum(moments.reshape(steps, size), axis=1))
        second = _ordered(_ordered(second, order, 1), order, 2)
        real = _ordered(valid, order, 0).reshape(steps, 1, size).astype(jnp.float32)
        real = real[:, :, :, None] * real[:, :, None, :]

        lower = jax.lax.linalg.cholesky(second[:, ::-1, ::-1])
        upper = lower[:, ::-1, ::-1]
        corner = _corners(upper, steps)
        inverse = _inverse_of_upper(corner)
        first = Pass(
            jnp.matmul(_columns(upper, steps), inverse, precision=EXACT),
            real * jnp.matmul(corner, jnp.swapaxes(corner, 2, 3), precision=EXACT),
        )
        corner = _corners(second, steps)
        sweep = Pass(
            jnp.matmul(_columns(second, steps), _inverse(corner), precision=EXACT),
            real * corner,
        )
        return cls(order, first, sweep)

    def take(
        self,
        turn: Pass,
        node: Any,
        layout: Layout,
        weight: Float[Array, "g i o"],
        error: Float[Array, "g i o"],
    ) -> Any:
        """Choose the codes of all steps.

        Args:
          turn: `first` or `sweep`.
          node: A compressed weight, of which codebook and scales are taken.
          layout: That of `plan`.
          weight: Rows of the weight.
          error: Rows of the error that there is: 0 for `first`.

        Returns:
          The node with the new codes.
        """
        steps, size = len(self.order), layout.step
        scale = None
        if node.scales is not None:
            scale = layout.rows(jnp.broadcast_to(node.scales, layout.shape))
            padding = jnp.asarray(layout.inputs < 0)[None, :, None]
            scale = self._steps(jnp.where(padding, 1.0, scale), size)
        real = jnp.asarray(layout.inputs >= 0).astype(jnp.float32)[None, :, None]
        real = self._steps(real, size)

        def step(error, now):
            i, weight, scale, real, spread, metric = now
            target = weight + jnp.einsum("gis,gio->gso", spread, error, precision=EXACT)
            unit = target if scale is None else target / scale
            choice = layout.choose(node, unit, scale, metric)
            value = layout.slab(node.chosen(choice))
            value = value if scale is None else value * scale
            new = real * (weight - value)
            at = (0, i * size, 0)
            return jax.lax.dynamic_update_slice(error, new, at), choice

        error = _ordered(error, self.order, 1)
        now = (jnp.arange(steps), self._steps(weight, size), scale, real, *turn)
        _, choice = jax.lax.scan(step, error, now)
        back = jnp.argsort(self.order)
        return layout.put(node, jax.tree.map(lambda x: x[back], choice))

    def _steps(self, rows, size):
        """Rows by step, in the order of the walk."""
        groups, _, outputs = rows.shape
        steps = rows.reshape(groups, len(self.order), size, outputs)
        return jnp.swapaxes(steps, 0, 1)[self.order]


def _ordered(x, order, axis):
    """Parts of an axis, as many as there are steps, in their order."""
    steps = len(order)
    parts = x.reshape(*x.shape[:axis], steps, -1, *x.shape[axis + 1 :])
    return jnp.take(parts, order, axis=axis).reshape(x.shape)


def _corners(x, steps):
    """The blocks on the diagonal: `(steps, g, s, s)`."""
    groups, inputs, _ = x.shape
    size = inputs // steps
    parts = x.reshape(groups, steps, size, steps, size)
    return jnp.diagonal(parts, axis1=1, axis2=3).transpose(3, 0, 1, 2)


def _columns(x, steps):
    """All but the blocks on the diagonal, column by column: `(steps, g, i, s)`."""
    groups, inputs, _ = x.shape
    size = inputs // steps
    own = jnp.arange(inputs)[None, :] // size == jnp.arange(steps)[:, None]
    columns = x.reshape(groups, inputs, steps, size).transpose(2, 0, 1, 3)
    return jnp.where(own[:, None, :, None], 0.0, columns)


# Small inverses are loops of our own: LAPACK's batches wait for threads of the pool
# that runs them, and two at a time wait for each other where it has two threads.


def _inverse_of_upper(matrix: Float[Array, "*n s s"]) -> Float[Array, "*n s s"]:
    """Inverses of upper triangular matrices, row by row from the last."""
    size = matrix.shape[-1]
    unit = jnp.eye(size, dtype=matrix.dtype)

    def row(i, inverse):
        at = size - 1 - i
        line = jax.lax.dynamic_index_in_dim(matrix, at, -2, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(line, at, -1)
        known = jnp.sum(line[..., None] * inverse, axis=-2)
        new = (jnp.broadcast_to(unit[at], known.shape) - known) / pivot
        return jax.lax.dynamic_update_index_in_dim(inverse, new, at, inverse.ndim - 2)

    return jax.lax.fori_loop(0, size, row, jnp.zeros_like(matrix))


def _inverse(matrix: Float[Array, "*n s s"]) -> Float[Array, "*n s s"]:
    """Inverses of positive definite matrices, by Gauss and Jordan in place."""

    def eliminate(at, x):
        row = jax.lax.dynamic_index_in_dim(x, at, -2)
        column = jax.lax.dynamic_index_in_dim(x, at, -1)
        pivot = jax.lax.dynamic_index_in_dim(row, at, -1)
        rest = x - column * row / pivot
        rest = jax.lax.dynamic_update_slice_in_dim(rest, row / pivot, at, x.ndim - 2)
        rest = jax.lax.dynamic_update_slice_in_dim(
            rest, -column / pivot, at, x.ndim - 1
        )
        corner = [0] * (x.ndim - 2) + [at, at]
        return jax.lax.dynamic_update_slice(rest, 1 / pivot, corner)

    return jax.lax.fori_loop(0, matrix.shape[-1], eliminate, matrix)
