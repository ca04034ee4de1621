"""What the header of a packed file says of it, as JSON and as objects."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from ssvq_jax.codecs import MVQ, SSVQ, VQ, Codec, Uniform
from ssvq_jax.codecs.protocol import WEIGHT_DTYPES, Field
from ssvq_jax.export.container import DTYPES, LARGEST_SIZE, NAMES, natural, parse_json
from ssvq_jax.export.error import FormatError

VERSION = 1
MOST_WEIGHTS_PER_BYTE = 256
"""A payload stores at least one byte for so many weights: what a file makes a reader
allocate stays in proportion to its length."""

_CODECS: dict[str, type[Codec]] = {
    codec.__name__: codec for codec in (SSVQ, VQ, Uniform, MVQ)
}


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
        """Raise `ValueError` for more weights than a byte may stand for."""
        size = math.prod(self.shape)
        if size > MOST_WEIGHTS_PER_BYTE * self.nbytes:
            raise ValueError(
                f"{size} weights in {self.nbytes} bytes; expected at most "
                f"{MOST_WEIGHTS_PER_BYTE} per byte"
            )


@dataclasses.dataclass(frozen=True)
class Description:
    """What the header says.

    Attributes:
      entries: The compressed parameters, in the order of their payloads.
      containers: Kinds of containers, by name: see `structure`.
      metadata: Whatever the writer was given.
      alignment: Payloads start at multiples of this many bytes.
    """

    entries: Sequence[Entry]
    containers: dict[str, str]
    metadata: dict[str, Any]
    alignment: int = 1

    def to_json(self) -> str:
        """As text. The same description gives the same text."""
        codecs: list[Codec] = []
        for entry in self.entries:
            if entry.codec not in codecs:
                codecs.append(entry.codec)
        content = {
            "version": VERSION,
            "alignment": self.alignment,
            "codecs": [
                {"name": type(codec).__name__, **dataclasses.asdict(codec)}
                for codec in codecs
            ],
            "compressed": [
                [codecs.index(x.codec), NAMES[x.dtype], x.axis, list(x.shape)]
                for x in self.entries
            ],
            "containers": self.containers,
            "metadata": self.metadata,
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
        version = content.get("version")
        if type(version) is not int or version != VERSION:
            raise FormatError(f"version: expected {VERSION}, got {version!r}")
        alignment = natural("alignment", content.get("alignment"), 1 << 20)
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
        )


def _entry(name: str, listed: Any, codecs: Sequence[Codec]) -> Entry:
    try:
        codec, dtype, axis, shape = listed
        if not shape or not isinstance(shape, list):
            raise ValueError(f"shape: expected at least one axis, got {shape!r}")
        shape = tuple(natural("shape", n, LARGEST_SIZE) for n in shape)
        if 0 in shape:
            raise ValueError(f"shape: expected no empty axis, got {shape}")
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


def _codec(entry: Any) -> Codec:
    """A codec from JSON; its own checks refuse values out of range."""
    try:
        options = dict(entry)
        return _CODECS[options.pop("name")](**options)
    except (TypeError, KeyError, ValueError, ArithmeticError) as error:
        raise FormatError(f"codec: {str(entry)[:200]}: {error}") from error


def _expect(content: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(content.get(name), kind):
        raise FormatError(f"{name}: expected a {kind.__name__}")
    return content[name]
