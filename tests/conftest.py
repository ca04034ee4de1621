import os

# Four CPU devices for the tests of sharded weights; the others use the first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Needs atheris, and is run by hand.
collect_ignore = ["export/fuzz_atheris.py"]

# Every new shape compiles: few examples, and no deadline for the first of them. The
# same ones every time: what a change did not touch does not fail beside it.
settings.register_profile("compiling", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("compiling")


@pytest.fixture(autouse=True)
def strict_promotion():
    """No implicit promotion of dtypes and ranks inside the library."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


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
