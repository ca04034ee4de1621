"""SSVQ: sign-splitting vector quantization of network weights, for JAX and Flax."""

import importlib
import importlib.util
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssvq_jax.api import *  # noqa: F403

__version__ = _version("ssvq_jax")


def __getattr__(name: str) -> Any:
    """Imports the rest when it is first asked for: `ssvq_jax.reader` needs no JAX."""
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    api = importlib.import_module("ssvq_jax.api")
    names = [x for x in dir(api) if x[0] != "_"]
    globals().update({x: getattr(api, x) for x in names} | {"__all__": names})
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(importlib.import_module("ssvq_jax.api"))})
