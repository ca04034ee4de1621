"""How the golden files of version 1 were made; they are never made again.

    python tests/export/golden/make.py DIRECTORY

`example1`, `example2` and `example3` are those of FORMAT.md. `codecs` has every codec,
dtype and kind of container, `channels` every codec with scales of channels;
`codecs.decoded` and `channels.decoded` are what the library decoded them to.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import ssvq_jax as ssvq
from ssvq_jax.codecs.mvq import MVQWeight
from ssvq_jax.codecs.ssvq import SSVQWeight
from ssvq_jax.codecs.uniform import UniformWeight
from ssvq_jax.codecs.vq import VQWeight

CODECS = {
    "ssvq": ssvq.SSVQ(4, 8),
    "ssvq 3 bits": ssvq.SSVQ(5, 3, codebook_dtype="float32"),
    "ssvq bfloat16": ssvq.SSVQ(4, 4, learn_signs=False, codebook_dtype="bfloat16"),
    "ssvq int8": ssvq.SSVQ(300, 1, codebook_dtype="int8"),
    "vq": ssvq.VQ(2, 4),
    "vq int8": ssvq.VQ(3, 5, codebook_dtype="int8"),
    "uniform": ssvq.Uniform(2),
    "uniform bfloat16": ssvq.Uniform(5, scale_dtype="bfloat16"),
    "mvq": ssvq.MVQ(4, 8, (2, 4)),
    "mvq all": ssvq.MVQ(3, 4, (4, 4), codebook_dtype="float32"),
    "mvq float16": ssvq.MVQ(3, 6, (1, 3), codebook_dtype="float16"),
}
CHANNELS = {
    "ssvq": ssvq.SSVQ(4, 8, channel_scale="float16"),
    "ssvq int8": ssvq.SSVQ(5, 3, codebook_dtype="int8", channel_scale="bfloat16"),
    "vq": ssvq.VQ(3, 5, channel_scale="bfloat16"),
    "vq int8": ssvq.VQ(3, 5, codebook_dtype="int8", channel_scale="float32"),
    "mvq": ssvq.MVQ(4, 8, (2, 4), channel_scale="float16"),
}
SIGNS = {
    "parity": ssvq.SSVQ(4, 8, sign_code="parity"),
    "parity of 3": ssvq.SSVQ(5, 3, codebook_dtype="int8", sign_code="parity"),
    "hamming": ssvq.SSVQ(8, 8, sign_code="hamming"),
    "hamming of 16": ssvq.SSVQ(2, 16, channel_scale="float16", sign_code="hamming"),
}
WEIGHTS = {  # shape, dtype, axis
    "dense": ((27, 13), "float32", 0),
    "conv": ((3, 3, 5, 24), "bfloat16", 2),
    "depthwise": ((3, 3, 1, 41), "float16", 3),
    "embedding": ((31, 12), "float32", 1),
    "vector": ((310,), "float32", 0),
}


def example1():
    kernel = SSVQWeight(
        codec=ssvq.SSVQ(2, 4),
        shape=(6, 2),
        dtype=jnp.dtype("float32"),
        axis=0,
        codebook=jnp.array([[0.5, 1, 1.5, 2], [0.25, 0.25, 0.75, 0.75]], jnp.float16),
        codes=jnp.array([[0, 1], [1, 0]], jnp.uint8),
        signs=jnp.array([[[0b1000], [0b0011]], [[0], [0b10]]], jnp.uint8),
    )
    return {"kernel": kernel, "bias": np.array([1, -2], np.float32)}


def example2():
    mvq = MVQWeight(
        codec=ssvq.MVQ(3, 4, (2, 4)),
        shape=(4, 3),
        dtype=jnp.dtype("float32"),
        axis=0,
        codebook=jnp.array(
            [[1, 2, 3, 4], [-1, -2, -3, -4], [127, 0, 0, -127]], jnp.int8
        ),
        scale=jnp.float32(0.5),
        codes=jnp.array([[2, 0, 1]], jnp.uint8),
        mask=jnp.array([[[0b1001], [0b0011], [0b1100]]], jnp.uint8),
    )
    uniform = UniformWeight(
        codec=ssvq.Uniform(3),
        shape=(3, 2),
        dtype=jnp.dtype("bfloat16"),
        axis=0,
        scale=jnp.array([0.5, 0.25], jnp.float16),
        codes=jnp.array([[1, -4], [3, 0], [-2, 2]], jnp.int8),
    )
    return [mvq, uniform]


def example3():
    node = VQWeight(
        codec=ssvq.VQ(2, 2, channel_scale="float16"),
        shape=(4, 3),
        dtype=jnp.dtype("float32"),
        axis=0,
        codebook=jnp.array([[1, -1], [0.5, 1.5]], jnp.float16),
        channel_scale=jnp.array([1, 2, 0.25], jnp.float16),
        codes=jnp.array([[0, 1, 1], [1, 0, 0]], jnp.uint8),
    )
    return {"kernel": node}


def codecs():
    rng = np.random.default_rng(0)
    tree = {"odd/~key": ({3: np.float64(1.5), 10: None}, []), "empty": {}}
    for number, (name, codec) in enumerate(CODECS.items()):
        nodes = {}
        for weight, (shape, dtype, axis) in WEIGHTS.items():
            values = jnp.asarray(rng.laplace(size=shape), jnp.dtype(dtype))
            key = jax.random.key(number)
            small = getattr(codec, "codewords", 2) > 200 and weight != "vector"
            if not small or weight == "conv":
                nodes[weight] = ssvq.encode(codec, values, key=key, axis=axis)
        tree[name] = nodes
    dtypes = "bool u1 i1 u2 i2 f2 bfloat16 u4 i4 f4 u8 i8 f8".split()
    tree["plain"] = [np.arange(3).astype(jnp.dtype(dtype)) for dtype in dtypes]
    return tree


def later(codecs):
    """Codecs with options that came after the first files."""
    rng = np.random.default_rng(1)
    weights = {**WEIGHTS, "attention": ((12, 2, 9), "float32", 0)}
    tree = {}
    for number, (name, codec) in enumerate(codecs.items()):
        tree[name] = {}
        for weight, (shape, dtype, axis) in weights.items():
            values = jnp.asarray(rng.laplace(size=shape), jnp.dtype(dtype))
            key = jax.random.key(number)
            tree[name][weight] = ssvq.encode(codec, values, key=key, axis=axis)
    return tree


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    ssvq.save(folder / "example1.ssvq.safetensors", example1())
    ssvq.save(folder / "example2.ssvq.safetensors", example2(), alignment=16)
    ssvq.save(folder / "example3.ssvq.safetensors", example3())
    trees = {"codecs": codecs(), "channels": later(CHANNELS), "signs": later(SIGNS)}
    for name, tree in trees.items():
        path = folder / f"{name}.ssvq.safetensors"
        ssvq.save(path, tree, metadata={"note": "version 1"})
        file = ssvq.load(path, lazy=True)
        decoded = {leaf: np.asarray(ssvq.decode(file[leaf])) for leaf in file}
        save_file(decoded, folder / f"{name}.decoded.safetensors")
