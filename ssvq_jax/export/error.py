"""The error of files that cannot be read."""

import contextlib
from collections.abc import Iterator

from safetensors import SafetensorError

# What malformed content raises on the way through checks and constructors.
_REFUSALS = (
    ArithmeticError,
    LookupError,
    RecursionError,
    SafetensorError,
    TypeError,
    ValueError,
)


class FormatError(ValueError):
    """A file that is no packed file, or is damaged; names the file and parameter."""


@contextlib.contextmanager
def naming(*names: str) -> Iterator[None]:
    """Turns what malformed content raises into a `FormatError` that names it."""
    try:
        yield
    except _REFUSALS as error:
        place = ": ".join(filter(None, names))
        raise FormatError(f"{place}: {error}") from error
