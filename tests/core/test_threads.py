"""The same key gives the same bytes, however many threads a program runs on."""

import hashlib
import os
import subprocess
import sys

import pytest

_PROGRAM = """
import hashlib, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import jax, numpy as np, ssvq_jax as ssvq
rng, bytes_of = np.random.default_rng(0), hashlib.md5()
weight, importance = rng.normal(size=(512, 512)).astype("f4"), rng.random((512, 512))
for codec in (ssvq.SSVQ(channel_scale="float16"), ssvq.Uniform(3)):
    for weights in (None, importance.astype("f4")):
        node = ssvq.encode(codec, weight, key=jax.random.key(0), importance=weights)
        for leaf in jax.tree.leaves(node):
            bytes_of.update(np.asarray(leaf).tobytes())
print(bytes_of.hexdigest())
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two CPUs",
)
def test_bytes_do_not_depend_on_threads():
    digests = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(cpus)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for cpus in (1, 2)
    }
    assert len(digests) == 1
    assert digests != {hashlib.md5().hexdigest() + "\n"}
