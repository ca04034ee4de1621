"""Writing text with packed kernels, a token at a time, against dense ones.

    python -m experiments.benchmarks generate

A Llama of SmolLM2-135M's shapes, its 210 kernels compressed, the embedding, which is
the head, too, in 8 bits; weights are random, which speed does not depend on. Every form
writes some tokens in turn, several times.
"""

import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ssvq_jax as ssvq
from experiments.benchmarks.measure import once
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run
from experiments.models.llama import CONFIGS, Llama, continuation

KERNELS = "model/layers/.*/kernel"
EMBEDDING = "model/embed_tokens/embedding"
CODECS = (ssvq.SSVQ(16, 8), ssvq.SSVQ(16, 4), ssvq.VQ(64, 4))
AIM = 1.5
LESS_MEMORY = 10.0
TOKENS = 24
VOCABULARY = 49152


def measure(options: Options) -> Iterator[Row]:
    """Two rows per codec: against float32 and against bfloat16."""
    config = CONFIGS["llama_books" if options.quick else "smollm2_135m"]
    vocabulary = 64 if options.quick else VOCABULARY
    model = Llama(config, vocabulary, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    dense = nnx.to_pure_dict(params)
    forms = {
        "float32": dense,
        "bfloat16": jax.tree.map(lambda x: x.astype(jnp.bfloat16), dense),
    }
    for codec in CODECS:
        rules = [ssvq.Rule(KERNELS, codec), ssvq.Rule(EMBEDDING, ssvq.Uniform(8))]
        packed = ssvq.compress(dense, rules, key=jax.random.key(0))
        forms[codec.describe()] = ssvq.finalize(packed)
    tokens = 4 if options.quick else TOKENS
    writers = {
        name: continuation(
            graphdef,
            form,
            np.arange(8),
            count=2 + tokens * options.timed_runs,
            key=jax.random.key(0),
        )
        for name, form in forms.items()
    }
    for writer in writers.values():  # prompt and first token wait for the compiler
        _pull(writer, 2)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.timed_runs):
        for name, writer in writers.items():
            seconds[name].append(once(_pull, writer, tokens)[0] / tokens)
    size = {name: _megabytes(form) for name, form in forms.items()}
    for codec in map(ssvq.Codec.describe, CODECS):
        ours = statistics.median(seconds[codec])
        less = size["float32"] / size[codec]
        for peer, aim in (("float32", AIM), ("bfloat16", None)):
            theirs = statistics.median(seconds[peer])
            met = "met" if less >= LESS_MEMORY else "missed"
            yield Row(
                case=f"a token, {codec}",
                ours=ours,
                peer=theirs,
                peer_name=peer,
                aim=aim,
                note=f"{1 / ours:.1f} tokens/s against {1 / theirs:.1f}; "
                f"{size[codec]:.0f} MB of weights against {size[peer]:.0f}"
                + (f", {less:.1f} times less ({met}: {LESS_MEMORY:g})" if aim else ""),
                details={"megabytes": size[codec], "times_less": less},
            )


def _pull(writer: Iterator[int], count: int) -> list[int]:
    return list(itertools.islice(writer, count))


def _megabytes(params: Any) -> float:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6


if __name__ == "__main__":
    run("generate", measure)
