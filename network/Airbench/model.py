"""Airbench (Jordan, 2024), written out in airbench.py: a network for small pictures, trained from random weights."""

from torch import Tensor, nn

from network.backbones import reinit_head
from network.base_model import BaseModel, Step
from utils.errors import UserError, look_up

from .airbench import MIN_SIDE_PIXELS, WIDTHS, Airbench  # relative, so that a copied folder runs its own file


class Model(BaseModel):
    ARCHS = {"MyNet": "airbench"}  # the backbone of a copy called MyNet; ours are in options/choices.py

    def build(self, arch: str) -> nn.Module:
        widths = look_up("Airbench backbone", arch, WIDTHS)
        if self.settings.pretrained:
            raise UserError(f"{self.name} has no ImageNet weights: it is for small pictures. Try: --no-pretrained")
        if self.settings.scale < MIN_SIDE_PIXELS:
            raise UserError(
                f"{self.name} halves the image three times: --scale {self.settings.scale} is too small; "
                f"allowed: {MIN_SIDE_PIXELS} or more."
            )
        return reinit_head(Airbench(widths, self.num_classes, self.settings.drop))

    def update(self, images: Tensor, targets: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self(images)
            loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()
