"""Trained networks, from their files to packed ones and back."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import ssvq_jax as ssvq
from tests.shared import shared

RULES = [
    ssvq.Rule(
        r".*(Conv2d_0|Conv2d_1_depthwise|patch_embed.proj|head|classifier)\..*", None
    ),
    ssvq.Rule(r".*\.weight", ssvq.SSVQ(16, 8)),
]


def _flax(name, x):
    """PyTorch's layout to Flax's: OIHW to HWIO, (out, in) to (in, out)."""
    return jnp.asarray(
        x.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(x.ndim, range(x.ndim)))
    )


def _load(name):
    tensors = load_file(shared(f"models/{name}.safetensors"))
    # One-dimensional weights are those of norms.
    return {
        f"{k}{'.norm' if v.ndim == 1 and k.endswith('weight') else ''}": _flax(k, v)
        for k, v in tensors.items()
    }


@pytest.mark.parametrize("name", ["mobilenet_v1_025", "deit_tiny_cifar10"])
def test_compress_save_and_load(name, tmp_path, key):
    params = _load(name)
    compressed = ssvq.compress(params, RULES, key=key)
    report = ssvq.report(compressed, params)
    rows = [row for row in report.rows if row.error is not None]
    assert len(rows) == (25 if name.startswith("mobilenet") else 48)
    assert report.compressed.bits == sum(row.bits for row in rows)
    for row in rows:
        # The blocks of 8 with the codebook's 2,048 bits, and 4 bits more per padding.
        blocks = row.weights / 8
        if row.shape[-2] % 8 == 0 or row.shape[-2] == 1 and row.shape[-1] % 8 == 0:
            assert row.bits == 4 * blocks + row.weights + 16 * 8 * 16
        assert row.error < 0.35, row
    path = tmp_path / "model.ssvq.safetensors"
    ssvq.save(path, compressed)
    decoded = ssvq.decode(ssvq.load(path))
    chex.assert_trees_all_equal(decoded, ssvq.decode(ssvq.finalize(compressed)))
    np.testing.assert_allclose(path.stat().st_size, report.model.bits / 8, rtol=0.05)


def test_magnitudes_need_fewer_codewords(key):
    """SSVQ's 16 codewords of 8 against VQ's 64 of 4, both 1.5 bits.

    On the trained DeiT both err about alike; 16 signed codewords of 8 are far worse.
    """
    params = _load("deit_tiny_cifar10")
    weight = params["blocks.5.mlp.fc1.weight"]

    def error(codec):
        difference = ssvq.decode(ssvq.encode(codec, weight, key=key)) - weight
        return float(jnp.sum(difference**2) / jnp.sum(weight**2))

    ours, same_bits = error(ssvq.SSVQ(16, 8)), error(ssvq.VQ(64, 4))
    assert ours < 1.15 * same_bits
    assert ours < 0.5 * error(ssvq.VQ(16, 8))
