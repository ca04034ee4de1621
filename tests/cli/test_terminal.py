"""What all commands do alike: refuse files, and keep names off the terminal."""

import os
import signal

import numpy as np
import pytest
from safetensors.numpy import save_file

from ssvq_jax import cli

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_files_that_cannot_be_read(torch_checkpoint, tmp_path, ssvq_command):
    path, _ = torch_checkpoint
    out = tmp_path / "x"
    status, _, error = ssvq_command("compress", tmp_path / "absent", out)
    assert status == 2 and "absent" in error
    (tmp_path / "text").write_text("no checkpoint")
    for command in (["info"], ["verify"], ["compress", path], ["diff", path]):
        first, *rest = command
        status, _, error = ssvq_command(first, tmp_path / "text", *rest)
        assert status == 2 and "text" in error, command
    for command in (["info", path], ["verify", path], ["decode", path, out]):
        status, _, error = ssvq_command(*command)
        assert status == 2 and "not written by ssvq_jax" in " ".join(error.split())
    assert ssvq_command("compress", path, out)[0] == 0
    status, _, error = ssvq_command("compress", out, tmp_path / "y")
    assert status == 2 and "packed already" in error


def test_names_cannot_write_to_the_terminal(tmp_path, ssvq_command):
    path, other = tmp_path / "a", tmp_path / "b"
    save_file({"\x1b[31mEVIL\x1b]0;x\x07": np.ones(2)}, path)
    save_file({"b": np.ones(2)}, other)
    for arguments in (["diff", path, other], ["compress", path, tmp_path / "c"]):
        status, output, error = ssvq_command(*arguments)
        assert status and "EVIL" in output + error
        assert "\x1b[31m" not in output + error


def test_the_source_is_not_overwritten(torch_checkpoint, tmp_path, ssvq_command):
    path, _ = torch_checkpoint
    before = path.read_bytes()
    for out in (path, tmp_path, tmp_path / "absent" / "x"):
        status, _, error = ssvq_command("compress", path, out)
        assert status == 2 and error
    assert path.read_bytes() == before
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\npattern = ".*"\nmethod = "vq"\n')
    for out, reason in (
        (rules, "is the source"),
        (tmp_path / "x.json", "is for the index of shards"),
        (tmp_path / "x.npz", "is for NumPy's arrays"),
    ):
        status, _, error = ssvq_command("compress", path, out, "--rules", rules)
        assert status == 2 and reason in " ".join(error.split())
    assert not list(tmp_path.glob("*.partial"))
    packed = tmp_path / "x"
    ssvq_command("compress", path, packed)
    assert ssvq_command("decode", packed, packed)[0] == 2


def test_names_are_no_markup(tmp_path, ssvq_command):
    weight = np.ones((64, 64), np.float32)
    path, packed = tmp_path / "in.safetensors", tmp_path / "out"
    save_file({"w[/b]": weight, "w[red]": weight.copy()}, path)
    status, output, _ = ssvq_command("compress", path, packed)  # tied: a name as rule
    assert status == 0 and "= w[/b]" in output
    status, output, _ = ssvq_command("info", packed)
    assert status == 0 and "w[/b]" in output and "w[red]" in output


@pytest.mark.parametrize(
    "start, kind",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"PK\x03\x04\x14\0\0\0", "ZIP"),
    ],
)
def test_files_of_other_kinds_are_named(start, kind, tmp_path, ssvq_command):
    path = tmp_path / "model"
    path.write_bytes(start)
    for command in (["compress", path, tmp_path / "x"], ["info", path]):
        status, _, error = ssvq_command(*command)
        assert status == 2 and kind in error and "model" in error


def test_directories_and_pipes_are_named(tmp_path, ssvq_command):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (
        ("folder", "a folder without model.safetensors"),
        ("pipe", "not a regular file"),
    ):
        status, _, error = ssvq_command("compress", tmp_path / name, tmp_path / "x")
        assert status == 2 and name in error and kind in " ".join(error.split())


def test_a_pipe_as_output_is_refused_at_once(torch_checkpoint, ssvq_command):
    path, _ = torch_checkpoint
    read, write = os.pipe()
    try:
        status, _, error = ssvq_command("compress", path, f"/dev/fd/{write}")
    finally:
        os.close(read)
        os.close(write)
    assert status == 2 and "Compressing" not in error
    assert f"/dev/fd/{write}" in error


def test_a_seed_out_of_range_and_a_file_without_tensors(
    torch_checkpoint, tmp_path, ssvq_command
):
    path, _ = torch_checkpoint
    status, _, error = ssvq_command(
        "compress", path, tmp_path / "x", "--seed", "9" * 20
    )
    assert status == 2 and "--seed" in error
    save_file({}, tmp_path / "empty")
    status, _, error = ssvq_command("compress", tmp_path / "empty", tmp_path / "x")
    assert status == 2 and "without any" in error and "--include" not in error


def test_sigterm_ends_like_an_error():
    with pytest.raises(SystemExit) as end, cli._ended_by_signals():
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
