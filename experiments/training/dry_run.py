"""What a run would need, without running it."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.table import Table

import ssvq_jax as ssvq
from experiments import data
from experiments.config import Experiment
from experiments.models import checkpoint
from experiments.training.program import Program
from experiments.training.run import Execution

_PLATFORMS = ("tpu", "cuda")


def table(name: str, experiment: Experiment, execution: Execution) -> Table:
    """Sizes and costs of a run, and whether its step lowers for accelerators.

    Bytes are XLA's for the devices at hand; FLOPs its count of the step as it is
    lowered for TPUs, before it is optimised, divided by the devices.

    Args:
      name: The run's name.
      experiment: The run; weights that are not there are taken at random, and without
        the images the number of steps stays open.
      execution: Devices and data.
    """
    options, source = experiment.optimization, experiment.data
    network, devices = experiment.network, execution.devices
    model = network.build(nnx.Rngs(experiment.seed))
    weights = "from scratch"
    if experiment.weights is not None:
        there = pathlib.Path(experiment.weights).exists()
        if there:
            checkpoint.load(model, experiment.weights)
        weights = experiment.weights + ("" if there else " (missing: at random here)")
    images, classes, channels = data.sizes(
        source.name, source.train, execution.data_dir
    )
    network.require_classes(source.name, classes)
    steps = options.steps(images or 10**6)
    program = Program(experiment, model, steps)
    params = program.compressed()
    state = program.initial(params)
    shape = (options.batch, network.size, network.size, channels)
    batch = {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct((options.batch,), jnp.int32),
    }
    mixes = source.augmentation.mixup or source.augmentation.cutmix
    if mixes:
        shapes = {"image": shape, "label": (options.batch, classes)}
        batch = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
    teacher = (program.params, program.statistics) if experiment.distill else None
    shardings = devices.sharding(state)
    step = jax.jit(
        program.step,
        in_shardings=(shardings, devices.sharded, devices.sharding(teacher)),
        out_shardings=(shardings, devices.replicated),
        donate_argnums=0,
    )
    traced = step.trace(state, batch, teacher)
    flops = _flops(experiment, model, (state, batch, teacher))
    memory: Any = traced.lower().compile().memory_analysis()

    report = ssvq.report(params)
    whole = ssvq.report((params, program.statistics)).model
    rows = {
        "weights": weights,
        "parameters": f"{report.model.weights:,}",
        "of them compressed": f"{report.compressed.weights:,}",
        "bits per compressed weight": f"{report.compressed.bits_per_weight:.3f}",
        "ratio to float32, compressed weights": f"{report.compressed.ratio:.1f}",
        "ratio to float32, whole model": f"{whole.ratio:.1f}",
        "images": f"{source.name} {source.train}"
        + (f", {images:,}" if images else " (missing)"),
        "steps": (f"{steps:,}" if images else f"those of {options.epochs:g} epochs")
        + f", {options.batch} images each",
        "devices": f"{devices.mesh.size} ({devices.parallel})",
        "FLOPs per step and device": f"{flops / devices.mesh.size:.3e}",
        "memory per device, MB: state and batch": _megabytes(
            memory.argument_size_in_bytes
        ),
        "memory per device, MB: activations": _megabytes(memory.temp_size_in_bytes),
    }
    if not report.compressed.weights:
        rows = {k: v for k, v in rows.items() if "compressed" not in k}
    for platform in _PLATFORMS:
        lowered = traced.lower(lowering_platforms=(platform,))
        size = len(lowered.as_text())
        rows[f"lowered for {platform}"] = f"yes, {size:,} characters"
    result = Table("", name, title=f"{network.name}, dry run")
    for title, value in rows.items():
        result.add_row(title, value)
    return result


def _flops(experiment: Experiment, model: Any, arguments: Any) -> float:
    """XLA's count for a step of the whole batch at once.

    XLA counts the body of a loop once: parts of a batch, and on CPUs the loop in the
    gradient of depthwise convolutions. So what is counted has neither.
    """
    try:
        cpu = jax.devices("cpu")[0]  # on others only compiled steps are counted
    except RuntimeError as error:
        raise SystemExit(
            f"FLOPs are counted on a CPU, beside other devices: {error}. "
            "Set JAX_PLATFORMS=cuda,cpu or tpu,cpu"
        ) from error
    whole = dataclasses.replace(experiment.optimization, accumulate=1)
    experiment = dataclasses.replace(experiment, optimization=whole)
    program = Program(experiment, model, steps=1)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    with jax.default_device(cpu):
        traced = jax.jit(program.step).trace(*shapes)
        cost: Any = traced.lower(lowering_platforms=("tpu",)).cost_analysis()
    return cost["flops"]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"
