"""EfficientNet (Tan & Le, 2019) with the padding of TensorFlow and EfficientNet-PyTorch, and its Lite variants."""

from torch import Tensor, nn

from network.backbones import timm_network
from network.base_model import BaseModel
from utils.batch import Batch


class Model(BaseModel):
    ARCHS = {
        "EfficientNet-B0": "tf_efficientnet_b0",
        "EfficientNet-B1": "tf_efficientnet_b1",
        "EfficientNet-B2": "tf_efficientnet_b2",
        "EfficientNet-B3": "tf_efficientnet_b3",
        "EfficientNet-B4": "tf_efficientnet_b4",
        "EfficientNet-B5": "tf_efficientnet_b5",
        "EfficientNet-B6": "tf_efficientnet_b6",
        "EfficientNet-B7": "tf_efficientnet_b7",
        "EfficientNet-Lite0": "tf_efficientnet_lite0",
        "EfficientNet-Lite1": "tf_efficientnet_lite1",
        "EfficientNet-Lite2": "tf_efficientnet_lite2",
    }

    def build(self, arch: str) -> nn.Module:
        return timm_network(arch, self.opt)

    def update(self, batch: Batch) -> Tensor:
        images, targets = self.prepare(batch)
        with self.autocast():
            logits = self(images)
            loss = self.criterion(logits, targets)
        self.step(loss)
        return loss.detach()
