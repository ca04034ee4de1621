"""Llama (Touvron et al., 2023); attributes as in Hugging Face's."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ssvq_jax as ssvq
from ssvq_jax.codecs import is_compressed


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a Llama; the vocabulary is the network's number of classes.

    Attributes:
      width: Features of a token.
      depth: Blocks.
      heads: Of queries.
      shared_heads: Of keys and values, a divisor of `heads`: grouped queries.
      hidden: Width of the gated perceptron.
      context: Tokens at most.
      theta: Base of the rotary frequencies.
      epsilon: Of the norms.
      tied: Whether the head is the embedding transposed.
    """

    width: int
    depth: int
    heads: int
    shared_heads: int
    hidden: int
    context: int
    theta: float = 10_000.0
    epsilon: float = 1e-5
    tied: bool = True

    def __post_init__(self):
        if self.width % self.heads or self.heads % self.shared_heads:
            raise ValueError(
                "heads: expected a divisor of width, a multiple of shared_heads, got "
                f"{self.heads} for {self.width} and {self.shared_heads}"
            )
        if self.head % 2:
            raise ValueError(f"width / heads: expected an even number, got {self.head}")

    @property
    def head(self) -> int:
        """Features of a head."""
        return self.width // self.heads


CONFIGS = {
    "smollm2_135m": LlamaConfig(
        width=576,
        depth=30,
        heads=9,
        shared_heads=3,
        hidden=1536,
        context=8192,
        theta=100_000.0,
    ),
    "llama_books": LlamaConfig(
        width=256, depth=6, heads=8, shared_heads=4, hidden=768, context=256
    ),
}
"""By the names of the networks."""
_INITIAL = nnx.initializers.normal(0.02)


class Cache(NamedTuple):
    """Keys and values of the tokens so far.

    Attributes:
      keys: `(depth, batch, context, shared_heads, head)`.
      values: Likewise.
      length: Tokens so far.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (Su et al., 2021), halves rotated as Hugging Face does.

    Features `i` and `i + head / 2` are a point in the plane, turned by
    `position * theta ** (-2 * i / head)`.

    Args:
      x: `(batch, tokens, heads, head)`.
      positions: `(tokens,)`.
      theta: Base of the frequencies.
    """
    half = x.shape[-1] // 2
    rates = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None] * rates[None]
    cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Linear(nnx.Module):
    """No bias; a kernel may be a compressed node, which is multiplied as it is."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_INITIAL(rngs.params(), (inputs, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(rows, inputs)` to `(rows, outputs)`."""
        kernel: Any = self.kernel.get_value()
        return ssvq.matmul(x, kernel) if is_compressed(kernel) else x @ kernel


