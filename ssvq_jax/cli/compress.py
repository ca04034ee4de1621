"""`ssvq compress`: any safetensors checkpoint into a packed file."""

import dataclasses
import difflib
import hashlib
import json as json_text
import math
import pathlib
import re
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from ssvq_jax import calibration, tree
from ssvq_jax.checkpoint import Checkpoint, bytes_of
from ssvq_jax.cli.inspect import describe_file, report_json
from ssvq_jax.cli.statistics import Statistics
from ssvq_jax.cli.terminal import Flag, check_target, progress
from ssvq_jax.codecs import CODECS, Codec
from ssvq_jax.core.sign_codes import SignCode
from ssvq_jax.export import save
from ssvq_jax.export.file import check_savable
from ssvq_jax.export.names import name_leaves
from ssvq_jax.tree.paths import printable
from ssvq_jax.tree.report import NOT_COMPRESSED, Report, Row
from ssvq_jax.tree.rules import input_axis

_METHODS = {name.lower(): codec for name, codec in CODECS.items()}
if TYPE_CHECKING:
    Method = str
else:  # no type that a checker could read, since the list of codecs is no literal
    Method = tyro.extras.literal_type_from_choices(tuple(_METHODS))
Layout = Literal["torch", "flax"]


def compress(
    source: Positional[pathlib.Path],
    out: Positional[pathlib.Path],
    *,
    method: Method = "ssvq",
    codewords: int = 16,
    block: int = 8,
    bits: int = 2,
    keep: tuple[int, int] = (2, 4),
    codebook_dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None,
    channel_scale: Literal["float32", "float16", "bfloat16"] | None = None,
    sign_code: SignCode = "free",
    include: str = ".*",
    exclude: str | None = None,
    min_weights: int = 4096,
    layout: Layout = "torch",
    statistics: pathlib.Path | None = None,
    alignment: int = 1,
    seed: int = 0,
    json: Flag = False,
) -> int:
    """Compress a safetensors checkpoint, tensor by tensor.

    Compressed is what --include matches and --exclude does not, is float32, float16 or
    bfloat16, has at least two axes longer than 1 and --min-weights weights, and gets
    smaller by it. Tensors that are equal are compressed once and stay equal, stored
    under each name. The rest is kept as it is; `ssvq info` lists all of it.

    Args:
      source: Checkpoint: *.safetensors, the index of its shards,
        *.safetensors.index.json, or a folder with either.
      out: Packed file to write, *.ssvq.safetensors.
      method: Codec; ssvq splits off signs and clusters magnitudes.
      codewords: Codewords per tensor, k (ssvq, vq, mvq).
      block: Weights per block, d (ssvq, vq, mvq).
      bits: Bits per weight (uniform).
      keep: N and M: of each M weights the N largest are kept (mvq).
      codebook_dtype: Dtype of stored codebooks; int8 for mvq, else float16 by default.
      channel_scale: Dtype of one scale an output channel; none by default (ssvq, vq,
        mvq).
      sign_code: What the signs of a block may be (ssvq): any; parity, an even number of
        minuses, (d - 1) / d bits each; hamming, words of the [8, 4] code, half a bit
        each. The bits saved are for more codewords.
      include: Regular expression for whole names.
      exclude: Regular expression for whole names; wins over --include.
      min_weights: Fewest weights of a tensor to compress.
      layout: Blocks run along the inputs of kernels: torch has (out, in) and OIHW,
        flax (in, out) and HWIO.
      statistics: File of moments from ssvq_jax.calibrate, written by
        ssvq_jax.save(file, moments): codes, codebooks and scales are found by the
        errors of outputs. Paths in it are names of tensors, or these with / for every
        dot; axes are those of the checkpoint. Tensors without are compressed without.
      alignment: Every compressed tensor starts at a multiple of so many bytes.
      seed: Of the clustering; the same seed gives the same bytes.
      json: Print the report as JSON.
    """
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"--seed: expected an integer of 64 bits, got {seed}")
    codec = _codec(
        method,
        codewords=codewords,
        block=block,
        bits=bits,
        keep=keep,
        codebook_dtype=codebook_dtype,
        channel_scale=channel_scale,
        sign_code=sign_code,
    )
    checkpoint = Checkpoint(source)
    if checkpoint.packed is not None:
        raise ValueError(f"{source}: packed already; `ssvq decode` unpacks it")
    if not checkpoint:
        raise ValueError(f"{source}: expected tensors, got a file without any")
    # All that can be refused is refused here, before hours of clustering.
    check_target(checkpoint.files, out)
    leaves: dict[str, Any] = {name: checkpoint.lazy(name) for name in checkpoint}
    check_savable(name_leaves(leaves)[0], alignment)
    chosen = _choose(checkpoint, include, exclude)
    moments = None if statistics is None else Statistics(statistics, checkpoint)
    rows: list[Row] = []
    done: dict[tuple[Any, ...], Row] = {}
    kept: dict[str, str] = {}
    key = jax.random.key(seed)
    with progress(json) as bar:
        for name in bar.track(checkpoint, description="Compressing"):
            shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
            axis = _input_axis(name, shape, layout)
            size = math.prod(shape)
            original = 8 * dtype.itemsize * size
            fits = name in chosen and size >= min_weights
            if fits and _gains(codec, shape, dtype, axis, original):
                values = checkpoint[name]
                # Tied tensors, equal under two names, stay equal.
                digest = hashlib.blake2b(bytes_of(values).data, digest_size=16).digest()
                content = (axis, str(dtype), shape, digest)
                if tied := done.get(content):
                    leaves[name] = leaves[tied.path]
                    rows.append(dataclasses.replace(tied, path=name))
                    continue
                weight = {name: jnp.asarray(values)}
                rule = tree.Rule(re.escape(name), codec, axis=axis)
                own = None if moments is None or name not in moments else moments
                try:
                    node = calibration.compress(weight, [rule], key=key, moments=own)
                    node = tree.finalize(node)
                    (done[content],) = tree.report(node, weight).rows
                    rows.append(done[content])
                    leaves.update(node)
                    continue
                except ValueError as error:  # NaN, or out of range for the codebook
                    kept[name] = str(error)
            rows.append(Row(name, shape, NOT_COMPRESSED, size, original))
    report = Report.of(rows)
    if not report.compressed.weights:
        if kept:
            raise ValueError(f"{source}: {next(iter(kept.values()))}")
        raise ValueError(
            f"{source}: nothing to compress: no tensor that --include and --exclude "
            f"let through has two axes and {min_weights} weights (--min-weights)"
        )
    described = {"layout": layout, "metadata": checkpoint.metadata}
    save(out, leaves, metadata={"source": described}, alignment=alignment)
    if json:
        contents = {**report_json(out, report), "kept": kept}
        if moments is not None:
            contents["statistics"] = _usage(moments, report)
        print(json_text.dumps(contents, indent=1, allow_nan=False))
        return 0
    console = Console()
    console.print(_brief(report))
    describe_file(console, out)
    ratio = checkpoint.nbytes / out.stat().st_size
    console.print(Text(f"From {checkpoint.nbytes:,} bytes: {ratio:.1f} times smaller."))
    if moments is not None:
        counts = {name: len(found) for name, found in _usage(moments, report).items()}
        text = "{used} compressed with statistics, {missing} without; {unused} unused."
        console.print(Text(text.format(**counts)))
    for reason in kept.values():
        console.print(Text(f"Kept as it is: {printable(reason)}", "yellow"))
    return 0


