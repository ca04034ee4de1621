"""Runs of experiments: what they learn, write, and take up again."""

import contextlib
import dataclasses
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import ssvq_jax as ssvq
from experiments.data import batches
from experiments.training import command, config, dry_run, records
from experiments.training.config import Compression, Optimization
from experiments.training.devices import Devices
from experiments.training.log import Log, read
from experiments.training.program import Program
from experiments.training.records import unpack
from experiments.training.run import Execution
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")


def test_float_training_learns_and_exports(tmp_path):
    experiment = dataclasses.replace(
        tiny.FLOAT, optimization=Optimization(epochs=12, batch=48, rate=3e-3)
    )
    result = tiny.execute(experiment, tmp_path / "float")
    assert result["steps"] == 240
    losses = tiny.losses(tmp_path / "float")
    assert len(losses) == 240 and np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])
    assert len(unpack(result["each"])) == 450
    assert result["test"]["top1"] > 200 / 450  # one in ten by chance
    assert result["test"]["top1"] <= result["test"]["top5"] <= 1
    assert result["test"]["top1"] == np.mean(unpack(result["each"]))
    assert list((tmp_path / "float" / "tensorboard").iterdir())
    # The export starts another run, which is then as good before its first step.
    control = dataclasses.replace(
        experiment,
        weights=str(tmp_path / "float" / "model.safetensors"),
        optimization=Optimization(epochs=0.1, batch=48),
    )
    before = tiny.execute(control, tmp_path / "control")["before"]
    assert before["top1"] == result["test"]["top1"]
    assert before["agreement"] == 1


@pytest.mark.parametrize(
    "codec",
    [
        ssvq.SSVQ(4, 8, learn_signs=False),
        ssvq.VQ(8, 4),
        ssvq.Uniform(2),
        ssvq.MVQ(4, 8, (2, 4)),
    ],
    ids=lambda codec: codec.describe(),
)
def test_every_method_is_tuned_and_exported(codec, tmp_path):
    compression = Compression(rules=(ssvq.Rule("blocks/.*/kernel", codec),))
    experiment = tiny.compressed(tmp_path, compression=compression)
    result = tiny.execute(experiment, tmp_path / "run")
    losses = tiny.losses(tmp_path / "run")
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    loaded = ssvq.load(tmp_path / "run" / "model.ssvq.safetensors")
    report = ssvq.report(loaded)
    assert result["bits_per_weight"] == report.compressed.bits_per_weight
    assert set(report.rows[0].path) and len(loaded) == 20


@pytest.mark.parametrize("parallel", ["data", "fully_sharded"])
def test_four_devices_give_the_loss_curve_of_one(parallel, tmp_path):
    experiment = tiny.compressed(tmp_path, distill=parallel == "data")
    tiny.execute(experiment, tmp_path / "one")
    tiny.execute(experiment, tmp_path / "four", devices=4, parallel=parallel)
    one, four = tiny.losses(tmp_path / "one"), tiny.losses(tmp_path / "four")
    assert len(one) == 40
    np.testing.assert_allclose(one, four, rtol=2e-5)


@pytest.mark.parametrize("parallel", ["data", "fully_sharded"])
def test_a_run_goes_on_with_other_devices(parallel, tmp_path, monkeypatch):
    experiment = tiny.compressed(tmp_path)
    tiny.execute(experiment, tmp_path / "one")
    write = Log.write
    for devices, last in ((8, 13), (4, 26), (2, None)):

        def stop(log, step, *arguments, last=last, **values):
            if step == last:
                raise KeyboardInterrupt
            write(log, step, *arguments, **values)

        monkeypatch.setattr(Log, "write", stop)
        with contextlib.suppress(KeyboardInterrupt):
            tiny.execute(
                experiment, tmp_path / "many", devices=devices, parallel=parallel
            )
    one, many = tiny.losses(tmp_path / "one"), tiny.losses(tmp_path / "many")
    assert len(many) == len(one) == 40
    np.testing.assert_allclose(one, many, rtol=2e-5)


