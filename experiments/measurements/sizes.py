"""Sizes of packed files against theory: the paper's formula, file, float32 checkpoint.

    python -m experiments.measurements.sizes

Runs `ssvq compress` on every checkpoint of a folder, verifies the packed file, and
writes sizes.jsonl and the page. Theory counts, for a compressed tensor of n weights,
n (log2(k) / d + 1) bits and 16 k d bits of codebook, and all others as they are; no
names, no header. About a minute.
"""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from rich.console import Console
from rich.progress import track

from experiments.report import pages
from experiments.training import records
from experiments.training.terminal import parse

CODEWORDS = (16, 256)
BLOCK = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """Which checkpoints, and where the results go."""

    models: pathlib.Path = pathlib.Path("../shared/models")
    """Folder of checkpoints, *.safetensors, in PyTorch's layout."""
    out: pathlib.Path = records.RESULTS
    """Folder of the results."""


def main(options: Options) -> int:
    """Measure and write the page; returns the exit status."""
    console = Console()
    models = sorted(options.models.glob("*.safetensors"))
    if not models:
        console.print(f"error: no *.safetensors in {options.models}; give --models")
        return 2
    cases = [(model, codewords) for model in models for codewords in CODEWORDS]
    rows = {
        f"{model.stem}, {codewords} codewords": measure(model, codewords)
        for model, codewords in track(cases, "Compressing", console=console)
    }
    records.write(options.out / "sizes.jsonl", rows)
    pages.build(options.out, ["sizes"], console.print)
    console.print(f"Results: {options.out / 'sizes.md'}")
    return 0


def measure(model: pathlib.Path, codewords: int) -> records.Record:
    """Compress one checkpoint, and verify the file."""
    with tempfile.TemporaryDirectory() as folder:
        packed = pathlib.Path(folder, "packed")
        sizes = f"--codewords={codewords}", f"--block={BLOCK}"
        report = ssvq_command("compress", model, packed, *sizes)
        ssvq_command("verify", packed, "--against", model)
    theory = sum(_theory(row, codewords) for row in report["parameters"]) / 8
    return {
        "model": model.stem,
        "weights": report["model"]["weights"],
        "codewords": codewords,
        "block": BLOCK,
        "theory": math.ceil(theory),
        "file": report["bytes"],
        "float32_file": model.stat().st_size,
    }


def ssvq_command(*arguments: Any) -> dict[str, Any]:
    """What a command of `ssvq` says with `--json`.

    Raises:
      RuntimeError: It failed.
    """
    command = [sys.executable, "-m", "ssvq_jax.cli", *map(str, arguments), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr}{result.stdout}")
    return json.loads(result.stdout)


def _theory(row: dict[str, Any], codewords: int) -> float:
    """Bits of a tensor by the paper's formula, section 2."""
    if row["error"] is None:
        return 8 * row["bytes"]
    bits = math.ceil(math.log2(codewords)) / BLOCK + 1
    return row["weights"] * bits + 16 * codewords * BLOCK


if __name__ == "__main__":
    sys.exit(main(parse(Options, __doc__)))
