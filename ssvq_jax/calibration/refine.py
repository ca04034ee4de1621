"""`refine`: codes, signs, codebooks and scales found by the error of the outputs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssvq_jax.calibration.feedback import EXACT, Walks
from ssvq_jax.calibration.layout import Layout
from ssvq_jax.calibration.moments import Moment, require_paths
from ssvq_jax.codecs import Compressed, is_compressed, stacked
from ssvq_jax.core.checks import as_array, require_finite, require_nonnegative
from ssvq_jax.core.sharding import (
    compiler_sharded,
    place,
    replicated,
    sharding_of,
    slice_of,
)
from ssvq_jax.tree.paths import flatten

_ITERATIONS = 12  # of conjugate gradients
_PROGRAMS = 64  # that are kept
_FIRST_PASSES = 2  # the second with the codebook that was fitted after the first


def refine(
    compressed: Any,
    params: Any,
    moments: Mapping[str, Moment],
    *,
    damping: float = 0.1,
    sweeps: int = 3,
) -> Any:
    """Choose codes, signs, masks, codebooks and scales anew by the outputs' error.

    For every compressed parameter with moments, the error that is lowered is
    `tr((W - W_q)^T H (W - W_q))`, `H` the second moments of the inputs. Codes are
    chosen step by step, each for targets that make up for the errors so far (error
    feedback), signs and codewords together; then codebook and scales are fitted by
    least squares; then codes and codebooks in turn, once for every sweep. The result
    is kept where its error, stored as a file stores it, is smaller than before. With
    diagonal moments, and for lookups, nothing passes from one input to another: codes
    are chosen by importance alone. Slices of a stack are refined one by one.

    With factors of outputs `G`, from `fisher_factors`, the error is
    `tr(G (W - W_q)^T H (W - W_q))`, and errors pass from some outputs to others, too,
    32 of which are chosen at a time, each for itself. Where blocks run along outputs
    `G` is left out.

    EfficientNet-Lite0 takes 52 s on 2 CPU cores, of which 47 s are for compiling: a
    program for every shape.

    Args:
      compressed: Tree with `Compressed` nodes, from `ssvq_jax.compress`.
      params: The float parameters that they were made from; the same paths.
      moments: From `calibrate`, of the float network; see also `Moments.centered`.
      damping: What is added to the diagonals of second moments and of outputs, as a
        share of their means, beside what their rows are too few for: see
        `Moment.damping`. How little the calibration data are trusted. Above 0.
      sweeps: How often codes are chosen anew after the first time.

    Returns:
      The same tree: same codecs, same bits. What has no moments is as before.

    Raises:
      NotImplementedError: A codec without `choose`, with moments; see `Codec`.
      ValueError: Other paths or shapes than the moments'; a stack without moments of
        every slice; weights or moments that are not finite, a finalized parameter,
        moments that are not positive definite with this damping, by path; moments of
        which none is of a parameter; damping or sweeps out of range.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq
      >>> key = jax.random.key(0)
      >>> params = {"kernel": jax.random.normal(key, (32, 64))}
      >>> x = jax.random.normal(key, (128, 8)) @ jax.random.normal(key, (8, 32))
      >>> moments = ssvq.calibrate(lambda p, x: x @ p["kernel"], params, [x])
      >>> rules = [ssvq.Rule("kernel", ssvq.SSVQ())]
      >>> plain = ssvq.compress(params, rules, key=key)
      >>> refined = ssvq.refine(plain, params, moments)
      >>> def error(tree):
      ...     difference = x @ (ssvq.decode(tree)["kernel"] - params["kernel"])
      ...     return float(jnp.sum(difference**2))
      >>> error(refined) < error(plain) / 2
      True

    References:
      Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323; van Baalen et al., "GPTVQ",
      2024, arXiv 2402.15319; Tseng et al., "YAQA", 2025, arXiv 2505.22988: both sides.
    """
    if not damping > 0:
        raise ValueError(f"damping: expected a number above 0, got {damping}")
    if sweeps < 0:
        raise ValueError(f"sweeps: expected 0 or more, got {sweeps}")
    named, treedef = flatten(compressed, is_compressed)
    weights, _ = flatten(params)
    require_paths(moments, named)
    leaves = []
    for path, node in named.items():
        if is_compressed(node) and path in moments:
            if path not in weights:
                raise ValueError(f"{path}: in compressed, but not in params")
            try:
                node.require_choosing()
                node = _refined(node, weights[path], moments[path], damping, sweeps)
            except NotImplementedError as error:
                raise NotImplementedError(f"{path}: {error}") from error
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        leaves.append(node)
    return jax.tree.unflatten(treedef, leaves)


def _refined(
    node: Any, weight: Any, moment: Moment, damping: float, sweeps: int
) -> Compressed:
    weight = as_array(weight)
    if weight.shape != node.array_shape:
        raise ValueError(
            f"weight: expected shape {node.array_shape}, got {weight.shape}"
        )
    moment.check(weight.shape)
    if node.stack:
        parts = [
            _refined(
                part, slice_of(weight, i), moment.slice(i, len(weight)), damping, sweeps
            )
            for i, part in enumerate(node.slices())
        ]
        return stacked(parts, node.grid_leaf)
    node.check()
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(node)}
    if kinds & {"float16", "bfloat16", "int8"}:
        raise ValueError("expected what compress gives, got a finalized parameter")
    require_finite("weight", weight)
    require_finite("second moments", moment.second)
    require_nonnegative("second moments", moment.diagonal())
    layout = Layout.of(node, moment)
    outputs = layout.outputs(moment)
    if outputs is not None:
        require_finite("moments of outputs", outputs)
    leaves, treedef = jax.tree.flatten(node)
    shardings = [sharding_of(jnp.asarray(leaf)) for leaf in leaves]
    sharding = next(filter(None, [sharding_of(weight), *shardings]), None)
    run = _program(treedef, layout, sweeps)
    whole = functools.partial(place, sharding=replicated(sharding))
    node = jax.tree.unflatten(treedef, map(whole, map(jnp.asarray, leaves)))
    given = weight, layout.second(moment), outputs
    shares = np.asarray(moment.damping(damping), np.float32).reshape(-1, 1)
    result, definite = compiler_sharded(run, replicated(sharding))(
        node, *jax.tree.map(lambda x: whole(jnp.asarray(x)), given), shares
    )
    if not definite:
        raise ValueError(
            f"damping: expected more than {damping} for these second moments: with it "
            "they are not positive definite"
        )
    placed = map(place, jax.tree.leaves(result), shardings)
    return jax.tree.unflatten(treedef, placed)


@functools.lru_cache(maxsize=_PROGRAMS)
def _program(treedef: Any, layout: Layout, sweeps: int) -> Callable[..., Any]:
    """The compiled function for weights of one kind, which goes when it is not used.

    On a CPU a program takes hundreds of mappings of memory, of which a process may have
    65,530: with one for every shape and codec there is soon none left.
    """
    del treedef
    return jax.jit(functools.partial(_run, layout=layout, sweeps=sweeps))


def _run(
    node: Any,
    weight: Float[Array, "*shape"],
    second: Float[Array, "..."],
    outputs: Float[Array, "g o o"] | None,
    damping: Any,
    *,
    layout: Layout,
    sweeps: int,
) -> Any:
    weight = weight.astype(jnp.float32)
    rows = layout.rows(weight)
    second, damped = _damped(second, damping, layout.inputs >= 0)
    exact, metric = _Metric(second, None), _Metric(damped, None)
    if outputs is not None:
        real = np.ones(outputs.shape[-1], bool)
        outputs, loose = _damped(outputs, damping, real)
        exact, metric = _Metric(second, outputs), _Metric(damped, loose)

    def error(node):
        return rows - layout.rows(node.values(jnp.dtype(jnp.float32)))

    walks = Walks.plan(*metric, layout) if second.ndim == 3 else None
    importance = layout.weight(jnp.broadcast_to(metric.diagonal, rows.shape))

    def improve(i, node):
        if walks is None:
            node = node.assign(weight, importance, training=False)
        else:
            is_first = i < _FIRST_PASSES
            start = jnp.where(is_first, 0.0, error(node))
            node = walks.take(is_first, node, layout, rows, start)
        return _fit(node, error, metric)

    learned = {name: getattr(node, name) for name in node.linear_leaves}
    best = node.finalize().replace(**{"scale": None, **learned})
    # One loop: it takes half of the time to compile that two would.
    best = jax.lax.fori_loop(0, _FIRST_PASSES + sweeps, improve, best)
    best = best.like(node, weight)

    def measure(node):
        """The error of what is stored."""
        rest = error(node.finalize())
        return jnp.sum(rest * exact.product(rest))

    better = measure(best) <= measure(node)
    metrics = [walk.first.metric for walk in walks or () if walk is not None]
    definite = jnp.array([True, *(jnp.isfinite(x).all() for x in metrics)]).all()
    return jax.tree.map(functools.partial(jnp.where, better), best, node), definite


class _Metric(NamedTuple):
    """What errors `(g, i, o)` cost: `tr(G E^T H E)`.

    Attributes:
      inputs: `H`, or its diagonal.
      outputs: `G`; `None` for all outputs alike.
    """

    inputs: Float[Array, "g i ..."]
    outputs: Float[Array, "g o o"] | None

    @property
    def diagonal(self) -> Float[Array, "g i #o"]:
        """What an error alone costs."""
        found = _diagonal(self.inputs)
        if self.outputs is None:
            return found
        return found * jnp.swapaxes(_diagonal(self.outputs), 1, 2)

    def product(self, rows: Float[Array, "g i o"]) -> Float[Array, "g i o"]:
        """`H E G`."""
        if self.inputs.ndim == 2:
            rows = self.inputs[:, :, None] * rows
        else:
            rows = jnp.matmul(self.inputs, rows, precision=EXACT)
        if self.outputs is None:
            return rows
        return jnp.matmul(rows, self.outputs, precision=EXACT)


def _damped(
    second: Float[Array, "..."], damping: Any, real: np.ndarray
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Second moments in units of their mean, as they are and damped.

    Args:
      second: Or their diagonals.
      damping: As a share of the mean, by group.
      real: `(i,)`, what is no padding.
    """
    real = real[None]
    total = jnp.sum(_diagonal(second)[:, :, 0], axis=1, keepdims=True)
    mean = total / int(np.count_nonzero(real))
    unit = jnp.max(mean)
    unit = jnp.where(unit > 0, unit, 1.0)
    second, mean = second / unit.reshape((1,) * second.ndim), mean / unit
    added = damping * jnp.where(mean > 0, mean, 1.0)
    if second.ndim == 2:
        return second, second + jnp.where(real, added, 0.0)
    # Padding is apart from all else: 1 on the diagonal.
    added = jnp.where(real, added, 1.0)
    identity = jnp.eye(second.shape[1], dtype=second.dtype)[None]
    return second, second + added[:, :, None] * identity


