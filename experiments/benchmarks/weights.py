"""The weights that the benchmarks compress: trained models, shapes, random nodes."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import load_file

import ssvq_jax as ssvq
from ssvq_jax.codecs.ssvq import SSVQWeight

_DEIT_BLOCK = {
    "attn.qkv.weight": (192, 576),
    "attn.proj.weight": (192, 192),
    "mlp.fc1.weight": (192, 768),
    "mlp.fc2.weight": (768, 192),
}


def model_file(models: pathlib.Path, name: str) -> pathlib.Path:
    """The file of a trained model, there or not."""
    return models / f"{name}.safetensors"


def trained(models: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    """A trained model's parameters in Flax's layout, from PyTorch's."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}  # OIHW to HWIO, (out, in) to (in, out)
    return {
        path: np.ascontiguousarray(x.transpose(axes.get(x.ndim, range(x.ndim))))
        for path, x in load_file(model_file(models, name)).items()
    }


def random_deit_tiny() -> dict[str, np.ndarray]:
    """Random kernels in the shapes of DeiT-Tiny for small images."""
    shapes = {"patch_embed.proj.weight": (8, 8, 3, 192), "head.weight": (192, 10)}
    for block in range(12):
        shapes |= {f"blocks.{block}.{x}": shape for x, shape in _DEIT_BLOCK.items()}
    rng = np.random.default_rng(0)
    return {
        path: rng.standard_normal(shape, np.float32) / math.sqrt(shape[-2])
        for path, shape in shapes.items()
    }


def random_node(
    codec: ssvq.SSVQ, shape: tuple[int, int], dtype: DTypeLike, key: jax.Array
) -> SSVQWeight:
    """A finalized weight of random codes and signs: quick to make, as slow to decode.

    The codebook is that of a small weight.
    """
    weight_key, codes_key, signs_key = jax.random.split(key, 3)
    small = jax.random.normal(weight_key, (4 * codec.block, codec.codewords))
    small = ssvq.encode(codec, small.astype(dtype), key=key)
    node = ssvq.finalize(small).replace(shape=shape)
    shapes = node.shapes()
    codes = jax.random.randint(codes_key, shapes["codes"], 0, codec.codewords)
    unused = max(0, 8 - codec.block)  # the high bits of a block's only byte
    signs = jax.random.bits(signs_key, shapes["signs"], jnp.uint8) >> unused
    return node.replace(codes=codes.astype(node.codes.dtype), signs=signs)
