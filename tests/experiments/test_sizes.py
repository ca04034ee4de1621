from safetensors.numpy import save_file

from experiments.measurements import sizes
from experiments.training import records


def test_sizes_of_a_checkpoint(tmp_path, rng):
    weight = rng.normal(size=(128, 64)).astype("f4")
    save_file(
        {"a.weight": weight, "a.bias": weight[:, 0].copy()}, tmp_path / "m.safetensors"
    )
    options = sizes.Options(models=tmp_path, out=tmp_path)
    assert sizes.main(options) == 0
    small, large = records.read(tmp_path / "sizes.jsonl").values()
    assert small["theory"] == 128 * 64 * 1.5 / 8 + 16 * 8 * 2 + 4 * 128
    assert large["theory"] == 128 * 64 * 2 / 8 + 256 * 8 * 2 + 4 * 128
    for row in (small, large):
        assert row["theory"] < row["file"] < row["theory"] + 1000
    assert "| m | 8,320 | 16 | 8 |" in (tmp_path / "sizes.md").read_text()


def test_a_folder_without_checkpoints(tmp_path, capsys):
    assert sizes.main(sizes.Options(models=tmp_path, out=tmp_path)) == 2
    assert "give --models" in " ".join(capsys.readouterr().out.split())
