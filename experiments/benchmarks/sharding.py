"""Encoding a weight that lies on several devices: time, memory and what is exchanged.

    python -m experiments.benchmarks sharding

One weight, its rows on 1, 2, 4 and 8 devices, simulated on this CPU: they share its
cores, so that time tells what the exchange costs, and memory is that of a device as the
compiled program states it. The peer is the same on one device.
"""

import functools
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ssvq_jax as ssvq
from experiments.benchmarks.measure import MEBIBYTE, in_fresh_process, median_seconds
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run

CODEC = ssvq.SSVQ(codewords=16, block=8)
SHAPE = (4096, 8192)
QUICK_SHAPE = (256, 64)
DEVICES = (1, 2, 4, 8)
_EXCHANGE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)[(]"
)


def measure(options: Options) -> Iterator[Row]:
    """A row per number of devices."""
    one = None
    for devices in DEVICES[:2] if options.quick else DEVICES:
        found = in_fresh_process(encode_over, devices, options)
        if one is None:
            one = found["seconds"]
        shape = QUICK_SHAPE if options.quick else SHAPE
        weight = math.prod(shape) * 4
        values = found["argument"], found["temporary"] + found["output"]
        part, rest = (f"{x / weight:.2f}" for x in values)
        yield Row(
            case=f"encode {shape[0]} x {shape[1]} over {devices}",
            ours=found["seconds"],
            peer=one if devices > 1 else None,
            peer_name="1 device" if devices > 1 else "",
            note=f"a device holds {part} of the weight's "
            f"{weight / MEBIBYTE:.0f} MiB, and {rest} more for work and result; "
            f"exchanged: {found['exchanged'] or 'nothing'}",
            details={name: x for name, x in found.items() if name != "exchanged"},
        )


def encode_over(devices: int, options: Options) -> dict:
    """Seconds, bytes of a device, and exchanges; in a process of its own."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    shape = QUICK_SHAPE if options.quick else SHAPE
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(weight, NamedSharding(mesh, PartitionSpec("x")))
    encode = jax.jit(functools.partial(ssvq.encode, CODEC, key=jax.random.key(0)))
    program = encode.lower(sharded).compile()
    memory: Any = program.memory_analysis()
    largest: dict[str, list[int]] = {}
    for shapes, kind in _EXCHANGE.findall(program.as_text() or ""):
        sizes = re.findall(r"\[([\d,]*)\]", shapes)
        most = max(math.prod(int(n) for n in x.split(",") if n) for x in sizes)
        largest.setdefault(kind, []).append(most)
    timing = median_seconds({"ours": lambda: program(sharded)}, options.timed_runs)
    return {
        "seconds": timing["ours"].median,
        **timing["ours"].spread(),
        "argument": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "output": memory.output_size_in_bytes,
        "exchanged": ", ".join(
            f"{len(sizes)} {kind} of up to {max(sizes):,} values"
            for kind, sizes in largest.items()
        ),
    }


if __name__ == "__main__":
    run("sharding", measure)
