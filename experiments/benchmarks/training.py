"""Training steps of a DeiT-Tiny-shaped transformer: compressed against dense.

python -m experiments.benchmarks.training
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
import rich
from flax import nnx

import ssvq_jax as ssvq
from experiments.benchmarks.measure import median_seconds
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run
from experiments.models.deit import DeiT, DeiTConfig
from experiments.report.numbers import at_most

CODEC = ssvq.SSVQ(codewords=16, block=8)
LEAST_RATIO = 1 / 1.2
MOST_STATE_BYTES = 4.0
_IMAGE, _CLASSES = 32, 10


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the transformer and of its batches; the default is DeiT-Tiny."""

    width: int = 192
    depth: int = 12
    heads: int = 3
    batch: int = 128


QUICK_SIZE = Size(width=64, depth=1, heads=1, batch=4)


@dataclasses.dataclass(frozen=True)
class Method:
    """What is trained: a codec, or `None` for the dense model."""

    name: str
    codec: ssvq.Codec | None
    freeze: bool = False


DENSE = Method("dense", None)
METHODS = (
    Method("VQ(64, 4)", ssvq.VQ(codewords=64, block=4)),
    Method("SSVQ(16, 8), learned signs", CODEC),
    Method("SSVQ(16, 8), learned signs, freezing", CODEC, freeze=True),
)


def measure(options: Options) -> Iterator[Row]:
    """A row per method."""
    size = QUICK_SIZE if options.quick else Size()
    steps, notes = {}, {}
    for method in (DENSE, *METHODS):
        rich.print(f"training: preparing {method.name}")
        steps[method.name], state_bytes = training_step(size, method)
        if method.freeze:
            notes[method.name] = (
                f"state of freeze_signs {state_bytes:.1f} bytes per sign "
                f"({at_most(state_bytes, MOST_STATE_BYTES)})"
            )
    timings = median_seconds(steps, options.timed_runs)
    for method in METHODS:
        yield Row(
            case=method.name,
            ours=timings[method.name].median,
            peer=timings[DENSE.name].median,
            peer_name=DENSE.name,
            aim=LEAST_RATIO if method.freeze else None,
            note=notes.get(method.name, ""),
            details=timings[method.name].spread(),
        )


def training_step(size: Size, method: Method) -> tuple[Callable[[], Any], float]:
    """A training step as a function of nothing, and the bytes of state per sign.

    The bytes are those of the arrays of `freeze_signs` alone; 0 without it.
    """
    config = DeiTConfig(size.width, size.depth, size.heads, size=_IMAGE, patch=8)
    model = DeiT(config, _CLASSES, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    if method.codec is not None:
        rules = [ssvq.Rule(r"blocks/.*/kernel", method.codec)]
        params = ssvq.compress(params, rules, key=jax.random.key(0))
    trainable, static = ssvq.partition(params)
    tx = optax.adamw(1e-3)
    if method.freeze:
        tx = optax.chain(tx, ssvq.freeze_signs(interval=500, threshold=0.1))
    state = tx.init(trainable)
    shape = (size.batch, _IMAGE, _IMAGE, config.channels)
    images = jax.random.normal(jax.random.key(1), shape)
    labels = jax.random.randint(jax.random.key(2), (size.batch,), 0, _CLASSES)

    def loss(trainable, static, images, labels):
        decoded = ssvq.decode(ssvq.combine(trainable, static))
        scores = nnx.merge(graphdef, decoded)(images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    @jax.jit
    def step(trainable, static, state, images, labels):
        gradient = jax.grad(loss)(trainable, static, images, labels)
        updates, state = tx.update(gradient, state, trainable)
        return optax.apply_updates(trainable, updates), state

    return (
        lambda: step(trainable, static, state, images, labels),
        _state_bytes_per_sign(state, trainable),
    )


def _state_bytes_per_sign(state: Any, trainable: Any) -> float:
    states = jax.tree.leaves(state, is_leaf=_is_freezing)
    leaves = jax.tree.leaves([x for x in states if _is_freezing(x)])
    labels = jax.tree.leaves(ssvq.label_tree(trainable))
    latents = [
        x
        for label, x in zip(labels, jax.tree.leaves(trainable), strict=True)
        if label == "sign"
    ]
    if not latents:
        return 0.0
    state_bytes = sum(x.nbytes for x in leaves if x.ndim)  # not the step's number
    return state_bytes / sum(x.size for x in latents)


def _is_freezing(x: Any) -> bool:
    return isinstance(x, ssvq.FreezeSignsState)


if __name__ == "__main__":
    run("training", measure)
