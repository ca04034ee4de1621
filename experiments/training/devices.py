"""Devices, and what lies on which of them."""

import dataclasses
import math
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Parallel = Literal["data", "fully_sharded"]
_SMALLEST = 2**12  # smaller arrays are not worth the communication


@dataclasses.dataclass(frozen=True)
class Devices:
    """All devices in one row, of all processes.

    Attributes:
      mesh: One axis, `data`, along which batches are cut.
      parallel: "data": every device has all parameters. "fully_sharded": parameters
        and the optimizer's state are cut as well.
    """

    mesh: Mesh
    parallel: Parallel = "data"

    @classmethod
    def all(cls, parallel: Parallel) -> "Devices":
        """All there are, process by process, as `evaluation` counts on."""
        devices = sorted(jax.devices(), key=lambda x: (x.process_index, x.id))
        return cls(Mesh(np.array(devices), ("data",), (AxisType.Auto,)), parallel)

    @property
    def process(self) -> tuple[int, int]:
        """Index of this process and their count."""
        return jax.process_index(), jax.process_count()

    @property
    def replicated(self) -> NamedSharding:
        """The whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        """Rows divided among the devices."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def sharding(self, tree: Any) -> Any:
        """Where the arrays of a training state lie, by their shapes."""
        return jax.tree.map(lambda x: self._sharding(np.shape(x)), tree)

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        count = self.mesh.size
        fitting = [i for i, n in enumerate(shape) if n % count == 0]
        small = math.prod(shape) < _SMALLEST
        if self.parallel == "data" or small or not fitting:
            return self.replicated
        axis = max(fitting, key=lambda i: shape[i])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "data"))

    def place(self, tree: Any) -> Any:
        """Copies, where they belong, of arrays that every process has."""
        # From the host: of an array on one of the devices, a replicated one keeps the
        # buffer there, and a step that may reuse its state's memory deletes both.
        arrays = jax.tree.map(np.asarray, tree)
        return jax.device_put(arrays, self.sharding(tree), may_alias=False)

    def gather(self, tree: Any) -> Any:
        """The whole arrays in this process's memory."""
        if jax.process_count() == 1:
            return jax.tree.map(np.asarray, tree)
        return multihost_utils.process_allgather(tree, tiled=True)

    def batch(self, arrays: Any) -> Any:
        """This process's share of a batch, as part of the whole one."""
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.sharded, x), arrays
        )
