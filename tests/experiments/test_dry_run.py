"""Dry runs: sizes, costs, and what is lowered for accelerators."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from experiments.models import mobile
from experiments.models.depthwise import DepthwiseConv
from experiments.training import dry_run
from experiments.training.config import Calibration
from experiments.training.devices import Devices
from experiments.training.run import Execution
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")


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
    spread = Calibration(bits=2.5) if parallel == "data" else None
    experiment = dataclasses.replace(
        tiny.FLOAT,
        weights="none.safetensors",
        compression=dataclasses.replace(tiny.FROZEN, calibration=spread),
        data=dataclasses.replace(tiny.DIGITS, name=name),
    )
    execution = Execution(devices=Devices.all(parallel))
    Console(width=200).print(dry_run.table("tiny", experiment, execution))
    printed = capsys.readouterr().out
    expected = ("missing: at random", "12,288", "FLOPs", "lowered for tpu", "cuda")
    for text in (*expected, known):
        assert text in printed
    assert ("2.5; here all have the first" in printed) == (spread is not None)


def _flops(experiment, **changes):
    options = dataclasses.replace(experiment.optimization, **changes)
    experiment = dataclasses.replace(experiment, optimization=options)
    execution = Execution(devices=Devices.all("data"))
    table = dry_run.table("tiny", experiment, execution)
    rows = dict(zip(*(column._cells for column in table.columns), strict=True))
    return float(rows["FLOPs per step and device"]) * jax.device_count()


def test_flops_count_every_image():
    """XLA counts the body of a loop once."""

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
