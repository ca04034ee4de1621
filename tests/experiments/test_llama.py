"""A tiny Llama against plain NumPy; its cache; its names and shards."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import ssvq_jax as ssvq
from experiments.models import checkpoint
from experiments.models.llama import Llama, LlamaConfig, rotate
from experiments.models.smollm2 import halves
from experiments.models.zoo import NETWORKS

pytestmark = pytest.mark.usefixtures("standard_promotion")

CONFIG = LlamaConfig(
    width=24, depth=2, heads=6, shared_heads=2, hidden=20, context=11, tied=False
)
VOCABULARY = 13


def _model(config=CONFIG, seed=0):
    return Llama(config, VOCABULARY, rngs=nnx.Rngs(seed))


def _hugging_face(model):
    """Its tensors with Hugging Face's names and layout."""
    tensors = {}
    for keys, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        array = np.array(variable[...])
        array = array.T if keys[-1] == "kernel" else array
        tensors[checkpoint.timm_name(keys)] = np.ascontiguousarray(array)
    return tensors


def _rotated(x, positions, theta):
    """Features as complex numbers, turned one by one."""
    result, half = np.empty_like(x), x.shape[-1] // 2
    for t, position in enumerate(positions):
        for i in range(half):
            turn = np.exp(1j * position * theta ** (-2 * i / x.shape[-1]))
            point = (x[:, t, :, i] + 1j * x[:, t, :, i + half]) * turn
            result[:, t, :, i], result[:, t, :, i + half] = point.real, point.imag
    return result


def _reference(tensors, config, tokens):
    """Logits by NumPy, a query at a time."""

    def norm(x, name):
        mean = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean + config.epsilon) * tensors[f"{name}.weight"]

    def heads(x, name, count):
        product = x @ tensors[f"{name}.weight"].T
        return product.reshape(*x.shape[:2], count, config.head)

    x = tensors["model.embed_tokens.weight"][tokens]
    positions = range(tokens.shape[1])
    for i in range(config.depth):
        name = f"model.layers.{i}"
        y = norm(x, f"{name}.input_layernorm")
        q = heads(y, f"{name}.self_attn.q_proj", config.heads)
        k = heads(y, f"{name}.self_attn.k_proj", config.shared_heads)
        v = heads(y, f"{name}.self_attn.v_proj", config.shared_heads)
        q, k = (_rotated(z, positions, config.theta) for z in (q, k))
        mixed = np.zeros_like(q)
        for head in range(config.heads):
            shared = head * config.shared_heads // config.heads
            for t in positions:
                scores = np.einsum("bf,bsf->bs", q[:, t, head], k[:, : t + 1, shared])
                weights = np.exp(scores / np.sqrt(config.head))
                weights /= weights.sum(axis=1, keepdims=True)
                mixed[:, t, head] = np.einsum(
                    "bs,bsf->bf", weights, v[:, : t + 1, shared]
                )
        x = x + mixed.reshape(x.shape) @ tensors[f"{name}.self_attn.o_proj.weight"].T
        y = norm(x, f"{name}.post_attention_layernorm")
        gate, up = (
            y @ tensors[f"{name}.mlp.{n}_proj.weight"].T for n in ("gate", "up")
        )
        hidden = gate / (1 + np.exp(-gate)) * up
        x = x + hidden @ tensors[f"{name}.mlp.down_proj.weight"].T
    head = "model.embed_tokens" if config.tied else "lm_head"
    return norm(x, "model.norm") @ tensors[f"{head}.weight"].T


def test_rotary_positions_against_plain_numpy(rng):
    x = rng.normal(size=(2, 5, 3, 8)).astype("f4")
    positions = np.array([0, 1, 7, 100, 5000])
    found = rotate(jnp.asarray(x), jnp.asarray(positions), 10_000.0)
    # Angles of thousands of radians are float32's: 5000 * 2^-24.
    np.testing.assert_allclose(found, _rotated(x, positions, 10_000.0), atol=2e-3)
    np.testing.assert_allclose(
        found[:, :3], _rotated(x[:, :3], positions[:3], 1e4), atol=1e-5
    )


