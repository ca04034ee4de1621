"""Calibrated encoding of a language model's kernels beside GPTQ in NumPy.

    python -m experiments.benchmarks refine

The kernels of a gated MLP 576 wide, inputs correlated. The peer is GPTQ, Cholesky
factor and row after row, in float32; it has no codebook: with `Uniform` both do the
same, and `refine` three sweeps more.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import ssvq_jax as ssvq
from experiments.benchmarks import peers
from experiments.benchmarks.measure import median_seconds
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run
from experiments.report.numbers import at_most
from ssvq_jax.calibration import Moment, Role

SHAPES = ((576, 1536), (1536, 576))
CODECS = (ssvq.Uniform(4), ssvq.SSVQ(16, 8), ssvq.VQ(256, 4))
LARGE = 1e8  # weights
MOST_MINUTES = 20.0


def measure(options: Options) -> Iterator[Row]:
    """A row per shape and codec, warm."""
    for inputs, outputs in ((32, 64),) if options.quick else SHAPES:
        keys = jax.random.split(jax.random.key(0), 3)
        mixing = jax.random.normal(keys[0], (inputs, inputs)) / np.sqrt(inputs)
        x = jax.random.normal(keys[1], (4 * inputs, inputs)) @ (
            jnp.eye(inputs) + mixing
        )
        params = {"kernel": jax.random.normal(keys[2], (inputs, outputs))}
        moment = Moment(
            second=x.T @ x,
            mean=jnp.mean(x, axis=0),
            count=jnp.float32(len(x)),
            roles=jnp.array([Role.INPUT, Role.OUTPUT], jnp.int32),
        )
        for codec in CODECS:
            yield _row(codec, params, moment, options)


def _row(
    codec: ssvq.Codec, params: dict[str, jax.Array], moment: Moment, options: Options
) -> Row:
    rules = [ssvq.Rule("kernel", codec)]
    plain = ssvq.compress(params, rules, key=jax.random.key(0))
    moments = ssvq.Moments({"kernel": moment})
    timed = {"ours": lambda: ssvq.refine(plain, params, moments)}
    if isinstance(codec, ssvq.Uniform):
        weight, second = (np.asarray(x) for x in (params["kernel"], moment.second))
        limits, step = codec.limits, np.asarray(plain["kernel"].scale)
        timed["peer"] = lambda: peers.numpy_gptq(weight, second, step, limits)
    seconds = median_seconds(timed, options.timed_runs)
    weights = params["kernel"].size
    minutes = seconds["ours"].median * LARGE / weights / 60
    return Row(
        case=f"{codec.describe()}, {' x '.join(map(str, params['kernel'].shape))}",
        ours=seconds["ours"].median,
        peer=seconds["peer"].median if "peer" in seconds else None,
        peer_name="GPTQ in NumPy" if "peer" in seconds else "",
        note=f"10^8 weights: {minutes:.1f} minutes; "
        + at_most(minutes, MOST_MINUTES, f"{MOST_MINUTES:g}"),
        details={"minutes_of_1e8": minutes, **seconds["ours"].spread()},
    )


if __name__ == "__main__":
    run("refine", measure)
