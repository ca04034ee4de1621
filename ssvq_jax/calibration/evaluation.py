"""Evaluate a jaxpr, and note every product that contracts a parameter on the way.

Equations are evaluated as they are; beside the values it is carried along which of
them are views of parameters. Calls are entered, loops and branches are made again with
the sums among their results.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from ssvq_jax.calibration import products
from ssvq_jax.calibration.found import Found, Key, NotFollowedError, Sums
from ssvq_jax.calibration.products import Form
from ssvq_jax.calibration.views import REPEATED, View, follow

_CALLS = {
    "call",
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat",
    "remat2",
}
_SEVERAL = {"device_put", "optimization_barrier"}  # results are operands, one by one

Views = Sequence[View | None]


class Evaluator:
    """Evaluates jaxprs; what it finds gathers in `found`.

    Args:
      form: Of the second moments.
      depth: How many scans it is inside of.
    """

    def __init__(self, form: Form, depth: int = 0):
        self.form: Form = form
        self.depth = depth
        self.found = Found()

    def closed(
        self, closed: ClosedJaxpr, values: Sequence[Any], views: Views
    ) -> tuple[list[Any], list[View | None]]:
        """Results of a closed jaxpr, and which of them are views."""
        return self.evaluate(closed.jaxpr, closed.consts, values, views)

    def evaluate(
        self, jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any], views: Views
    ) -> tuple[list[Any], list[View | None]]:
        """Results of a jaxpr, and which of them are views.

        Args:
          jaxpr: What is evaluated.
          consts: Values of its constants.
          values: Values of its arguments.
          views: Which of the arguments are views.
        """
        known: dict[Var, Any] = {}
        seen: dict[Var, View | None] = {}
        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))
        seen.update(zip(jaxpr.invars, views, strict=True))

        def value(atom: Any) -> Any:
            return _constant(atom) if isinstance(atom, Literal) else known[atom]

        def view(atom: Any) -> View | None:
            return None if isinstance(atom, Literal) else seen.get(atom)

        for equation in jaxpr.eqns:
            operands = [value(atom) for atom in equation.invars]
            parts = [view(atom) for atom in equation.invars]
            if any(parts):
                results, parts = self._equation(equation, operands, parts)
                seen.update(zip(equation.outvars, parts, strict=True))
            else:
                results = _bind(equation, operands)
            known.update(zip(equation.outvars, results, strict=True))
        return [value(a) for a in jaxpr.outvars], [view(a) for a in jaxpr.outvars]

    def _equation(
        self, equation: JaxprEqn, operands: list[Any], views: Views
    ) -> tuple[list[Any], list[View | None]]:
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            inner = params.get("jaxpr") or params["call_jaxpr"]
            if isinstance(inner, ClosedJaxpr):
                return self.closed(inner, operands, views)
            return self.evaluate(inner, [], operands, views)
        if name == "scan":
            return self._scan(params, operands, views)
        if name == "cond" and views[0] is None:
            if params.get("branches_platforms") is not None:
                self._platforms(params["branches"], operands[1:], views[1:])
                return _opaque(equation, operands)
            return self._cond(params["branches"], operands, views[1:])
        if name in _SEVERAL:
            return _bind(equation, operands), list(views)
        if len(operands) == 1 and views[0] is not None:
            followed = follow(name, params, views[0])
            if followed is not None:
                return _bind(equation, operands), [followed]
        try:
            self.found.add(*self._product(name, params, operands, views))
        except NotFollowedError as error:
            for view in filter(None, views):
                self.found.note(view, str(error))
        return _opaque(equation, operands)

    def _product(
        self, name: str, params: Any, operands: list[Any], views: Views
    ) -> tuple[Key, Sums]:
        """Key and sums of an equation that is a product."""
        if name not in ("dot_general", "conv_general_dilated", "gather"):
            raise NotFollowedError(f"used by `{name}`, no product that is followed")
        first, second = views[:2]
        if first is not None and second is not None:
            raise NotFollowedError(f"multiplied with {_other(first, second)}")
        if name == "gather" and first is not None:
            return products.lookup(first, jnp.asarray(operands[1]), params)
        if name == "conv_general_dilated" and second is not None:
            return products.convolution(
                second, jnp.asarray(operands[0]), params, self.form
            )
        if name == "dot_general":
            (left, right), (left_batch, right_batch) = params["dimension_numbers"]
            if first is not None:
                numbers = left, right, left_batch, right_batch
                return products.dense(
                    first, jnp.asarray(operands[1]), numbers, self.form
                )
            if second is not None:
                numbers = right, left, right_batch, left_batch
                return products.dense(
                    second, jnp.asarray(operands[0]), numbers, self.form
                )
        raise NotFollowedError(f"in the place of the data of a `{name}`")

    def _scan(
        self, params: Any, operands: list[Any], views: Views
    ) -> tuple[list[Any], list[View | None]]:
        """A scan with sums among its results: added up, or one per slice."""
        body, depth = params["jaxpr"], self.depth
        first, carries = _scan_counts(params)
        last = first + carries
        inner: list[View | None] = [
            *views[:first],
            *(
                view if body.jaxpr.outvars[i] is body.jaxpr.invars[first + i] else None
                for i, view in enumerate(views[first:last])
            ),
            *(None if view is None else view.enter(depth) for view in views[last:]),
        ]
        results: list[View | None] = []

        def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], Any]:
            evaluator = Evaluator(self.form, depth + 1)
            values = [*operands[:first], *carry, *slices]
            values, results[:] = evaluator.closed(body, values, inner)
            return values[:carries], (values[carries:], evaluator.found)

        carry, slices = operands[first:last], operands[last:]
        one = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in slices]
        _, (_, found) = jax.eval_shape(step, carry, one)
        stacked = [key for key in found.sums if _scanned(key, depth)]
        added = [key for key in found.sums if key not in stacked]
        zeros = {key: _zeros(found.sums[key]) for key in added}

        def summing(state: Any, slices: Any) -> tuple[Any, Any]:
            carry, sums = state
            carry, (values, found) = step(carry, slices)
            new = tuple(found.sums[key] for key in added)
            sums = jax.tree.map(jnp.add, sums, new)
            return (carry, sums), (values, tuple(found.sums[key] for key in stacked))

        (carry, sums), (values, slabs) = jax.lax.scan(
            summing,
            (carry, tuple(zeros.values())),
            slices,
            length=params["length"],
            reverse=params["reverse"],
        )
        self.found.merge_notes(found)
        for key, value in zip(added, sums, strict=True):
            self.found.add(key, value)
        for key, value in zip(stacked, slabs, strict=True):
            self.found.add(*_unstack(key, value))
        kept = inner[first:last]
        for own, before, after in zip(kept, views[first:last], results, strict=False):
            for view in filter(None, (before, after)):
                if own is None:
                    self.found.note(view, "carried from step to step of a loop")
        left = [
            None if view is None else view.leave(depth, params["length"])
            for view in results[carries:]
        ]
        return [*carry, *values], [*kept, *left]

    def _cond(
        self, branches: Sequence[ClosedJaxpr], operands: list[Any], views: Views
    ) -> tuple[list[Any], list[View | None]]:
        """Branches with sums among their results; zeros from those not taken."""

        def run(branch: ClosedJaxpr, *values: Any) -> tuple[list[Any], Found]:
            evaluator = Evaluator(self.form, self.depth)
            results, parts = evaluator.closed(branch, values, views)
            for view in filter(None, parts):
                evaluator.found.note(view, "a result of a branch")
            return results, evaluator.found

        index, *values = operands
        runs = [functools.partial(run, branch) for branch in branches]
        every: dict[Key, Sums] = {}
        for branch in runs:
            _, found = jax.eval_shape(branch, *values)
            self.found.merge_notes(found)
            every.update(found.sums)

        def filled(branch: Any, *values: Any) -> tuple[list[Any], tuple[Sums, ...]]:
            results, found = branch(*values)
            sums = [found.sums.get(key, _zeros(every[key])) for key in every]
            return results, tuple(sums)

        filling = [functools.partial(filled, branch) for branch in runs]
        if index.dtype == bool:
            index = index.astype(jnp.int32)
        results, sums = jax.lax.switch(index, filling, *values)
        for key, value in zip(every, sums, strict=True):
            self.found.add(key, value)
        return results, [None] * len(results)

    def _platforms(
        self, branches: Sequence[ClosedJaxpr], values: list[Any], views: Views
    ) -> None:
        """Branches that compute the same: products from the one that tells most."""

        def run(branch: ClosedJaxpr) -> Found:
            evaluator = Evaluator(self.form, self.depth)
            evaluator.closed(branch, values, views)
            return evaluator.found

        founds = [run(branch) for branch in branches]
        best = min(founds, key=lambda f: (len(f.notes), -len(f.sums)))
        self.found.merge_notes(best)
        for key, value in best.sums.items():
            self.found.add(key, value)


def _scan_counts(params: Any) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # JAX 0.12
    return len(consts), len(carry)


def _constant(literal: Literal) -> Any:
    """The value of a literal; Python's numbers get their dtype."""
    dtype = getattr(literal.val, "dtype", None)
    own: Any = literal.aval
    return literal.val if dtype == own.dtype else np.asarray(literal.val, own.dtype)


