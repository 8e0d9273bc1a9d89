"""ResNeSt (Zhang et al., 2020): split attention. timm's resnest101e and 200e are the official ones, key for key.

This is the folder to copy for a model of your own: change the network in `build`, and loss and step in `update`.
"""

from torch import Tensor, nn

from network.backbones import timm_network
from network.base_model import BaseModel, Step


class Model(BaseModel):
    ARCHS = {"MyNet": "resnest50d"}  # the backbone of a copy called MyNet; ours are in options/choices.py

    def build(self, arch: str) -> nn.Module:
        return timm_network(arch, self.settings)

    def update(self, images: Tensor, targets: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self(images)
            loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()
