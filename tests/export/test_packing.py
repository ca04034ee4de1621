import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssvq_jax.export.packing import pack_integers, unpack_integers


@given(st.integers(0, 32), st.data())
def test_round_trip_against_python_integers(bits, data):
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    packed = pack_integers(np.array(values, np.uint32), bits)
    stream = sum(value << (i * bits) for i, value in enumerate(values))
    size = (len(values) * bits + 7) // 8
    assert packed.tobytes() == stream.to_bytes(size, "little")
    np.testing.assert_array_equal(unpack_integers(packed, len(values), bits), values)


@pytest.mark.parametrize(
    ("bits", "dtype"), [(1, "u1"), (8, "u1"), (9, "u2"), (17, "u4")]
)
def test_many_values_and_their_type(bits, dtype, rng):
    values = rng.integers(0, 2**bits, size=600_001).astype(np.uint32)
    unpacked = unpack_integers(pack_integers(values, bits), values.size, bits)
    assert unpacked.dtype == dtype
    np.testing.assert_array_equal(unpacked, values)
