"""EfficientNet (Tan & Le, 2019) with the padding of TensorFlow and EfficientNet-PyTorch, and its Lite variants."""

from torch import Tensor, nn

from network.backbones import timm_network
from network.base_model import BaseModel, Step


class Model(BaseModel):
    ARCHS = {"MyNet": "tf_efficientnet_b0"}  # the backbone of a copy called MyNet; ours are in options/choices.py

    def build(self, arch: str) -> nn.Module:
        return timm_network(arch, self.settings)

    def update(self, images: Tensor, targets: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self(images)
            loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()
