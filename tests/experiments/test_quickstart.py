import dataclasses

import pytest

from experiments import quickstart
from experiments.training import export

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def options(tmp_path):
    return quickstart.Options(
        output=tmp_path / "out", width=64, depth=1, float_steps=20, steps=5, batch=16
    )


def test_runs_and_writes_what_it_promises(options, capsys):
    quickstart.main(options)
    printed = capsys.readouterr().out
    for name in ("float32", "UQ", "VQ", "fixed", "learned", "frozen", "Checks passed"):
        assert name in printed
    assert (options.output / "quickstart.png").stat().st_size > 10_000
    files = [options.output / x / "model.ssvq.safetensors" for x in ("vq", "frozen")]
    sizes = {path.stat().st_size for path in files}
    assert max(sizes) - min(sizes) < 200  # the same bits; only descriptions differ


def test_a_file_that_differs_ends_it(options, monkeypatch):
    write = export.checkpoint.save

    def wrong(path, params, statistics):
        head = {**params["head"], "bias": params["head"]["bias"] + 1}
        write(path, {**params, "head": head}, statistics)

    monkeypatch.setattr(export.checkpoint, "save", wrong)
    options = dataclasses.replace(options, float_steps=1)
    with pytest.raises(RuntimeError, match="head.bias differs after reading it back"):
        quickstart.main(options)


def test_a_width_that_heads_do_not_divide_is_refused(options):
    with pytest.raises(SystemExit, match="multiple of 64, got 65"):
        quickstart.main(dataclasses.replace(options, width=65))
