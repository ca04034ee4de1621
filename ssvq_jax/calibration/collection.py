"""`calibrate`: the sums of all batches, put in the order of the parameters' axes."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from ssvq_jax.calibration.evaluation import Evaluator
from ssvq_jax.calibration.found import Found, Key, Role, Sums
from ssvq_jax.calibration.moments import Moment, Moments
from ssvq_jax.calibration.products import Form
from ssvq_jax.calibration.views import View
from ssvq_jax.core.sharding import compiler_sharded, place, replicated
from ssvq_jax.tree.paths import flatten
from ssvq_jax.tree.rules import Rule, require_matches


def calibrate(
    apply: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    *,
    rules: Sequence[Rule] | None = None,
    form: Form = "full",
) -> Moments:
    """Moments of the inputs that each parameter is multiplied with.

    They are read from the jaxpr of `apply(params, batch)`: parameters are followed
    through casts, reshapes, transposes, slices, `jit`, `scan`, `cond`, `remat` and
    custom derivatives to the dense products, convolutions and lookups that take them.
    Nothing is intercepted; results of `apply` that no moment needs are not computed.

    Args:
      apply: A function that JAX can trace; its results are ignored.
      params: Pytree of parameters, as for `ssvq_jax.compress`.
      batches: What `apply` takes, one batch after the other; pytrees of arrays. They
        may be sharded over a mesh: sums are those of all devices. Batches of other
        shapes are compiled for anew.
      rules: Parameters whose first matching rule has a codec are looked for; without
        rules, all floating ones.
      form: Of the second moments: "full" `(in, in)`; "diagonal" `(in,)`; a number `b`
        for blocks `(ceil(in / b), b, b)`, consecutive inputs, the last padded with
        zeros. The latter two are for wide layers: "full" holds `4 * in**2` bytes a
        parameter and takes `in**2` multiplications a row. (`refine` makes a full matrix
        of blocks, one parameter at a time.) EfficientNet-Lite0 (50
        kernels, 53 MiB of moments) takes 3 s for 50 images on 2 CPU cores, 6 s more for
        compiling, and 2.0 GiB at most, of which 0.6 before the first.

    Returns:
      `Moments`: sums over the rows of all batches. See `Moment` for their layout.

    Raises:
      TypeError: Rules that are none.
      ValueError: No batches; NaN or infinity in the inputs of a product, named by
        its parameter and the number of the batch; a rule that matches no path; an
        unknown form.

    Examples:
      >>> import jax.numpy as jnp, ssvq_jax as ssvq
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> def apply(params, x):
      ...     return x @ params["dense"]["kernel"] + params["dense"]["bias"]
      >>> moments = ssvq.calibrate(apply, params, [jnp.array([[1.0, 2.0]])])
      >>> moments["dense/kernel"].second.tolist()
      [[1.0, 2.0], [2.0, 4.0]]
      >>> moments.missing
      {'dense/bias': 'used by `add`, no product that is followed'}

    References:
      Frantar et al. 2022, GPTQ: second moments as the metric of a layer's weights.
    """
    if form not in ("full", "diagonal") and (
        isinstance(form, bool) or not isinstance(form, int) or form < 1
    ):
        raise ValueError(f"form: expected full, diagonal or a size, got {form!r}")
    named, treedef = flatten(params)
    missing: dict[str, str] = {}
    views = _views(named, rules, missing)

    @jax.jit
    def collect(leaves: list[Any], batch: Any) -> Found:
        jaxpr = jax.make_jaxpr(
            lambda leaves, batch: apply(jax.tree.unflatten(treedef, leaves), batch)
        )(leaves, batch)
        values = [*leaves, *jax.tree.leaves(batch)]
        evaluator = Evaluator(form)
        others = [None] * (len(values) - len(views))
        evaluator.closed(jaxpr, values, [*views, *others])
        return evaluator.found

    sums, step, notes = None, None, Found()
    finite = []
    leaves = list(named.values())
    for batch in batches:
        if step is None:
            sharding = _sharding([leaves, batch])
            one = compiler_sharded(collect, sharding)
            step = jax.jit(functools.partial(_add, one), donate_argnums=0)
            sums = _zeros(jax.eval_shape(one, leaves, batch), sharding)
            sums.notes = {}  # static where `step` takes them: others are traced anew
        sums, flags = step(sums, leaves, batch)
        notes.merge_notes(sums)
        sums.notes = {}
        jax.block_until_ready(finite[-1:])  # no more than two batches under way
        finite.append(flags)
    if sums is None:
        raise ValueError("batches: expected at least one, got none")
    _require_finite(list(sums.sums), jax.device_get(finite))
    sums.merge_notes(notes)
    return _moments(sums, views, missing)


def _views(
    named: Mapping[str, Any], rules: Sequence[Rule] | None, missing: dict[str, str]
) -> list[View | None]:
    """Which leaves are looked for; those that cannot be are noted in `missing`."""
    if rules is not None:
        require_matches(rules, named)
    views: list[View | None] = []
    for path, leaf in named.items():
        rule = next((rule for rule in rules or () if rule.matches(path)), None)
        floating = jnp.issubdtype(jax.typeof(leaf).dtype, jnp.floating)
        views.append(None)
        if floating if rules is None else rule is not None and rule.codec is not None:
            if not floating or 0 in jnp.shape(leaf):
                missing[path] = f"no floating values: {jax.typeof(leaf).str_short()}"
            else:
                views[-1] = View.whole(path, jnp.shape(leaf))
    return views


def _add(collect: Any, sums: Found, leaves: Any, batch: Any) -> tuple[Found, Array]:
    """Sums with those of a batch added, its notes; which of its sums are finite."""
    found: Found = collect(leaves, batch)
    if list(found.sums) != list(sums.sums):
        raise ValueError("batches: expected the same products for every batch")
    finite = [
        jnp.all(jnp.isfinite(new.second)) & jnp.all(jnp.isfinite(new.total))
        for new in found.sums.values()
    ]
    total = jax.tree.map(jnp.add, tuple(sums.sums.values()), tuple(found.sums.values()))
    result = Found()
    result.sums = dict(zip(found.sums, total, strict=True))
    result.merge_notes(found)
    return result, jnp.array(finite, bool)


def _zeros(shapes: Found, sharding: NamedSharding | None) -> Any:
    return jax.tree.map(lambda x: place(jnp.zeros(x.shape, x.dtype), sharding), shapes)


def _sharding(tree: Any) -> NamedSharding | None:
    """What is whole on the devices of the first leaf that lies on a mesh."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding):
            return replicated(sharding)
    return None


