"""Text, token after token."""

import dataclasses
import pathlib
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import text, tokens
from experiments.data.batches import Example, Split
from experiments.models.network import TextNetwork


class Windows(NamedTuple):
    """How likely windows are, `(windows,)` each.

    Attributes:
      loss: Sum of the negative log-likelihoods of all tokens but the first.
      tokens: How many these are.
      bytes: Those of their text.
    """

    loss: Any
    tokens: Any
    bytes: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """Prediction of the next token; methods as of `Task`.

    Examples are `tokens`, int32 `(window,)`, and `bytes`, those of all tokens but the
    first, which is not scored; outputs are logits `(batch, window, vocabulary)`.

    Attributes:
      tokenizer: "bytes", or a file of the `tokenizers` package, tokenizer.json.
      vocabulary: Where there is no such file, it is made: so many tokens, found by
        byte-pair encoding in the split "train" of the data. `None` for a file that has
        to be there.
      window: Tokens of an example, the network's size.
    """

    tokenizer: str = tokens.BYTES
    vocabulary: int | None = None
    window: int = 512

    metric: ClassVar[str] = "log_likelihood"
    unit: ClassVar[str] = "windows"
    logits: ClassVar[bool] = True

    def open(
        self, name: str, split: str | None, data_dir: pathlib.Path | None
    ) -> Split:
        """Windows of text; see `experiments.data.text.open_windows`."""
        path = pathlib.Path(self.tokenizer)
        if self.vocabulary is not None and not path.exists():
            tokens.train(text.read(name, "train", data_dir), self.vocabulary, path)
        tokenizer = tokens.open_tokenizer(self.tokenizer)
        if self.vocabulary not in (None, count := len(tokenizer.lengths)):
            raise SystemExit(
                f"{path}: expected {self.vocabulary:,} tokens, got {count:,}: delete "
                "the file, or change the config"
            )
        return text.open_windows(
            name, split, data_dir, tokenizer=tokenizer, size=self.window
        )

    def prepare(
        self, example: Example, rng: np.random.Generator | None = None, *, size: int
    ) -> Example:
        """As it is."""
        del rng
        if size != self.window:
            raise SystemExit(
                f"window: expected the network's {size} tokens, got {self.window}"
            )
        return example

    def shapes(self, network: TextNetwork) -> dict[str, jax.ShapeDtypeStruct]:
        """Of a window and its bytes."""
        return {
            "tokens": jax.ShapeDtypeStruct((network.size,), jnp.int32),
            "bytes": jax.ShapeDtypeStruct((), jnp.int32),
        }

    def loss(self, outputs: jax.Array, batch: Example) -> jax.Array:
        """Cross-entropy of the next token."""
        return _losses(outputs, batch).mean()

    def match(self, outputs: jax.Array, target: jax.Array) -> jax.Array:
        """Cross-entropy with the other's probabilities; no tokens."""
        return optax.softmax_cross_entropy(outputs, jax.nn.softmax(target)).mean()

    def judge(self, outputs: jax.Array, batch: Example) -> Windows:
        """Sums of the losses of the windows."""
        losses = _losses(outputs, batch)
        count = jnp.full(losses.shape[:1], losses.shape[1], jnp.int32)
        return Windows(loss=losses.sum(axis=1), tokens=count, bytes=batch["bytes"])

    def score(
        self, rows: Windows, reference: Windows | None = None
    ) -> dict[str, float]:
        """Log-likelihood per token, nats; perplexity per token and per byte.

        With a reference, `perplexity_ratio`: of the perplexities per token.
        """
        loss, count, size = (np.sum(x, dtype=np.float64) for x in rows)
        found = {
            "log_likelihood": -loss / count,
            "perplexity": _exp(loss / count),
            "byte_perplexity": _exp(loss / size),
        }
        if reference is not None:
            other = np.sum(reference.loss, dtype=np.float64) / np.sum(reference.tokens)
            found["perplexity_ratio"] = _exp(loss / count - other)
        return {name: float(value) for name, value in found.items()}

    def each(self, rows: Windows) -> np.ndarray:
        """Mean log-likelihood of every window's tokens, as many in each."""
        return -rows.loss / rows.tokens


def _losses(outputs: jax.Array, batch: Example) -> jax.Array:
    """Negative log-likelihoods `(batch, window - 1)`."""
    return optax.softmax_cross_entropy_with_integer_labels(
        outputs[:, :-1], batch["tokens"][:, 1:]
    )


def _exp(value: float) -> float:
    """Infinite where it is too large."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))
