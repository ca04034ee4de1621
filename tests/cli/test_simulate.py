"""`ssvq simulate`: a packed file on a machine of one's own."""

import json

import pytest
from safetensors.numpy import save_file

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_simulate(tmp_path, rng, ssvq_command):
    width, classes = 64, 10
    shapes = {
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 8, 8),
        "blocks.0.attn.qkv.weight": (3 * width, width),
        "blocks.0.attn.proj.weight": (width, width),
        "blocks.0.mlp.fc1.weight": (4 * width, width),
        "blocks.0.mlp.fc2.weight": (width, 4 * width),
        "head.weight": (classes, width),
    }
    tensors = {name: rng.normal(size=s).astype("f4") for name, s in shapes.items()}
    path, packed, csv = (tmp_path / name for name in ("a", "b", "c.csv"))
    save_file(tensors, path)
    ssvq_command("compress", path, packed)
    machine = "--array", "16x8", "--bandwidth", 1.6, "--decoder", 4, "--prefetch"
    status, output, _ = ssvq_command("simulate", packed, *machine, "--json")
    contents = json.loads(output)
    assert status == 0
    expected = {"rows": 16, "cols": 8, "dram_bytes_per_cycle": 1.6, "prefetch": True}
    assert expected.items() <= contents["config"].items()
    assert contents["over_int8"]["dram_bytes"] > 0.5  # tiny matrices
    status, output, _ = ssvq_command("simulate", packed, "--csv", csv)
    assert status == 0 and "blocks.0.mlp.fc2" in output and "as fast as int8" in output
    assert len(csv.read_text().splitlines()) == 1 + 8
    for wrong, message in (
        (["--array", "64"], "expected rows x columns"),
        (["--bandwidth", 0], "dram_bytes_per_cycle: expected at least 1e-06"),
        (["--image", 32], "--image: of no use for vit"),
        (["--model", "mobilenet_v2", "--image", -224], "--image: expected pixels"),
        (["--csv", packed], "is the source"),
        (["--model", "mobilenet_v2"], "conv_stem.weight: not in the weights"),
    ):
        status, _, error = ssvq_command("simulate", packed, *wrong)
        assert status == 2 and message in " ".join(error.split())
