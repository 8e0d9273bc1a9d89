"""ResNeXt (Xie et al., 2017): 32 groups, of 4 channels (50) and 8 (101)."""

from torch import Tensor, nn

from network.backbones import timm_network
from network.base_model import BaseModel, Step


class Model(BaseModel):
    ARCHS = {"MyNet": "resnext50_32x4d"}  # the backbone of a copy called MyNet; ours are in options/choices.py

    def build(self, arch: str) -> nn.Module:
        return timm_network(arch, self.settings)

    def update(self, images: Tensor, targets: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self(images)
            loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()
