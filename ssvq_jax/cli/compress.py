"""`ssvq compress`: any checkpoint into a packed file."""

import dataclasses
import json as json_text
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from ssvq_jax import __version__, calibration, tree
from ssvq_jax.checkpoint import UPCAST, Checkpoint, digest, tied_row, widened
from ssvq_jax.cli.choices import (
    METHODS,
    allocated,
    choose,
    codec_of,
    read_rules,
)
from ssvq_jax.cli.finished import Finished
from ssvq_jax.cli.inspect import describe_file, file_json, report_json
from ssvq_jax.cli.statistics import Statistics
from ssvq_jax.cli.terminal import Flag, byte_count, check_target, progress, status
from ssvq_jax.codecs import SSVQ
from ssvq_jax.core.sign_codes import SignCode
from ssvq_jax.export import PackedFile, save
from ssvq_jax.export.container import NAMES, bits_of
from ssvq_jax.export.names import name_leaves
from ssvq_jax.export.saving import check_savable
from ssvq_jax.export.shards import index_of, is_shard
from ssvq_jax.export.sources import Layout
from ssvq_jax.tree.paths import printable
from ssvq_jax.tree.report import NOT_COMPRESSED, Report, Row

_SMALL = 4096

if TYPE_CHECKING:
    Method = str
else:  # no type that a checker could read, since the list of codecs is no literal
    Method = tyro.extras.literal_type_from_choices(tuple(METHODS))


