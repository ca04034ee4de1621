"""How the weights of a parameter are arranged for encoding them step by step.

Encoding walks over the inputs of a product: a step chooses the blocks that the next
inputs are part of. Where blocks run along inputs, as in most kernels, a step is one
block of inputs, for all outputs. Where they run along outputs or groups, as in
depthwise kernels, a step is one input.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ssvq_jax.calibration.found import Role
from ssvq_jax.calibration.moments import Moment, split_axes
from ssvq_jax.codecs import Compressed
from ssvq_jax.codecs.nearest import Choice
from ssvq_jax.core.blocks import from_blocks, grid_shape, to_blocks, valid_blocks


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arrangement of one weight as `rows`: `(groups, inputs, outputs)`.

    Where blocks run along inputs, that axis is the last of the inputs, padded to whole
    blocks. Hashable: programs depend on it.

    Attributes:
      shape: Shape of the weight.
      roles: Of its axes.
      groups: How many groups every axis has that has some, in the order of the axes.
      axis: The axis along which the blocks run.
      block: Weights per block.
    """

    shape: tuple[int, ...]
    roles: tuple[Role, ...]
    groups: tuple[int, ...]
    axis: int
    block: int

    @classmethod
    def of(cls, node: Compressed, moment: Moment) -> "Layout":
        """The arrangement of a compressed weight for the moments of its inputs."""
        roles = tuple(Role(int(role)) for role in np.asarray(moment.roles))
        groups = moment.mean.shape[:-1]
        return cls(node.shape, roles, groups, node.axis, node.codec.block)

    @property
    def along_inputs(self) -> bool:
        """Whether blocks run along inputs."""
        return self.roles[self.axis] == Role.INPUT

    @property
    def step(self) -> int:
        """Inputs per step."""
        return self.block if self.along_inputs else 1

    @functools.cached_property
    def inputs(self) -> np.ndarray:
        """Which input of the moments every row is; -1 where it is padding."""
        sizes = [
            n if role == Role.INPUT else 1
            for n, role in zip(self.shape, self.roles, strict=True)
        ]
        index = np.arange(math.prod(sizes)).reshape(sizes)
        if self.along_inputs:
            index = np.pad(index, self._padding, constant_values=-1)
            index = np.moveaxis(index, self.axis, -1)
        return index.reshape(-1)

    def second(self, moment: Moment) -> Float[Array, "g i ..."]:
        """Second moments of the rows; diagonal where they are, 0 for padding."""
        index, real = self.inputs, self.inputs >= 0
        groups = math.prod(self.groups)
        if moment.second.shape == moment.mean.shape:
            diagonal = moment.second.reshape(groups, -1)
            return jnp.where(real[None], diagonal[:, index], 0.0)
        second = moment.second
        if second.ndim > moment.mean.ndim + 1:
            second = jax.vmap(lambda x: jax.scipy.linalg.block_diag(*x))(
                second.reshape(groups, *second.shape[-3:])
            )
        second = second.reshape(groups, *second.shape[-2:])
        both = (real[:, None] & real)[None]
        return jnp.where(both, second[:, index[:, None], index], 0.0)

    def outputs(self, moment: Moment) -> Float[Array, "g o o"] | None:
        """How errors at the outputs count; `None`: all alike, or blocks across them."""
        factor = moment.output_factor()
        if factor is None or not self.along_inputs:
            return None
        return factor.reshape(math.prod(self.groups), *factor.shape[-2:])

    def rows(self, weight: Num[Array, "*shape"]) -> Num[Array, "g i o"]:
        """Arrange a weight; padded rows are 0."""
        if self.along_inputs:
            weight = jnp.pad(weight, self._padding)
        split, parts = self._parts(weight.shape)
        order = [axis for part in parts for axis in part]
        sizes = [math.prod(split[axis] for axis in part) for part in parts]
        return weight.reshape(split).transpose(order).reshape(sizes)

    def weight(self, rows: Num[Array, "g i o"]) -> Num[Array, "*shape"]:
        """Undo `rows`."""
        padded = np.add(self.shape, np.sum(self._padding, axis=1))
        shape = tuple(map(int, padded)) if self.along_inputs else self.shape
        split, parts = self._parts(shape)
        order = [axis for part in parts for axis in part]
        rows = rows.reshape([split[axis] for axis in order])
        weight = rows.transpose(np.argsort(order)).reshape(shape)
        return weight[tuple(map(slice, self.shape))]

    def blocks(self, slab: Num[Array, "g s o"]) -> Num[Array, "m n d"]:
        """The blocks of a step: `m` sets of them, one for each metric."""
        if self.along_inputs:
            return jnp.swapaxes(slab, 1, 2)
        split, (groups, _, outputs) = self._parts(self._slab_shape)
        order = [*groups, *outputs]
        slab = slab.reshape([split[axis] for axis in order])
        kept = [axis for axis in range(len(split)) if axis in order]
        slab = slab.transpose([order.index(axis) for axis in kept])
        slab = slab.reshape(self._slab_shape)
        blocks = jnp.asarray(to_blocks(slab, self.block, self.axis))
        return blocks.reshape(1, -1, self.block)

    def slab(self, blocks: Num[Array, "m n d"]) -> Num[Array, "g s o"]:
        """Undo `blocks`."""
        if self.along_inputs:
            return jnp.swapaxes(blocks, 1, 2)
        grid = grid_shape(self._slab_shape, self.block, self.axis)
        slab = from_blocks(
            blocks.reshape(*grid, self.block), self._slab_shape, self.axis
        )
        return dataclasses.replace(self, shape=self._slab_shape).rows(slab)

    def choose(
        self,
        node: Compressed,
        slab: Float[Array, "g s o"],
        scale: Float[Array, "g s o"] | None,
        metric: Float[Array, "g s s"],
    ) -> Choice:
        """The best codes for the blocks of a step, `(m, n)`.

        Args:
          node: Codebook and scales.
          slab: Targets, in units of the scales.
          scale: These.
          metric: Of the step's inputs; 0 on padding.
        """
        blocks = self.blocks(slab)
        if self.along_inputs:
            valid = jnp.diagonal(metric, axis1=1, axis2=2)[:, None, :] > 0

            def choose(blocks, metric, valid):
                return node.choose(blocks, metric=metric, valid=valid)

            return jax.vmap(choose)(blocks, metric, valid)
        weights = jnp.broadcast_to(metric, slab.shape)
        if scale is not None:
            weights = weights * jnp.square(scale)
        importance = self.blocks(weights)[0]
        valid = valid_blocks(self._slab_shape, self.block, self.axis)
        found = node.choose(blocks[0], importance=importance, valid=valid)
        return jax.tree.map(lambda x: x[None], found)

    def put(self, node: Compressed, choice: Choice) -> Compressed:
        """The node with what was chosen at all steps, `(steps, m, n)`."""
        codes, factors = choice
        if factors is not None:
            slabs = jax.vmap(self.slab)(factors)
            rows = jnp.swapaxes(slabs, 0, 1)
            factors = self.weight(rows.reshape(rows.shape[0], -1, rows.shape[-1]))
        return node.put(self._grid(codes), factors)

    def _grid(self, codes: Num[Array, "steps m n"]) -> Num[Array, "*grid"]:
        """What was chosen for every block, in the shape of the grid of blocks."""
        grid = grid_shape(self.shape, self.block, self.axis)
        if self.along_inputs:
            layout = dataclasses.replace(self, shape=grid, block=1)
            return layout.weight(jnp.swapaxes(codes, 0, 1))
        inputs = [i for i, role in enumerate(self.roles) if role == Role.INPUT]
        others = [i for i in range(len(grid)) if i not in inputs]
        codes = codes.reshape([grid[i] for i in (*inputs, *others)])
        return codes.transpose(np.argsort([*inputs, *others]))

    @property
    def _padding(self) -> Sequence[tuple[int, int]]:
        rest = -self.shape[self.axis] % self.block
        return [(0, rest if i == self.axis else 0) for i in range(len(self.shape))]

    @property
    def _slab_shape(self) -> tuple[int, ...]:
        """Shape of a weight of one input."""
        return tuple(
            1 if role == Role.INPUT else n
            for n, role in zip(self.shape, self.roles, strict=True)
        )

    def _parts(self, shape: Sequence[int]) -> tuple[list[int], list[list[int]]]:
        """The shape with groups as axes of their own, and which axes are what."""
        split, parts = split_axes(shape, self.roles, self.groups)
        inputs = parts[Role.INPUT]
        if self.along_inputs:  # its axis is the last
            before = self.roles[: self.axis].count(Role.GROUPED)
            inputs.append(inputs.pop(inputs.index(self.axis + before)))
        return split, [parts[Role.GROUP], inputs, parts[Role.OUTPUT]]
