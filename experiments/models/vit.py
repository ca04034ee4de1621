"""A plain vision transformer (Dosovitskiy et al., 2021), mean-pooled."""

import jax
import jax.numpy as jnp
from flax import nnx


def attend(qkv: jax.Array, heads: int) -> jax.Array:
    """Attention of queries, keys and values side by side, `(batch, tokens, 3 width)`.

    Returns:
      The values that every token takes, `(batch, tokens, width)`.
    """
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    qkv = qkv.reshape(batch, tokens, 3, heads, width // heads)
    query, key, value = (qkv[:, :, i] for i in range(3))
    mixed = jax.nn.dot_product_attention(query, key, value)
    return mixed.reshape(batch, tokens, width)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused kernel for query, key and value."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens `(batch, tokens, width)` to tokens."""
        return self.out(attend(self.qkv(x), self.heads))


class Block(nnx.Module):
    """Pre-norm transformer block: attention, then a perceptron four times as wide."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.fc1 = nnx.Linear(width, 4 * width, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens `(batch, tokens, width)` to tokens."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x))))


class ViT(nnx.Module):
    """Images `(batch, size, size, channels)` to logits `(batch, classes)`."""

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        classes: int,
        rngs: nnx.Rngs,
    ):
        tokens = (size // patch) ** 2
        self.embed = nnx.Conv(
            channels, width, (patch, patch), strides=patch, padding="VALID", rngs=rngs
        )
        position = 0.5 * jax.random.normal(rngs.params(), (1, tokens, width))
        self.position = nnx.Param(position)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        x = self.embed(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(self.norm(x), axis=1))
