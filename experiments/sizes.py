"""Sizes of packed files against theory: METHOD's formula, file, float32 checkpoint.

    python -m experiments.sizes

Runs `ssvq compress` on every checkpoint of a folder, verifies the packed file, and
writes sizes.md and sizes.json. Theory counts, for a compressed tensor of n weights,
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

import tyro
from rich.console import Console
from rich.progress import track

from experiments import markdown

CODEWORDS = (16, 256)
BLOCK = 8
HEADERS = (
    "model", "weights", "k", "d", "theory, bytes", "file, bytes", "above theory",
    "float32 file, bytes", "ratio",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Which checkpoints, and where the results go."""

    models: pathlib.Path = pathlib.Path("../shared/models")
    """Folder of checkpoints, *.safetensors, in PyTorch's layout."""
    out: pathlib.Path = pathlib.Path("experiments/results")
    """Folder of the results."""


def main(options: Options) -> int:
    """Measure and write the table; returns the exit status."""
    console = Console()
    models = sorted(options.models.glob("*.safetensors"))
    if not models:
        console.print(f"error: no *.safetensors in {options.models}; give --models")
        return 2
    cases = [(model, codewords) for model in models for codewords in CODEWORDS]
    rows = [measure(*case) for case in track(cases, "Compressing", console=console)]
    (options.out / "sizes.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.out / "sizes.md").write_text(page(rows))
    console.print(f"Results: {options.out / 'sizes.md'}")
    return 0


def measure(model: pathlib.Path, codewords: int) -> dict[str, Any]:
    """Compress one checkpoint, and verify the file."""
    with tempfile.TemporaryDirectory() as folder:
        packed = pathlib.Path(folder, "packed")
        sizes = f"--codewords={codewords}", f"--block={BLOCK}"
        report = _ssvq("compress", model, packed, *sizes)
        _ssvq("verify", packed, "--against", model)
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


def page(rows: list[dict[str, Any]]) -> str:
    """The table as a page."""
    lines = []
    for row in rows:
        above = row["file"] / row["theory"] - 1
        ratio = row["float32_file"] / row["file"]
        numbers = [f"{row[key]:,}" for key in ("theory", "file")]
        cells = [row["model"], f"{row['weights']:,}", row["codewords"], row["block"]]
        cells += [*numbers, f"{above:.1%}", f"{row['float32_file']:,}", f"{ratio:.1f}"]
        lines.append(cells)
    return _PAGE.format(table=markdown.table(HEADERS, lines))


_PAGE = """\
# Sizes of packed files

`python -m experiments.sizes`

{table}

SSVQ with float16 codebooks; compressed is what `ssvq compress` takes by default:
tensors of at least 4,096 weights. Above theory are the header (names and places, some
90 bytes per tensor), 8 bytes of hash per tensor and, where `d` does not divide the
inputs, codes of padded blocks: a patch embedding has 3 inputs.
"""


def _ssvq(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "ssvq_jax.cli", *map(str, arguments), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr}{result.stdout}")
    return json.loads(result.stdout)


def _theory(row: dict[str, Any], codewords: int) -> float:
    """Bits of a tensor by METHOD's formula, section 2."""
    if row["error"] is None:
        return 8 * row["bytes"]
    bits = math.ceil(math.log2(codewords)) / BLOCK + 1
    return row["weights"] * bits + 16 * codewords * BLOCK


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
