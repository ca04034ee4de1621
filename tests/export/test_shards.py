"""Which files a checkpoint has; indices from outside are hostile until checked."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.export import FormatError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """Two shards without an index."""
    for name in "ab":
        save_file({name: np.full((2, 3), ord(name), "f4")}, tmp_path / name)
    return tmp_path


def _write(folder, places):
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def test_all_shards_are_one_checkpoint(folder):
    _write(folder, {"b": "b", "a": "a"})
    for path in (folder, folder / INDEX):
        found = Checkpoint(path)
        assert list(found) == ["a", "b"] and found.shape("b") == (2, 3)
        assert found["a"][0, 0] == ord("a") and found["b"][1, 2] == ord("b")
    save_file({"whole": np.zeros(3)}, folder / "model.safetensors")
    assert list(Checkpoint(folder)) == ["whole"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "7", "{}", '"x"', "\x00", "[" * 100_000),
        *(f'{{"weight_map": {x}}}' for x in ("[]", "{}", "null", "3", '"a"')),
        *(f'{{"weight_map": {{"a": {x}}}}}' for x in ("1", "null", "[]", "{}", "NaN")),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_index_is_refused(text, folder):
    (folder / INDEX).write_text(text)
    with pytest.raises(FormatError, match="no index of shards"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "place", ["../a", "/etc/passwd", "..", ".", "", "x/a", "./a", "a/", "a/../a"]
)
def test_files_elsewhere_are_refused(place, folder):
    _write(folder, {"a": place, "b": "b"})
    with pytest.raises(FormatError, match="no file beside the index"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "places", [{"a": "b", "b": "a"}, {"a": "a", "b": "b", "c": "a"}, {"b": "a"}]
)
def test_shards_that_are_not_as_the_index_says(places, folder):
    _write(folder, places)
    with pytest.raises(FormatError, match="its tensors are not those of the index"):
        Checkpoint(folder)


def test_shards_and_indices_that_are_missing(folder):
    with pytest.raises(FormatError, match="a folder without model.safetensors or"):
        Checkpoint(folder)
    _write(folder, {"a": "a", "x": "x", "y": "y"})
    with pytest.raises(FileNotFoundError, match="2 of 3 shards are missing: x, y"):
        Checkpoint(folder)
