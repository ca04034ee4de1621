import os
import pathlib
import sys

# Eight CPU devices for the tests of sharded weights; the others use the first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

# Needs atheris, and is run by hand.
collect_ignore = ["export/fuzz_atheris.py"]

# Every new shape compiles: few examples, and no deadline for the first of them. The
# same ones every time: what a change did not touch does not fail beside it.
settings.register_profile("compiling", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("compiling")


def pytest_addoption(parser):
    parser.addoption(
        "--kills",
        type=int,
        default=1,
        help="how often one of two processes of a run is killed (default: 1)",
    )


@pytest.fixture(autouse=True)
def strict_promotion():
    """No implicit promotion of dtypes and ranks inside the library."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Compiled programs are kept, a few memory maps each, of which a process may have
    65,530 on Linux: beyond that it crashes."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def standard_promotion():
    """For tests with optimizers and layers, which promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def unchecked_types():
    """Turns off the checks of annotations, where the library's own are tested."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def ssvq_command(monkeypatch, capsys):
    """Run `ssvq ...`; gives the exit status, the output and the error output."""
    from ssvq_jax.cli import main  # after jaxtyping has put in its checks

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ssvq", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as status:
            main()
        captured = capsys.readouterr()
        return status.value.code, captured.out, captured.err

    return run


@pytest.fixture
def torch_checkpoint(tmp_path, rng):
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
