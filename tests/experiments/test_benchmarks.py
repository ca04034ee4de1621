import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmarks import results
from experiments.benchmarks.rows import Row

ROOT = pathlib.Path(__file__).parents[2]


def _row(ours, **fields):
    return Row(case="a case", ours=ours, peer=1.0, peer_name="peer", **fields)


@pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None,
    reason="faiss, which k-means is measured against, is not installed",
)
def test_runs_and_writes_what_it_promises(tmp_path):
    results.store(tmp_path, "decode", [_row(0.5, subject="decode")])
    command = [sys.executable, "-m", "experiments.benchmarks", "--quick", "kmeans"]
    command += ["--out", str(tmp_path), "--models", str(tmp_path / "none")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "DeiT-Tiny skipped" in run.stdout
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")

    contents = json.loads((tmp_path / "benchmarks.json").read_text())
    assert set(contents) == {"kmeans", "decode"}  # what did not run is kept
    assert {"processor", "jax", "faiss-cpu"} <= set(contents["kmeans"]["machine"])
    rows = contents["kmeans"]["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["ratio"] == row["peer"] / row["ours"]
        assert row["peer_name"] in ("faiss", "scikit-learn")
        assert row["command"] == "python -m experiments.benchmarks kmeans --quick"
        assert abs(row["details"]["inertia_ratio"] - 1) <= 0.01
        assert {"subject", "case", "unit", "aim", "note"} <= set(row)

    text = (tmp_path / "benchmarks.md").read_text()
    for row in rows:
        assert row["case"] in text
    assert "## decode" in text


@pytest.mark.parametrize(
    ("ours", "aim", "judged"),
    [(0.5, 1.9, "met"), (0.5, 2.1, "missed"), (0.5, None, "")],
)
def test_the_table_marks_missed_aims(tmp_path, ours, aim, judged):
    row = _row(ours, aim=aim, subject="decode")
    assert row.ratio == 2
    assert row.missed == (judged == "missed")
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row
    results.store(tmp_path, "decode", [row])
    results.render(tmp_path)
    (line,) = (
        line
        for line in (tmp_path / "benchmarks.md").read_text().splitlines()
        if line.startswith("| a case")
    )
    assert line.split("|")[6].strip() == judged
