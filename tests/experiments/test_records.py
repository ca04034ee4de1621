"""Results as lines of JSON."""

import numpy as np
import pytest

from experiments.training import records


def test_records_are_lines_that_are_renewed_one_by_one(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    assert records.read(path) == {}
    records.write(path, {"a": {"x": 1}, "gone": {"x": 2}, "c": {"x": [3.5, None]}})
    assert len(path.read_text().splitlines()) == 3
    records.renew(path, {"c": {"x": 4}, "b": {"x": 5}}, order=("a", "b", "c"))
    found = records.read(path)
    assert found == {"a": {"x": 1}, "b": {"x": 5}, "c": {"x": 4}}
    assert list(found) == ["a", "b", "c"]
    assert [x.name for x in path.parent.iterdir()] == ["runs.jsonl"]


@pytest.mark.parametrize("values", [[], [True, False] * 500, [0.5, -1.25], [[1], [2]]])
def test_arrays_come_back_as_they_were(values):
    values = np.array(values)
    text = records.pack(values)
    found = records.unpack(text)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
