"""ResNet (He et al., 2016)."""

from torch import Tensor, nn

from network.backbones import timm_network
from network.base_model import BaseModel, Step


class Model(BaseModel):
    ARCHS = {"MyNet": "resnet50"}  # the backbone of a copy called MyNet; ours are in options/choices.py

    def build(self, arch: str) -> nn.Module:
        return timm_network(arch, self.settings)

    def update(self, images: Tensor, targets: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self(images)
            loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()
