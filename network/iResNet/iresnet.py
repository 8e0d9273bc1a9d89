"""iResNet: Duta, Liu, Zhu, Shao, "Improved Residual Networks for Image and Video Recognition", 2020 (section 3).

A stage has one start block, some middle blocks and one end block. They differ in the places of normalisation and ReLU,
which keeps ReLUs off the main path. The keys of the state dict are those of the authors' files.
"""

from timm.models import checkpoint_seq
from torch import Tensor, nn

DEPTHS = {
    "iresnet50": (3, 4, 6, 3),
    "iresnet101": (3, 4, 23, 3),
    "iresnet152": (3, 8, 36, 3),
    "iresnet200": (3, 24, 36, 3),
    "iresnet1001": (4, 155, 170, 4),
}
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4


class Block(nn.Module):
    """A bottleneck of 1x1, 3x3 and 1x1 convolutions around a shortcut.

    `kind`: "start" (normalised before the sum), "middle" (activated before the first convolution), "end" (a middle
    block, normalised and activated after the sum). `lead`: whether a norm comes before the first activation. The
    middle block after a start block has none: its input is normalised already.
    """

    def __init__(self, inputs: int, width: int, kind: str, lead: bool) -> None:
        super().__init__()
        outputs, stride = width * EXPANSION, 2 if kind == "start" else 1
        self.kind = kind
        self.bn0: nn.Module | None = nn.BatchNorm2d(inputs) if lead else None
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3: nn.Module | None = None if kind == "middle" else nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = _projection(inputs, outputs) if kind == "start" else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind != "start" and self.bn0 is None:
            x = self.relu(x)  # the authors' in-place ReLU acts on the shortcut too; their weights were trained so
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.bn0 is not None:
            x = self.relu(self.bn0(x))
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.conv3(self.relu(self.bn2(self.conv2(x))))
        if self.bn3 is None:
            return x + shortcut
        return self.bn3(x) + shortcut if self.kind == "start" else self.relu(self.bn3(x + shortcut))


class IResNet(nn.Module):
    """The network: images (B, 3, H, W), normalised -> logits (B, num_classes)."""

    def __init__(self, depths: tuple[int, ...], num_classes: int, drop: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        inputs = (64, *(width * EXPANSION for width in WIDTHS))
        stages = [_stage(inputs[k], WIDTHS[k], depths[k]) for k in range(4)]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(drop)
        self.fc = nn.Linear(inputs[-1], num_classes)
        self.grad_checkpointing = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return, as timm's networks do, which parameters form the stem, and each stage (coarse) or block (fine)."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the input of each block for the backward pass, as timm's networks do."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the classifier, as timm's networks do."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        if self.grad_checkpointing:
            x = checkpoint_seq(stages, x, flatten=True)
        else:
            for stage in stages:
                x = stage(x)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


def _stage(inputs: int, width: int, depth: int) -> nn.Sequential:
    kinds = ["start", *["middle"] * (depth - 2), "end"]
    outputs = width * EXPANSION
    return nn.Sequential(
        *(Block(inputs if k == 0 else outputs, width, kind, lead=k > 1) for k, kind in enumerate(kinds))
    )


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    """Build a start block's shortcut. The pooling keeps the maxima; a strided 1x1 would drop three values in four."""
    return nn.Sequential(
        nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
    )