def _diagonal(second: Array) -> Float[Array, "g i 1"]:
    if second.ndim == 3:
        second = jnp.diagonal(second, axis1=1, axis2=2)
    return second[:, :, None]


def _fit(node: Any, error: Callable[[Any], Array], metric: _Metric) -> Any:
    """Codebook, then scales, by least squares for the codes that there are."""
    for name in node.linear_leaves:
        start = getattr(node, name)
        if start is None:
            continue
        node = node.fitted(
            name,
            _least_squares(
                lambda x, name=name, node=node: error(node.replace(**{name: x})),
                start,
                metric,
            ),
        )
    return node


def _least_squares(
    error: Callable[[Array], Array], start: Array, metric: _Metric
) -> Array:
    """The argument of least error, an affine function, by conjugate gradients.

    The preconditioner is exact where the metric is diagonal and every weight comes from
    one entry of the argument, as all do.
    """
    # By reverse mode twice: on accelerators codewords have no other derivative.
    rest, transpose = jax.vjp(error, start)
    _, forward = jax.vjp(transpose, rest)

    def linear(x):
        return forward((x,))[0]

    def adjoint(rows):
        return transpose(metric.product(rows))[0]

    squares = transpose(metric.diagonal * linear(jnp.ones_like(start)))[0]
    inverse = jnp.where(squares > 0, 1 / jnp.where(squares > 0, squares, 1.0), 0.0)

    def ratio(a, b):
        return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)

    def step(_, state):
        x, residual, direction, size = state
        image = adjoint(linear(direction))
        length = ratio(size, jnp.sum(direction * image))
        x, residual = x + length * direction, residual - length * image
        scaled = inverse * residual
        new = jnp.sum(residual * scaled)
        return x, residual, scaled + ratio(new, size) * direction, new

    residual = -adjoint(rest)
    scaled = inverse * residual
    state = (start, residual, scaled, jnp.sum(residual * scaled))
    return jax.lax.fori_loop(0, _ITERATIONS, step, state)[0]
