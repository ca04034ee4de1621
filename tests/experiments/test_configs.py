"""The configs of the experiments, dry runs, and the page of the comparison."""

import base64
import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from rich.console import Console

import ssvq_jax as ssvq
from experiments import comparison, comparison_numbers, config, dominance, methods
from experiments.config import Experiment
from experiments.models import checkpoint, mobile
from experiments.models.depthwise import DepthwiseConv
from experiments.training import command, dry_run
from experiments.training.devices import Devices
from experiments.training.run import Execution
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")

_CONFIGS = pathlib.Path("experiments/configs")


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in _CONFIGS.glob("[!_]*.py"))
)
def test_every_config_gives_runs_and_says_how_to_run_them(name):
    path = _CONFIGS / f"{name}.py"
    text = path.read_text()
    script = "train" if name == "deit_96_cifar10" else "compress"
    assert f"python -m experiments.{script} experiments/configs/{name}.py" in text
    runs = config.load(path)
    assert runs and all(isinstance(run, Experiment) for run in runs.values())
    for run in runs.values():
        assert json.loads(json.dumps(run.describe())) == run.describe()
    for source in {run.data for run in runs.values()}:
        splits = [x for x in (source.train, source.validation, source.test) if x]
        images = [image for split in splits for image in _images(split)]
        assert len(images) == len(set(images)) and len(splits) > 1
    compressing = [run for run in runs.values() if run.compression]
    different = {(run.network.name, run.compression): run for run in compressing}
    for run in different.values():
        model = nnx.eval_shape(lambda run=run: run.network.build(nnx.Rngs(0)))
        assert _compressed(nnx.to_pure_dict(nnx.state(model, nnx.Param)), run)


def _images(split):
    """A split's images, if all parts of the set were as large as CIFAR's."""
    size = 50_000
    parts = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
        for name in ("train", "validation", "test")
    }
    for piece in tfds.core.ReadInstruction.from_spec(split).to_absolute(parts):
        chosen = range(size)[piece.from_ : piece.to]
        assert chosen
        yield from ((piece.splitname, i) for i in chosen)


def _compressed(params, experiment):
    """Bits per weight that a run's rules would store, by shapes alone."""
    rules, key = experiment.compression.rules, jax.random.key(0)
    compress = functools.partial(ssvq.compress, rules=rules, key=key)
    tree = jax.eval_shape(compress, params)
    return ssvq.report(tree).compressed.bits_per_weight


def test_nothing_is_chosen_by_test_images():
    for name in comparison.CHOOSING:
        runs = config.load(_CONFIGS / f"{name}.py").values()
        assert all(run.data.test is None and run.data.validation for run in runs)


def test_methods_store_about_the_same_bits():
    kernel = jax.ShapeDtypeStruct((96, 384), np.float32)
    params = {"blocks": {"0": {"kernel": kernel}}}
    for bits in methods.BITS:
        for method in methods.at(bits):
            rates = {"rate": 1e-3}
            run = methods.fine_tuning(method, bits, epochs=1, rates=rates)
            stored = _compressed(params, run)
            assert bits < stored < bits + 0.2, (method, bits, stored)


def test_missing_results_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    with pytest.raises(
        SystemExit, match="cifar10_rates.json is missing(.|\n)*--results"
    ):
        methods.tuned_rates("vq")


@pytest.mark.parametrize(("distill", "by"), [(False, "top1"), (True, "agreement")])
def test_the_best_run_has_most_validation_images_right(
    tmp_path, monkeypatch, distill, by
):
    monkeypatch.setattr(methods, "RESULTS", tmp_path)

    def run(rate, right):
        rates = {"rate": rate, "codebook_rate": 2 * rate, "sign_rate": 0.0}
        other = "agreement" if by == "top1" else "top1"
        return {
            "experiment": {"optimization": rates, "distill": distill},
            "validation": {by: right, other: 1000 - right},
        }

    runs = {"vq-1": run(1, 500), "vq-2": run(2, 700), "vq-3": run(3, 600)}
    runs["mvq-4"] = run(4, 900)
    (tmp_path / "cifar10_rates.json").write_text(json.dumps(runs))
    found = methods.tuned_rates("vq")
    assert found == {"rate": 2, "codebook_rate": 4, "sign_rate": 0.0}


