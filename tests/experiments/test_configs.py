"""The configs of the experiments, and what is committed of their results."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx

import ssvq_jax as ssvq
from experiments.configs import _methods as methods
from experiments.configs.camvid import tuning as streets
from experiments.configs.cifar10 import _cifar10 as cifar10
from experiments.configs.cifar10 import starts, three_bits
from experiments.configs.cifar100 import _cifar100 as cifar100
from experiments.configs.coco import _coco
from experiments.configs.coco import tuning as boxes
from experiments.configs.few_images import bits as few_images
from experiments.models import deeplab
from experiments.training import command, config, records
from experiments.training.config import Experiment
from experiments.training.devices import Devices
from experiments.training.run import Execution
from ssvq_jax.tree.paths import flatten
from ssvq_jax.tree.rules import input_axis
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")

_NAMES = [config.name_of(path) for path in config.files()]
# Those by which options are chosen; never by test images.
_CHOOSING = ("rates", "masks", "thresholds", "smollm2_metrics")


@functools.cache
def _load(name):
    return config.load(config.CONFIGS / f"{name}.py")


@pytest.mark.parametrize("name", _NAMES)
def test_every_config_gives_runs_and_says_how_to_run_them(name):
    text, runs = (config.CONFIGS / f"{name}.py").read_text(), _load(name)
    scratch = {run.weights is None for run in runs.values()}
    assert len(scratch) == 1  # a command runs all of them
    script = "train" if scratch.pop() else "compress"
    assert f"python -m experiments.{script} experiments/configs/{name}.py" in text
    assert runs and all(isinstance(run, Experiment) for run in runs.values())
    for run in runs.values():
        assert json.loads(json.dumps(run.describe())) == run.describe()
    for source in {run.data for run in runs.values()}:
        splits = [x for x in (source.train, source.validation, source.test) if x]
        images = [image for split in splits for image in _images(split)]
        assert len(images) == len(set(images)) and len(splits) > 1
    compressing = [run for run in runs.values() if run.compression]
    different = {(run.network.name, run.compression.rules): run for run in compressing}
    networks = {run.network.name: run.network for run in compressing}
    models = {
        name: nnx.eval_shape(lambda network=network: network.build(nnx.Rngs(0)))
        for name, network in networks.items()
    }
    for run in different.values():
        state = nnx.state(models[run.network.name], nnx.Param)
        assert _compressed(nnx.to_pure_dict(state), run)


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
    bits = weights = 0
    for path, leaf in flatten(params)[0].items():
        axis = input_axis(path, leaf.shape) % max(leaf.ndim, 1)
        found = [x for x in experiment.compression.rules if x.matches(path)]
        fitting = [rule for rule in found if rule.codec.fits(leaf.shape, axis)]
        assert bool(fitting) == bool(found), path
        # Rules of which bits are spread are candidates; else the first one wins.
        calibration = experiment.compression.calibration
        spread = calibration is not None and calibration.bits is not None
        assert spread or found[:1] == fitting[:1], path
        if fitting:
            fields = fitting[0].codec.fields(leaf.shape, axis)
            bits += 8 * sum(field.nbytes for field in fields)
            weights += leaf.size
    return bits / weights


@pytest.mark.parametrize("network", _coco.TASKS)
def test_every_kernel_of_the_networks_on_coco_is_compressed(network):
    model = nnx.eval_shape(lambda: _coco.NETWORKS[network].build(nnx.Rngs(0)))
    for codecs in ([ssvq.VQ(4, 2)], [ssvq.VQ(4, 2), ssvq.Uniform(8)]):
        rules = _coco.rules(network, codecs)
        for keys, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)):
            path = "/".join(map(str, keys))
            found = [rule.codec for rule in rules if rule.matches(path)]
            assert bool(found) == path.endswith("/kernel"), path


def test_nothing_is_chosen_by_test_images():
    chosen = [name for name in _NAMES if name.endswith(_CHOOSING)]
    assert len(chosen) == 11
    for name in chosen:
        runs = _load(name).values()
        assert all(run.data.test is None and run.data.validation for run in runs)


def test_methods_store_about_the_same_bits():
    kernel = jax.ShapeDtypeStruct((96, 384), np.float32)
    params = {"blocks": {"0": {"kernel": kernel}}}
    for bits, codecs in methods._CODECS.items():
        for method in ("learned" if name == "ssvq" else name for name in codecs):
            rates = {"rate": 1e-3}
            run = cifar10.fine_tuning(method, bits, epochs=1, rates=rates)
            stored = _compressed(params, run)
            assert bits < stored < bits + 0.2, (method, bits, stored)


def _best(config_name, start, metric):
    """Rates in the name of the best run that starts so; of equal ones the first."""
    found = records.read(records.RESULTS / f"{config_name}.jsonl")
    own = {
        name.removeprefix(f"{start}-"): record["validation"][metric]
        for name, record in found.items()
        if name.startswith(f"{start}-") and "diverged" not in record
    }
    rates = re.split(r"(?<!e)-", max(own, key=own.get))
    return tuple(map(float, rates if len(rates) == 2 else 2 * rates))


@pytest.mark.parametrize(
    ("sweep", "chosen", "metric"),
    [
        ("cifar10/rates", cifar10.RATES, "top1"),
        ("cifar10/three_bits_rates", three_bits.RATES, "top1"),
        ("cifar100/rates", cifar100.RATES, "top1"),
        ("coco/tuning_rates", {m: (x, x) for m, x in boxes.RATES.items()}, "ap"),
        ("camvid/tuning_rates", {m: (x, x) for m, x in streets.RATES.items()}, "miou"),
        (
            "camvid/tuning_rates",
            {f"plain-{m}": (x, x) for m, x in streets.PLAIN_RATES.items()},
            "miou",
        ),
    ],
)
def test_rates_are_those_of_the_best_run_of_their_sweep(sweep, chosen, metric):
    for method, rates in chosen.items():
        assert rates == _best(sweep, method, metric), method


def test_rates_of_starts_are_those_of_the_best_runs():
    for start, chosen in starts._RATES.items():
        for method, rates in chosen.items():
            if start == "calibrated" or method == "coded":
                name = f"{method}-{start}"
                assert rates == _best("cifar10/starts_rates", name, "top1"), name


def test_rates_with_few_images_agree_best_with_the_float_network():
    for network, tuned in few_images.RATES.items():
        for name, rates in tuned.items():
            start = f"{network}-{name}"
            assert rates == _best("few_images/rates", start, "agreement"), start


def test_the_threshold_is_that_of_the_best_run():
    found = records.read(records.RESULTS / "cifar10/thresholds.jsonl")
    best = max(found.values(), key=lambda record: record["validation"]["top1"])
    threshold = best["experiment"]["compression"]["freezing"]["threshold"]
    assert threshold == list(cifar10.FREEZING.threshold)


@pytest.mark.parametrize("name", _NAMES)
def test_committed_results_are_those_of_the_config(name):
    found, runs = records.read(records.RESULTS / f"{name}.jsonl"), _load(name)
    assert not found or list(found) == list(runs)
    for run, record in found.items():
        described = json.loads(json.dumps(runs[run].describe()))
        if described["weights"] is not None:
            described["weights"] = record["experiment"]["weights"]
        assert record["experiment"] == described, run


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
    with pytest.raises(SystemExit, match="no such config(.|\n)*few_images/bits.py"):
        config.load(tmp_path / "none.py")
    for text in ("", "runs = {}", "def runs(): return {}", "def runs(): return 3"):
        (tmp_path / "wrong.py").write_text(text)
        with pytest.raises(SystemExit, match="expected a function runs"):
            config.load(tmp_path / "wrong.py")


def test_scripts_refuse_what_is_the_others():
    few_images_file = config.CONFIGS / "few_images" / "bits.py"
    options = command.Options(few_images_file, only="mobilenet.*")
    with pytest.raises(SystemExit, match="use python -m experiments.compress"):
        command.execute(options, compressing=False)
    options = command.Options(few_images_file, only="none")
    with pytest.raises(SystemExit, match="matches no whole name of efficientnet"):
        command.execute(options, compressing=True)


def _mocked_coco(folder):
    """COCO without TensorFlow, which its own code needs: by what it says of itself."""
    kinds = tfds.features
    objects = {
        "area": np.int64,
        "bbox": kinds.BBoxFeature(),
        "is_crowd": np.bool_,
        "label": kinds.ClassLabel(num_classes=80),
    }
    image = {"image": kinds.Image(), "image/id": np.int64}
    features = kinds.FeaturesDict({**image, "objects": kinds.Sequence(objects)})
    place = folder / "coco/2017/1.1.0"
    place.mkdir(parents=True)
    features.save_config(place)
    parts = ("train", "validation")
    splits = [{"name": x, "shardLengths": ["800"], "numBytes": "0"} for x in parts]
    known = {"name": "coco", "configName": "2017", "version": "1.1.0"}
    known |= {"fileFormat": "array_record", "splits": splits}
    (place / "dataset_info.json").write_text(json.dumps(known))
    rng = np.random.default_rng(0)
    examples = [
        {
            "image": rng.integers(0, 256, (48, 64, 3), np.uint8),
            "image/id": i,
            # The generator of mock_data gives every field another length.
            "objects": {
                "area": [700] * i,
                "bbox": [[0.1, 0.2, 0.6, 0.9]] * i,
                "is_crowd": [False] * i,
                "label": [i] * i,
            },
        }
        for i in range(8)
    ]
    return tfds.testing.mock_data(
        as_data_source_fn=lambda self, split: examples, data_dir=str(folder)
    )


_SMALL_DEEPLAB = functools.partial(
    deeplab.DeepLab, dataclasses.replace(deeplab.CONFIGS["deeplabv3_mnv2_100"], size=65)
)


@pytest.mark.parametrize(
    ("config_name", "run", "changes", "held", "ratio"),
    [
        ("imagenet", "deit_tiny-frozen", {}, None, 20),
        # Small images, and what is held, take less time to compile.
        ("coco/recipe", "yolox_s-learned", {"size": 64}, "backbone/.*", 18),
        (
            "coco/recipe",
            "deeplabv3_mnv2_100-frozen",
            {"size": 65, "make": _SMALL_DEEPLAB},
            "blocks/.*",
            15,
        ),
    ],
    ids=["imagenet", "coco", "cityscapes"],
)
def test_the_recipes_of_the_paper_run_on_mock_data(
    config_name, run, changes, held, ratio, tmp_path
):
    chosen = _load(config_name)[run]
    network = dataclasses.replace(chosen.network, **changes)
    options = dataclasses.replace(chosen.optimization, epochs=1, batch=4, held=held)
    experiment = dataclasses.replace(
        chosen,
        network=network,
        optimization=options,
        weights=tiny.weights(tmp_path, network),
    )
    mocked = tfds.testing.mock_data(num_examples=8)
    with _mocked_coco(tmp_path) if network.name == "yolox_s" else mocked:
        result = tiny.execute(experiment, tmp_path / "run")
    assert result["steps"] == 2 and len(records.unpack(result["each"])) == 8
    assert result["ratio"] > ratio
