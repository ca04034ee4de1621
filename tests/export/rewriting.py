"""Packed files taken apart and put together again, wrongly but with right hashes."""

import json
import pathlib

from safetensors.numpy import load_file

from ssvq_jax.export.container import NAMES, Tensor, hash_of, header_bytes

HASHES = "ssvq_jax.hashes"


def take_apart(path):
    """The description, and the tensors as NumPy arrays, in the order of the file."""
    data = pathlib.Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    description = json.loads(header.pop("__metadata__")["ssvq_jax"])
    tensors = load_file(path)
    return description, {name: tensors[name] for name in header if name != HASHES}


def put_together(path, description, tensors, text=None):
    """Write a file whose hashes are right, whatever is in it."""
    payloads = len(description.get("compressed", [])) if description else 0
    names = list(tensors)
    names.insert(len(names) - payloads, HASHES)
    sizes = {
        name: Tensor("U8", (8 * len(names),))
        if name == HASHES
        else Tensor(NAMES[tensors[name].dtype.name], tensors[name].shape)
        for name in names
    }
    text = json.dumps(description) if text is None else text
    header = header_bytes(sizes, {"ssvq_jax": text})
    contents = [tensors[name].tobytes() for name in names if name != HASHES]
    digests = [hash_of(content) for content in [header, *contents]]
    contents.insert(names.index(HASHES), b"".join(digests))
    pathlib.Path(path).write_bytes(header + b"".join(contents))


def rewrite(path, change):
    """Apply `change(description, tensors)` to a file, and hash it again."""
    description, tensors = take_apart(path)
    change(description, tensors)
    put_together(path, description, tensors)


def repaired(data):
    """The file with the right hashes in it, or `None` if there is no place for them."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        spans = {name: entry["data_offsets"] for name, entry in header.items()}
        parts = {
            name: data[8 + length + start : 8 + length + stop]
            for name, (start, stop) in spans.items()
        }
        contents = [part for name, part in parts.items() if name != HASHES]
        digests = [hash_of(x) for x in (data[: 8 + length], *contents)]
        place = 8 + length + spans[HASHES][0]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    hashes = b"".join(digests)
    return data[:place] + hashes + data[place + len(hashes) :]