def _bind(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Results of an equation."""
    primitive: Any = equation.primitive
    with equation.ctx.manager:
        params = primitive.get_bind_params(equation.params)
        results = primitive.bind(*operands, **params)
    return list(results) if primitive.multiple_results else [results]


def _opaque(
    equation: JaxprEqn, operands: Sequence[Any]
) -> tuple[list[Any], list[View | None]]:
    results = _bind(equation, operands)
    return results, [None] * len(results)


def _other(first: View, second: View) -> str:
    if first.path == second.path:
        return "itself"
    return f"another parameter: {first.path} and {second.path}"


def _zeros(sums: Sums) -> Sums:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)


def _scanned(key: Key, depth: int) -> bool:
    return bool(key.levels) and key.levels[-1][0] == depth


def _unstack(key: Key, sums: Sums) -> tuple[Key, Sums]:
    """Sums of every step of a scan: its axis becomes one more group, or several."""
    *levels, (_, factors) = key.levels
    sizes = tuple(factor.size for factor in factors)
    repeated = tuple(i for i, factor in enumerate(factors) if factor.axis == REPEATED)
    kept = tuple(factor for factor in factors if factor.axis != REPEATED)
    key = dataclasses.replace(key, groups=(*kept, *key.groups), levels=tuple(levels))
    return key, jax.tree.map(
        lambda x: jnp.sum(x.reshape(*sizes, *x.shape[1:]), repeated), sums
    )
