"""What all commands do alike: refuse files, and keep names off the terminal."""

import numpy as np
import pytest
from safetensors.numpy import save_file

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
    packed = tmp_path / "x"
    ssvq_command("compress", path, packed)
    assert ssvq_command("decode", packed, packed)[0] == 2
