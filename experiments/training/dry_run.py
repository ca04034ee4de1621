"""What a run would need, without running it."""

import contextlib
import pathlib
from typing import Any

import jax
from flax import nnx
from rich.table import Table

import ssvq_jax as ssvq
from experiments.data.batches import NotPreparedError
from experiments.models import checkpoint
from experiments.training.config import Experiment
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
        the data set the number of steps stays open.
      execution: Devices and data.
    """
    options, source = experiment.optimization, experiment.data
    task, network, devices = experiment.task, experiment.network, execution.devices
    model = network.build(nnx.Rngs(experiment.seed))
    weights = "from scratch"
    if experiment.weights is not None:
        there = pathlib.Path(experiment.weights).exists()
        if there:
            checkpoint.load(model, experiment.weights, experiment.fresh)
        weights = experiment.weights + ("" if there else " (missing: at random here)")
    examples = None
    with contextlib.suppress(NotPreparedError):
        for name_of_split in (source.test, source.validation, source.train):
            if name_of_split is None:
                continue
            split = task.open(source.name, name_of_split, execution.data_dir)
            network.require_classes(source.name, split.classes)
            examples = len(split)
    steps = options.steps(examples or 10**6)
    program = Program(experiment, model, steps)
    params = program.compressed()
    state = program.initial(params)
    batch = {
        name: jax.ShapeDtypeStruct((options.batch, *x.shape), x.dtype)
        for name, x in task.shapes(network).items()
    }
    teacher = (program.params, program.statistics) if experiment.distill else None
    shardings = devices.sharding(state)
    step = jax.jit(
        program.step,
        in_shardings=(shardings, devices.sharded, devices.sharding(teacher)),
        out_shardings=(shardings, devices.replicated),
        donate_argnums=0,
    )
    traced = step.trace(state, batch, teacher)
    flops = _flops(program, (state, batch, teacher))
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
        task.unit: f"{source.name} {source.train}"
        + (f", {examples:,}" if examples else " (missing)"),
        "steps": (f"{steps:,}" if examples else f"those of {options.epochs:g} epochs")
        + f", {options.batch} {task.unit} each",
        "devices": f"{devices.mesh.size} ({devices.parallel})",
        "FLOPs per step and device": f"{flops / devices.mesh.size:.3e}",
        "memory per device, MB: state and batch": _megabytes(
            memory.argument_size_in_bytes
        ),
        "memory per device, MB: activations": _megabytes(memory.temp_size_in_bytes),
    }
    if not report.compressed.weights:
        rows = {k: v for k, v in rows.items() if "compressed" not in k}
    calibration = experiment.compression and experiment.compression.calibration
    if calibration and calibration.bits is not None:
        rows["bits that are spread when it starts"] = (
            f"{calibration.bits:g}; here all have the first candidate"
        )
    for platform in _PLATFORMS:
        lowered = traced.lower(lowering_platforms=(platform,))
        size = len(lowered.as_text())
        rows[f"lowered for {platform}"] = f"yes, {size:,} characters"
    result = Table("", name, title=f"{network.name}, dry run")
    for title, value in rows.items():
        result.add_row(title, value)
    return result


def _flops(program: Program, arguments: Any) -> float:
    """XLA's count for a step of the whole batch at once.

    XLA counts the body of a loop once, as of the loop that CPUs have in the gradient of
    depthwise convolutions. What is lowered for TPUs has none.
    """
    try:
        cpu = jax.devices("cpu")[0]  # on others only compiled steps are counted
    except RuntimeError as error:
        raise SystemExit(
            f"FLOPs are counted on a CPU, beside other devices: {error}. "
            "Set JAX_PLATFORMS=cuda,cpu or tpu,cpu"
        ) from error
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    with jax.default_device(cpu):
        traced = jax.jit(program.step).trace(*shapes)
        cost: Any = traced.lower(lowering_platforms=("tpu",)).cost_analysis()
    return cost["flops"]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"
