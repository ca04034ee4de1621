"""A large checkpoint through the whole command line: shards in, packed, and out again.

    python -m experiments.benchmarks chain --largest 1.3e9

Shards of the shapes of Llama-3.2-1B in bfloat16, of random weights and as many layers
as `--largest` allows. `ssvq` compresses them, is killed on the way and goes on, then
verifies the packed file and decodes it to shards; each in a process of its own.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from experiments.benchmarks.measure import MEBIBYTE
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run
from experiments.report.numbers import at_most

WIDTH, HIDDEN, SHARED, VOCABULARY, LAYERS = 2048, 8192, 512, 128256, 16
LAYERS_PER_SHARD = 4
QUICK = 32  # all sizes are divided by it
KILLED_AFTER = 0.5  # of the seconds that all of it took
MOST_TENSORS = 1.5
COPIES = "; beside the tensor its blocks are there, their codes and their distances"


def measure(options: Options) -> Iterator[Row]:
    """A row per command."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        weights, largest = _write(folder / "float", options)
        case = f"{weights:,} weights, "
        packed = folder / "packed.ssvq.safetensors"
        compress = ["compress", folder / "float", packed, "--bits", 2, "--quiet"]
        total, peak = _ssvq(compress)
        content = packed.read_bytes() if options.quick else None
        yield _row(f"{case}compress", total, peak, largest)
        packed.unlink()
        _kill(compress, KILLED_AFTER * total)
        kept = len(list(folder.glob("*.partial/*.safetensors")))
        seconds, peak = _ssvq(compress)
        if content is not None and packed.read_bytes() != content:
            raise ValueError("the bytes of a run that was killed differ")
        killed = f"killed after {KILLED_AFTER * total:.0f} s; {kept} tensors were kept"
        yield _row(f"{case}compress, killed, the rest", seconds, peak, largest, killed)
        for command in (
            ["verify", packed],
            ["decode", packed, folder / "decoded"],
        ):
            (folder / "decoded").mkdir(exist_ok=True)
            yield _row(f"{case}{command[0]}", *_ssvq(command), largest)


def _write(folder: pathlib.Path, options: Options) -> tuple[int, int]:
    """Shards and their index; the number of weights, and the bytes of the largest."""
    divisor = QUICK if options.quick else 1
    width, hidden, shared, vocabulary = (
        n // divisor for n in (WIDTH, HIDDEN, SHARED, VOCABULARY)
    )
    layer = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (shared, width),
        "self_attn.v_proj": (shared, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    embedding = {"model.embed_tokens.weight": (vocabulary, width)}
    per_layer = sum(int(np.prod(shape)) for shape in layer.values())
    layers = int((options.largest - vocabulary * width) // per_layer)
    layers = 2 if options.quick else min(max(layers, 1), LAYERS)
    shards = [embedding]
    for first in range(0, layers, LAYERS_PER_SHARD):
        shards.append(
            {
                f"model.layers.{i}.{name}.weight": shape
                for i in range(first, min(first + LAYERS_PER_SHARD, layers))
                for name, shape in layer.items()
            }
        )
    folder.mkdir()
    rng, places, sizes = np.random.default_rng(0), {}, []
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file)
        places.update(dict.fromkeys(tensors, file))
        sizes += [x.nbytes for x in tensors.values()]
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(sizes) // 2, max(sizes)


def _command(arguments: list) -> list[str]:
    return [sys.executable, "-m", "ssvq_jax.cli", *map(str, arguments)]


def _ssvq(arguments: list) -> tuple[float, int]:
    """Seconds, and the most resident bytes; also of pages of files that were mapped."""
    start = time.perf_counter()
    process = subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"{' '.join(map(str, arguments))}: exit {process.returncode}")
    return time.perf_counter() - start, 1024 * usage.ru_maxrss


def _kill(arguments: list, seconds: float) -> None:
    with subprocess.Popen(_command(arguments)) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(signal.SIGKILL)


def _row(case: str, seconds: float, peak: int, largest: int, note: str = "") -> Row:
    rest = peak - 300 * MEBIBYTE
    notes = [
        note,
        f"{peak / MEBIBYTE:,.0f} MiB at the peak: 300 and {rest / largest:.1f} times "
        f"the largest tensor ({at_most(rest / largest, MOST_TENSORS)})"
        + (COPIES if "compress" in case and rest / largest > MOST_TENSORS else ""),
    ]
    return Row(
        case=case,
        ours=seconds,
        note="; ".join(filter(None, notes)),
        details={"peak_bytes": peak, "largest_tensor_bytes": largest},
    )


if __name__ == "__main__":
    run("chain", measure)