def compress(
    source: Positional[pathlib.Path],
    out: Positional[pathlib.Path],
    *,
    method: Method = "ssvq",
    bits: float | None = None,
    codewords: int | None = None,
    block: int | None = None,
    keep: tuple[int, int] | None = None,
    codebook_dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None,
    channel_scale: Literal["float32", "float16", "bfloat16"] | None = None,
    sign_code: SignCode | None = None,
    starts: int | None = None,
    rules: pathlib.Path | None = None,
    include: str = ".*",
    exclude: str | None = None,
    min_weights: int = 4096,
    layout: Layout | None = None,
    statistics: pathlib.Path | None = None,
    alignment: int = 1,
    max_shard_size: str | None = None,
    seed: int = 0,
    dry_run: Flag = False,
    quiet: Flag = False,
    json: Flag = False,
) -> int:
    """Compress a checkpoint, tensor by tensor.

    Compressed is what --include matches and --exclude does not, is float32, float16,
    bfloat16 or float8 (by way of float32), has at least two axes longer than 1 and
    --min-weights weights, and gets smaller by it. Tensors that are equal are compressed
    and stored once, whatever their names, from 4,096 numbers on. The rest is kept as it
    is; `ssvq info` lists all of it.

    A run that is cut off has kept the larger tensors that it had finished, in the
    folder OUT.partial; the same command goes on from there, and removes it.

    Args:
      source: Checkpoint: *.safetensors, the index of its shards,
        *.safetensors.index.json, or a folder with either; *.npz; GGUF; a folder that
        Orbax wrote.
      out: Packed file to write, *.ssvq.safetensors.
      method: Codec; ssvq splits off signs and clusters magnitudes.
      bits: Bits a weight of codes, signs and masks, without codebooks and scales; they
        choose --codewords, --block and --keep: 1.25, 1.5, 2, 3 or 4 (ssvq, vq); 1, 1.25
        or 1.5 (ssvq, --sign-code hamming); 1.25, 1.5 or 2 (mvq); 2 to 8 (uniform). 1.5
        by default, for mvq 1.25, for uniform 2. With --statistics any number: stored
        bits, all counted, spread over the tensors where they lower the error of outputs
        most.
      codewords: Codewords per tensor, k (ssvq, vq, mvq).
      block: Weights per block, d (ssvq, vq, mvq).
      keep: N and M: of each M weights the N largest are kept (mvq).
      codebook_dtype: Dtype of stored codebooks; int8 for mvq, else float16 by default.
      channel_scale: Dtype of one scale an output channel; none by default (ssvq, vq,
        mvq).
      sign_code: What the signs of a block may be (ssvq): any; parity, an even number of
        minuses, (d - 1) / d bits each, for blocks of 2 to 12; hamming, words of the
        [8, 4] code, half a bit each, for blocks of a multiple of 8. The bits saved are
        for more codewords.
      starts: Of k-means, of which the best on a sample goes on (ssvq, vq, mvq); 1 by
        default.
      rules: TOML file of tables [[rule]]: a pattern (regular expression for whole
        names), a method or "none", and bits or options of the codec. The first that
        matches a tensor wins; for the rest the options here count. What --include,
        --exclude and --min-weights leave out stays as it is all the same.
      include: Regular expression for whole names.
      exclude: Regular expression for whole names; wins over --include.
      min_weights: Fewest weights of a tensor to compress.
      layout: Blocks run along the inputs of kernels: torch has (out, in) and OIHW,
        flax (in, out) and HWIO. By default torch for safetensors and GGUF, else flax.
      statistics: File of moments from ssvq_jax.calibrate, written by
        ssvq_jax.save(file, moments): codes, codebooks and scales are found by the
        errors of outputs. Paths in it are names of tensors, or these with / for every
        dot; axes are those of the checkpoint. Tensors without are compressed without.
      alignment: Every compressed tensor starts at a multiple of so many bytes.
      max_shard_size: Of tensors in a file, such as 2GB or 500MB. If all do not fit in
        one, the output is shards and an index, OUT.index.json, beside OUT's place.
      seed: Of the clustering; the same seed gives the same bytes.
      dry_run: Show what each tensor would get and how large it would be; write nothing.
      quiet: Print nothing but errors, and JSON where it is asked for.
      json: Print the report as JSON.
    """
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"--seed: expected an integer of 64 bits, got {seed}")
    checkpoint = Checkpoint(source)
    if checkpoint.packed is not None:
        raise ValueError(f"{source}: packed already; `ssvq decode` unpacks it")
    if not checkpoint:
        raise ValueError(f"{source}: expected tensors, got a file without any")
    # All that can be refused is refused here, before hours of clustering.
    most = None if max_shard_size is None else byte_count(max_shard_size)
    inputs = [*checkpoint.files, *map(str, filter(None, (rules, statistics)))]
    for target in (out,) if most is None else (out, index_of(out)):
        check_target(inputs, target)
    if most is not None:
        folder = out.absolute().parent
        for file in map(pathlib.Path, checkpoint.files):
            if is_shard(file.name, out) and folder.samefile(file.absolute().parent):
                raise ValueError(f"{file}: is the source; give the output another name")
    finished = Finished(out)
    leaves: dict[str, Any] = {name: checkpoint.lazy(name) for name in checkpoint}
    check_savable(out, name_leaves(leaves)[0], alignment, most)
    moments = None if statistics is None else Statistics(statistics, checkpoint)
    options = {
        "codewords": codewords,
        "block": block,
        "keep": keep,
        "codebook_dtype": codebook_dtype,
        "channel_scale": channel_scale,
        "sign_code": sign_code,
        "starts": starts,
    }
    given = [name for name, value in options.items() if value is not None]
    budget = None if moments is None else bits
    if budget is not None and given:
        raise ValueError(
            f"--bits with --statistics chooses all options of codecs: leave out "
            f"{', '.join(given)}"
        )
    default = codec_of(method, bits if budget is None else None, **options)
    told = layout or checkpoint.layout
    own = [] if rules is None else read_rules(rules, checkpoint)
    chosen = choose(
        checkpoint,
        [*own, tree.Rule(".*", default)],
        include=include,
        exclude=exclude,
        min_weights=min_weights,
        layout=told,
    )
    if not chosen:
        raise ValueError(
            f"{source}: nothing to compress: no tensor that options let through has "
            f"two axes and {min_weights} weights (--min-weights), and gets smaller"
        )
    silent = json or quiet
    key = jax.random.key(seed)
    if budget is not None and moments is not None:
        rest = {
            name: rule
            for name, rule in chosen.items()
            if not any(x.matches(name) for x in own)
        }
        if not rest:
            raise ValueError("--bits: rules choose for all tensors; leave it out")
        with status(f"Spreading {budget:g} bits a weight", silent):
            spread = allocated(checkpoint, rest, method, budget, moments, key)
        chosen = {name: spread.get(name, rule) for name, rule in chosen.items()}
    if dry_run:
        _show(Report.of(_planned(checkpoint, chosen)), json, quiet)
        return 0
    encoded, rows, kept = _encoded(checkpoint, chosen, moments, key, silent, finished)
    if finished.found and not silent:
        text = f"{finished.folder}: {finished.found} tensors were finished before"
        Console(stderr=True).print(Text(printable(text)), soft_wrap=True)
    report = Report.of(rows)
    if not report.compressed.weights:
        raise ValueError(f"{source}: {next(iter(kept.values()))}")
    described: dict[str, Any] = {"layout": told, "metadata": checkpoint.metadata}
    dtypes = {name: checkpoint.dtype(name).name for name in chosen if name not in kept}
    upcast = {name: dtype for name, dtype in dtypes.items() if dtype in UPCAST}
    if upcast:
        described["upcast"] = upcast
    if checkpoint.shards:
        described["shards"] = checkpoint.shards
    packed = PackedFile(
        save(
            out,
            encoded,
            metadata={"source": described},
            alignment=alignment,
            max_shard_size=most,
        )
    )
    finished.remove()
    if json:
        contents = {**file_json(packed), **report_json(report), "kept": kept}
        if moments is not None:
            contents["statistics"] = _usage(moments, report)
        print(json_text.dumps(contents, indent=1, allow_nan=False))
    elif not quiet:
        _tell(checkpoint, packed, report, kept, moments)
    return 0


