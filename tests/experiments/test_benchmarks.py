import importlib.util
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmarks import results
from experiments.benchmarks.rows import Row
from experiments.report import pages
from experiments.report.tables import measured
from experiments.training import records

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

    rows = list(records.read(tmp_path / "benchmarks.jsonl").values())
    subjects = [row["subject"] for row in rows]
    assert subjects == [
        "kmeans",
        "kmeans",
        "kmeans",
        "decode",
    ]  # what did not run is kept
    for row in rows[:2]:
        assert {"processor", "jax", "faiss-cpu"} <= set(row["machine"])
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
    row = _row(ours, aim=aim, subject="decode", reason="why", command="c")
    record = row.to_record()
    assert record["ratio"] == 2
    assert measured(record)[6] == ("why" if judged == "missed" else "")
    results.store(tmp_path, "decode", [row])
    (stored,) = records.read(tmp_path / "benchmarks.jsonl").values()
    assert stored.pop("machine") and stored == record
    pages.build(tmp_path, ["benchmarks"])
    (line,) = (
        line
        for line in (tmp_path / "benchmarks.md").read_text().splitlines()
        if line.startswith("| a case")
    )
    assert line.split("|")[6].strip() == judged
    shown = results.table(tmp_path, "decode")
    assert shown.rows[0].style == ("red" if judged == "missed" else None)
