"""Nearest codewords, and the pattern of signs or the mask that goes with each.

A block of `d` weights is decoded as `f * c`: a codeword `c` times factors `f` that a
codec draws from a table of patterns, `m` consecutive weights at a time (signs: the
words of a code; masks: N ones of M). Codeword and factors are chosen together, for the
least `(t - f c)^T M (t - f c)`. The metric `M` is one matrix for all blocks, or a
diagonal for each of them.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ssvq_jax.core.sharding import vary_alike

_JOINT = 4096  # words times codewords that are all tried
_ROUNDS = 3  # of codeword and factors in turn; a fourth changes hardly any
_COSTS = 1 << 25  # entries of a matrix of costs, 128 MiB
_CPU_COSTS = 1 << 20  # 4 MiB, for the second-level cache
_FORBIDDEN = 1e30
_EXACT = jax.lax.Precision.HIGHEST


class Choice(NamedTuple):
    """What is chosen for blocks.

    Attributes:
      codes: Codewords, int32.
      factors: What the codeword's entries are multiplied by; `None` where that is 1.
    """

    codes: Int[Array, "*n"]
    factors: Float[Array, "*n d"] | None


@functools.cache
def mask_patterns(kept: int, group: int) -> np.ndarray:
    """Masks with `kept` ones of `group`: `(binomial(group, kept), group)`."""
    chosen = np.array(list(itertools.combinations(range(group), kept)))
    masks = np.zeros((len(chosen), group), np.float32)
    np.put_along_axis(masks, chosen, 1, axis=1)
    return masks


def nearest(
    targets: Float[Array, "n d"],
    codebook: Float[Array, "k d"],
    patterns: np.ndarray | None = None,
    *,
    metric: Float[Array, "d d"] | None = None,
    importance: Float[Array, "n d"] | None = None,
    valid: Bool[Array, "#n d"] | None = None,
) -> Choice:
    """Codes and factors of least weighted squared error.

    Without patterns the nearest codeword. With them all factors are tried with every
    codeword, where these are few enough; else codeword and factors are chosen in turn,
    each the best for the other, from the signs of the targets or their largest entries.

    Args:
      targets: Blocks.
      codebook: Codewords.
      patterns: `(p, m)`, what factors `m` consecutive weights may have; `m` divides
        `d`. `None`: all are 1.
      metric: Symmetric, positive semidefinite.
      importance: Non-negative: the diagonal of the metric of every block. Without
        either it is 1.
      valid: Where targets are no padding, which comes last: masks keep it last, and
        the metric is 0 there. One row where it is the same for all blocks.

    Returns:
      The codeword and the factors of every block.
    """
    count, dim = targets.shape
    words = None
    if patterns is not None:
        words = _words(patterns, dim, _JOINT // codebook.shape[0])
    find = functools.partial(_nearest, codebook, patterns, words, metric)
    most = max(codebook.shape[0], dim if metric is None else dim * dim)
    if words is not None:
        most = max(most, codebook.shape[0] * words.shape[0])
    elif patterns is not None:
        most = max(most, patterns.shape[0])
    limit = _CPU_COSTS if jax.default_backend() == "cpu" else _COSTS
    size = max(1, limit // most)
    if count <= size:
        return find(targets, importance, valid)
    same = valid is not None and valid.shape[0] == 1
    columns = targets, importance, None if same else valid
    padding = -count % size
    chunks = jax.tree.map(
        lambda x: jnp.pad(x, ((0, padding), (0, 0))).reshape(-1, size, x.shape[1]),
        columns,
    )

    def part(chunk):
        targets, importance, own = chunk
        return find(targets, importance, valid if same else own)

    found = jax.lax.map(part, chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)


def _words(patterns: np.ndarray, block: int, most: int) -> np.ndarray | None:
    """All factors that a block may have, `(w, d)`; `None` for more than `most`."""
    groups = block // patterns.shape[1]
    if patterns.shape[0] ** groups > most:
        return None
    return np.array(
        [np.concatenate(x) for x in itertools.product(patterns, repeat=groups)]
    )


def _nearest(codebook, patterns, words, metric, targets, importance, valid):
    codebook, metric, targets, importance, valid = vary_alike(
        (), codebook, metric, targets, importance, valid
    )
    form = _Form(targets, metric, importance, valid)
    if patterns is None:
        return Choice(form.codes(codebook, None), None)
    if words is not None:
        joint = form.joint(codebook, words)
        codes, word = joint % codebook.shape[0], joint // codebook.shape[0]
        return Choice(codes, take(jnp.asarray(words), word))
    factors = form.first_factors(targets, patterns)

    def improve(_, factors):
        chosen = take(codebook, form.codes(codebook, factors))
        return form.factors(chosen, factors, patterns)

    factors = jax.lax.fori_loop(0, _ROUNDS, improve, factors)
    # Codes are the last to be chosen: factors of one codeword may be all the same.
    return Choice(form.codes(codebook, factors), factors)


def take(codebook: Float[Array, "k d"], codes: Int[Array, "*n"]) -> Array:
    """Codewords by code; codes are in bounds."""
    return jnp.take(codebook, codes, axis=0, mode="clip")


class _Form:
    """The quadratic form of the error, and its minima in one of two arguments."""

    def __init__(self, targets, metric, importance, valid):
        if metric is None and importance is None:
            importance = jnp.ones_like(targets)
        self.metric, self.importance, self.valid = metric, importance, valid
        self.linear = self._apply(targets)

    def codes(self, codebook, factors):
        """The best codeword of every block for its factors."""
        return _argmin(self._costs(codebook, factors))

    def _costs(self, codebook, factors):
        """Of every codeword for the factors of every block, `(k, n)`."""
        linear = self.linear if factors is None else factors * self.linear
        if factors is None and self.metric is not None:
            squares = jnp.sum(_dot(codebook, self.metric) * codebook, axis=1)[:, None]
        else:
            ones = jnp.ones_like(self.linear) if factors is None else factors
            squares = _dot(self._products(codebook), self._weighted(ones).T)
        return squares - 2 * _dot(codebook, linear.T)

    def joint(self, codebook, words):
        """The best of all words times all codewords: `word * k + code`."""
        table = jnp.asarray(words)[:, None] * codebook[None]
        table = table.reshape(-1, codebook.shape[1])
        forbidden = self._forbidden(words, slice(None))
        costs = self._costs(table, None)
        costs = costs.reshape(len(words), codebook.shape[0], -1) + forbidden[:, None]
        return _argmin(costs.reshape(table.shape[0], -1))

    def factors(self, chosen, factors, patterns):
        """The best factors of every block for its codeword, a group after the other."""
        size = patterns.shape[1]
        table = jnp.asarray(patterns)
        products = self._products(table)
        for start in range(0, chosen.shape[1], size):
            group = slice(start, start + size)
            part = chosen[:, group]
            rest = (factors * chosen).at[:, group].set(0.0)
            linear = (self.linear - self._apply(rest))[:, group]
            cost = _dot(products, self._weighted(part, group).T)
            cost = cost - 2 * _dot(table, (part * linear).T)
            best = _argmin(cost + self._forbidden(patterns, group))
            factors = factors.at[:, group].set(table[best])
        return factors

    def first_factors(self, targets, patterns):
        """Signs of the targets or masks of the largest, as far as patterns allow."""
        score = targets
        if not (patterns < 0).any():
            weights = self.importance
            if self.metric is not None:
                weights = jnp.diagonal(self.metric)[None]
            score = weights * jnp.square(targets)
        table, size = jnp.asarray(patterns), patterns.shape[1]
        factors = jnp.zeros_like(targets)
        for start in range(0, targets.shape[1], size):
            group = slice(start, start + size)
            cost = -_dot(table, score[:, group].T) + self._forbidden(patterns, group)
            factors = factors.at[:, group].set(table[_argmin(cost)])
        return factors

    def _forbidden(self, patterns, group):
        """A cost of masks' ones on more padding than has to be, `(p, n)` or `(p, 1)`.

        Signs may be what they are there.
        """
        if self.valid is None or (patterns < 0).any():
            return jnp.zeros((len(patterns), 1), jnp.float32)
        # Looked up by the number of weights before the padding, not multiplied: XLA's
        # CPU backend (jax 0.10.2 and 0.12.0) gets a product wrong whose columns are
        # repeated, where a reduction follows in the same fusion.
        ones = np.cumsum(patterns[:, ::-1], axis=1)[:, ::-1]
        ones = np.pad(ones, ((0, 0), (0, 1)))
        costs = _FORBIDDEN * (ones - ones.min(axis=0))
        count = jnp.sum(self.valid[:, group], axis=1)
        return jnp.take(jnp.float32(costs), count, axis=1, mode="clip")

    def _apply(self, x):
        if self.metric is None:
            return self.importance * x
        return _dot(x, self.metric)

    def _products(self, x):
        """What a square of the form is linear in, of every row."""
        if self.metric is None:
            return jnp.square(x)
        return (x[:, :, None] * x[:, None, :]).reshape(x.shape[0], -1)

    def _weighted(self, x, group=slice(None)):
        """`_products`, times the metric's entries."""
        if self.metric is None:
            return jnp.square(x) * self.importance[:, group]
        return self._products(x) * self.metric[group, group].reshape(1, -1)


def _dot(x, y):
    return jnp.matmul(x, y, precision=_EXACT)


def _argmin(costs: Float[Array, "k n"]) -> Int[Array, " n"]:
    """The first least row of every column, in two passes that CPUs vectorise."""
    rows = jax.lax.broadcasted_iota(jnp.int32, costs.shape, 0)
    least = jnp.min(costs, axis=0, keepdims=True)
    # A compiler may compute costs twice, rounded otherwise: none may be the least then.
    sizes = jnp.where(costs < _FORBIDDEN / 2, jnp.abs(costs), 0.0)
    near = 1e-6 * jnp.max(sizes, axis=0, keepdims=True)
    last = costs.shape[0] - 1
    return jnp.min(jnp.where(costs <= least + near, rows, last), axis=0)
