"""The optimizer of an experiment."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import ssvq_jax as ssvq
from experiments.training.config import Freezing, Optimization
from ssvq_jax.codecs import is_compressed


def make(
    options: Optimization, steps: int, freezing: Freezing | None
) -> optax.GradientTransformation:
    """AdamW with a rate per kind of parameter; signs are frozen last.

    Args:
      options: Rates and the rest.
      steps: Updates of the whole run.
      freezing: Of the signs; `None` for none.
    """

    def adamw(rate: float) -> optax.GradientTransformation:
        return optax.adamw(
            _schedule(options, steps, rate),
            b2=options.beta2,
            weight_decay=options.weight_decay,
            mask=lambda tree: jax.tree.map(lambda x: jnp.ndim(x) > 1, tree),
        )

    rates = {
        "sign": options.sign_rate,
        "codebook": options.codebook_rate,
        "other": options.rate,
    }
    kinds: dict[Any, Any] = {kind: adamw(rate) for kind, rate in rates.items()}
    kinds["step"] = optax.chain(kinds["codebook"], _relative())
    groups = optax.partition(kinds, _labels)
    transforms = [optax.clip_by_global_norm(options.clip_norm), groups]
    if freezing is not None:
        first, last = freezing.threshold
        transforms.append(
            ssvq.freeze_signs(
                interval=max(1, steps // freezing.checks),
                threshold=optax.cosine_decay_schedule(first, steps, alpha=last / first),
                momentum=freezing.momentum,
                decide=freezing.decide,
            )
        )
    return optax.chain(*transforms)


def moving(
    options: Optimization, steps: int, rate: float
) -> optax.GradientTransformation:
    """Adam for the weights that codes are chosen anew for; arguments as of `make`."""
    return optax.adam(_schedule(options, steps, rate), b2=options.beta2)


def _schedule(options: Optimization, steps: int, rate: float) -> optax.Schedule:
    warmup = round(options.warmup * steps)
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps)


def _relative() -> optax.GradientTransformation:
    """Updates in units of the parameters: Adam's are as large for all of them."""

    def scale(updates, params):
        return jax.tree.map(lambda x, param: x * jnp.abs(param), updates, params)

    return optax.stateless(scale)


def _labels(tree: Any) -> Any:
    """The library's labels, and "step" for the steps of uniform quantization."""

    def relabel(node, labels):
        if is_compressed(node) and "scale" in node.leaves():
            return labels.replace(scale="step")
        return labels

    return jax.tree.map(relabel, tree, ssvq.label_tree(tree), is_leaf=is_compressed)
