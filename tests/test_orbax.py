"""Compressed trees through Orbax checkpoints."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ssvq_jax as ssvq

CODECS = [
    ssvq.SSVQ(4, 8),
    ssvq.SSVQ(4, 8, learn_signs=False, codebook_dtype="int8"),
    ssvq.VQ(4, 4, codebook_dtype="bfloat16"),
    ssvq.MVQ(4, 8, (2, 4)),
    ssvq.Uniform(3),
    ssvq.SSVQ(4, 8, channel_scale="bfloat16"),
]


def _tree(codec, rng, key, sharding=None):
    kernel = jnp.asarray(rng.normal(size=(64, 32)), "f4")
    params = {"kernel": jax.device_put(kernel, sharding), "bias": jnp.arange(3.0)}
    return ssvq.compress(params, [ssvq.Rule("kernel", codec)], key=key)


def _restored(tree, folder, abstract=None):
    if abstract is None:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "checkpoint", abstract)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
@pytest.mark.usefixtures("standard_promotion", "unchecked_types")
def test_a_tree_comes_back_unchanged(codec, tmp_path, rng, key):
    for number, step in enumerate((lambda tree: tree, ssvq.finalize)):
        tree = step(_tree(codec, rng, key))
        restored = _restored(tree, tmp_path / str(number))
        chex.assert_trees_all_equal_structs(restored, tree)
        chex.assert_trees_all_equal_dtypes(restored, tree)
        chex.assert_trees_all_equal(restored, tree)
        ssvq.save(tmp_path / "a", tree)
        ssvq.save(tmp_path / "b", restored)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.usefixtures("standard_promotion", "unchecked_types")
def test_a_sharded_tree_comes_back_sharded(axis_type, tmp_path, rng, key):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    tree = _tree(ssvq.SSVQ(4, 8), rng, key, sharding)
    restored = _restored(tree, tmp_path)
    chex.assert_trees_all_equal(restored, tree)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
        assert a.sharding == b.sharding
    np.testing.assert_array_equal(
        ssvq.decode(restored)["kernel"], ssvq.decode(tree)["kernel"]
    )


@pytest.mark.parametrize("count", [8, 2])
@pytest.mark.usefixtures("standard_promotion", "unchecked_types")
def test_a_sharded_tree_comes_back_on_another_number_of_devices(
    count, tmp_path, rng, key
):
    split = PartitionSpec(None, "model")
    few, others = (
        NamedSharding(jax.make_mesh((n,), ("model",)), split) for n in (4, count)
    )
    for name, codec in (("signs", CODECS[1]), ("mask", CODECS[3])):
        tree = ssvq.finalize(_tree(codec, rng, key, few))
        assert getattr(tree["kernel"], name).sharding.is_equivalent_to(few, 3)

        def placed(leaf):
            spec = getattr(leaf.sharding, "spec", PartitionSpec())
            own = NamedSharding(others.mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own)

        restored = _restored(tree, tmp_path / name, jax.tree.map(placed, tree))
        chex.assert_trees_all_equal(restored, tree)
        found = getattr(restored["kernel"], name)
        assert found.sharding.is_equivalent_to(others, 3)
        np.testing.assert_array_equal(
            ssvq.decode(restored)["kernel"], ssvq.decode(tree)["kernel"]
        )


@pytest.mark.usefixtures("standard_promotion", "unchecked_types")
def test_the_state_of_freezing_comes_back_unchanged(tmp_path, rng, key):
    trainable, _ = ssvq.partition(_tree(ssvq.SSVQ(4, 8), rng, key))
    tx = optax.chain(optax.sgd(0.5), ssvq.freeze_signs(interval=2, threshold=0.001))
    state = tx.init(trainable)
    for _ in range(3):
        updates, state = tx.update(trainable, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    saved = {"trainable": trainable, "state": state}
    restored = _restored(saved, tmp_path)
    chex.assert_trees_all_equal(restored, saved)