class Embedding(nnx.Module):
    """A table of tokens' features; it may be a compressed node, read row by row."""

    def __init__(self, vocabulary: int, width: int, rngs: nnx.Rngs):
        self.embedding = nnx.Param(_INITIAL(rngs.params(), (vocabulary, width)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """`(batch, tokens)` to `(batch, tokens, width)`."""
        table: Any = self.embedding.get_value()
        if is_compressed(table):
            return ssvq.take(table, tokens)
        return jnp.take(table, tokens, axis=0, mode="clip")

    def attend(self, x: jax.Array) -> jax.Array:
        """`(rows, width)` to logits `(rows, vocabulary)`."""
        table: Any = self.embedding.get_value()
        return ssvq.attend(x, table) if is_compressed(table) else x @ table.T


class Attention(nnx.Module):
    """Causal attention of grouped queries."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.config = config
        shared = config.shared_heads * config.head
        self.q_proj = Linear(config.width, config.width, rngs)
        self.k_proj = Linear(config.width, shared, rngs)
        self.v_proj = Linear(config.width, shared, rngs)
        self.o_proj = Linear(config.width, config.width, rngs)

    def __call__(
        self, x: jax.Array, batch: int, block: int = 0, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Tokens `(batch * tokens, width)` to tokens, and the cache with them."""
        config = self.config
        query, key, value = (
            project(x).reshape(batch, -1, heads, config.head)
            for project, heads in (
                (self.q_proj, config.heads),
                (self.k_proj, config.shared_heads),
                (self.v_proj, config.shared_heads),
            )
        )
        positions = jnp.arange(query.shape[1])
        if cache is not None:
            positions += cache.length
        query = rotate(query, positions, config.theta)
        key = rotate(key, positions, config.theta)
        if cache is None:
            mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
            return self.o_proj(mixed.reshape(x.shape)), None
        start = (block, 0, cache.length, 0, 0)
        cache = cache._replace(
            keys=jax.lax.dynamic_update_slice(cache.keys, key[None], start),
            values=jax.lax.dynamic_update_slice(cache.values, value[None], start),
        )
        seen = jnp.arange(cache.keys.shape[2])[None] <= positions[:, None]
        mixed = jax.nn.dot_product_attention(
            query, cache.keys[block], cache.values[block], mask=seen[None, None]
        )
        return self.o_proj(mixed.reshape(x.shape)), cache


class MLP(nnx.Module):
    """Perceptron with a gate."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.gate_proj = Linear(config.width, config.hidden, rngs)
        self.up_proj = Linear(config.width, config.hidden, rngs)
        self.down_proj = Linear(config.hidden, config.width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens to tokens."""
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.input_layernorm = _norm(config, rngs)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = _norm(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(
        self, x: jax.Array, batch: int, block: int = 0, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Tokens `(batch * tokens, width)` to tokens, and the cache with them."""
        mixed, cache = self.self_attn(self.input_layernorm(x), batch, block, cache)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Decoder(nnx.Module):
    """All but the head."""

    def __init__(self, config: LlamaConfig, vocabulary: int, rngs: nnx.Rngs):
        self.embed_tokens = Embedding(vocabulary, config.width, rngs)
        self.layers = nnx.List([Block(config, rngs) for _ in range(config.depth)])
        self.norm = _norm(config, rngs)


class Llama(nnx.Module):
    """Tokens to the logits of the token after each."""

    def __init__(self, config: LlamaConfig, vocabulary: int, *, rngs: nnx.Rngs):
        self.config = config
        self.model = Decoder(config, vocabulary, rngs)
        self.lm_head = (
            None if config.tied else Linear(config.width, vocabulary, rngs=rngs)
        )

    def features(self, tokens: jax.Array) -> list[jax.Array]:
        """What every block gives, `(batch, tokens, width)`."""
        x = self.model.embed_tokens(tokens)
        shape = x.shape
        x = x.reshape(-1, shape[-1])  # products of two axes are faster on CPUs
        found = []
        for block in self.model.layers:
            x, _ = block(x, shape[0])
            found.append(x.reshape(shape))
        return found

    def outputs(self, feature: jax.Array) -> jax.Array:
        """The last of `features` to logits `(batch, tokens, vocabulary)`."""
        x = self.model.norm(feature).reshape(-1, feature.shape[-1])
        head = self.lm_head
        logits = self.model.embed_tokens.attend(x) if head is None else head(x)
        return logits.reshape(*feature.shape[:-1], -1)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens `(batch, tokens)`, integers, to logits of the tokens after them."""
        return self.outputs(self.features(tokens)[-1])

    def cache(self, batch: int, length: int | None = None) -> Cache:
        """An empty cache.

        Args:
          batch: Sequences.
          length: Tokens at most; `None` for the context.

        Raises:
          ValueError: More tokens than the context has.
        """
        config = self.config
        length = config.context if length is None else length
        if not 0 < length <= config.context:
            raise ValueError(f"length: expected 1 to {config.context}, got {length}")
        table: Any = self.model.embed_tokens.embedding.get_value()
        dtype = table.dtype  # of what it gives, and so of all else
        shape = (config.depth, batch, length, config.shared_heads, config.head)
        keys, values = (jnp.zeros(shape, dtype) for _ in range(2))  # may be donated
        return Cache(keys, values, jnp.zeros((), jnp.int32))

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Read more tokens.

        Args:
          tokens: `(batch, tokens)`, integers; with those before no more than the cache
            has room for.
          cache: Of the tokens before.

        Returns:
          Logits `(batch, vocabulary)` of the token after the last, and the new cache.
        """
        x = self.model.embed_tokens(tokens)
        batch, count, width = x.shape
        x = x.reshape(-1, width)
        grown: Any = cache
        for i, block in enumerate(self.model.layers):
            x, grown = block(x, batch, i, grown)
        last = x.reshape(batch, count, width)[:, -1:]
        return self.outputs(last)[:, 0], grown._replace(length=cache.length + count)


def continuation(
    graphdef: Any,
    params: Any,
    prompt: np.ndarray,
    *,
    count: int,
    temperature: float = 0.0,
    key: jax.Array,
) -> Iterator[int]:
    """The tokens after a prompt, each as soon as it is found.

    Args:
      graphdef: Of a `Llama`.
      params: Its parameters, kernels compressed or not.
      prompt: Tokens, `(tokens,)`.
      count: Tokens at most; fewer where the context ends.
      temperature: Of the probabilities that are drawn from; 0 for the likeliest token.
      key: JAX random key.

    Raises:
      ValueError: A prompt that the context has no room for.
    """
    model = nnx.merge(graphdef, params)
    context = model.config.context
    if len(prompt) >= context:
        raise ValueError(
            f"prompt: expected less than the context of {context:,} tokens, got "
            f"{len(prompt):,}"
        )
    room = min(context, len(prompt) + count)
    cache = model.cache(1, room)

    @functools.partial(jax.jit, donate_argnums=2)
    def extend(params: Any, tokens: jax.Array, cache: Any, key: jax.Array) -> Any:
        logits, cache = nnx.merge(graphdef, params).extend(tokens, cache)
        if temperature:
            token = jax.random.categorical(key, logits.astype("float32") / temperature)
        else:
            token = jnp.argmax(logits, axis=-1)
        return token[:, None], cache

    tokens = jnp.asarray(prompt)[None]
    for step in range(room - len(prompt)):
        tokens, cache = extend(params, tokens, cache, jax.random.fold_in(key, step))
        yield int(tokens[0, 0])


def _norm(config: LlamaConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.width, epsilon=config.epsilon, rngs=rngs)
