"""iResNet (Duta et al., 2020), written out in iresnet.py. No hub has its weights: `--load` takes the authors' files."""

from torch import Tensor, nn

from network.base_model import BaseModel, Step
from utils.errors import UserError, look_up

from .iresnet import DEPTHS, IResNet  # relative, so that a copied folder runs its own file


class Model(BaseModel):
    ARCHS = {"MyNet": "iresnet50"}  # the backbone of a copy called MyNet; ours are in options/choices.py

    def build(self, arch: str) -> nn.Module:
        depths = look_up("iResNet backbone", arch, DEPTHS)
        if self.settings.pretrained:
            raise UserError(
                f"{self.name} has no ImageNet weights on any hub. The authors publish {arch}_pretrained.pth: "
                f"fetch it and give --load {arch}_pretrained.pth,\nor start from random weights: --no-pretrained."
            )
        return IResNet(depths, self.num_classes, self.settings.drop)

    def update(self, images: Tensor, targets: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self(images)
            loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()