def _require_finite(keys: Sequence[Key], batches: Sequence[Any]) -> None:
    for number, flags in enumerate(batches):
        for key, finite in zip(keys, flags, strict=True):
            if not finite:
                raise ValueError(
                    f"{key.path}: expected finite inputs whose squares float32 can add "
                    f"up, got others in batch {number}"
                )


def _moments(
    found: Found, views: Sequence[View | None], missing: dict[str, str]
) -> Moments:
    """Sums by path; where a parameter is used in two ways, products before lookups."""
    moments: dict[str, Moment] = {}
    keys = sorted(found.sums, key=lambda key: key.lookup)  # stable
    for view in filter(None, views):
        reasons = list(found.notes.get(view.path, ()))
        first, total = None, None
        for key in (key for key in keys if key.path == view.path):
            sums = _placed(key, found.sums[key])
            if first is None:
                first, total = key, sums
            elif (first.roles, first.lookup, jax.tree.map(jnp.shape, total)) == (
                key.roles,
                key.lookup,
                jax.tree.map(jnp.shape, sums),
            ):
                total = jax.tree.map(jnp.add, total, sums)
            else:
                kind = "lookups" if key.lookup else "products"
                reasons.append(f"its {kind} along {_inputs(key)} are not counted")
        if first is not None and total is not None:
            moments[view.path] = Moment(
                second=total.second,
                mean=total.total / jnp.maximum(total.rows, 1)[..., None],
                count=total.rows,
                roles=jnp.array(first.roles, jnp.int32),
            )
        elif not reasons:
            reasons = ["not used by the function"]
        if reasons:
            missing[view.path] = "; ".join(reasons)
    return Moments(moments, missing)


def _inputs(key: Key) -> str:
    axes = [i for i, role in enumerate(key.roles) if role == Role.INPUT]
    return f"axes {', '.join(map(str, axes))}"


def _placed(key: Key, sums: Sums) -> Sums:
    """Sums with one leading axis for every axis of the parameter that has groups."""
    order = sorted(
        range(len(key.groups)),
        key=lambda i: (key.groups[i].axis, -key.groups[i].stride),
    )
    places, extents = [], []
    for axis, role in enumerate(key.roles):
        if role not in (Role.GROUP, Role.GROUPED):
            continue
        place = np.array([key.offsets[axis]])
        factors = [key.groups[i] for i in order if key.groups[i].axis == axis]
        for factor in factors:
            steps = factor.stride * np.arange(factor.size)
            place = (place[:, None] + steps).reshape(-1)
        unit = factors[-1].stride if role == Role.GROUPED else 1
        places.append(place // unit)
        extents.append(key.shape[axis] // unit)

    def one(x: Array) -> Array:
        rest = range(len(order), x.ndim)
        x = x.transpose(*order, *rest)
        x = x.reshape(*map(len, places), *x.shape[len(order) :])
        if [len(place) for place in places] == extents:
            return x
        whole = jnp.zeros((*extents, *x.shape[len(places) :]), x.dtype)
        return whole.at[np.ix_(*places)].set(x)

    return Sums(*map(one, sums))
