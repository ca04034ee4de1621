"""The optimizer of an experiment, and what its state tells about signs."""

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
        warmup = round(options.warmup * steps)
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps)
        return optax.adamw(
            schedule,
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


def signs(tree: Any) -> list[jax.Array]:
    """Where the latents of a tree's learned signs are plus, as booleans."""
    labels = jax.tree.leaves(ssvq.label_tree(tree))
    leaves = jax.tree.leaves(tree)
    chosen = [x for name, x in zip(labels, leaves, strict=True) if name == "sign"]
    return [x >= 0 for x in chosen]


def shares(before: list[jax.Array], tree: Any, state: Any) -> dict[str, float]:
    """Shares of the signs that changed since `before`, and that are frozen."""
    after = signs(tree)
    total = sum(x.size for x in after)
    if not total:
        return {}
    changed = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
    found = {"flipped": changed / total}
    states = jax.tree.leaves(state, is_leaf=_is_freezing)
    masks = jax.tree.leaves([x.frozen for x in states if _is_freezing(x)])
    if masks:
        found["frozen"] = sum(int(mask.sum()) for mask in masks) / total
    return found


def _is_freezing(x: Any) -> bool:
    return isinstance(x, ssvq.FreezeSignsState)