def test_queries_of_gguf_turn_as_those_of_hugging_face(rng):
    weight = rng.normal(size=(12, 7)).astype("f4")
    inputs = rng.normal(size=7).astype("f4")
    ours = (halves(weight, 2) @ inputs).reshape(1, 1, 2, 6)
    turned = np.asarray(rotate(jnp.asarray(ours), jnp.array([3]), 100.0))[0, 0]
    pairs = (weight @ inputs).reshape(2, 3, 2)
    points = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(
        3j * 100.0 ** (-np.arange(3) / 3)
    )
    expected = np.concatenate([points.real, points.imag], axis=-1)
    np.testing.assert_allclose(turned, expected, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_against_plain_numpy(tied, rng):
    config = LlamaConfig(**{**vars(CONFIG), "tied": tied})
    model = _model(config)
    tokens = rng.integers(0, VOCABULARY, (2, 7))
    tensors = _hugging_face(model)
    # Larger weights than a start has, so that attention is not flat.
    tensors = {
        name: 8 * x if x.ndim == 2 else x + rng.normal(size=x.shape).astype("f4") / 3
        for name, x in tensors.items()
    }
    state = nnx.state(model, nnx.Param)
    for keys, variable in nnx.to_flat_state(state):
        array = tensors[checkpoint.timm_name(keys)]
        variable[...] = jnp.asarray(array.T if keys[-1] == "kernel" else array)
    nnx.update(model, state)
    expected = _reference(tensors, config, tokens)
    np.testing.assert_allclose(model(jnp.asarray(tokens)), expected, atol=2e-4)


def test_cached_attention_is_that_of_the_whole_sequence(rng):
    model = _model()
    tokens = jnp.asarray(rng.integers(0, VOCABULARY, (3, 11)))
    whole = model(tokens)
    cache = model.cache(3)
    for start, stop in ((0, 4), (4, 5), (5, 8), (8, 11)):
        logits, cache = model.extend(tokens[:, start:stop], cache)
        np.testing.assert_allclose(logits, whole[:, stop - 1], atol=1e-5)
    assert cache.length == 11
    with pytest.raises(ValueError, match="length: expected 1 to 11, got 12"):
        model.cache(3, 12)


def test_packed_kernels_multiply_as_they_are(key, rng):
    graphdef, params = nnx.split(_model(), nnx.Param)
    rules = [ssvq.Rule(".*kernel", ssvq.SSVQ(4, 8))]
    packed = ssvq.finalize(ssvq.compress(nnx.to_pure_dict(params), rules, key=key))
    tokens = jnp.asarray(rng.integers(0, VOCABULARY, (1, 5)))
    run = jax.jit(lambda params: nnx.merge(graphdef, params)(tokens))
    np.testing.assert_allclose(run(packed), run(ssvq.decode(packed)), atol=1e-5)


def test_names_are_checked(tmp_path):
    tensors = _hugging_face(_model())
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    model = _model(seed=1)
    checkpoint.load(model, tmp_path)
    for name, array in _hugging_face(model).items():
        np.testing.assert_array_equal(array, tensors[name], name)
    save_file({n.replace("q_proj", "wq"): x for n, x in tensors.items()}, path)
    with pytest.raises(SystemExit, match="q_proj.weight is missing.*wq.weight is unk"):
        checkpoint.load(model, path)
    untied = _model(LlamaConfig(**{**vars(CONFIG), "tied": True}))
    save_file(tensors, path)
    with pytest.raises(SystemExit, match="lm_head.weight is unknown"):
        checkpoint.load(untied, path)


def _sharded(folder: pathlib.Path):
    tensors = _hugging_face(_model())
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(places.values()):
        part = {name: x for name, x in tensors.items() if places[name] == shard}
        save_file(part, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tensors, index


def test_shards(tmp_path):
    tensors, index = _sharded(tmp_path)
    for path in (tmp_path, index):
        model = _model(seed=1)
        checkpoint.load(model, path)
        found = _hugging_face(model)
        assert all(np.array_equal(found[name], x) for name, x in tensors.items())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(SystemExit, match="1 of 2 shards are missing: model-1"):
        checkpoint.load(model, index)


@pytest.mark.parametrize(
    ("name", "count"), [("smollm2_135m", 134_515_008), ("llama_books", 5_246_208)]
)
def test_number_of_parameters(name, count):
    model = nnx.eval_shape(lambda: NETWORKS[name].build(nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == count


@pytest.mark.parametrize("changes", [{"heads": 5}, {"shared_heads": 4}, {"heads": 24}])
def test_sizes_have_to_fit(changes):
    with pytest.raises(ValueError, match="expected"):
        LlamaConfig(**{**vars(CONFIG), **changes})
