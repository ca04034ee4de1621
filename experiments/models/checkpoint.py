"""Checkpoints into NNX modules, and out of them.

Their attributes have timm's names, those of language models Hugging Face's.
"""

import difflib
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

import ssvq_jax as ssvq
from experiments.models.network import Network
from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.codecs import is_compressed

# Flax's names of leaves where timm's differ.
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
_LEAVES |= {"var": "running_var", "embedding": "weight"}
# Bookkeeping of PyTorch that says nothing about the network.
_IGNORED = "num_batches_tracked"


def load(model: nnx.Module, path: str | pathlib.Path, fresh: str | None = None) -> None:
    """Fill a model from a checkpoint, packed or not, in place.

    The checkpoint has timm's or Hugging Face's names and PyTorch's layout (kernels
    `(out, in)` become `(in, out)`, OIHW becomes HWIO), or Flax's names and layout as
    `save` writes them. A model with other names has them from its `stored_name`. It is
    one file, or the index of its shards, or their folder.

    Args:
      model: The network.
      path: The checkpoint.
      fresh: Regular expression for whole paths of parameters that stay as they are,
        whatever the checkpoint has of them.

    Raises:
      SystemExit: A file that cannot be read, or parameters that are missing, unknown or
        of another shape; `fresh` that matches none.
    """
    try:
        _fill(model, path, fresh)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def load_network(network: Network, path: str | pathlib.Path) -> Any:
    """A network for inference with a checkpoint's weights; errors as of `load`."""
    model = network.build(nnx.Rngs(0))
    load(model, path)
    model.eval()
    return model


def _fill(model: nnx.Module, path: str | pathlib.Path, fresh: str | None) -> None:
    tensors = Checkpoint(path)
    stored = {name for name in tensors if not name.endswith(_IGNORED)}
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    flat = nnx.to_flat_state(state)
    name = getattr(model, "stored_name", timm_name)
    names = {keys: name(keys) for keys, _ in flat}
    own = {keys: flax_name(keys) for keys, _ in flat}
    is_own = not stored.isdisjoint(set(own.values()) - set(names.values()))
    names = own if is_own else names
    if fresh is not None:
        kept = {x for x in names if re.fullmatch(fresh, "/".join(map(str, x)))}
        if not kept:
            raise ValueError(f"fresh: {fresh!r} matches no parameter of the network")
        stored -= {names.pop(keys) for keys in kept}
        flat = [(keys, variable) for keys, variable in flat if keys in names]
    _require_same_names(path, set(names.values()), stored)
    for keys, variable in flat:
        tensor = tensors[names[keys]]
        if not is_own and keys[-1] != "embedding":  # which is (tokens, width) in both
            tensor = to_flax(tensor)
        if tensor.shape != variable.shape:
            raise ValueError(
                f"{path}: {names[keys]}: expected shape {variable.shape} in Flax's "
                f"layout, got {tensor.shape}"
            )
        variable[...] = jnp.asarray(tensor, variable.dtype)
    nnx.update(model, state)


def load_packed(model: nnx.Module, path: str | pathlib.Path) -> Any:
    """Parameters with packed kernels and embeddings as they are, all else decoded.

    Args:
      model: Tells names and shapes; it may have no values, and is not changed.
      path: File as `save` writes it.

    Returns:
      Nested dicts of arrays and `Compressed` nodes; `None` for a file that has no
      nodes in Flax's layout.

    Raises:
      SystemExit: As of `load`.
    """
    try:
        packed = Checkpoint(path).packed
        flat = {keys: x.shape for keys, x in nnx.to_flat_state(nnx.state(model))}
        names = {keys: flax_name(keys) for keys in flat}
        if packed is None or set(packed).isdisjoint(names.values()):
            return None
        _require_same_names(path, set(names.values()), set(packed))
        params = {}
        for keys, shape in flat.items():
            value = packed[names[keys]]
            if value.shape != shape:
                raise ValueError(
                    f"{path}: {names[keys]}: expected shape {shape}, got {value.shape}"
                )
            kept = is_compressed(value) and (
                keys[-1] == "kernel" or (keys[-1] == "embedding" and value.axis == 1)
            )
            params[keys] = value if kept else jnp.asarray(ssvq.decode(value))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    return nnx.traversals.unflatten_mapping(params)


def save(path: str | pathlib.Path, params: Any, statistics: Any) -> None:
    """Write a model's parameters, packed where they are compressed, and statistics.

    Args:
      path: File to write.
      params: Nested dicts of arrays and `Compressed` nodes, as `nnx.to_pure_dict`
        gives them.
      statistics: Likewise, of batch norms.
    """
    flat = nnx.traversals.flatten_mapping(params)
    flat |= nnx.traversals.flatten_mapping(statistics)
    tensors = {flax_name(keys): value for keys, value in flat.items()}
    if any(is_compressed(value) for value in tensors.values()):
        ssvq.save(path, tensors, metadata={"source": {"layout": "flax"}})
    else:
        save_file({name: np.asarray(x) for name, x in tensors.items()}, path)


def flax_name(keys: tuple) -> str:
    """The name of the leaf at a path of a model's state."""
    return ".".join(map(str, keys))


def timm_name(keys: tuple) -> str:
    """Timm's name of the leaf at a path of a model's state."""
    *parents, leaf = map(str, keys)
    return ".".join([*parents, _LEAVES.get(leaf, leaf)])


def to_flax(tensor: np.ndarray) -> np.ndarray:
    """PyTorch's layout of a kernel to Flax's; position embeddings stay as they are."""
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim)
    return tensor if order is None else tensor.transpose(order)


def _require_same_names(
    path: str | pathlib.Path, wanted: set[str], found: set[str]
) -> None:
    problems = []
    for missing in sorted(wanted - found)[:5]:
        near = difflib.get_close_matches(missing, found, n=1) or ["nothing"]
        problems.append(f"{missing} is missing (near it: {near[0]})")
    problems += [f"{name} is unknown" for name in sorted(found - wanted)[:5]]
    if problems:
        raise ValueError(f"{path}: another network: {'; '.join(problems)}")
