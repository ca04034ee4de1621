"""Runs that are killed, and runs of several processes."""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.training.log import read
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")


_SCRIPT = """
import pathlib
from tests.experiments import tiny

def runs():
    folder = pathlib.Path({folder!r})
    return {{"run": tiny.compressed(folder, optimization=tiny.SHORT)}}
"""


def _command(folder, output, *options):
    config = folder / "config.py"
    config.write_text(_SCRIPT.format(folder=str(folder)))
    return [
        *(sys.executable, "-m", "experiments.compress", str(config)),
        *("--output", str(output), "--log-every", "1", "--checkpoint-every", "10"),
        *options,
    ]


def _start(command, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    # A folder of their own: a process that is killed may leave half a program there.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(command[3]).parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        command,
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, **cache, "XLA_FLAGS": flags, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(*processes):
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()


def test_a_killed_run_ends_in_the_same_parameters(tmp_path):
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    _finish(_start(_command(tmp_path, undisturbed)))
    metrics = killed / "config" / "run" / "metrics.jsonl"
    seen, draw = 0, random.Random(0)
    for _ in range(3):
        process = _start(_command(tmp_path, killed))
        until = seen + draw.randint(2, 8)
        while process.poll() is None and len(read(metrics)) < until:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.05)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seen = len(read(metrics))
    assert 0 < seen < 60
    _finish(_start(_command(tmp_path, killed)))
    name = "config/run/model.ssvq.safetensors"
    assert (undisturbed / name).read_bytes() == (killed / name).read_bytes()
    curves = [
        tiny.losses(folder / "config" / "run") for folder in (undisturbed, killed)
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 60


def _pair(folder, output):
    """Two processes of four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    options = ("--distributed", "--coordinator", address, "--processes", "2")
    options += ("--parallel", "fully_sharded")
    return [
        _start(_command(folder, output, *options, "--process", str(i)), devices=4)
        for i in range(2)
    ]


def _kept(run):
    """Lines of the log up to the last whole checkpoint, where a run goes on."""
    steps = [int(x.name) for x in (run / "checkpoints").glob("*") if x.name.isdigit()]
    if not steps:
        return []
    # Each process has written shards of its own.
    shards = (run / "checkpoints" / str(max(steps))).rglob("ocdbt.process_*")
    assert {x.name[-1] for x in shards} == {"0", "1"}
    return [line for line in read(run / "metrics.jsonl") if line["step"] <= max(steps)]


def _kill_one(folder, output, index, draw):
    """Kill one of two processes at some moment; the other ends soon, with a reason."""
    run = output / "config" / "run"
    metrics, kept = run / "metrics.jsonl", _kept(run)
    if kept and kept[-1]["step"] >= 40:  # too near the end
        shutil.rmtree(output)
        kept = []
    begun, done = time.time(), kept[-1]["step"] if kept else 0
    target = done + draw.randint(1, 19)
    processes = _pair(folder, output)
    while all(x.poll() is None for x in processes):
        lines = read(metrics)
        if lines and metrics.stat().st_mtime > begun and lines[-1]["step"] >= target:
            break
        time.sleep(0.01)
    time.sleep(draw.random() * 0.05)
    assert all(x.poll() is None for x in processes)
    assert read(metrics)[: len(kept)] == kept
    processes[index].send_signal(signal.SIGKILL)
    processes[index].communicate()
    other = processes[1 - index]
    try:
        text, _ = other.communicate(timeout=60)
    finally:
        other.kill()
    assert other.returncode, text
    # The second is JAX's, where a collective operation waits for longer than it.
    reasons = "has lost the others", "indicates that another task died"
    assert any(reason in " ".join(text.split()) for reason in reasons), text


def test_two_processes_give_the_loss_curve_of_one(tmp_path, pytestconfig):
    """Also where they are killed in turn, which ends the other soon, with a reason."""
    one, two = tmp_path / "one", tmp_path / "two"
    experiment = tiny.compressed(tmp_path, optimization=tiny.SHORT)
    tiny.execute(experiment, one, devices=8)
    draw = random.Random(6)  # it draws step 19 first, behind the checkpoint of step 10
    for kill in range(1, pytestconfig.getoption("kills") + 1):
        _kill_one(tmp_path, two, kill % 2, draw)
    kept = _kept(two / "config" / "run")
    assert kept or pytestconfig.getoption("kills") != 1
    _finish(*_pair(tmp_path, two))
    two = two / "config" / "run"
    assert read(two / "metrics.jsonl")[: len(kept)] == kept
    results = [json.loads((x / "result.json").read_text()) for x in (one, two)]
    assert results[1]["device"].startswith("8 ")
    np.testing.assert_allclose(tiny.losses(one), tiny.losses(two), rtol=1e-4)
    top1 = [result["test"]["top1"] for result in results]
    assert abs(top1[0] - top1[1]) <= 2 / 450
