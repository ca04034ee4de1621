"""Which codec every tensor of a checkpoint gets: by rules, options, or a budget."""

import dataclasses
import difflib
import math
import pathlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ssvq_jax.calibration import allocate
from ssvq_jax.checkpoint import UPCAST, Checkpoint, digest, widened
from ssvq_jax.cli.statistics import Statistics
from ssvq_jax.codecs import CODECS, MVQ, SSVQ, VQ, Codec, Uniform
from ssvq_jax.core.kmeans import Key
from ssvq_jax.export.sources import Layout
from ssvq_jax.tree.rules import Rule, input_axis

METHODS = {name.lower(): codec for name, codec in CODECS.items()}
PRESETS: dict[str, dict[float, dict[str, Any]]] = {
    "ssvq": {
        1.25: {"codewords": 4, "block": 8},
        1.5: {"codewords": 16, "block": 8},
        2: {"codewords": 16, "block": 4},
        3: {"codewords": 16, "block": 2},
        4: {"codewords": 64, "block": 2},
    },
    "ssvq parity": {
        1.25: {"codewords": 8, "block": 8},
        1.5: {"codewords": 32, "block": 8},
        2: {"codewords": 32, "block": 4},
        3: {"codewords": 32, "block": 2},
        4: {"codewords": 128, "block": 2},
    },
    "ssvq hamming": {
        1: {"codewords": 16, "block": 8},
        1.25: {"codewords": 64, "block": 8},
        1.5: {"codewords": 256, "block": 8},
    },
    "vq": {
        1.25: {"codewords": 32, "block": 4},
        1.5: {"codewords": 64, "block": 4},
        2: {"codewords": 256, "block": 4},
        3: {"codewords": 64, "block": 2},
        4: {"codewords": 256, "block": 2},
    },
    "mvq": {
        1.25: {"codewords": 16, "block": 8, "keep": (2, 4)},
        1.5: {"codewords": 32, "block": 6, "keep": (4, 6)},
        2: {"codewords": 64, "block": 4, "keep": (3, 4)},
    },
    "uniform": {bits: {"bits": bits} for bits in range(2, 9)},
}
"""Options of the codecs at so many bits a weight, codebooks not counted; of ssvq for
every code of signs."""
_DEFAULT_BITS = {"ssvq": 1.5, "vq": 1.5, "mvq": 1.25, "uniform": 2}

_SMALL: dict[str, Any] = {"channel_scale": "float16", "codebook_dtype": "int8"}
_CANDIDATES: dict[str, tuple[Codec, ...]] = {
    "ssvq": (
        *(SSVQ(k, 8, sign_code="hamming", **_SMALL) for k in (16, 64, 256)),
        *(SSVQ(k, d, **_SMALL) for k, d in ((64, 4), (16, 2), (64, 2))),
        Uniform(8),
    ),
    "vq": (
        *(VQ(k, 4, **_SMALL) for k in (16, 64, 256)),
        *(VQ(k, 2, **_SMALL) for k in (32, 64, 256)),
        Uniform(8),
    ),
    "mvq": (
        *(MVQ(**preset, **_SMALL) for preset in PRESETS["mvq"].values()),
        MVQ(256, 2, (1, 2), **_SMALL),
        Uniform(8),
    ),
    "uniform": tuple(Uniform(bits) for bits in range(2, 9)),
}
"""What a budget of bits is spread over, by method."""


def codec_of(method: str, bits: int | float | None = None, **options: Any) -> Codec:
    """The codec of a method: a preset, with options that differ.

    Args:
      method: One of `METHODS`.
      bits: Those of a preset, whose options cannot differ then; `None` for 1.5, for
        uniform 2, for mvq 1.25, of which fewer options depend on each other.
      **options: Of the codec; what is `None` does not differ.

    Raises:
      TypeError, ValueError: No preset of the method; options that it has not, that the
        preset chooses, or that are out of range.
    """
    codec = METHODS[method]
    given = {name: x for name, x in options.items() if x is not None}
    coded = "" if given.get("sign_code", "free") == "free" else given["sign_code"]
    kind = f"{method} {coded}".rstrip()
    unknown = given.keys() - {field.name for field in dataclasses.fields(codec)}
    if unknown:
        raise ValueError(f"{method} has no {_listed(unknown)}")
    presets = PRESETS.get(kind, PRESETS[method])
    if bits is None:
        return codec(**{**presets[_DEFAULT_BITS[method]], **given})
    if bits not in presets:
        known = ", ".join(f"{x:g}" for x in presets)
        raise ValueError(f"bits: expected {known} for {kind}, got {bits}")
    preset = presets[bits]
    if preset.keys() & given.keys():
        raise ValueError(f"bits chooses {_listed(preset)}: give either")
    return codec(**preset, **given)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def read_rules(path: pathlib.Path, checkpoint: Checkpoint) -> list[Rule]:
    """The rules of a TOML file, checked.

    Args:
      path: A file of tables `[[rule]]` with `pattern`, `method` and, where these are
        not the default, `bits` or options of the method's codec; the method "none"
        leaves tensors as they are.
      checkpoint: Whose names the patterns are for.

    Raises:
      OSError: A file that is missing or cannot be read.
      ValueError: No such file; a rule that matches no name.
    """
    try:
        content = tomllib.loads(path.read_text())
        tables = content.pop("rule", None)
        if content or not isinstance(tables, list):
            raise ValueError("expected tables [[rule]] and nothing else")
        rules = [_rule(table) for table in tables]
        for rule in rules:
            _matching("a rule", rule.pattern, checkpoint)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return rules


