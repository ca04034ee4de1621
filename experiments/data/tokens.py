"""Text to tokens and back: bytes, or a vocabulary of the `tokenizers` package."""

import os
import pathlib
from typing import Any, Protocol

import numpy as np

BYTES = "bytes"
"""Name of the tokenizer whose tokens are bytes."""


class Tokenizer(Protocol):
    """Tokens of a text.

    Attributes:
      lengths: Bytes of every token, `(vocabulary,)`.
    """

    lengths: np.ndarray

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32, none added."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text; what is no UTF-8 becomes U+FFFD."""
        ...


class Bytes:
    """Tokens are the bytes of UTF-8; methods as of `Tokenizer`.

    Example:
      >>> Bytes().encode("né").tolist()
      [110, 195, 169]
    """

    lengths = np.ones(256, np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens."""
        return bytes(np.asarray(tokens, np.uint8)).decode(errors="replace")


class Pairs:
    """Byte-pair encoding (Sennrich et al., 2016) of bytes; methods as of `Tokenizer`.

    Args:
      path: File of the `tokenizers` package, tokenizer.json.

    Raises:
      SystemExit: A file that is missing, damaged or of another kind.
    """

    def __init__(self, path: str | pathlib.Path):
        package = _package()
        if not pathlib.Path(path).is_file():
            raise SystemExit(f"{path}: no such tokenizer")
        try:
            self._tokenizer = package.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises no other class
            raise SystemExit(f"{path}: no tokenizer: {error}") from error
        if not isinstance(self._tokenizer.decoder, package.decoders.ByteLevel):
            raise SystemExit(
                f"{path}: expected tokens of bytes, got the decoder "
                f"{self._tokenizer.decoder}"
            )
        # A character of a token's name is a byte; those of special tokens are text.
        count = self._tokenizer.get_vocab_size()
        names = [self._tokenizer.id_to_token(i) or "" for i in range(count)]
        self.lengths = np.array([len(name) for name in names], np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(found.ids, np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens."""
        return self._tokenizer.decode(list(map(int, tokens)), skip_special_tokens=False)


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer `BYTES`, or that of a file.

    Raises:
      SystemExit: As of `Pairs`.
    """
    return Bytes() if name == BYTES else Pairs(name)


def train(text: str, vocabulary: int, path: pathlib.Path) -> None:
    """Find the pairs of a text, and write tokenizer.json.

    Args:
      text: Where pairs are counted; digits and words are kept apart.
      vocabulary: Tokens, the 256 bytes among them.
      path: File to write; it is there whole or not at all.

    Raises:
      SystemExit: A vocabulary that is too small, or too large for the text.
    """
    if vocabulary < 256:
        raise SystemExit(f"vocabulary: expected at least 256, got {vocabulary}")
    package = _package()
    tokenizer = byte_level(package.models.BPE())
    tokenizer.train_from_iterator(
        text.splitlines(keepends=True),
        package.trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    found = tokenizer.get_vocab_size()
    if found != vocabulary:
        raise SystemExit(
            f"vocabulary: expected at most {found:,}, for which the text has pairs, "
            f"got {vocabulary:,}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tokenizer.save(str(partial))
    os.replace(partial, path)


def byte_level(model: Any) -> Any:
    """A `tokenizers.Tokenizer` of a model whose tokens are bytes, digits one by one."""
    package = _package()
    before = package.pre_tokenizers
    tokenizer = package.Tokenizer(model)
    tokenizer.pre_tokenizer = before.Sequence(
        [before.Digits(individual_digits=True), before.ByteLevel(False)]
    )
    tokenizer.decoder = package.decoders.ByteLevel()
    return tokenizer


def _package() -> Any:
    """`tokenizers`, which only language needs."""
    try:
        import tokenizers
    except ImportError as error:
        raise SystemExit(
            f"{error}: install the extra that language needs: "
            "pip install 'ssvq_jax[language]'"
        ) from error
    return tokenizers