def _encoded(
    checkpoint: Checkpoint,
    chosen: Mapping[str, tree.Rule],
    moments: Statistics | None,
    key: Any,
    silent: bool,
    finished: Finished,
) -> tuple[dict[str, Any], list[Row], dict[str, str]]:
    """Nodes and arrays by name; their rows; why chosen ones stay as they are."""
    leaves: dict[str, Any] = {}
    rows: list[Row] = []
    kept: dict[str, str] = {}
    done: dict[tuple[Any, ...], Row] = {}
    # Of tied tensors one is encoded: one that has moments.
    order = sorted(checkpoint, key=lambda name: moments is None or name not in moments)
    with progress(silent) as bar:
        for name in bar.track(order, description="Compressing"):
            leaves[name], row = checkpoint.lazy(name), _as_it_is(checkpoint, name)
            rule = chosen.get(name)
            if rule is None and row.weights < _SMALL:
                rows.append(row)  # without reading it
                continue
            values = checkpoint[name]
            # Tied tensors, equal under two names, are stored once; small ones, such as
            # biases of zeros, are equal by chance.
            content = None if rule is None else (rule.codec, rule.axis), digest(values)
            first = done.get(content)
            if first is not None and values.size >= _SMALL:
                leaves[name] = leaves[first.path]
                rows.append(tied_row(name, first))
                if first.path in kept:
                    kept[name] = kept[first.path]
                continue
            if rule is not None:
                weight = {name: jnp.asarray(widened(values))}
                del values  # room for clustering
                own = None if moments is None or name not in moments else moments
                # Others are quicker made again.
                large = weight[name].size >= finished.least
                causes = _causes(name, content, key, own) if large else []
                node = finished.read(causes) if large else None
                try:
                    if node is None:
                        node = _inference_form(name, weight, rule, key, own)
                        if large:
                            finished.write(causes, node)
                    leaves[name] = node
                    (row,) = tree.report({name: node}, weight).rows
                except ValueError as error:  # NaN, or out of range for the codebook
                    kept[name] = str(error)
            done[content] = row
            rows.append(row)
    found = {row.path: row for row in rows}
    rows = [found[name] for name in checkpoint]
    return {name: leaves[name] for name in checkpoint}, rows, kept


