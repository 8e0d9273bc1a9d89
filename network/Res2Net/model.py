"""Res2Net (Gao et al., 2019), version 1b as the original template used it: timm's `d`, 26 channels, 4 scales."""

from torch import Tensor, nn

from network.backbones import timm_network
from network.base_model import BaseModel, Step


class Model(BaseModel):
    ARCHS = {"MyNet": "res2net50d"}  # the backbone of a copy called MyNet; ours are in options/choices.py

    def build(self, arch: str) -> nn.Module:
        return timm_network(arch, self.settings)

    def update(self, images: Tensor, targets: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self(images)
            loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()
