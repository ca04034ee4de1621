"""DeepLab-V3 on MobileNet-V2 0.5 for CamVid: street scenes of 11 classes.

python -m experiments.unfold ../shared/models/deeplabv3_mnv2_050.safetensors \
    runs/deeplabv3_mnv2_050_unfolded.safetensors --network deeplabv3_mnv2_050 \
    --task segmentation --dataset coco/2017_panoptic+coco/2017_instances \
    --split train --batch 20 --data-dir ../shared/tfds
python -m experiments.compress experiments/configs/camvid/float.py \
    --data-dir ../shared/tfds --results experiments/results

All of it is trained, from Pascal VOC's weights but for the prediction layer, which
starts at random: 30 epochs of 367 images at 0.75 to 2 times the network's size,
mirrored. Half an hour on 2 CPU cores; expect 54 points of mean IoU on test.
"""

from experiments.configs.camvid._camvid import DATA, NETWORK, TASK
from experiments.training.config import Experiment, Optimization


def runs() -> dict[str, Experiment]:
    """The float network."""
    return {
        "float": Experiment(
            task=TASK,
            network=NETWORK,
            data=DATA,
            optimization=Optimization(epochs=30, batch=16, rate=1e-3),
            weights="runs/deeplabv3_mnv2_050_unfolded.safetensors",
            fresh="logits_semantic/.*",
        )
    }
