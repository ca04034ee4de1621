"""Real data and trained models that may lie beside the project."""

import pathlib

import pytest

_FOLDER = pathlib.Path(__file__).parents[2] / "shared"


def shared(name: str) -> pathlib.Path:
    """A file or folder of the shared ones; skips the test where it is absent."""
    path = _FOLDER / name
    if not path.exists():
        pytest.skip(f"no shared/{name} beside the project")
    return path