def _rule(table: Any) -> Rule:
    if not isinstance(table, dict) or not {"pattern", "method"} <= table.keys():
        raise ValueError(f"a rule: expected pattern and method, got {table}")
    options = dict(table)
    pattern, method = options.pop("pattern"), options.pop("method")
    if method == "none" and not options:
        return Rule(pattern, None)
    if method not in METHODS:
        known = ", ".join((*METHODS, "none"))
        raise ValueError(f"{pattern!r}: method: expected {known}, got {method!r}")
    if "keep" in options:
        options["keep"] = tuple(options["keep"])
    try:
        return Rule(pattern, codec_of(method, **options))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{pattern!r}: {error}") from error


def choose(
    checkpoint: Checkpoint,
    rules: Sequence[Rule],
    *,
    include: str,
    exclude: str | None,
    min_weights: int,
    layout: Layout,
) -> dict[str, Rule]:
    """The rule of every tensor that is compressed, for its name and axis alone.

    Args:
      checkpoint: Of which headers are read.
      rules: Tried in order.
      include: Regular expression for whole names.
      exclude: Another one, or `None`; wins.
      min_weights: Fewest weights.
      layout: Where inputs are.

    Raises:
      ValueError: An expression that is none or matches no name.
    """
    names = _matching("--include", include, checkpoint)
    if exclude is not None:
        names -= _matching("--exclude", exclude, checkpoint)
    chosen = {}
    for name in checkpoint:
        shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
        rule = next((rule for rule in rules if rule.matches(name)), None)
        if name not in names or rule is None or rule.codec is None:
            continue
        axis = _input_axis(name, shape, layout)
        if math.prod(shape) >= min_weights and _gains(rule.codec, shape, dtype, axis):
            chosen[name] = Rule(re.escape(name), rule.codec, axis=axis)
    return chosen


def allocated(
    checkpoint: Checkpoint,
    chosen: Mapping[str, Rule],
    method: str,
    bits: float,
    moments: Statistics,
    key: Key,
) -> dict[str, Rule]:
    """Rules that spread a budget of bits by the errors expected of outputs.

    Args:
      checkpoint: Of which the chosen tensors are read.
      chosen: Rules of the tensors to spread over.
      method: Whose candidates are tried on each.
      bits: Stored bits a weight of all of them.
      moments: Of some.
      key: As for `ssvq_jax.compress`.

    Raises:
      ValueError: A budget that is too small, with the least that is not.
    """
    params: dict[str, np.ndarray] = {}
    tied: dict[bytes, str] = {}  # tensors that are equal get the same
    firsts: dict[str, str] = {}
    for name in chosen:
        values = widened(checkpoint[name])
        if not np.all(np.isfinite(values)):
            continue  # it stays as it is, with that reason
        firsts[name] = tied.setdefault(digest(values), name)
        if firsts[name] == name:
            params[name] = values
    if not params:
        return {}
    candidates = [
        Rule(chosen[name].pattern, codec, axis=chosen[name].axis)
        for name in params
        for codec in _CANDIDATES[method]
    ]
    own = {name: moments[name] for name in params if name in moments}
    found = allocate(params, candidates, bits=bits, key=key, moments=own or None)
    codecs = {rule.pattern: rule.codec for rule in found}
    return {
        name: dataclasses.replace(chosen[name], codec=codecs[chosen[first].pattern])
        for name, first in firsts.items()
    }


def _matching(option: str, pattern: str, checkpoint: Checkpoint) -> set[str]:
    """The names that an expression matches as a whole; `ValueError` without any."""
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
    return names


def _input_axis(name: str, shape: tuple[int, ...], layout: Layout) -> int:
    """The axis of the inputs."""
    if layout == "flax":
        return input_axis(name, shape)
    depthwise = len(shape) < 2 or shape[1] == 1
    return 0 if depthwise else 1


def _gains(codec: Codec, shape: tuple[int, ...], dtype: Any, axis: int) -> bool:
    """Whether a tensor can be compressed, and gets smaller."""
    if sum(n > 1 for n in shape) < 2:
        return False
    if dtype.name not in ("float32", "float16", "bfloat16", *UPCAST):
        return False
    stored = sum(field.nbytes for field in codec.fields(shape, axis))
    return stored < dtype.itemsize * math.prod(shape) and codec.fits(shape, axis)