def _brief(report: Report) -> Report:
    """One row for all that is not compressed."""
    kept = [row for row in report.rows if row.rule == NOT_COMPRESSED]
    weights, bits = sum(row.weights for row in kept), sum(row.bits for row in kept)
    others = Row(f"{len(kept)} others", None, NOT_COMPRESSED, weights, bits)
    compressed = [row for row in report.rows if row.rule != NOT_COMPRESSED]
    return Report.of([*compressed, others])


def _usage(moments: Statistics, report: Report) -> dict[str, list[str]]:
    """The compressed tensors with and without statistics, and statistics left over."""
    names = [row.path for row in report.rows if row.rule != NOT_COMPRESSED]
    return {
        "used": [name for name in names if name in moments],
        "missing": [name for name in names if name not in moments],
        "unused": [name for name in moments if name not in names] + moments.unmatched,
    }


def _codec(method: str, **options: Any) -> Codec:
    """The codec with those of the options that it has; its defaults where `None`."""
    codec = _METHODS[method]
    names = {field.name for field in dataclasses.fields(codec)}
    given = {name: options[name] for name in names & options.keys()}
    return codec(**{name: x for name, x in given.items() if x is not None})


def _choose(checkpoint: Checkpoint, include: str, exclude: str | None) -> set[str]:
    """The names that the two expressions let through."""
    matched: list[set[str]] = []
    for option, pattern in (("--include", include), ("--exclude", exclude)):
        if pattern is None:
            matched.append(set())
            continue
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{option}: {pattern!r}: {error}") from error
        names = {name for name in checkpoint if expression.fullmatch(name)}
        if not names:
            near = difflib.get_close_matches(pattern, checkpoint, n=5, cutoff=0.0)
            raise ValueError(
                f"{option}: {pattern!r} matches no whole name in {checkpoint.path}; "
                f"near it: {', '.join(near) or 'none'}"
            )
        matched.append(names)
    included, excluded = matched
    return included - excluded


def _input_axis(name: str, shape: tuple[int, ...], layout: Layout) -> int:
    """The axis of the inputs."""
    if layout == "flax":
        return input_axis(name, shape)
    depthwise = len(shape) < 2 or shape[1] == 1
    return 0 if depthwise else 1


def _gains(
    codec: Codec, shape: tuple[int, ...], dtype: Any, axis: int, original: int
) -> bool:
    """Whether a tensor can be compressed, and gets smaller."""
    if sum(n > 1 for n in shape) < 2:
        return False
    if dtype.name not in ("float32", "float16", "bfloat16"):
        return False
    stored = 8 * sum(field.nbytes for field in codec.fields(shape, axis))
    return stored < original and codec.fits(shape, axis)
