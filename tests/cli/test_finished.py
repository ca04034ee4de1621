"""`ssvq compress` goes on from where it was cut off."""

import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from ssvq_jax import calibration
from ssvq_jax.cli.finished import Finished

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def source(tmp_path, rng):
    path = tmp_path / "x.safetensors"
    tensors = {f"w{i}": rng.normal(size=(64, 64 + i)).astype("f4") for i in range(4)}
    tensors["w3"][0, 0] = np.nan  # stays as it is
    save_file(tensors, path)
    return path


@pytest.fixture
def encoded(monkeypatch):
    """Names of what is encoded; the third one is where the run is cut off."""
    monkeypatch.setattr(Finished, "least", 4096)
    names, own = [], calibration.compress

    def compressed(weight, *args, **kwargs):
        names.extend(weight)
        if len(names) == 3:
            raise KeyboardInterrupt
        return own(weight, *args, **kwargs)

    monkeypatch.setattr(calibration, "compress", compressed)
    return names


def test_what_is_finished_is_not_encoded_again(source, tmp_path, encoded, ssvq_command):
    whole, out = tmp_path / "whole", tmp_path / "out"
    status, *_ = ssvq_command("compress", source, out)
    assert status != 0 and encoded == ["w0", "w1", "w2"]
    folder = tmp_path / "out.partial"
    assert len(list(folder.iterdir())) == 2 and not out.exists()
    others = {".editor.tmp", "mine.ssvq.safetensors"}
    for name in others:
        (folder / name).write_text("not ours")

    status, _, error = ssvq_command("compress", source, out)
    assert status == 0 and encoded[3:] == ["w2", "w3"]
    assert "out.partial: 2 tensors were finished before" in error
    assert {x.name for x in folder.iterdir()} == others
    ssvq_command("compress", source, whole)
    assert whole.read_bytes() == out.read_bytes()
    assert not pathlib.Path(f"{whole}.partial").exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_folder_that_is_none_is_refused_before_any_work(
    kind, source, tmp_path, encoded, ssvq_command
):
    place, elsewhere = tmp_path / "out.partial", tmp_path / "elsewhere"
    if kind == "file":
        place.write_text("")
    else:
        place.symlink_to(elsewhere)
    if kind == "link":
        elsewhere.mkdir()
    status, _, error = ssvq_command("compress", source, tmp_path / "out")
    assert status == 2 and "out.partial" in error and not encoded


@pytest.mark.parametrize("change", ["seed", "codec", "weights", "damage", "swap"])
def test_what_another_run_finished_is_not_taken(
    change, source, tmp_path, encoded, ssvq_command, rng
):
    out = tmp_path / "out"
    ssvq_command("compress", source, out)
    options = {"seed": ["--seed", 1], "codec": ["--codewords", 4]}.get(change, [])
    if change == "weights":
        tensors = {f"w{i}": rng.normal(size=(64, 64)).astype("f4") for i in range(2)}
        save_file(tensors, source)
    if change == "damage":
        for file in (tmp_path / "out.partial").iterdir():
            file.write_bytes(file.read_bytes()[:-1])
    if change == "swap":
        one, other = (tmp_path / "out.partial").iterdir()
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second), other.write_bytes(first)
    status, *_ = ssvq_command("compress", source, out, *options)
    assert status == 0 and encoded[3:5] == ["w0", "w1"]
