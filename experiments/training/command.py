"""The command line that `train.py` and `compress.py` share."""

import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Mapping

import jax
import tyro
from rich.console import Console
from rich.table import Table

from experiments.training import config, dry_run, records
from experiments.training.devices import Devices, Parallel
from experiments.training.export import PACKED, curve
from experiments.training.log import read
from experiments.training.run import Execution, run
from experiments.training.terminal import Flag, bars
from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.page import page, read_steps

_SILENT = 30
"""Seconds after which a process that says nothing counts as lost."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, where, and on what."""

    config: tyro.conf.Positional[pathlib.Path]
    """Config file, one of those in experiments/configs or your own."""
    only: str = ".*"
    """Regular expression for whole names of runs."""
    data_dir: pathlib.Path | None = None
    """Folder of the data sets; its default where none is given."""
    output: pathlib.Path = pathlib.Path("runs")
    """Results go to OUTPUT/CONFIG/RUN."""
    results: pathlib.Path | None = None
    """Folder of CONFIG.jsonl, in which the lines of these runs are renewed."""
    weights: pathlib.Path | None = None
    """Checkpoint to start from, in place of the config's; for compress alone."""
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
    """Processes that read examples; 0 for threads."""
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
    others = (options.coordinator, options.processes, options.process)
    if any(x is not None for x in others) and not options.distributed:
        raise SystemExit(
            "--coordinator, --processes and --process: of use with --distributed only"
        )
    if options.distributed:
        jax.distributed.initialize(
            options.coordinator,
            options.processes,
            options.process,
            heartbeat_timeout_seconds=_SILENT,
        )
    known = config.load(options.config)
    runs = _selected(options, known)
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
        for i, (name, experiment) in enumerate(runs.items(), 1):
            with console.status(f"{name}, {i} of {len(runs)}: compiling its step"):
                table = dry_run.table(name, experiment, execution)
            console.print(table)
        return
    title = config.name_of(options.config)
    folder = options.output / title
    results = {}
    with bars(console) as progress:
        for name, experiment in runs.items():
            try:
                results[name] = run(experiment, folder / name, execution, progress)
            except jax.errors.JaxRuntimeError as error:
                reason = str(error).splitlines()[0]
                if jax.process_count() == 1 or reason.startswith("RESOURCE_EXHAUSTED"):
                    raise
                progress.stop()
                print(
                    f"{name}: process {jax.process_index()} of {jax.process_count()} "
                    f"has lost the others, or failed ({reason}). Start all of them "
                    "again: the run goes on from its last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)  # an orderly end would wait for the others
            if jax.process_index() == 0:
                _write_page(folder / name)
    if jax.process_index() == 0:
        console.print(_table(runs, results))
        if options.results is not None:
            path = options.results / f"{title}.jsonl"
            lines = {name: read(folder / name / "metrics.jsonl") for name in runs}
            found = {
                name: results[name] | {"curve": curve(run.task, lines[name])}
                for name, run in runs.items()
            }
            records.renew(path, found, known)
            console.print(f"Results: {path}")
    diverged = [name for name, result in results.items() if "diverged" in result]
    if diverged:
        raise SystemExit(
            f"Loss or parameters were not finite in {', '.join(diverged)}: lower the "
            f"learning rates, and delete these runs in {folder}"
        )


def _write_page(folder: pathlib.Path) -> None:
    """The page of a compressed run: where its bytes and errors are, and its signs."""
    packed, target, log = (folder / x for x in (PACKED, "report.html", "metrics.jsonl"))
    if packed.exists() and not target.exists():
        signed = any("flipped" in line for line in read(log))
        text = page(Checkpoint(packed), steps=read_steps(log) if signed else ())
        records.write_text(target, text)


def _selected(
    options: Options, known: Mapping[str, config.Experiment]
) -> dict[str, config.Experiment]:
    """The chosen runs of the config."""
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


def _table(
    runs: Mapping[str, config.Experiment], results: Mapping[str, records.Record]
) -> Table:
    """A row for every run; their task's metric before and after, on either split."""
    metrics = ", ".join(dict.fromkeys(run.task.metric for run in runs.values()))
    table = Table(
        *("run", "bits/weight", "ratio", "before", "validation", "test", "min"),
        caption=f"before, validation, test: {metrics}",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        if "diverged" in result:
            table.add_row(name, f"diverged by step {result['diverged']}")
            continue
        bits, ratio = result.get("bits_per_weight", 32.0), result.get("ratio", 1.0)
        scores = [
            f"{result[split][runs[name].task.metric]:.4f}" if result[split] else ""
            for split in ("before", "validation", "test")
        ]
        minutes = f"{result['minutes']:.1f}"
        table.add_row(name, f"{bits:.3f}", f"{ratio:.1f}x", *scores, minutes)
    return table
