import numpy as np
import pytest
from safetensors.numpy import save_file

import ssvq_jax as ssvq
from experiments.measurements import codebooks
from experiments.training import records


@pytest.mark.parametrize("codec", [ssvq.VQ(16, 4), ssvq.SSVQ(16, 8)], ids=str)
def test_a_kernel_has_nothing_to_share(codec, rng):
    kernels = {"kernel": 3 * rng.normal(size=(128, 65)).astype(np.float32)}
    own = codebooks._own(codec, kernels)
    common = codebooks._common(codec, kernels)
    np.testing.assert_allclose(
        common["error"], own["error"], rtol=0.03
    )  # of other samples
    np.testing.assert_allclose(common["bits"] - own["bits"], 16 / (128 * 65))


def test_a_checkpoint_of_two_kernels(tmp_path, rng, monkeypatch):
    wide, narrow = (
        rng.normal(size=size).astype("f4") for size in ((64, 130), (80, 60))
    )
    tensors = {
        "wide.weight": wide,
        "narrow.weight": 100 * narrow[..., None, None],
        "bias": narrow[0],
    }
    save_file(tensors, tmp_path / "m.safetensors")
    assert codebooks.main(codebooks.Options(models=tmp_path, out=tmp_path)) == 2
    monkeypatch.setattr(codebooks, "NETWORKS", ("m",))
    assert codebooks.main(codebooks.Options(models=tmp_path, out=tmp_path)) == 0
    rows = records.read(tmp_path / "codebooks.jsonl")
    assert len(rows) == 7
    # 33 blocks of 4 in a row of 130, and 15 in one of 60; 16 bits for each unit.
    vq, common = (
        rows["m, own, VQ(64, 4, codebook_dtype='int8')"],
        rows["m, common, SSVQ(64, 12)"],
    )
    weights, blocks = 64 * 130 + 80 * 60, 64 * 33 + 80 * 15
    stored = 6 * blocks + 2 * (8 * 64 * 4 + 32)
    np.testing.assert_allclose(vq["bits"], stored / weights)
    blocks = 64 * 11 + 80 * 5
    stored = 6 * blocks + 12 * blocks + 16 * 64 * 12 + 2 * 16
    np.testing.assert_allclose(common["bits"], stored / weights)
    own = rows["m, own, SSVQ(16, 8)"]
    quarter = np.log(own["error"] / common["error"]) / np.log(4)
    np.testing.assert_allclose(common["worth"], quarter + own["bits"] - common["bits"])
