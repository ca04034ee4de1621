"""`ssvq simulate`: a packed file on the simulated accelerator."""

import json as json_text
import pathlib
from typing import Any, Literal

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from ssvq_jax import accelerator
from ssvq_jax.cli.terminal import Flag, check_target
from ssvq_jax.export import PackedFile, load
from ssvq_jax.export.container import replacing
from ssvq_jax.export.names import original_name

Preset = Literal["edge", "edge_slow_clock", "micro", "ideal_memory"]
Model = Literal["vit", "efficientnet_lite0", "mobilenet_v2", "llama"]


def simulate(
    file: Positional[pathlib.Path],
    *,
    model: Model = "vit",
    image: int | None = None,
    preset: Preset = "edge",
    bandwidth: float | None = None,
    array: str | None = None,
    decoder: float | None = None,
    dataflow: Literal["ws", "os"] | None = None,
    weight_load: Literal["serial", "hidden"] | None = None,
    prefetch: Flag = False,
    csv: pathlib.Path | None = None,
    json: Flag = False,
) -> int:
    """Simulate a packed file on an accelerator, beside the same model in int8.

    Args:
      file: Packed file of a checkpoint of PyTorch with the model's own names: timm's,
        for llama those of Hugging Face.
      model: What the products are. vit and llama take their sizes from the file; llama
        is one token, with 512 before it and heads of 64 features.
      image: Height and width of the input in pixels, for convolutional networks; 224.
      preset: Machine to start from.
      bandwidth: Bytes per cycle of main memory; inf for unlimited.
      array: Rows x columns of the array, such as 64x64.
      decoder: Codewords per cycle of the decoder; inf for unlimited.
      dataflow: ws keeps weights in the array, os outputs.
      weight_load: serial, or hidden behind shadow registers.
      prefetch: Fetch the next product's weights while this one is computed.
      csv: File for a line per product.
      json: Print JSON.
    """
    if csv is not None:
        check_target([str(file)], csv)
    if image is not None and image < 1:
        raise ValueError(f"--image: expected pixels, got {image}")
    packed = load(file, lazy=True)
    config = accelerator.presets[preset]
    if array is not None:
        config = config.replace(**_array(array))
    given = {
        "dram_bytes_per_cycle": bandwidth,
        "decode_codewords_per_cycle": decoder,
        "dataflow": dataflow,
        "weight_load": weight_load,
        "prefetch": prefetch or None,
    }
    config = config.replace(**{k: v for k, v in given.items() if v is not None})
    workload = _workload(packed, model, image)
    report = accelerator.simulate(workload, config, packed)
    int8 = accelerator.simulate(workload, config, "int8")
    ratios = {
        "cycles": int8.cycles / report.cycles,
        "dram_bytes": int8.dram_bytes / report.dram_bytes,
        "energy": int8.energy_pj / report.energy_pj,
    }
    if csv is not None:
        with replacing(csv) as target:
            target.write(report.to_csv().encode())
    if json:
        contents = {**report.to_json(), "over_int8": ratios}
        print(json_text.dumps(contents, indent=1, allow_nan=False))
        return 0
    console = Console()
    console.print(report)
    console.print(Text(_summary(report, ratios)))
    return 0


def _workload(
    packed: PackedFile, model: Model, image: int | None
) -> list[accelerator.MatMul]:
    if image is not None and model in ("vit", "llama"):
        raise ValueError(f"--image: of no use for {model}; leave it out")
    if model == "vit":
        return accelerator.workloads.vit_of(_shapes(packed))
    if model == "llama":
        return accelerator.workloads.llama_of(_shapes(packed))
    build: Any = accelerator.workloads.models[model]
    return build() if image is None else build(image)


def _shapes(packed: PackedFile) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights by original name."""
    shapes = {}
    for name in packed:
        entry = packed.entries.get(name)
        stored = packed.tensors[name] if entry is None else entry
        shapes[original_name(name)] = tuple(stored.shape)
    return shapes


def _array(text: str) -> dict[str, int]:
    rows, separator, cols = text.partition("x")
    if not (separator and rows.isdecimal() and cols.isdecimal()):
        raise ValueError(f"--array: expected rows x columns such as 64x64, got {text}")
    return {"rows": int(rows), "cols": int(cols)}


def _summary(report: accelerator.Report, ratios: dict[str, float]) -> str:
    config, parts = report.config, report.energy_by_component
    energy = ", ".join(f"{k} {v / 1e6:.1f}" for k, v in parts.items())
    traffic = ", ".join(f"{k} {v:,}" for k, v in report.traffic.items())
    text = (
        f"{config.rows}x{config.cols} array, {config.dataflow}, "
        f"{config.dram_bytes_per_cycle:g} bytes per cycle: {report.cycles:,} cycles, "
        f"{ratios['cycles']:.2f} times as fast as int8.\n"
        f"Bytes: {traffic}: {ratios['dram_bytes']:.2f} times fewer.\n"
        f"Energy in uJ: {energy}: {ratios['energy']:.2f} times less.\n"
    )
    if report.excluded_elements:
        text += f"Left out: {report.excluded_elements:,} elements of the vector unit.\n"
    assumed = [n for n, _, s in config.described() if s == accelerator.ASSUMED]
    return text + f"Assumed: {', '.join(assumed)}."