def _inference_form(
    name: str,
    weight: Mapping[str, Any],
    rule: tree.Rule,
    key: Any,
    moments: Statistics | None,
) -> Any:
    """The node that is stored, without the latents that training would begin with.

    These are twice as large as a weight in bfloat16.
    """
    codec, own = rule.codec, {}
    if isinstance(codec, SSVQ):
        own = {"learn_signs": codec.learn_signs}
        rule = dataclasses.replace(
            rule, codec=dataclasses.replace(codec, learn_signs=False)
        )
    compressed = calibration.compress(weight, [rule], key=key, moments=moments)
    node = tree.finalize(compressed)[name]
    return node.replace(codec=dataclasses.replace(node.codec, **own))


def _causes(
    name: str, content: tuple[Any, ...], key: Any, moments: Statistics | None
) -> list[bytes]:
    """All that the compressed form of a tensor depends on."""
    rule, values = content
    parts = [] if moments is None else jax.tree.leaves(moments[name])
    place = jax.__version__, jax.default_backend(), jnp.result_type(float).name
    known = [name, repr(rule), str(jax.random.key_data(key)), __version__, repr(place)]
    digests = [digest(np.asarray(part)) for part in parts]
    return [*(text.encode() for text in known), values, *digests]


def _planned(checkpoint: Checkpoint, chosen: Mapping[str, tree.Rule]) -> Iterator[Row]:
    """Rows of what would be stored, from headers alone."""
    for name in checkpoint:
        row = _as_it_is(checkpoint, name)
        if name in chosen and (codec := chosen[name].codec) is not None:
            axis = chosen[name].axis or 0
            fields = codec.fields(checkpoint.shape(name), axis)
            bits = 8 * sum(field.nbytes for field in fields)
            row = dataclasses.replace(row, rule=codec.describe(), bits=bits)
        yield row


def _as_it_is(checkpoint: Checkpoint, name: str) -> Row:
    shape, size = checkpoint.shape(name), math.prod(checkpoint.shape(name))
    bits = bits_of(NAMES[checkpoint.dtype(name).name]) * size
    return Row(name, shape, NOT_COMPRESSED, size, bits)


def _show(report: Report, json: bool, quiet: bool) -> None:
    """What a dry run would give."""
    if json:
        print(json_text.dumps(report_json(report), indent=1, allow_nan=False))
    elif not quiet:
        console = Console()
        console.print(_brief(report))
        size = report.model.bits // 8
        console.print(Text(f"{size:,} bytes and a header; nothing is written."))


def _tell(
    checkpoint: Checkpoint,
    packed: PackedFile,
    report: Report,
    kept: Mapping[str, str],
    moments: Statistics | None,
) -> None:
    """What was written, for people."""
    console = Console()
    console.print(_brief(report))
    describe_file(console, packed)
    ratio = checkpoint.nbytes / packed.nbytes
    console.print(Text(f"From {checkpoint.nbytes:,} bytes: {ratio:.1f} times smaller."))
    if moments is not None:
        counts = {name: len(found) for name, found in _usage(moments, report).items()}
        text = "{used} compressed with statistics, {missing} without; {unused} unused."
        console.print(Text(text.format(**counts)))
    for reason in kept.values():
        console.print(Text(f"Kept as it is: {printable(reason)}", "yellow"))


def _brief(report: Report) -> Report:
    """One row for all that is not compressed."""
    kept = [row for row in report.rows if row.rule == NOT_COMPRESSED]
    weights, bits = sum(row.weights for row in kept), sum(row.bits for row in kept)
    others = Row(f"{len(kept)} others", None, NOT_COMPRESSED, weights, bits)
    compressed = [row for row in report.rows if row.rule != NOT_COMPRESSED]
    return Report.of([*compressed, others])


def _usage(moments: Statistics, report: Report) -> dict[str, list[str]]:
    """The compressed tensors with and without statistics, and statistics left over."""
    kept = {f"= {row.path}" for row in report.rows if row.rule == NOT_COMPRESSED}
    rows = [row for row in report.rows if row.rule not in kept | {NOT_COMPRESSED}]
    # A tied one has what it is tied to.
    known = {row.path: {row.path, row.rule.removeprefix("= ")} for row in rows}
    names = list(known)
    used = [name for name in names if any(x in moments for x in known[name])]
    return {
        "used": used,
        "missing": [name for name in names if name not in used],
        "unused": [name for name in moments if name not in names] + moments.unmatched,
    }
