"""The command line that `train.py` and `compress.py` share."""

import dataclasses
import json
import pathlib
import re
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from experiments import config
from experiments.training import dry_run
from experiments.training.devices import Devices, Parallel
from experiments.training.log import read, write_text
from experiments.training.run import Execution, run

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""An option that is off unless it is named."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, where, and on what."""

    config: tyro.conf.Positional[pathlib.Path]
    """Config file, such as experiments/configs/deit_96_cifar10.py."""
    only: str = ".*"
    """Regular expression for whole names of runs."""
    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets; its default where none is given."""
    output: pathlib.Path = pathlib.Path("runs")
    """Results go to OUTPUT/CONFIG/RUN."""
    results: pathlib.Path | None = None
    """Folder to write CONFIG.json to as well, once all runs of the config are done.
    Configs look for rates and other options tuned before in experiments/results."""
    weights: pathlib.Path | None = None
    """Checkpoint to start from, in place of the config's."""
    parallel: Parallel = "data"
    """Whether devices share the batch only, or parameters as well."""
    cpu_devices: int | None = None
    """Devices to divide a CPU into."""
    distributed: Flag = False
    """Whether this is one of several processes; finds the others by itself on TPU pods
    and under Slurm, else by the three options below."""
    coordinator: str | None = None
    """Address of process 0, HOST:PORT."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this one."""
    workers: int = 0
    """Processes that read images; 0 for threads."""
    log_every: int = 50
    """Steps between lines of the log."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    dry_run: Flag = False
    """Print sizes and costs, and lower the step for TPU and CUDA; train nothing."""


def execute(options: Options, compressing: bool) -> None:
    """Run what the options select, and print a table.

    Args:
      options: What, where, and on what.
      compressing: Whether runs start from a checkpoint, as they have to; or from
        scratch.

    Raises:
      SystemExit: A wrong option or config, with what to do; and in the end, if a run
        has diverged.
    """
    if options.cpu_devices is not None:
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    if options.distributed:
        jax.distributed.initialize(
            options.coordinator, options.processes, options.process
        )
    if options.results is not None and options.only != ".*":
        raise SystemExit("--results: needs all runs of the config; leave --only out")
    runs = _selected(options)
    for name, experiment in runs.items():
        if (experiment.weights is not None) != compressing:
            kind, script = ("from scratch", "train")
            if not compressing:
                kind, script = ("from a checkpoint", "compress")
            raise SystemExit(
                f"{options.config}: {name} starts {kind}: "
                f"use python -m experiments.{script}"
            )
    execution = Execution(
        devices=Devices.all(options.parallel),
        data_dir=options.data_dir,
        workers=options.workers,
        log_every=options.log_every,
        checkpoint_every=options.checkpoint_every,
    )
    console = Console()
    if options.dry_run:
        for name, experiment in runs.items():
            console.print(dry_run.table(name, experiment, execution))
        return
    folder = options.output / options.config.stem
    results = {}
    with Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=jax.process_index() > 0,
    ) as progress:
        for name, experiment in runs.items():
            results[name] = run(experiment, folder / name, execution, progress)
    if jax.process_index() == 0:
        console.print(_table(results))
        if options.results is not None:
            curves = {name: _curve(folder / name) for name in results}
            found = {name: results[name] | {"curve": curves[name]} for name in results}
            options.results.mkdir(parents=True, exist_ok=True)
            path = options.results / f"{options.config.stem}.json"
            write_text(path, json.dumps(found, indent=1) + "\n")
            console.print(f"Results: {path}")
    diverged = [name for name, result in results.items() if "diverged" in result]
    if diverged:
        raise SystemExit(
            f"Loss or parameters were not finite in {', '.join(diverged)}: lower the "
            f"learning rates, and delete these runs in {folder}"
        )


def _selected(options: Options) -> dict[str, config.Experiment]:
    """The chosen runs of the config."""
    known = config.load(options.config)
    try:
        chosen = re.compile(options.only)
    except re.error as error:
        raise SystemExit(f"--only: {options.only!r} is no pattern: {error}") from None
    runs = {name: known[name] for name in known if chosen.fullmatch(name)}
    if not runs:
        raise SystemExit(
            f"--only: {options.only!r} matches no whole name of {', '.join(known)}"
        )
    if options.weights is not None:
        weights = str(options.weights)
        for name, experiment in runs.items():
            runs[name] = dataclasses.replace(experiment, weights=weights)
    return runs


def _curve(folder: pathlib.Path) -> list[dict]:
    """The lines of a run's log that end an epoch."""
    lines = read(folder / "metrics.jsonl")
    kept = ("step", "loss", "validation_top1", "flipped", "frozen")
    return [
        {name: line[name] for name in kept if name in line}
        for line in lines
        if "validation_top1" in line or "flipped" in line
    ]


def _table(results: dict[str, dict]) -> Table:
    table = Table("run", "bits/weight", "ratio", "before", "validation", "test", "min")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        if "diverged" in result:
            table.add_row(name, f"diverged by step {result['diverged']}")
            continue
        bits, ratio = result.get("bits_per_weight", 32.0), result.get("ratio", 1.0)
        accuracies = [_accuracy(result[k]) for k in ("before", "validation", "test")]
        minutes = f"{result['minutes']:.1f}"
        table.add_row(name, f"{bits:.3f}", f"{ratio:.1f}x", *accuracies, minutes)
    return table


def _accuracy(counts: dict) -> str:
    return f"{counts['top1'] / counts['images']:.2%}" if counts else ""
