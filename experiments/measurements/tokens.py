"""A token of a Llama on the simulated accelerator, from its packed files.

    python -m experiments.models.smollm2 runs/smollm2
    python -m experiments.measurements.tokens runs/smollm2/model.safetensors

Runs `ssvq compress` on the checkpoint with each method, the embedding at 8 bits, and
simulates one token of each file with 512 before it; writes tokens.jsonl and the page.
Three minutes on 2 CPU cores.
"""

import dataclasses
import pathlib
import sys
import tempfile

import tyro
from rich.console import Console
from rich.progress import track

from experiments.measurements.sizes import ssvq_command
from experiments.report import pages
from experiments.training import records
from experiments.training.terminal import parse

METHODS = {
    "SSVQ, 1.5 bits": ("--method=ssvq", "--bits=1.5"),
    "SSVQ, 2 bits": ("--method=ssvq", "--bits=2"),
    "VQ, 2 bits": ("--method=vq", "--bits=2"),
    "UQ, 4 bits": ("--method=uniform", "--bits=4"),
}
MACHINE = ("--model=llama", "--decoder=16")
_RULES = """\
[[rule]]
pattern = "model.embed_tokens.weight"
method = "uniform"
bits = 8
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Which checkpoint, and where the results go."""

    checkpoint: tyro.conf.Positional[pathlib.Path]
    """Of a Llama, with Hugging Face's names: *.safetensors."""
    out: pathlib.Path = records.RESULTS
    """Folder of the results."""


def main(options: Options) -> int:
    """Measure and write the page; returns the exit status."""
    console = Console()
    if not options.checkpoint.exists():
        console.print(
            f"error: no {options.checkpoint}; python -m experiments.models.smollm2 "
            f"{options.checkpoint.parent} makes SmolLM2-135M's"
        )
        return 2
    rows = {
        name: measure(options.checkpoint, arguments)
        for name, arguments in track(
            METHODS.items(), "Compressing, simulating", console=console
        )
    }
    records.write(options.out / "tokens.jsonl", rows)
    pages.build(options.out, ["tokens"], console.print)
    console.print(f"Results: {options.out / 'tokens.md'}")
    return 0


def measure(checkpoint: pathlib.Path, arguments: tuple[str, ...]) -> records.Record:
    """Compress the checkpoint, and simulate a token from the packed file."""
    with tempfile.TemporaryDirectory() as folder:
        packed, rules = pathlib.Path(folder, "packed"), pathlib.Path(folder, "rules")
        rules.write_text(_RULES)
        options = (*arguments, f"--rules={rules}")
        written = ssvq_command("compress", checkpoint, packed, *options)
        found = ssvq_command("simulate", packed, *MACHINE)
    ratios = found["over_int8"]
    return {
        "file": written["bytes"],
        "float32_file": checkpoint.stat().st_size,
        "cycles": found["cycles"],
        "speedup": ratios["cycles"],
        "bytes": ratios["dram_bytes"],
        "energy": ratios["energy"],
    }


if __name__ == "__main__":
    sys.exit(main(parse(Options, __doc__)))
