"""Fixtures of the command's tests."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ssvq_jax.cli import main


@pytest.fixture
def ssvq_command(monkeypatch, capsys):
    """Run `ssvq ...`; gives the exit status, the output and the error output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ssvq", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as status:
            main()
        captured = capsys.readouterr()
        return status.value.code, captured.out, captured.err

    return run


@pytest.fixture
def source(tmp_path, rng):
    """A checkpoint with torch's layouts, names and metadata."""

    def normal(*shape):
        return rng.normal(size=shape).astype("f4")

    tensors = {
        "layers.0.linear.weight": normal(96, 64),
        "layers.0.linear.bias": normal(96),
        "conv.weight": normal(32, 24, 3, 3).astype(jnp.bfloat16),
        "depthwise.weight": normal(480, 1, 3, 3).astype("f2"),
        "a/~b[red]": normal(64, 65),
        "cls_token": normal(1, 1, 4096),
        "position_ids": np.arange(5000).reshape(2, 2500),
        "double": normal(80, 80).astype("f8"),
        "empty": normal(0, 3),
    }
    path = tmp_path / "in.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path, tensors