def test_sharding_divides_what_is_large():
    devices = Devices.all("fully_sharded")
    tree = {"large": np.zeros((30, 256)), "odd": np.zeros(4097), "small": np.zeros(8)}
    specs = {k: s.spec for k, s in devices.sharding(tree).items()}
    assert tuple(specs["large"]) == (None, "data")
    assert tuple(specs["odd"]) == tuple(specs["small"]) == ()


def test_a_batch_that_devices_do_not_divide_is_refused(tmp_path):
    options = Optimization(epochs=1, batch=26)
    experiment = dataclasses.replace(tiny.FLOAT, optimization=options)
    with pytest.raises(SystemExit, match="multiple of 4 .devices., got 26"):
        tiny.execute(experiment, tmp_path / "run", devices=4)


def test_bfloat16_rounds_what_is_multiplied_and_keeps_float32(tmp_path):
    found = {}
    for dtype in ("float32", "bfloat16"):
        options = Optimization(epochs=1, batch=48, sign_rate=0.01, dtype=dtype)
        experiment = tiny.compressed(tmp_path, optimization=options)
        tiny.execute(experiment, tmp_path / dtype)
        stored = tiny.tensors(tmp_path / dtype / "model.ssvq.safetensors")
        found[dtype] = stored["head.kernel"]
    assert found["bfloat16"].dtype == np.float32
    np.testing.assert_allclose(found["bfloat16"], found["float32"], atol=0.02)
    assert not np.array_equal(found["bfloat16"], found["float32"])


def _moved(folder, **rates):
    """Kinds of parameters that a step moves with these rates, the others being 0."""
    zeros = {"rate": 0.0, "sign_rate": 0.0, "codebook_rate": 0.0}
    options = Optimization(epochs=0.1, batch=48, warmup=0.0, **(zeros | rates))
    experiment = tiny.compressed(folder, optimization=options)
    model = tiny.NETWORK.build(nnx.Rngs(1))
    program = Program(experiment, model, 2)
    before = program.initial(program.compressed())
    images = np.zeros((48, 8, 8, 1), np.uint8)
    images[:24] = 255
    batch = {"image": images, "label": np.arange(48) % 10}
    after, _ = jax.jit(program.step)(before, batch, None)
    labels = jax.tree.leaves(ssvq.label_tree(before.trainable))
    pairs = zip(
        labels,
        jax.tree.leaves(before.trainable),
        jax.tree.leaves(after.trainable),
        strict=True,
    )
    return {label for label, a, b in pairs if not np.array_equal(a, b)}


def test_every_kind_of_parameter_has_its_own_rate(tmp_path):
    assert _moved(tmp_path, rate=1e-3) == {"other"}
    assert _moved(tmp_path, sign_rate=1e-3) == {"sign"}
    assert _moved(tmp_path, codebook_rate=1e-3) == {"codebook"}


def test_distillation_looks_at_no_labels(tmp_path):
    experiment = tiny.compressed(tmp_path, distill=True)
    result = tiny.execute(experiment, tmp_path / "run")
    assert result["test"]["agreement"] > result["before"]["agreement"]
    program = Program(experiment, tiny.NETWORK.build(nnx.Rngs(1)), 2)
    teacher, images = (program.params, {}), np.ones((4, 8, 8, 1), np.uint8)
    losses = [
        program.loss(*teacher, {"image": images, "label": label}, teacher)[0]
        for label in (np.zeros(4, int), np.arange(4))
    ]
    assert losses[0] == losses[1]


