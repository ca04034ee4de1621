import jax.numpy as jnp
import pytest

import ssvq_jax as ssvq


@pytest.fixture
def saved(tmp_path, rng, key):
    """A small file with one compressed and one plain parameter."""
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(8, 4)), "f4")},
        "b": jnp.arange(3.0),
    }
    rules = [ssvq.Rule("a/.*", ssvq.SSVQ(2, 4))]
    tree = ssvq.finalize(ssvq.compress(params, rules, key=key))
    path = tmp_path / "small.ssvq.safetensors"
    ssvq.save(path, tree, metadata={"note": "small"})
    return path, tree
