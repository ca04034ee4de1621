"""Biases that take up what compression does to the means of outputs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssvq_jax.calibration.found import Role
from ssvq_jax.calibration.moments import Moment, Moments
from ssvq_jax.codecs import Compressed, is_compressed
from ssvq_jax.core.checks import as_array
from ssvq_jax.core.sharding import place, replicate, sharding_of
from ssvq_jax.tree.paths import flatten


def correct_biases(compressed: Any, params: Any, moments: Moments) -> Any:
    """Give back to outputs the means that they had before compression.

    To the bias beside a compressed parameter, `LAYER/bias` beside `LAYER/kernel`, the
    mean of what its outputs lack is added: `mean^T (W - W_q)`, with the mean of the
    parameter's inputs. Dense layers, convolutions, grouped and depthwise ones,
    attention and stacks are served alike. Where a batch norm follows, take its
    statistics anew instead.

    Args:
      compressed: Tree with `Compressed` nodes, from `compress` or `finalize`.
      params: The float tree that it came from, with the same paths.
      moments: Of the inputs of its parameters, from `calibrate`.

    Returns:
      The compressed tree with other biases. As it was is what is not compressed, has no
      moments, or has no bias beside it.

    Raises:
      ValueError: A parameter or a bias whose shape is not that of the moments, a bias
        that is compressed itself, a parameter that `params` lacks; with its path.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq
      >>> params = {"kernel": jnp.array([[0.6], [0.2]]), "bias": jnp.zeros(1)}
      >>> x = jnp.array([[1.0, 2.0], [3.0, 2.0]])
      >>> def apply(params, x):
      ...     return x @ params["kernel"] + params["bias"][None]
      >>> moments = ssvq.calibrate(apply, params, [x])
      >>> rules = [ssvq.Rule("kernel", ssvq.Uniform(2))]
      >>> compressed = ssvq.compress(params, rules, key=jax.random.key(0))
      >>> compressed = ssvq.correct_biases(compressed, params, moments)
      >>> expected, found = apply(params, x), apply(ssvq.decode(compressed), x)
      >>> bool(jnp.allclose(expected.mean(), found.mean()))
      True

    References:
      Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
      Correction", ICCV 2019, arXiv 1906.04721.
    """
    named, treedef = flatten(compressed, is_compressed)
    originals, _ = flatten(params)
    for path, moment in moments.items():
        node = named.get(path)
        layer, slash, _ = path.rpartition("/")
        bias = f"{layer}{slash}bias"
        if not isinstance(node, Compressed) or bias not in named:
            continue
        original = originals.get(path)
        if original is None or jnp.shape(original) != node.array_shape:
            found = "nothing" if original is None else f"shape {jnp.shape(original)}"
            raise ValueError(
                f"{path}: expected shape {node.array_shape} in params, got {found}"
            )
        if is_compressed(named[bias]):
            raise ValueError(f"{bias}: expected a bias that is not compressed")
        try:
            lost = _lost(_roles(moment), moment.mean, node, as_array(original))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        named[bias] = _added(bias, as_array(named[bias]), lost)
    return jax.tree.unflatten(treedef, named.values())


def _roles(moment: Moment) -> tuple[int, ...]:
    return tuple(int(role) for role in np.asarray(moment.roles))


@functools.partial(jax.jit, static_argnums=0)
def _lost(
    roles: tuple[int, ...],
    mean: Float[Array, "*groups in"],
    node: Compressed,
    original: Float[Array, "*shape"],
) -> Float[Array, "*outputs"]:
    """Mean outputs that compression took away; axes as those of the weight."""
    moment = Moment(second=None, mean=mean, count=None, roles=np.array(roles))
    lost = replicate(original.astype(jnp.float32) - node.decode("float32"))
    count = lost.size // mean.size
    inputs = jnp.broadcast_to(mean[..., None], (*mean.shape, count))
    contracted = tuple(i for i, role in enumerate(roles) if role == Role.INPUT)
    return jnp.sum(moment.restore(inputs, lost.shape) * lost, axis=contracted)


def _added(path: str, bias: Array, lost: Float[Array, "*outputs"]) -> Array:
    # Axes of length 1 are inputs to a moment, but may be outputs to a layer.
    wide = [size for size in bias.shape if size > 1]
    if wide != [size for size in lost.shape if size > 1]:
        raise ValueError(f"{path}: expected shape {lost.shape}, got {bias.shape}")
    lost = place(lost.reshape(bias.shape), sharding_of(bias))
    return (bias.astype(jnp.float32) + lost).astype(bias.dtype)
