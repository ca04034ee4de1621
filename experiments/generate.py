r"""Text that a language model writes, from float or packed weights, token by token.

    python -m experiments.models.smollm2 smollm2
    python -m experiments.generate smollm2_135m smollm2/model.safetensors \
        --prompt "The capital of France is"

Kernels and embeddings that `experiments.compress` has packed stay packed, for
`ssvq.matmul`, `take` and `attend`; all else is decoded once. So are the kernels of a
file that `ssvq compress` made of one in PyTorch's layout, whose blocks lie along the
other axis.
"""

import dataclasses
import math
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.markup import escape

from experiments.data.tokens import BYTES, Tokenizer, open_tokenizer
from experiments.models.checkpoint import load_network, load_packed
from experiments.models.llama import continuation
from experiments.models.network import TextNetwork
from experiments.models.zoo import NETWORKS
from experiments.training.terminal import parse
from ssvq_jax.codecs import is_compressed

_TEXT = {x: net for x, net in NETWORKS.items() if isinstance(net, TextNetwork)}

if TYPE_CHECKING:
    Network = str
else:
    Network = tyro.extras.literal_type_from_choices(_TEXT)


@dataclasses.dataclass(frozen=True)
class Options:
    """What writes, and how it begins."""

    network: tyro.conf.Positional[Network]
    """Network."""
    weights: tyro.conf.Positional[pathlib.Path]
    """Checkpoint, *.safetensors, packed or not, or the index of its shards."""
    prompt: str
    """Text to go on from."""
    tokenizer: str | None = None
    """"bytes", or a file; tokenizer.json beside the checkpoint or one folder above
    where not given."""
    tokens: int = 64
    """Tokens to write at most; fewer where the text or the context ends."""
    temperature: float = 0.0
    """Of the probabilities that tokens are drawn from; 0 for the likeliest ones."""
    seed: int = 0
    """Of the draws."""


def main(options: Options) -> None:
    """Write to the terminal as it comes, then the speed."""
    if options.tokens < 1:
        raise SystemExit("--tokens: expected at least 1")
    if not 0 <= options.temperature < math.inf:
        raise SystemExit("--temperature: expected a number from 0 on")
    name = _tokenizer_name(options)
    tokenizer = open_tokenizer(name)
    network = _TEXT[options.network]
    network.require_classes(name, len(tokenizer.lengths))
    model = nnx.eval_shape(lambda: network.build(nnx.Rngs(0)))
    prompt = read_prompt(options.prompt, tokenizer, model.config.context)
    with Console(stderr=True).status(f"reading {escape(str(options.weights))}"):
        graphdef, params = _weights(network, model, options.weights)
    nodes = jax.tree.leaves(params, is_leaf=is_compressed)
    packed = sum(map(is_compressed, nodes))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6
    print(f"{size:,.1f} MB of weights, {packed} of them packed", file=sys.stderr)
    print(options.prompt, end="", flush=True)
    times, written = [], []
    shown = ""
    for token in continuation(
        graphdef,
        params,
        prompt,
        count=options.tokens,
        temperature=options.temperature,
        key=jax.random.key(options.seed),
    ):
        if token == network.end:
            break
        written.append(token)
        times.append(time.perf_counter())
        text = tokenizer.decode(np.array(written)).rstrip("\ufffd")
        print(text[len(shown) :], end="", flush=True)
        shown = max(shown, text, key=len)
    print(flush=True)
    if len(times) > 2:  # the second one waits for the compiler
        speed = (len(times) - 2) / (times[-1] - times[1])
        print(f"{speed:.1f} tokens/s, one at a time", file=sys.stderr)


def read_prompt(text: str, tokenizer: Tokenizer, context: int) -> np.ndarray:
    """The tokens of a prompt.

    Raises:
      SystemExit: An empty one, one that is no UTF-8, or that `context` has no room for.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of the command line
        raise SystemExit(
            f"--prompt: expected UTF-8, got a wrong byte at {error.start}"
        ) from error
    found = tokenizer.encode(text)
    if not len(found):
        raise SystemExit("--prompt: expected a text, got an empty one")
    if len(found) >= context:
        raise SystemExit(
            f"--prompt: expected less than the context of {context:,} tokens, got "
            f"{len(found):,}"
        )
    return found


def _weights(network: TextNetwork, model: Any, path: pathlib.Path) -> tuple[Any, Any]:
    """Graph definition and parameters, packed kernels as they are."""
    params = load_packed(model, path)
    if params is None:
        graphdef, found = nnx.split(load_network(network, path), nnx.Param)
        return graphdef, nnx.to_pure_dict(found)
    return nnx.split(model, nnx.Param)[0], params


def _tokenizer_name(options: Options) -> str:
    if options.tokenizer is not None:
        return options.tokenizer
    folder = options.weights if options.weights.is_dir() else options.weights.parent
    for place in (folder, folder.parent):
        if (path := place / "tokenizer.json").is_file():
            return str(path)
    raise SystemExit(
        f"--tokenizer: there is no tokenizer.json beside {options.weights}: name one, "
        f'or "{BYTES}"'
    )


if __name__ == "__main__":
    main(parse(Options, __doc__))
