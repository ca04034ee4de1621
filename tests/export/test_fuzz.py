"""Packed files altered at random: refused, identical, or another valid file."""

import pathlib
import re
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ssvq_jax as ssvq
from ssvq_jax.codecs import is_compressed
from ssvq_jax.reader import Reader
from tests.export.rewriting import put_together, repaired, take_apart
from tests.export.test_hostile import TREES

GOLDEN = pathlib.Path(__file__).parent / "golden"
EXAMPLES = [GOLDEN / f"example{i}.ssvq.safetensors" for i in (1, 2)]

many = settings(max_examples=150, deadline=None)


def outcome(data):
    """`None` where a file of these bytes is refused, as it should be, else its tree."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "fuzzed")
        path.write_bytes(data)
        try:
            tree = ssvq.load(path)
        except ssvq.FormatError as error:
            assert "fuzzed" in str(error)
            tree, reason = None, str(error)
        try:
            found = list(Reader(path).values())
        except ValueError as error:
            assert tree is None and "fuzzed" in str(error)
        else:
            if tree is None:
                # Nor does it look at a codec that no parameter has.
                assert re.search(f"{TREES}|codec: ", reason), reason
            else:
                assert same_bits(jax.tree.leaves(ssvq.decode(tree)), found)
        return tree


def same_bits(arrays, others):
    """Whether arrays are the same, in any order; others have float32 for bfloat16."""
    arrays = [np.asarray(x) for x in arrays]
    arrays = [x.astype("f4") if x.dtype == jnp.bfloat16 else x for x in arrays]
    first, second = (sorted(x.tobytes() for x in y) for y in (arrays, others))
    return first == second


def is_sound(tree):
    """Whether a file that was let in is one that could have been written."""
    for leaf in jax.tree.leaves(ssvq.decode(tree)):
        assert isinstance(leaf, jax.Array | np.ndarray)
    for node in jax.tree.leaves(tree, is_leaf=is_compressed):
        if is_compressed(node):
            node.check()
            assert node.size <= 256 * node.bits / 8
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "again")
        ssvq.save(path, tree)
        chex.assert_trees_all_equal_structs(ssvq.load(path), tree)
    return True


edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "copy"]),
        st.integers(0, 700),
        st.integers(0, 700),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)


def edited(data, changes):
    for kind, place, other, new in changes:
        place, other = place % len(data), other % len(data)
        if kind == "set":
            data = data[:place] + new + data[place + len(new) :]
        elif kind == "insert":
            data = data[:place] + new + data[place:]
        elif kind == "delete":
            data = data[:place] + data[place + len(new) :]
        else:
            data = data[:place] + data[other : other + 40] + data[place:]
    return data


@many
@given(st.sampled_from(EXAMPLES), edits)
@pytest.mark.usefixtures("unchecked_types")
def test_edited_bytes_are_noticed(path, changes):
    original = path.read_bytes()
    data = edited(original, changes)
    tree = outcome(data)
    assert (tree is None) == (data != original)


@many
@given(st.sampled_from(EXAMPLES), edits)
@pytest.mark.usefixtures("unchecked_types")
def test_edited_bytes_with_right_hashes(path, changes):
    data = repaired(edited(path.read_bytes(), changes))
    tree = None if data is None else outcome(data)
    assert tree is None or is_sound(tree)


numbers = st.one_of(
    st.integers(-3, 20), st.sampled_from([2**31, 2**53, 2**64, 10**30, 1.5, 1e308])
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.sampled_from(["", "F32", "I8", "SSVQ", "Uniform", "list", "int8", "../x"]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=6,
)


def places(content, path=()):
    """All paths into a JSON value."""
    yield path
    if isinstance(content, list):
        content = dict(enumerate(content))
    if isinstance(content, dict):
        for key, child in content.items():
            yield from places(child, (*path, key))


def replaced(content, path, value):
    if not path:
        return value
    content = dict(content) if isinstance(content, dict) else list(content)
    content[path[0]] = replaced(content[path[0]], path[1:], value)
    return content


@many
@given(st.data())
@pytest.mark.usefixtures("unchecked_types")
def test_descriptions_of_anything(data):
    description, tensors = take_apart(data.draw(st.sampled_from(EXAMPLES)))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(description))[1:]))
        description = replaced(description, path, data.draw(values))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "fuzzed")
        listed = description.get("compressed")
        if not isinstance(listed, list):
            description["compressed"] = []
        put_together(file, description, tensors)
        tree = outcome(file.read_bytes())
    assert tree is None or is_sound(tree)
