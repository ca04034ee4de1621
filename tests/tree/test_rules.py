import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from ssvq_jax.core import kmeans, lloyd


def _params(rng):
    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "blocks": [
            {"dense": {"kernel": array(32, 16), "bias": array(16)}},
            {"dense": {"kernel": array(16, 32), "bias": array(32)}},
        ],
        "conv": {"kernel": array(3, 3, 8, 16)},
        "depthwise": {"kernel": array(3, 3, 1, 16)},
        "embed": {"embedding": array(50, 24)},
        "attention": {
            "query": {"kernel": array(32, 3, 16)},
            "out": {"kernel": array(3, 16, 32)},
            "key": {"kernel": array(2, 32, 3, 16)},  # a stack of two layers
        },
        "step": jnp.int32(3),
    }


def test_first_match_wins_and_the_rest_stays(rng, key):
    params = _params(rng)
    rules = [
        ssvq.Rule("blocks/0/.*", None),
        ssvq.Rule("blocks/.*/kernel", ssvq.VQ(4, 4)),
        ssvq.Rule(".*/(kernel|embedding)", ssvq.SSVQ(4, 8)),
    ]
    compressed = ssvq.compress(params, rules, key=key)
    chex.assert_trees_all_equal(compressed["blocks"][0], params["blocks"][0])
    assert compressed["blocks"][1]["dense"]["kernel"].codec == ssvq.VQ(4, 4)
    assert compressed["conv"]["kernel"].codec == ssvq.SSVQ(4, 8)
    assert compressed["step"] == 3
    decoded = ssvq.decode(compressed)
    chex.assert_trees_all_equal_shapes_and_dtypes(decoded, params)
    whole = ssvq.Rule(".*kernel", ssvq.VQ(4, 4))
    assert not whole.matches("a/kernel/b")


@pytest.mark.parametrize(
    ("path", "axis"),
    [
        ("conv/kernel", 2),
        ("depthwise/kernel", 3),
        ("embed/embedding", 1),
        ("attention/query/kernel", 0),
        ("attention/key/kernel", 1),
        ("attention/out/kernel", 1),
    ],
)
def test_blocks_run_along_the_contracted_axis(path, axis, rng, key):
    compressed = ssvq.compress(
        _params(rng), [ssvq.Rule(path, ssvq.SSVQ(2, 4))], key=key
    )
    node = compressed
    for name in path.split("/"):
        node = node[name]
    assert node.axis == axis


def test_axis_of_a_rule(rng, key):
    params = {"transposed": jnp.ones((6, 32))}
    rules = [ssvq.Rule("transposed", ssvq.SSVQ(2, 8), axis=-1)]
    node = ssvq.compress(params, rules, key=key)["transposed"]
    assert (node.axis, node.codes.shape) == (1, (6, 4))


def test_a_parameter_does_not_depend_on_its_neighbours(rng, key):
    params = _params(rng)
    rules = [ssvq.Rule(".*/kernel", ssvq.SSVQ(4, 4))]
    all_of_them = ssvq.compress(params, rules, key=key)
    alone = ssvq.compress({"conv": params["conv"]}, rules, key=key)
    chex.assert_trees_all_equal(alone["conv"], all_of_them["conv"])
    direct = ssvq.encode(
        ssvq.SSVQ(4, 4),
        params["conv"]["kernel"],
        key=jax.random.fold_in(key, zlib.crc32(b"conv/kernel")),
    )
    chex.assert_trees_all_equal(direct, alone["conv"]["kernel"])


def test_importance_by_path(rng, key):
    params = _params(rng)
    rules = [ssvq.Rule(".*/kernel", ssvq.SSVQ(4, 4))]
    importance = {"conv": {"kernel": jnp.asarray(rng.random((3, 3, 8, 16)), "f4")}}
    plain = ssvq.compress(params, rules, key=key)
    weighted = ssvq.compress(params, rules, key=key, importance=importance)
    chex.assert_trees_all_equal(plain["blocks"], weighted["blocks"])
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(plain["conv"], weighted["conv"])


def test_fifty_tensors_do_not_compile_kmeans_fifty_times(rng, key):
    sizes = np.unique(np.geomspace(8, 700, 50).astype(int))
    params = {f"{i}": jnp.asarray(rng.normal(size=(16, i)), "f4") for i in sizes}
    before = lloyd._wide_lloyd._cache_size(), kmeans._seed._cache_size()
    ssvq.compress(params, [ssvq.Rule(".*", ssvq.SSVQ(7, 8))], key=key)
    assert lloyd._wide_lloyd._cache_size() - before[0] <= 3
    assert kmeans._seed._cache_size() - before[1] <= 1


def test_rule_that_matches_nothing_lists_near_paths(rng, key):
    with pytest.raises(ValueError, match="'conv/kernal' matches no.*conv/kernel"):
        ssvq.compress(_params(rng), [ssvq.Rule("conv/kernal", ssvq.SSVQ())], key=key)
    with pytest.raises(ValueError, match="importance: 'nope' matches no"):
        ssvq.compress({"a": jnp.ones(4)}, [], key=key, importance={"nope": jnp.ones(4)})


@pytest.mark.parametrize(
    ("leaf", "error", "message"),
    [
        (jnp.ones((4, 4), jnp.int32), TypeError, "a/b: weight.*floating.*int32"),
        (jnp.ones((0, 4)), ValueError, r"a/b: weight.*\(0, 4\)"),
        (jnp.full((4, 4), jnp.nan), ValueError, "a/b: weight.*16 NaN"),
        (jnp.ones((4, 4)), ValueError, "a/b: codewords.*at most 4.*got 16"),
    ],
)
def test_errors_name_the_path(leaf, error, message, key):
    params = {"a": {"b": leaf}}
    with pytest.raises(error, match=message):
        ssvq.compress(params, [ssvq.Rule(".*", ssvq.SSVQ(16, 8))], key=key)


def test_compressing_twice_is_refused(key):
    rules = [ssvq.Rule(".*", ssvq.SSVQ(2, 4))]
    compressed = ssvq.compress({"a": jnp.ones((8, 4))}, rules, key=key)
    with pytest.raises(ValueError, match="a: compressed already, by SSVQ"):
        ssvq.compress(compressed, rules, key=key)


@pytest.mark.usefixtures("unchecked_types")
def test_bad_rules():
    with pytest.raises(ValueError, match=r"pattern: '\(' *"):
        ssvq.Rule("(", None)
    for rules in (ssvq.Rule(".*", None), [(".*", None)]):
        with pytest.raises(TypeError, match="rules: expected a sequence of Rule"):
            ssvq.compress({"a": jnp.ones(4)}, rules, key=jax.random.key(0))
    with pytest.raises(TypeError, match="codec.*'ssvq'"):
        ssvq.Rule(".*", "ssvq")  # type: ignore[arg-type]


def test_under_jit_values_are_not_checked_but_shapes_are(key):
    rules = [ssvq.Rule(".*", ssvq.SSVQ(2, 4))]

    def roundtrip(params):
        return ssvq.decode(ssvq.compress(params, rules, key=key))

    params = {"a": jax.random.normal(key, (8, 4))}
    np.testing.assert_allclose(
        jax.jit(roundtrip)(params)["a"], roundtrip(params)["a"], rtol=1e-5
    )
    with pytest.raises(ValueError, match="a: codewords.*at most 1"):
        jax.jit(roundtrip)({"a": jnp.ones((4, 1))})
