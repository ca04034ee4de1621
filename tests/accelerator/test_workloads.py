"""Models, and the files and trees that hold their weights."""

import math

import jax
import jax.numpy as jnp
import pytest

import ssvq_jax as ssvq
from ssvq_jax import accelerator as acc
from tests.shared import shared

DEIT = acc.workloads.deit_tiny()
SSVQ = ssvq.SSVQ(16, 8, codebook_dtype="int8")


def test_a_packed_file_and_a_tree(tmp_path, rng, key):
    workload = [
        acc.MatMul("a", 20, 64, 48, weights="a/kernel"),
        acc.MatMul("scores", 20, 48, 20),
        acc.MatMul("b", 20, 48, 10, weights="b/kernel"),
    ]
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(64, 48)), "f4")},
        "b": {"kernel": jnp.asarray(rng.normal(size=(48, 10)), "f4")},
    }
    tree = ssvq.compress(params, [ssvq.Rule("a/.*", SSVQ)], key=key)
    path = tmp_path / "x"
    ssvq.save(path, tree)
    config = acc.Config(burst_bytes=1)
    reports = [
        acc.simulate(workload, config, weights)
        for weights in (path, str(path), ssvq.load(path, lazy=True), tree)
    ]
    for report in reports:
        assert report == reports[0]
        file = ssvq.load(path, lazy=True)
        first, _, last = report.layers
        assert first.dram_bytes == file.tensors["a/kernel"].nbytes
        assert first.traffic["codes"] == 64 * 48 // 8 // 2
        assert first.traffic["signs"] == 64 * 48 // 8
        assert first.traffic["codebooks"] == 16 * 8 + 4
        assert last.traffic == {"weights": 4 * 480}
    ssvq.save(path, tree, alignment=64)
    file = ssvq.load(path, lazy=True)
    first = acc.simulate(workload, config, file).layers[0]
    assert first.dram_bytes == file.tensors["a/kernel"].nbytes
    assert first.traffic["padding"] == 60
    for wrong, message in (
        (acc.MatMul("c", 1, 2, 3, weights="c/kernel"), "c/kernel: not in the weights"),
        (acc.MatMul("c", 1, 2, 3, weights="b/kernel"), r"b/kernel: shape \(48, 10\), "),
        (acc.MatMul("c", 1, 24, 20, weights="b/kernel"), r"b/kernel: shape \(48, 10\)"),
    ):
        with pytest.raises(ValueError, match=message):
            acc.simulate([wrong], config, path)


def test_a_trained_model_in_its_file(tmp_path):
    from safetensors.numpy import load_file

    tensors = load_file(shared("models/deit_tiny_cifar10.safetensors"))
    shapes = {name: x.shape for name, x in tensors.items()}
    workload = acc.workloads.vit_of(shapes)
    assert workload == acc.workloads.deit_tiny(32, 8, 10)
    names = {p.weights for p in workload if p.weights}
    rules = [ssvq.Rule(r".*(qkv|proj|fc1|fc2)\.weight", SSVQ, axis=1)]
    weights = {name: tensors[name] for name in names}
    path = tmp_path / "x"
    ssvq.save(path, ssvq.compress(weights, rules, key=jax.random.key(0)))
    file = ssvq.load(path, lazy=True)
    report = acc.simulate(workload, acc.Config(burst_bytes=1), file)
    assert report.dram_bytes == sum(file.tensors[name].nbytes for name in names)


def test_models():
    assert sum(p.macs for p in DEIT) == 1_253_683_200
    assert sum(p.weight_count for p in DEIT) == 5_647_872
    assert sum(p.weights is not None for p in DEIT) == 50
    for model, name in (
        (acc.workloads.efficientnet_lite0(), "efficientnet_lite0"),
        (acc.workloads.mobilenet_v2(), "mobilenet_v2_100"),
    ):
        from safetensors import safe_open

        with safe_open(shared(f"models/{name}.safetensors"), "np") as file:
            shapes = {n: file.get_slice(n).get_shape() for n in file.keys()}
        found = {p.weights: p.weight_count for p in model}
        assert found == {n: math.prod(s) for n, s in shapes.items() if len(s) > 1}
    llama = acc.workloads.llama()
    assert sum(p.weight_count for p in llama) == 134_479_872
    with pytest.raises(ValueError, match="pos_embed: missing"):
        acc.workloads.vit_of({"patch_embed.proj.weight": (1, 1, 1, 1)})
    shapes = {
        "patch_embed.proj.weight": (64, 3, 4, 4),
        "pos_embed": (1, 10, 64),
        "head.weight": (10, 64),
        "blocks.0.attn.qkv.weight": (192, 64),
    }
    assert len(acc.workloads.vit_of(shapes)) == 8
    for wrong in (
        {"pos_embed": (1, 11, 64)},
        {"pos_embed": (10,)},
        {"patch_embed.proj.weight": (64, 48)},
        {"pos_embed": (1, (1 << 36) + 1, 0)},
        {"head.weight": ()},
        {"head.weight": (0, 64)},
    ):
        with pytest.raises(ValueError, match="no timm vision transformer with one"):
            acc.workloads.vit_of({**shapes, **wrong})
    with pytest.raises(ValueError, match="heads that divide the width"):
        acc.workloads.vit(192, 1, 5)
    with pytest.raises(ValueError, match="heads: expected at least 1"):
        acc.workloads.vit(192, 1, 0)


def test_a_llama_by_its_shapes():
    def shapes(workload):
        """PyTorch's layout, of what `llama` says."""
        return {p.weights: (p.n, p.k) for p in workload if p.weights}

    tied = acc.workloads.llama()
    assert acc.workloads.llama_of(shapes(tied)) == tied
    small = acc.workloads.llama(128, 2, 2, 1, 256, 100, tied=False)
    found = shapes(small) | {"model.embed_tokens.weight": (100, 128)}
    assert acc.workloads.llama_of(found) == small
    assert "lm_head.weight" in shapes(small)
    narrow = acc.workloads.llama(128, 2, 4, 2, 256, 100, 7, tied=False)
    assert acc.workloads.llama_of(found, head=32, context=7) == narrow
    name = "model.layers.0.self_attn.k_proj.weight"
    without = {x: shape for x, shape in found.items() if x != name}
    for wrong in (without, {**found, name: (64,)}):
        with pytest.raises(ValueError, match=f"{name}: expected two axes; no Llama"):
            acc.workloads.llama_of(wrong)
    for wrong in ((96, 128), (0, 128), (-64, 128), (256, 128)):
        with pytest.raises(ValueError, match="expected a Llama with heads of 64, got"):
            acc.workloads.llama_of({**found, name: wrong})
