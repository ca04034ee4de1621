"""How the operands of a workload lie in memory: bytes by kind, codewords, signs."""

import collections
import dataclasses
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax.numpy as jnp

from ssvq_jax.accelerator.workloads import MatMul
from ssvq_jax.codecs import Codec, is_compressed
from ssvq_jax.codecs.codec import FieldKind
from ssvq_jax.export import PackedFile, load
from ssvq_jax.export.description import Entry
from ssvq_jax.export.names import original_name
from ssvq_jax.tree.paths import flatten

WEIGHT_KINDS = (*get_args(FieldKind), "padding")
"""Kinds of bytes of stored weights; "padding" is what aligns them in the file."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """One operand in memory.

    Attributes:
      streamed: Bytes by kind that are read tile by tile.
      codebook: Bytes of codebook and scales, read once per matrix.
      blocks: Blocks to look up; 0 where weights pass the decoder by.
      signed: Whether the decoder negates weights by a sign bit.
      checks: Signs that are not stored: they follow from others of their block.
    """

    streamed: Mapping[str, int]
    codebook: int = 0
    blocks: int = 0
    signed: bool = False
    checks: int = 0

    @property
    def nbytes(self) -> int:
        """All its bytes."""
        return self.codebook + sum(self.streamed.values())

    @classmethod
    def of(cls, entry: Entry) -> "Stored":
        """What a packed file stores of a parameter."""
        sizes: collections.Counter[str] = collections.Counter()
        for field in entry.fields:
            sizes[field.kind] += field.nbytes
        codebook = sizes.pop("codebooks", 0)
        counts = {field.name: field.count for field in entry.fields}
        blocks = counts["codes"] if "codebook" in counts else 0
        signed = "signs" in counts
        checks = math.prod(entry.shape) - counts["signs"] if signed else 0
        return cls(dict(sizes), codebook, blocks, signed, checks)


def resolve(workload: Sequence[MatMul], weights: Any) -> list[Stored | None]:
    """The operand of every product; `None` for activations.

    Args:
      workload: Products.
      weights: "int8" or "float32"; a packed file, open or by its path, or a tree of
        compressed weights, whose parameters have the products' names; or a codec, for
        what it would store of every matrix that has as many blocks as codewords (int8
        for the others).

    Raises:
      TypeError: Weights that are none of these.
      OSError, FormatError: A file that cannot be read.
      ValueError: A parameter that is missing, or of another size than its product.
    """
    if isinstance(weights, str) and weights in ("int8", "float32"):
        size = jnp.dtype(weights).itemsize
        return [
            None
            if product.weights is None
            else Stored({"weights": size * product.weight_count})
            for product in workload
        ]
    if isinstance(weights, Codec):
        return [_by_codec(product, weights) for product in workload]
    if isinstance(weights, str | os.PathLike):
        if not os.path.exists(weights):
            raise FileNotFoundError(
                f"weights: {os.fspath(weights)!r} is neither 'int8', 'float32' nor the "
                "path of a packed file"
            )
        weights = load(weights, lazy=True)
    if isinstance(weights, PackedFile):
        found = _of_file(weights)
    elif isinstance(weights, Mapping | list | tuple) or is_compressed(weights):
        found = _of_tree(weights)
    else:
        raise TypeError(
            "weights: expected 'int8', 'float32', a codec, a packed file or a tree, "
            f"got {type(weights).__name__}"
        )
    return [_find(product, found) for product in workload]


def _by_codec(product: MatMul, codec: Codec) -> Stored | None:
    if product.weights is None:
        return None
    # Depthwise: blocks run along the channels, which are the outputs.
    shape, axis = (product.k * product.n, 1, product.count), 2
    if product.count == 1:
        shape, axis = (product.k, product.n), 0
    if not codec.fits(shape, axis):
        return Stored({"weights": product.weight_count})
    return Stored.of(Entry(codec, "float32", axis, shape))


def _of_file(file: PackedFile) -> "dict[str, tuple[tuple[int, ...], Stored]]":
    found = {}
    for name in file:
        tensor, shape = file.tensors[name], file.tensors[name].shape
        stored = Stored({"weights": tensor.nbytes})
        if name in file.entries:
            entry = file.entries[name]
            shape, stored = entry.shape, Stored.of(entry)
            padding = tensor.nbytes - stored.nbytes
            if padding:
                streamed = {**stored.streamed, "padding": padding}
                stored = dataclasses.replace(stored, streamed=streamed)
        found[original_name(name)] = shape, stored
    return found


def _of_tree(tree: Any) -> "dict[str, tuple[tuple[int, ...], Stored]]":
    found = {}
    for name, leaf in flatten(tree, is_compressed)[0].items():
        if is_compressed(leaf):
            dtype = jnp.dtype(leaf.dtype).name
            entry = Entry(leaf.codec, dtype, leaf.axis, tuple(leaf.shape))
            found[name] = entry.shape, Stored.of(entry)
        else:
            shape, itemsize = jnp.shape(leaf), jnp.result_type(leaf).itemsize
            found[name] = shape, Stored({"weights": math.prod(shape) * itemsize})
    return found


def _find(
    product: MatMul, found: "Mapping[str, tuple[tuple[int, ...], Stored]]"
) -> Stored | None:
    if product.weights is None:
        return None
    if product.weights not in found:
        near = difflib.get_close_matches(product.weights, found, n=5, cutoff=0.0)
        raise ValueError(
            f"{product.weights}: not in the weights; near it: "
            f"{', '.join(near) or 'nothing'}"
        )
    shape, stored = found[product.weights]
    outputs = product.n if product.count == 1 else product.count
    ends = (*shape[:1], *shape[-1:])  # outputs are first in PyTorch, last in Flax
    if math.prod(shape) != product.weight_count or outputs not in (*ends, 1):
        raise ValueError(
            f"{product.weights}: shape {shape}, but {product.name} needs "
            f"{product.count} x {product.k} x {product.n} weights"
        )
    return stored