def test_experiments_that_differ_in_an_axis_are_described_differently():
    def described(axis):
        rules = (ssvq.Rule(".*/kernel", ssvq.VQ(4, 2), axis=axis),)
        compression = config.Compression(rules=rules)
        experiment = dataclasses.replace(
            tiny.FLOAT, weights="file", compression=compression
        )
        return json.dumps(experiment.describe())

    assert len({described(axis) for axis in (None, 0, 1)}) == 3


def test_execution_refuses_intervals_below_one():
    for name in ("log_every", "checkpoint_every"):
        with pytest.raises(SystemExit, match="at least 1"):
            Execution(devices=Devices.all("data"), **{name: 0})


def test_a_missing_config_lists_the_others(tmp_path):
    with pytest.raises(SystemExit, match="no such config(.|\n)*few_images.py"):
        config.load(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(SystemExit, match="expected a function runs"):
        config.load(tmp_path / "empty.py")


def test_scripts_refuse_what_is_the_others():
    options = command.Options(_CONFIGS / "few_images.py", only="mobilenet.*")
    with pytest.raises(SystemExit, match="use python -m experiments.compress"):
        command.execute(options, compressing=False)
    options = command.Options(_CONFIGS / "few_images.py", only="none")
    with pytest.raises(SystemExit, match="matches no whole name of efficientnet"):
        command.execute(options, compressing=True)
    options = dataclasses.replace(options, results=pathlib.Path("results"))
    with pytest.raises(SystemExit, match="leave --only out"):
        command.execute(options, compressing=True)


def test_the_recipe_of_imagenet_runs_on_mock_data(tmp_path):
    chosen = config.load(_CONFIGS / "imagenet.py")["deit_tiny-frozen"]
    network = chosen.network
    path = tmp_path / "weights.safetensors"
    params = nnx.state(network.build(nnx.Rngs(0)), nnx.Param)
    checkpoint.save(path, nnx.to_pure_dict(params), {})
    optimization = dataclasses.replace(chosen.optimization, epochs=1, batch=4)
    experiment = dataclasses.replace(
        chosen, weights=str(path), optimization=optimization
    )
    with tfds.testing.mock_data(num_examples=8):
        result = tiny.execute(experiment, tmp_path / "run")
    assert result["steps"] == 2 and result["test"]["images"] == 8
    assert result["ratio"] > 20


@pytest.mark.parametrize(
    ("parallel", "name", "known"),
    [
        ("data", "digits", "train[:960], 960"),
        ("fully_sharded", "mnist", "mnist train[:960] (missing)"),
    ],
)
def test_a_dry_run_tells_sizes_and_lowers_for_accelerators(
    parallel, name, known, capsys
):
    experiment = dataclasses.replace(
        tiny.FLOAT,
        weights="none.safetensors",
        compression=tiny.FROZEN,
        data=dataclasses.replace(tiny.DIGITS, name=name),
    )
    execution = Execution(devices=Devices.all(parallel))
    Console(width=200).print(dry_run.table("tiny", experiment, execution))
    printed = capsys.readouterr().out
    expected = ("missing: at random", "12,288", "FLOPs", "lowered for tpu", "cuda")
    for text in (*expected, known):
        assert text in printed


def _flops(experiment, **changes):
    options = dataclasses.replace(experiment.optimization, **changes)
    experiment = dataclasses.replace(experiment, optimization=options)
    execution = Execution(devices=Devices.all("data"))
    table = dry_run.table("tiny", experiment, execution)
    rows = dict(zip(*(column._cells for column in table.columns), strict=True))
    return float(rows["FLOPs per step and device"]) * jax.device_count()


def test_flops_count_every_part_and_every_image():
    """XLA counts the body of a loop once."""
    assert _flops(tiny.FLOAT, accumulate=4) == _flops(tiny.FLOAT) > 0

    def per_image(kernel):
        stage = mobile.Stage(1, kernel, 1, 6, 32)
        architecture = mobile.Architecture((stage,), 16)
        network = dataclasses.replace(
            tiny.NETWORK,
            make=lambda classes, rngs: mobile.InvertedResidualNet(
                architecture, classes, rngs=rngs
            ),
            size=16,
            channels=3,
        )
        experiment = dataclasses.replace(tiny.FLOAT, network=network)
        return (_flops(experiment, batch=96) - _flops(experiment)) / 48

    # Depthwise on images of 8x8: 22 of 24 products of a row and 3 weights are not with
    # zeros beyond the border, 44 of 56 with 7. A product and a sum each, forward and in
    # the gradients of images and kernel, of 6 * 32 channels.
    expected = 2 * 3 * (44**2 - 22**2) * 6 * 32
    assert per_image(7) - per_image(3) == pytest.approx(expected, rel=0.05)


def test_accelerators_get_the_grouped_convolution():
    conv = DepthwiseConv(8, 3, rngs=nnx.Rngs(0))
    traced = jax.jit(lambda x: conv(x)).trace(np.zeros((1, 4, 4, 8), "f4"))
    for platform, grouped in (("cpu", False), ("tpu", True), ("cuda", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("feature_group_count = 8" in text) == grouped


def test_cosines_of_the_largest_and_smallest_blocks():
    own = np.zeros((100, 2))
    own[:, 0] = np.arange(100)  # the first wants nothing and does not count
    moved = np.tile([1.0, 0.0], (100, 1))
    moved[:50] = [0.0, 1.0]
    one = np.zeros(100, int)
    top, bottom = dominance.cosines(own, moved, one)
    assert top == 1.0
    assert bottom == pytest.approx(10 / 59)  # of 59 blocks, 50 to 59 agree
    # By halves: all of the first disagree, all of the second agree.
    top, bottom = dominance.cosines(own, moved, np.arange(100) // 50)
    assert top == pytest.approx(1 / 2) and bottom == pytest.approx(30 / 59)


def test_blocks_agree_with_their_codeword_even_by_chance():
    # n independent blocks of one size: each is 1/sqrt(n) of their sum.
    own = np.random.default_rng(1).normal(size=(6400, 8))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    groups = np.arange(6400) // 64
    np.testing.assert_allclose(dominance.chance(own, groups), 1 / 8, atol=0.02)
    # One large block decides alone.
    own[::64] *= 1000
    top, bottom = dominance.chance(own, groups)
    assert top == pytest.approx(1 / 4, abs=0.05)  # of 4 that are the top 5 % of 64
    assert bottom == pytest.approx(0, abs=0.02)


def _run(**changes):
    right = np.zeros(1000, np.uint8)
    right[: changes.pop("top1", 500)] = 1
    counts = {"images": 1000, "top1": int(right.sum()), "top5": 900, "agreement": 600}
    return {
        "experiment": {
            "optimization": {"epochs": 1},
            "compression": {
                "rules": [{"pattern": ".*", "codec": "SSVQ(16, 8)"}],
                "freezing": {"threshold": [0.1, 0.01]},
            },
        },
        **{name: counts for name in ("before", "test", "validation")},
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        **{"bits_per_weight": 1.5, "ratio": 21.0, "model_ratio": 18.0, "bytes": 10},
        **{"minutes": 2.0, "command": "python -m x", "flipped": 0.1, "frozen": 0.05},
        "curve": [
            {
                "step": 1,
                "loss": 2.5,
                "validation_top1": 400,
                "flipped": 0.1,
                "frozen": 0.0,
            }
        ],
        **changes,
    }


def test_differences_are_taken_image_by_image():
    mean, half = comparison_numbers.difference([_run(top1=510)], [_run(top1=500)])
    assert mean == pytest.approx(0.01)
    gaps = np.r_[np.ones(10), np.zeros(990)]
    assert half == pytest.approx(1.96 * gaps.std(ddof=1) / 1000**0.5)
    assert comparison_numbers.interval({"images": 1000, "top1": 500}) == pytest.approx(
        1.96 * 0.5 / 1000**0.5
    )


def test_the_page_has_every_section_that_was_run(tmp_path, capsys):
    names = {
        "deit_96_cifar10": ["float"],
        "cifar10_headline": [
            *("float-32-0", "uniform-2-0", "vq-1.5-0", "vq-1.5-1", "frozen-1.5-0"),
            *("learned-1.5-0", "vq-1.25-0", "learned-1.25-0"),
        ],
        "cifar10_bits": ["float", "vq-1.5", "learned-1.5", "frozen-1.5", "uniform-2"],
        "cifar10_3_bits": ["float", "vq-3", "learned-3"],
        "cifar10_3_bits_rates": ["float-0.0001", "vq-0.001-0.001"],
        "deit_tiny_cifar10": ["float", "vq", "ssvq"],
        "few_images": [
            "mobilenet_v2_100_unfolded-uniform-2",
            *("efficientnet_lite0-vq-1.5", "efficientnet_lite0-ssvq-1.5"),
        ],
        "few_images_rates": [
            "efficientnet_lite0-ssvq-1.5-0.001-0.001",
            "mobilenet_v2_100_unfolded-ssvq-1.5-0.001-0.001",
        ],
        "cifar10_rates": ["vq-0.001", "learned-0.001-0.003"],
        "cifar10_thresholds": ["frozen-0.1"],
        "cifar10_ablation": [
            *("epochs-1-learned", "interval-12-majority"),
            *("sign_rate-0.1-learned", "sign_rate-10-learned"),
        ],
    }
    for name, runs in names.items():
        contents = {run: _run() for run in runs}
        if name == "cifar10_rates":
            contents["vq-1"] = {"experiment": {}, "diverged": 50}
        (tmp_path / f"{name}.json").write_text(json.dumps(contents))
    cosines = {"an epoch: top 5 %": 0.6, "an epoch: bottom 60 %": 0.125}
    measured = {"images": 10, "steps": 5, "minutes": 1.0, "command": "python -m x"}
    measured["methods"] = {"vq": cosines, "learned": cosines}
    (tmp_path / "dominance.json").write_text(json.dumps(measured))
    assert comparison.main(comparison.Options(tmp_path)) == 0
    page = (tmp_path / "README.md").read_text()
    assert "left out: cifar10_rates: vq-1." in page
    assert "No results: cifar10_mvq" in page and page.count("No results") == 1
    assert "cosines of 0.12 instead of 0.12" in page
    assert "+0.00 ± 0.00" in page and "50.00" in page and "agrees" in page
    for plot in ("pareto", "curves", "few_images"):
        assert (tmp_path / f"{plot}.png").stat().st_size > 10_000
        assert f"({plot}.png)" in page
    # A method is not compared where runs that others are compared with have diverged.
    lost = {"experiment": {}, "diverged": 50}
    for name in ("cifar10_headline", "cifar10_ablation", "few_images"):
        contents = dict.fromkeys(names[name], lost)
        (tmp_path / f"{name}.json").write_text(json.dumps(contents))
    assert comparison.main(comparison.Options(tmp_path)) == 0
    page = (tmp_path / "README.md").read_text()
    assert page.count("No results") == 4 and "cifar10_headline: float-32-0" in page
    assert " nan" not in page
