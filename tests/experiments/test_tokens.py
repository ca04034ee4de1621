import math

from safetensors.numpy import save_file

from experiments.measurements import tokens
from experiments.report.results import Results
from ssvq_jax.accelerator import workloads


def test_a_small_llama(tmp_path, rng):
    products = workloads.llama(128, 1, 2, 1, 256, 500)
    shapes = {p.weights: (p.n, p.k) for p in products if p.weights}
    save_file(
        {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()},
        tmp_path / "model.safetensors",
    )
    checkpoint = tmp_path / "model.safetensors"
    assert tokens.main(tokens.Options(checkpoint, out=tmp_path)) == 0
    found = Results(tmp_path, "tokens")
    assert list(found) == list(tokens.METHODS)
    weights = sum(map(math.prod, shapes.values()))
    for row in found.values():
        assert row["float32_file"] > 4 * weights > 4 * row["file"]
        assert row["speedup"] > 1 and row["bytes"] > 1
    few, more = found["SSVQ, 1.5 bits"], found["UQ, 4 bits"]
    assert few["file"] < more["file"] and few["cycles"] < more["cycles"]
    assert "| UQ, 4 bits |" in (tmp_path / "tokens.md").read_text()


def test_a_checkpoint_that_is_missing(tmp_path, capsys):
    assert tokens.main(tokens.Options(tmp_path / "no.safetensors", out=tmp_path)) == 2
    assert "experiments.models.smollm2" in " ".join(capsys.readouterr().out.split())
