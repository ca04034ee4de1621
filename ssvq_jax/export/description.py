"""What the header of a packed file says of it, as JSON and as objects."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from ssvq_jax.codecs import CODECS, Codec
from ssvq_jax.codecs.codec import WEIGHT_DTYPES, Field
from ssvq_jax.core.blocks import grid_shape
from ssvq_jax.export.container import DTYPES, NAMES, natural, parse_json, shape_of
from ssvq_jax.export.error import FormatError

KEY = "ssvq_jax"
"""Of the description in the header's metadata; of what an index has beside."""
HASHES = "ssvq_jax.hashes"
"""The tensor of hashes."""
VERSION = 1
LARGEST_ALIGNMENT = 1 << 20
MOST_WEIGHTS_PER_BYTE = 256
"""A payload stores at least one byte for so many weights: what a file makes a reader
allocate stays in proportion to its length."""

_ALWAYS_WRITTEN = {
    "codewords",
    "block",
    "codebook_dtype",
    "learn_signs",
    "latent_scale",
    "keep",
    "bits",
    "scale_dtype",
}
"""The options of the first files. Any other is written where it is not the codec's
default, which is therefore part of the format: it stays as it is."""
_NEVER_WRITTEN = {"starts"}
"""Options that only `encode` knows."""

_KEYS = ("version", "alignment", "codecs", "compressed", "containers", "metadata")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A compressed parameter.

    Attributes:
      codec: Its codec.
      dtype: Dtype of the weight, as NumPy names it.
      axis: The axis along which the blocks run.
      shape: Shape of the weight.
    """

    codec: Codec
    dtype: str
    axis: int
    shape: tuple[int, ...]

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of the payload, one after the other."""
        return self.codec.fields(self.shape, self.axis)

    @property
    def nbytes(self) -> int:
        """Bytes of the payload, without what fills it up for alignment."""
        return sum(field.nbytes for field in self.fields)

    def check(self) -> None:
        """Raise `ValueError` for more weights, padded, than a byte may stand for."""
        block = getattr(self.codec, "block", 1)
        size = block * math.prod(grid_shape(self.shape, block, self.axis))
        if size > MOST_WEIGHTS_PER_BYTE * self.nbytes:
            raise ValueError(
                f"{size} weights, padding included, in {self.nbytes} bytes; expected "
                f"at most {MOST_WEIGHTS_PER_BYTE} per byte"
            )


@dataclasses.dataclass(frozen=True)
class Description:
    """What the header says.

    Attributes:
      entries: The compressed parameters, in the order of their payloads.
      containers: Kinds of containers, by name: see `export.names`.
      metadata: Whatever the writer was given.
      alignment: Payloads start at multiples of this many bytes.
      ties: Names that are stored under another one, and that one.
    """

    entries: Sequence[Entry]
    containers: dict[str, str]
    metadata: dict[str, Any]
    alignment: int = 1
    ties: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """As text. The same description gives the same text."""
        codecs: dict[Codec, int] = {}
        for entry in self.entries:
            codecs.setdefault(entry.codec, len(codecs))
        content = {
            "version": VERSION,
            "alignment": self.alignment,
            "codecs": [
                {"name": type(codec).__name__, **_options(codec)} for codec in codecs
            ],
            "compressed": [
                [codecs[x.codec], NAMES[x.dtype], x.axis, list(x.shape)]
                for x in self.entries
            ],
            "containers": self.containers,
            "metadata": self.metadata,
            **({"ties": self.ties} if self.ties else {}),
        }
        return json.dumps(content, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, names: Sequence[str]) -> "Description":
        """From the text of a header, and the names of the payloads.

        Raises:
          FormatError: Text that `to_json` would not have written.
        """
        try:
            content = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"the description is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise FormatError("the description is no mapping")
        check_version(content)
        if set(content) - {"ties"} != set(_KEYS):
            raise FormatError(f"expected {', '.join(_KEYS)}, got {', '.join(content)}")
        alignment = natural("alignment", content["alignment"], LARGEST_ALIGNMENT)
        if alignment.bit_count() != 1:
            raise FormatError(f"alignment: expected a power of two, got {alignment}")
        codecs = [_codec(entry) for entry in _expect(content, "codecs", list)]
        listed = _expect(content, "compressed", list)
        if len(listed) != len(names):
            raise FormatError(
                f"compressed: {len(listed)} parameters, but {len(names)} payloads"
            )
        return cls(
            entries=[
                _entry(name, entry, codecs)
                for name, entry in zip(names, listed, strict=True)
            ],
            containers=_expect(content, "containers", dict),
            metadata=_expect(content, "metadata", dict),
            alignment=alignment,
            ties=_ties(content.get("ties", {})),
        )


def _ties(content: Any) -> dict[str, str]:
    texts = isinstance(content, dict) and [*content, *content.values()]
    if texts is False or not all(isinstance(text, str) for text in texts):
        raise FormatError("ties: expected names")
    return content


def check_version(content: dict[str, Any]) -> None:
    """Raise `FormatError` for what another version of the format wrote."""
    version = content.get("version")
    # Not `isinstance`: `true` is an integer of value 1.
    if type(version) is not int or version != VERSION:
        raise FormatError(f"version: expected {VERSION}, got {version!r}")


def _entry(name: str, listed: Any, codecs: Sequence[Codec]) -> Entry:
    try:
        codec, dtype, axis, shape = listed
        shape = shape_of(shape)
        if not shape or 0 in shape:
            raise ValueError(f"shape: expected axes, none empty, got {shape}")
        if DTYPES.get(dtype) not in WEIGHT_DTYPES:
            raise ValueError(f"dtype: expected a floating one, got {dtype!r}")
        entry = Entry(
            codec=codecs[natural("codec", codec, len(codecs))],
            dtype=DTYPES[dtype],
            axis=natural("axis", axis, len(shape)),
            shape=shape,
        )
        entry.check()
        return entry
    except (TypeError, ValueError, ArithmeticError) as error:
        raise FormatError(f"{name}: {error}") from error


def _options(codec: Codec) -> dict[str, Any]:
    """What a file says of a codec."""
    return {
        field.name: getattr(codec, field.name)
        for field in dataclasses.fields(codec)
        if field.name in _ALWAYS_WRITTEN
        or (
            field.name not in _NEVER_WRITTEN
            and getattr(codec, field.name) != field.default
        )
    }


def _codec(entry: Any) -> Codec:
    """A codec from JSON; its own checks refuse values out of range."""
    try:
        if not isinstance(entry, dict):
            raise TypeError("expected a mapping")
        options = dict(entry)
        codec = CODECS[options.pop("name")]
        names = {field.name for field in dataclasses.fields(codec)} - _NEVER_WRITTEN
        unknown = options.keys() - names
        if unknown:
            raise ValueError(f"unknown options {sorted(unknown)}"[:200])
        expected = names & _ALWAYS_WRITTEN
        if not expected <= options.keys():
            raise ValueError(f"expected the options {', '.join(sorted(expected))}")
        return codec(**options)
    except (TypeError, KeyError, ValueError, ArithmeticError) as error:
        raise FormatError(f"codec: {str(entry)[:200]}: {error}") from error


def _expect(content: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(content.get(name), kind):
        raise FormatError(f"{name}: expected a {kind.__name__}")
    return content[name]
