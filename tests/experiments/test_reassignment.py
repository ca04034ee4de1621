"""Codes that move, what is held, and features that are matched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssvq_jax as ssvq
from experiments.training import reassignment
from experiments.training.config import Compression, Optimization, Reassignment
from experiments.training.log import read
from experiments.training.program import Program
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")


@pytest.mark.parametrize(
    "codec",
    [ssvq.VQ(8, 4), ssvq.SSVQ(8, 4), ssvq.SSVQ(8, 4, learn_signs=False)],
    ids=lambda codec: codec.describe(),
)
def test_codes_are_the_nearest_and_learned_signs_stay(codec, key, rng):
    first, target = (rng.normal(size=(16, 8)).astype(np.float32) for _ in range(2))
    params = ssvq.compress({"kernel": first}, [ssvq.Rule(".*", codec)], key=key)
    found = reassignment.reassigned(params, {"kernel": jnp.asarray(target)})["kernel"]
    node = params["kernel"]
    blocks = target.reshape(4, 4, 8).transpose(0, 2, 1)  # blocks run along the inputs
    if isinstance(codec, ssvq.SSVQ):
        signs = first >= 0 if codec.learn_signs else target >= 0
        decoded = np.asarray(found.decode())
        assert np.array_equal(decoded >= 0, signs)
        signs = np.where(signs, 1, -1).reshape(4, 4, 8).transpose(0, 2, 1)
        blocks = np.maximum(signs * blocks, 0)
    errors = np.square(blocks[:, :, None] - np.asarray(node.codebook)).sum(-1)
    np.testing.assert_array_equal(found.codes, errors.argmin(-1))
    np.testing.assert_array_equal(found.codebook, node.codebook)


def test_gradients_reach_the_targets_and_values_stay(key, rng):
    weight = jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)
    params = ssvq.compress(
        {"kernel": weight, "bias": weight[0]},
        [ssvq.Rule("k.*", ssvq.VQ(4, 4))],
        key=key,
    )
    targets = reassignment.targets(params, {"kernel": 3 * weight, "bias": weight[0]})
    decoded = ssvq.decode(params)
    assert set(targets) == {"kernel"}

    def loss(targets):
        return jnp.sum(reassignment.through(decoded, targets)["kernel"] ** 2)

    value, gradient = jax.value_and_grad(loss)(targets)
    assert value == jnp.sum(decoded["kernel"] ** 2)
    np.testing.assert_allclose(gradient["kernel"], 2 * decoded["kernel"], rtol=1e-6)


def _experiment(folder, **options):
    rule = ssvq.Rule("blocks/.*/kernel", ssvq.VQ(8, 4))
    return tiny.compressed(
        folder,
        optimization=Optimization(epochs=1, batch=48, **options),
        compression=Compression(
            rules=(rule,), reassignment=Reassignment(checks=3, rate=3e-2)
        ),
        distill=True,
    )


def test_a_run_with_all_of_it_and_its_continuation(tmp_path, monkeypatch):
    experiment = _experiment(tmp_path, held="head/.*|blocks/0/mlp.*", features=1.0)
    result = tiny.execute(experiment, tmp_path / "run")
    assert 0 < result["moved"] < 1
    before = tiny.tensors(tmp_path / "weights.safetensors")
    after = tiny.tensors(tmp_path / "run" / "model.ssvq.safetensors")
    assert np.array_equal(after["head.kernel"], before["head.kernel"])
    assert np.array_equal(
        after["blocks.0.mlp.fc1.bias"], before["blocks.0.mlp.fc1.bias"]
    )
    assert not np.array_equal(after["cls_token"], before["cls_token"])
    model = tiny.NETWORK.build(nnx.Rngs(1))
    start = ssvq.decode(ssvq.finalize(Program(experiment, model, 20).compressed()))
    for name, kept in (("mlp.fc1", True), ("attn.qkv", False)):
        part, layer = name.split(".")
        same = np.array_equal(
            after[f"blocks.0.{name}.kernel"], start["blocks"][0][part][layer]["kernel"]
        )
        assert same == kept, name
    # Stopped after its checkpoint, and taken up: codes and what they are chosen for.
    reassigned = Program.reassigned

    def stopped(program, state):
        if state.step == 12:
            raise KeyboardInterrupt
        return reassigned(program, state)

    monkeypatch.setattr(Program, "reassigned", stopped)
    with pytest.raises(KeyboardInterrupt):
        tiny.execute(experiment, tmp_path / "again")
    monkeypatch.undo()
    tiny.execute(experiment, tmp_path / "again")
    lines = [read(tmp_path / name / "metrics.jsonl")[-1] for name in ("run", "again")]
    assert lines[0]["loss"] == lines[1]["loss"]
    assert lines[0]["moved"] == lines[1]["moved"]


def test_features_are_the_outputs_way_and_count_in_the_loss(tmp_path):
    model = tiny.NETWORK.build(nnx.Rngs(1))
    images = np.ones((2, 8, 8, 1), np.float32)
    features = model.features(images)
    np.testing.assert_array_equal(model.outputs(features[-1]), model(images))
    losses = []
    for weight in (0.0, 2.0):
        program = Program(_experiment(tmp_path, features=weight), model, 2)
        other = jax.tree.map(lambda x: x + 0.01, program.params)
        batch = {"image": images}
        losses.append(program.loss(other, {}, batch, teacher=(program.params, {}))[0])
    own, wanted = (
        nnx.merge(nnx.split(model, nnx.Param)[0], params).features(
            tiny.NETWORK.inputs(batch)
        )
        for params in (other, program.params)
    )
    error = np.mean(
        [np.sum((a - b) ** 2) / np.sum(b**2) for a, b in zip(own, wanted, strict=True)]
    )
    assert losses[1] - losses[0] == pytest.approx(2 * error, rel=1e-4)


def test_mistakes_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="in distillation alone"):
        dataclasses.replace(_experiment(tmp_path, features=1.0), distill=False)
    with pytest.raises(SystemExit, match="held: heads matches no parameter, such as"):
        tiny.execute(_experiment(tmp_path, held="heads"), tmp_path / "run")
