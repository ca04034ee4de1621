"""Error feedback: codes chosen block after block, errors passed on to what follows.

For outputs `y = x W` the error that counts is `tr(E^T H E)`, of `E = W - W_q` and the
second moments `H` of the inputs. A step chooses the blocks of the next inputs for
targets that make up for the errors of the others:

- in the first pass, for those of the inputs before. `H = U U^T`, `U` upper triangular,
  makes the error a sum over steps `|U_bb^T (e_b + U_bb^-T sum_(j < b) U_jb^T e_j)|^2`:
  targets and metric of step `b`. This is GPTQ's feedback, read from its other end.
- in sweeps, for those of all other inputs: coordinate descent,
  `t_b = w_b + H_bb^-1 sum_(j != b) H_bj e_j`, in the metric `H_bb`.

Where errors of outputs count together, too, as `tr(G E^T H E)`, chunks of outputs take
these steps in turn, each for weights that make up for the errors of other chunks, by
the same two formulas for `G`. Within a chunk outputs are chosen each for itself. This
is the two-sided feedback of YAQA (Tseng et al. 2025, arXiv 2505.22988).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ssvq_jax.calibration.layout import Layout
from ssvq_jax.codecs.nearest import Choice

CHUNK = 32
"""Outputs, at most, that are chosen at once where their errors count together."""
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
    """The steps of one side of a weight, in the order in which they are taken.

    Attributes:
      order: Which step is taken when: that of largest moments first.
      first: The pass that chooses codes from nothing.
      sweep: The pass that improves them.
    """

    order: Int[Array, " steps"]
    first: Pass
    sweep: Pass

    @classmethod
    def plan(
        cls, second: Float[Array, "g i i"], valid: np.ndarray, size: int
    ) -> "Walk":
        """The walk over the rows, or columns, of a weight.

        Args:
          second: Their second moments, damped, those of padding included.
          valid: `(i,)`, what is no padding.
          size: Of a step, which divides them.
        """
        steps = second.shape[1] // size
        real = jnp.asarray(valid)
        diagonal = jnp.diagonal(second, axis1=1, axis2=2)
        moments = jnp.sum(jnp.where(real[None], diagonal, 0.0), axis=0)
        order = jnp.argsort(-jnp.sum(moments.reshape(steps, size), axis=1))
        second = _ordered(_ordered(second, order, 1), order, 2)
        real = _ordered(real, order, 0).reshape(steps, 1, size).astype(jnp.float32)
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

    def turn(self, is_first: Any) -> Pass:
        """What a pass takes: `first` or `sweep`."""
        choose = functools.partial(jnp.where, is_first)
        return jax.tree.map(choose, self.first, self.sweep)


class Walks(NamedTuple):
    """How the codes of a weight are chosen.

    Attributes:
      inputs: The steps.
      outputs: Chunks of outputs, each of which takes all steps for targets that make up
        for the errors of other chunks; `None` for all outputs at once.
    """

    inputs: Walk
    outputs: Walk | None

    @classmethod
    def plan(
        cls,
        second: Float[Array, "g i i"],
        outputs: Float[Array, "g o o"] | None,
        layout: Layout,
    ) -> "Walks":
        """For damped second moments of the rows of a layout, and of its outputs."""
        walk = Walk.plan(second, layout.inputs >= 0, layout.step)
        size = 0 if outputs is None else outputs.shape[-1]
        chunks = -(-size // CHUNK)
        if outputs is None or chunks < 2:
            return cls(walk, None)
        width = -(-size // chunks)
        rest = chunks * width - size
        valid = np.arange(size + rest) < size
        padded = jnp.pad(outputs, ((0, 0), (0, rest), (0, rest)))
        padded += jnp.diag(jnp.float32(~valid))[None]
        return cls(walk, Walk.plan(padded, valid, width))

    def take(
        self,
        is_first: Any,
        node: Any,
        layout: Layout,
        weight: Float[Array, "g i o"],
        error: Float[Array, "g i o"],
    ) -> Any:
        """Choose the codes of all steps.

        Args:
          is_first: Whether this is a pass from nothing; else it is a sweep.
          node: A compressed weight, of which codebook and scales are taken.
          layout: That of `plan`.
          weight: Rows of the weight.
          error: Rows of the error that there is: 0 for a first pass.

        Returns:
          The node with the new codes.
        """
        order = self.inputs.order
        turn = self.inputs.turn(is_first)
        weight, error = (_ordered(x, order, 1) for x in (weight, error))
        scale = None
        if node.scales is not None:
            scale = layout.rows(jnp.broadcast_to(node.scales, layout.shape))
            padding = jnp.asarray(layout.inputs < 0)[None, :, None]
            scale = _ordered(jnp.where(padding, 1.0, scale), order, 1)
        real = jnp.asarray(layout.inputs >= 0).astype(jnp.float32)[None, :, None]
        real = _ordered(real, order, 1)

        def steps(weight, scale, error):
            return _steps(turn, node, layout, weight, scale, real, error)

        if self.outputs is None:
            choice, _ = steps(weight, scale, error)
        else:
            across = self.outputs.turn(is_first).spread
            choice = _by_chunks(steps, self.outputs.order, across, weight, scale, error)
        back = jnp.argsort(order)
        return layout.put(node, jax.tree.map(lambda x: x[back], choice))


def _steps(
    turn: Pass,
    node: Any,
    layout: Layout,
    weight: Float[Array, "g i o"],
    scale: Float[Array, "g i o"] | None,
    real: Float[Array, "1 i 1"],
    error: Float[Array, "g i o"],
) -> tuple[Choice, Float[Array, "g i o"]]:
    """All steps, one after the other: the choices, and the error that they leave."""
    count, size = len(turn.spread), layout.step

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

    def parts(rows):
        groups, _, outputs = rows.shape
        return jnp.swapaxes(rows.reshape(groups, count, size, outputs), 0, 1)

    scales = None if scale is None else parts(scale)
    now = (jnp.arange(count), parts(weight), scales, parts(real), *turn)
    error, choice = jax.lax.scan(step, error, now)
    return choice, error


def _by_chunks(
    steps: Callable[..., tuple[Choice, Float[Array, "g i c"]]],
    order: Int[Array, " chunks"],
    across: Float[Array, "chunks g p c"],
    weight: Float[Array, "g i o"],
    scale: Float[Array, "g i o"] | None,
    error: Float[Array, "g i o"],
) -> Choice:
    """Chunks of outputs, one after the other.

    What errors `E_p` of others cost together with a chunk's is what they would cost if
    the chunk's weights were larger by `sum_p E_p G_pc G_cc^-1` (in a first pass by the
    same of the factor of `G`): all steps are taken for these weights.

    Returns:
      What was chosen for all outputs, `(steps, m, o)`.
    """
    size = weight.shape[-1]
    padding = [(0, 0), (0, 0), (0, across.shape[2] - size)]

    def arranged(rows, fill=0.0):
        return _ordered(jnp.pad(rows, padding, constant_values=fill), order, 2)

    def parts(rows):
        groups, inputs, _ = rows.shape
        return rows.reshape(groups, inputs, len(order), -1).transpose(2, 0, 1, 3)

    def chunk(error, now):
        i, weight, scale, own, spread = now
        shift = jnp.einsum("gio,goc->gic", error, spread, precision=EXACT)
        choice, rest = steps(weight + shift, scale, own + shift)
        at = (0, 0, i * own.shape[-1])
        return jax.lax.dynamic_update_slice(error, rest - shift, at), choice

    error = arranged(error)
    scales = None if scale is None else parts(arranged(scale, 1.0))
    now = (jnp.arange(len(order)), parts(arranged(weight)), scales, parts(error))
    _, choice = jax.lax.scan(chunk, error, (*now, across))
    back = jnp.argsort(order)

    def whole(x):
        """`(chunks, steps, m, c, ...)` to `(steps, m, o, ...)`."""
        x = jnp.moveaxis(x[back], 0, 2)
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :size]

    return jax.tree.map(whole, choice)


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
