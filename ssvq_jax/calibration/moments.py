"""Moments of the inputs that parameters are multiplied with, by path."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ssvq_jax.calibration.found import Role
from ssvq_jax.core.blocks import AnyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """Moments of the inputs that one parameter is multiplied with.

    The parameter's axes are groups, inputs and outputs of its product, and `arrange`
    brings a weight into their order: `y[g, n, o] = sum_i x[g, n, i] w[g, i, o]`. The
    inputs are the contracted axes, flattened in the weight's own order: `(in,)` of a
    dense kernel `(in, out)`, `heads * size` of an attention's output kernel, patches of
    `height * width * in` of a convolution. Groups are stacked layers (one for every
    position of their axis) and the groups of a convolution (one for every channel of a
    depthwise one); without them there are no leading axes.

    Attributes:
      second: Sums (not means) of `x^T x` over rows, float32: `(*groups, in, in)`, its
        diagonal `(*groups, in)`, or blocks on it `(*groups, ceil(in / b), b, b)`, the
        last one padded with zeros. Of a lookup in an embedding always the diagonal:
        how often every row was taken.
      mean: Means of the inputs, `(*groups, in)`, float32; zeros where there were none.
      count: How many rows were added up, `(*groups,)`, float32; of a convolution those
        of all positions of all images.
      roles: Of every axis of the weight, as numbers of `Role`, int32.
      outputs: How errors at the outputs count, alone and together, float32
        `(*groups, out, out)`, of the same trace as `second`: see `fisher_factors`.
        `None`: all alike.
    """

    second: Any
    mean: Any
    count: Any
    roles: Any
    outputs: Any = None

    def diagonal(self) -> Float[Array, "*groups in"]:
        """The diagonal of `second`, in whatever form it is."""
        extra = self.second.ndim - self.mean.ndim
        if extra == 0:
            return self.second
        diagonal = jnp.diagonal(self.second, axis1=-2, axis2=-1)
        if extra == 2:
            diagonal = diagonal.reshape(*diagonal.shape[:-2], -1)
        return diagonal[..., : self.mean.shape[-1]]

    def centered(self) -> "Moment":
        """With `second - count * mean mean^T` for `second`; see `Moments.centered`."""
        mean, count = self.mean, self.count[..., None]
        if self.second.ndim == mean.ndim:
            second = jnp.maximum(self.second - count * jnp.square(mean), 0.0)
            return dataclasses.replace(self, second=second)
        block = self.second.shape[-1]
        if self.second.ndim == mean.ndim + 2:
            padding = [(0, 0)] * (mean.ndim - 1) + [(0, -mean.shape[-1] % block)]
            mean = jnp.pad(mean, padding).reshape(self.second.shape[:-1])
            count = count[..., None]
        second = (
            self.second - count[..., None] * mean[..., :, None] * mean[..., None, :]
        )
        on_diagonal = jnp.eye(block, dtype=bool)
        on_diagonal = jnp.broadcast_to(on_diagonal, second.shape)
        second = jnp.where(on_diagonal, jnp.maximum(second, 0.0), second)
        return dataclasses.replace(self, second=second)

    def __add__(self, other: "Moment") -> "Moment":
        """Those of the rows of both.

        Raises:
          ValueError: Outputs in one of them alone.
        """
        if (self.outputs is None) != (other.outputs is None):
            raise ValueError("expected outputs in both moments, or in none")
        count = self.count + other.count
        total = self.count[..., None] * self.mean + other.count[..., None] * other.mean
        return dataclasses.replace(
            self,
            second=self.second + other.second,
            mean=total / jnp.maximum(count, 1)[..., None],
            count=count,
            outputs=None if self.outputs is None else self.outputs + other.outputs,
        )

    def output_factor(self) -> Float[Array, "*groups out out"] | None:
        """`outputs` over the trace: `second` and this are the Fisher information's."""
        if self.outputs is None:
            return None
        trace = jnp.sum(self.diagonal(), axis=-1)
        return self.outputs / jnp.where(trace > 0, trace, 1.0)[..., None, None]

    def damping(self, share: float) -> Float[Array, " *groups"]:
        """What to add to the diagonal of `second`, as a share of its mean.

        `share + inputs / (2 rows)`: moments of few rows know little of directions that
        these did not take. The factor is EfficientNet-Lite0's, on images left out.
        Outputs get the same share of theirs.
        """
        return share + self.mean.shape[-1] / (2 * jnp.maximum(self.count, 1))

    def importance(self, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        """What an error of every weight counts alone, for a parameter of this shape.

        See `ssvq_jax.encode`.

        Raises:
          ValueError: A shape of other axes, groups or inputs.
        """
        self.check(shape)
        outputs = math.prod(shape) // max(self.mean.size, 1)
        diagonal = self.diagonal()[..., None]
        matrix = jnp.repeat(jnp.asarray(diagonal), outputs, axis=-1)
        factor = self.output_factor()
        if factor is not None:
            matrix *= jnp.diagonal(factor, axis1=-2, axis2=-1)[..., None, :]
        return jnp.asarray(self.restore(matrix, shape))

    def slice(self, i: int, count: int) -> "Moment":
        """That of a slice of the weight along its first axis, which has so many.

        Raises:
          ValueError: The slices have no moments of their own: they are added up.
        """
        role, roles = int(np.asarray(self.roles)[0]), self.roles[1:]
        if role == Role.GROUP:
            own = None if self.outputs is None else self.outputs[i]
            return Moment(
                second=self.second[i],
                mean=self.mean[i],
                count=self.count[i],
                roles=roles,
                outputs=own,
            )
        if role == Role.OUTPUT or (role == Role.INPUT and count == 1):
            # All have the same inputs, and other outputs each.
            own = self.outputs
            if own is not None and role == Role.OUTPUT:
                size = own.shape[-1] // count
                own = own[..., i * size : (i + 1) * size, i * size : (i + 1) * size]
            return dataclasses.replace(self, roles=roles, outputs=own)
        raise ValueError("expected moments of every slice of the stack")

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` for a weight of other axes, groups or inputs."""
        self._layout(shape)

    def arrange(
        self, weight: Num[AnyArray, "*shape"]
    ) -> Num[AnyArray, "*groups in out"]:
        """The parameter as the matrix, or matrices, that the inputs meet.

        Not under `jit` if `self` is an argument: the roles are read.

        Raises:
          ValueError: A weight of other axes, groups or inputs.
        """
        split, order, _ = self._layout(weight.shape)
        matrix = weight.reshape(split).transpose(order)
        return matrix.reshape(*self.mean.shape, -1)

    def restore(
        self, matrix: Num[AnyArray, "*groups in out"], shape: tuple[int, ...]
    ) -> Num[AnyArray, "*shape"]:
        """A weight of the given shape: undoes `arrange`."""
        split, order, back = self._layout(shape)
        return matrix.reshape([split[i] for i in order]).transpose(back).reshape(shape)

    def _layout(self, shape: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
        """The shape with groups as axes, their order as a matrix, and its inverse."""
        roles = [Role(int(role)) for role in np.asarray(self.roles)]
        if len(roles) != len(shape):
            raise ValueError(f"expected a weight of {len(roles)} axes, got {shape}")
        split, parts = split_axes(shape, roles, self.mean.shape[:-1])
        sizes = [split[i] for i in parts[Role.GROUP]]
        sizes.append(math.prod(split[i] for i in parts[Role.INPUT]))
        # Groups that do not divide their axis lose a rest of it.
        if tuple(sizes) != self.mean.shape or math.prod(split) != math.prod(shape):
            raise ValueError(
                f"expected groups and inputs {self.mean.shape}, got {tuple(sizes)} of "
                f"shape {shape}"
            )
        size = math.prod(split[i] for i in parts[Role.OUTPUT])
        square = (*self.mean.shape[:-1], size, size)
        if self.outputs is not None and np.shape(self.outputs) != square:
            raise ValueError(
                f"expected outputs {square}, got {np.shape(self.outputs)} of shape "
                f"{shape}"
            )
        order = [i for part in parts.values() for i in part]
        return split, order, [int(i) for i in np.argsort(order)]


def is_moment(leaves: Iterable[str]) -> bool:
    """Whether names are those of a moment's attributes, with or without `outputs`."""
    names = {field.name for field in dataclasses.fields(Moment)}
    return {*leaves, "outputs"} == names


def split_axes(
    shape: Sequence[int], roles: Sequence[Role], groups: Sequence[int]
) -> tuple[list[int], dict[Role, list[int]]]:
    """The shape with groups as axes of their own, and which of its axes are what.

    Args:
      shape: Of a weight.
      roles: Of its axes.
      groups: How many every axis has that has some, in the order of the axes.
    """
    counts = iter(groups)
    split: list[int] = []
    parts: dict[Role, list[int]] = {Role.GROUP: [], Role.INPUT: [], Role.OUTPUT: []}
    for role, size in zip(roles, shape, strict=True):
        if role == Role.GROUPED:
            count = next(counts, 1)
            parts[Role.GROUP].append(len(split))
            parts[Role.OUTPUT].append(len(split) + 1)
            split += [count, size // count]
            continue
        if role == Role.GROUP:
            next(counts, 1)
        parts[role].append(len(split))
        split.append(size)
    return split, parts


@jax.tree_util.register_pytree_with_keys_class
class Moments(Mapping[str, Moment]):
    """Moments by the `/`-joined paths of the parameters: a mapping, and a pytree.

    `ssvq.save(file, moments, metadata={"missing": dict(moments.missing)})` stores it,
    `Moments.from_tree(ssvq.load(file))` reads it.

    Attributes:
      missing: What was not found: reasons in words, by path. A parameter of which some
        uses were found and others were not is here, too.
    """

    def __init__(
        self, moments: Mapping[str, Any], missing: Mapping[str, str] | None = None
    ):
        self._moments = dict(moments)
        self.missing = dict(missing or {})

    @classmethod
    def from_tree(
        cls, tree: Mapping[str, Any], missing: Mapping[str, str] | None = None
    ) -> "Moments":
        """From the dicts that `ssvq.load` gives.

        Args:
          tree: By path, the leaves of a `Moment` by name.
          missing: What was not found, if that was stored: the file's metadata are
            in `ssvq.load(file, lazy=True).metadata`.

        Raises:
          ValueError: A tree of something else.
        """
        for path, leaves in tree.items():
            if not isinstance(leaves, Mapping) or not is_moment(leaves):
                raise ValueError(
                    f"{path}: expected second, mean, count, roles, and perhaps outputs"
                )
        return cls({path: Moment(**leaves) for path, leaves in tree.items()}, missing)

    def centered(self) -> "Moments":
        """With second moments about the means: `second - count * mean mean^T`.

        For weights whose mean output is made good afterwards, by a bias
        (`ssvq_jax.correct_biases`) or a batch norm that is taken anew. The means stay
        as they are. Rounding leaves nothing negative on the diagonals.

        Examples:
          >>> import jax.numpy as jnp, ssvq_jax as ssvq
          >>> x = jnp.array([[1.0, 2.0], [3.0, 2.0]])
          >>> moments = ssvq.calibrate(lambda w, x: x @ w, jnp.ones((2, 3)), [x])
          >>> moments.centered()[""].second.tolist()
          [[2.0, 0.0], [0.0, 0.0]]
        """
        moments = {path: moment.centered() for path, moment in self.items()}
        return Moments(moments, self.missing)

    def __add__(self, other: "Moments") -> "Moments":
        """Those of the batches of both, of the same function and form.

        Raises:
          ValueError: Other paths or shapes; outputs in one of them alone.
        """
        first, second = (
            {path: [*map(jnp.shape, jax.tree.leaves(x[path]))] for path in x}
            for x in (self, other)
        )
        if first != second:
            raise ValueError("expected moments of the same parameters, in one form")
        sums = {path: moment + other[path] for path, moment in self.items()}
        return Moments(sums, {**other.missing, **self.missing})

    def __getitem__(self, path: str) -> Moment:
        if path in self.missing and path not in self._moments:
            raise KeyError(f"{path}: {self.missing[path]}")
        return self._moments[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        shapes = {path: jnp.shape(m.second) for path, m in self._moments.items()}
        return f"Moments({shapes}, missing={self.missing})"

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Moments are children, by path; what is missing is static."""
        children = [(jax.tree_util.DictKey(p), m) for p, m in self._moments.items()]
        return children, (tuple(self._moments), tuple(self.missing.items()))

    @classmethod
    def tree_unflatten(cls, static: Any, children: Iterable[Any]) -> "Moments":
        """Inverse of `tree_flatten_with_keys`."""
        paths, missing = static
        return cls(dict(zip(paths, children, strict=True)), dict(missing))


def require_paths(moments: Mapping[str, Moment], paths: Iterable[str]) -> None:
    """Raise `ValueError` unless there are moments of at least one of the paths."""
    paths = list(paths)
    if not any(path in moments for path in paths):
        raise ValueError(
            f"moments: expected paths of params, such as {next(iter(paths), None)!r}, "
            f"got none of them but such as {next(iter(moments), None)!r}"
        )