def test_a_finished_run_is_left_alone_and_another_is_refused(tmp_path):
    experiment = tiny.compressed(tmp_path)
    result = tiny.execute(experiment, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert tiny.execute(experiment, tmp_path / "run") == result
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == lines
    other = dataclasses.replace(experiment, seed=1)
    with pytest.raises(SystemExit, match="another experiment: seed differ.*--output"):
        tiny.execute(other, tmp_path / "run")
    known = tmp_path / "run" / "experiment.json"
    known.write_text(json.dumps({"network": "tiny"}))
    with pytest.raises(SystemExit, match="earlier version, and cannot be continued"):
        tiny.execute(experiment, tmp_path / "run")


def test_signs_flip_and_freeze(tmp_path):
    options = Optimization(epochs=6, batch=48, sign_rate=0.03)
    experiment = tiny.compressed(tmp_path, optimization=options)
    tiny.execute(experiment, tmp_path / "run")
    lines = [x for x in read(tmp_path / "run" / "metrics.jsonl") if "frozen" in x]
    frozen = [line["frozen"] for line in lines]
    assert len(frozen) == 6 and frozen == sorted(frozen) and 0 < frozen[-1] < 1
    assert 0 < lines[-1]["flipped"] < 0.5
    assert all(0 < line["flips"] < line["flipped"] for line in lines)


def test_a_diverging_run_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    short = Optimization(epochs=0.1, batch=48)
    runs = {
        name: tiny.compressed(
            tmp_path, optimization=dataclasses.replace(short, rate=rate)
        )
        for name, rate in (("vq-inf", float("inf")), ("vq-low", 1e-3))
    }
    monkeypatch.setattr(config, "load", lambda path: runs)
    results = tmp_path / "results"
    options = command.Options(
        pathlib.Path("rates.py"),
        output=tmp_path / "runs",
        results=results,
        log_every=1,
        checkpoint_every=10,
    )
    for _ in range(2):  # the second time nothing runs
        with pytest.raises(SystemExit, match="not finite in vq-inf: lower"):
            command.execute(options, compressing=True)
    assert "diverged by step 2" in capsys.readouterr().out
    found = records.read(results / "rates.jsonl")
    assert list(found) == ["vq-inf", "vq-low"]
    assert found["vq-inf"]["diverged"] == 2
    assert found["vq-low"]["curve"][-1]["step"] == found["vq-low"]["steps"] == 2
    page = tmp_path / "runs" / "rates" / "vq-low" / "report.html"
    assert "frozen signs" in page.read_text()
    # One run alone renews its own line.
    path = results / "rates.jsonl"
    records.write(path, {name: {**x, "old": True} for name, x in found.items()})
    command.execute(dataclasses.replace(options, only="vq-low"), compressing=True)
    renewed = records.read(path)
    assert list(renewed) == ["vq-inf", "vq-low"]
    assert "old" in renewed["vq-inf"] and renewed["vq-low"] == found["vq-low"]


@pytest.mark.parametrize("compression", [None, tiny.FROZEN])
def test_parameters_that_are_not_finite_after_the_last_loss_are_no_result(
    compression, tmp_path
):
    options = Optimization(epochs=0.05, batch=48, rate=float("inf"), warmup=0.0)
    experiment = tiny.compressed(
        tmp_path, optimization=options, compression=compression
    )
    assert tiny.execute(experiment, tmp_path / "run")["diverged"] == 1


def test_a_set_of_other_classes_is_refused(tmp_path):
    network = tiny.NETWORK.with_classes(7)
    experiment = tiny.compressed(tmp_path, network=network)
    with pytest.raises(SystemExit, match="digits has 10 classes, tiny-7 7"):
        tiny.execute(experiment, tmp_path / "run")
    execution = Execution(devices=Devices.all("data"))
    with pytest.raises(SystemExit, match="digits has 10 classes, tiny-7 7"):
        dry_run.table("run", experiment, execution)


@pytest.mark.parametrize("which", ["validation", "test"])
def test_a_wrong_split_is_refused_before_the_training(which, tmp_path):
    data = dataclasses.replace(tiny.DIGITS, **{which: "tset"})
    experiment = dataclasses.replace(tiny.FLOAT, data=data)
    with pytest.raises(SystemExit, match="Unknown split 'tset'"):
        tiny.execute(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # so that it can be mended there
    execution = Execution(devices=Devices.all("data"))
    with pytest.raises(SystemExit, match="Unknown split 'tset'"):
        dry_run.table("run", experiment, execution)


def test_rules_and_images_that_do_not_fit_say_so(tmp_path):
    rules = (ssvq.Rule("nothing/.*", ssvq.SSVQ(4, 8)),)
    experiment = tiny.compressed(tmp_path, compression=Compression(rules=rules))
    with pytest.raises(SystemExit, match="rules of tiny: 'nothing/.*' matches no"):
        tiny.execute(experiment, tmp_path / "run")
    with pytest.raises(SystemExit, match="tiny takes images of 1 channels, got 3"):
        tiny.NETWORK.inputs({"image": np.zeros((2, 8, 8, 3), np.uint8)})
    uniform = (ssvq.Rule(".*", ssvq.Uniform(2)),)
    with pytest.raises(ValueError, match="freezing: .* codec that learns signs"):
        Compression(rules=uniform, freezing=tiny.FROZEN.freezing)


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
    experiment = dataclasses.replace(tiny.FLOAT, weights=str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="none: no such checkpoint.*--weights"):
        tiny.execute(experiment, tmp_path / "run")


def test_the_log_drops_what_lies_beyond_the_checkpoint(tmp_path):
    log = Log(tmp_path, -1)
    for step in range(4):
        log.write(step, 10.0 * step, loss=1.0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "sec')  # killed while writing
    log = Log(tmp_path, 2)
    assert log.seconds == 20.0
    log.write(3, 30.0, loss=2.0)
    log.close()
    lines = read(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [
        (0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)
    ]  # fmt: skip


def test_batch_norms_go_on_with_their_statistics(tmp_path, monkeypatch):
    rules = (ssvq.Rule("hidden/kernel", ssvq.SSVQ(4, 8)),)
    compression = dataclasses.replace(tiny.FROZEN, rules=rules)
    experiment = tiny.compressed(tmp_path, network=tiny.NORMED, compression=compression)
    source = batches.training_batches

    def interrupted(*args, **options):
        yield from itertools.islice(source(*args, **options), 15)
        raise KeyboardInterrupt

    whole, parted = tmp_path / "whole", tmp_path / "parted"
    result = tiny.execute(experiment, whole)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(batches, "training_batches", interrupted)
        tiny.execute(experiment, parted)
    tiny.execute(experiment, parted)
    assert tiny.losses(whole) == tiny.losses(parted)
    start = tiny.tensors(pathlib.Path(experiment.weights))
    name = "model.ssvq.safetensors"
    ends = [tiny.tensors(folder / name) for folder in (whole, parted)]
    for key in ends[0]:
        np.testing.assert_array_equal(ends[0][key], ends[1][key], key)
    assert not np.allclose(ends[0]["norm.mean"], start["norm.mean"])
    # The ratio of the whole model is that of what the file holds, statistics included.
    stored = ssvq.report(ssvq.load(whole / name)).model
    assert result["model_ratio"] == stored.ratio


def test_statistics_that_are_held(tmp_path):
    weights = tiny.weights(tmp_path, tiny.NORMED)
    options = Optimization(epochs=0.1, batch=48, held_statistics=True)
    experiment = dataclasses.replace(
        tiny.FLOAT, network=tiny.NORMED, weights=weights, optimization=options
    )
    tiny.execute(experiment, tmp_path / "run")
    start = tiny.tensors(pathlib.Path(weights))
    end = tiny.tensors(tmp_path / "run" / "model.safetensors")
    np.testing.assert_array_equal(end["norm.mean"], start["norm.mean"])
    np.testing.assert_array_equal(end["norm.var"], start["norm.var"])
    assert not np.array_equal(end["norm.scale"], start["norm.scale"])
    none = dataclasses.replace(tiny.FLOAT, optimization=options)
    with pytest.raises(SystemExit, match="held_statistics: tiny has no batch norms"):
        tiny.execute(none, tmp_path / "none")
