"""A shallow network for small pictures: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (section 3).

A 2x2 convolution, three groups of two 3x3 convolutions with a pooling in each, GELU, and a linear layer on maxima.
Unlike the paper's, the first layer is trained and not whitened, batch norm has its usual scale and momentum, logits are
not scaled, and weights begin as PyTorch's do: a run of tens of epochs does not need the paper's head start.
"""

from torch import Tensor, nn

STEM_WIDTH = 24
WIDTHS = {"airbench": (64, 256, 256)}
MIN_SIDE_PIXELS = 9  # what three poolings leave one pixel of


class Group(nn.Module):
    """Two 3x3 convolutions, a 2x2 max pooling after the first: (B, inputs, H, W) -> (B, width, H // 2, W // 2)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.pool(self.conv1(x))))
        return self.act(self.bn2(self.conv2(x)))


class Airbench(nn.Module):
    """The network: images (B, 3, H, W), normalised, of MIN_SIDE_PIXELS or more -> logits (B, num_classes)."""

    def __init__(self, widths: tuple[int, ...], num_classes: int, drop: float = 0.0) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, STEM_WIDTH, 2)
        self.act = nn.GELU()
        inputs = (STEM_WIDTH, *widths[:-1])
        self.groups = nn.Sequential(*(Group(*pair) for pair in zip(inputs, widths, strict=True)))
        self.avgpool = nn.AdaptiveMaxPool2d(1)  # --pool finds it by this name
        self.dropout = nn.Dropout(drop)
        self.fc = nn.Linear(widths[-1], num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return, as timm's networks do, which parameters form the stem, and each block."""
        return {"stem": r"^conv_stem", "blocks": r"^groups\.(\d+)" if coarse else r"^groups\.(\d+)\.\w+(\d)"}

    def get_classifier(self) -> nn.Module:
        """Return the classifier, as timm's networks do."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(self.act(self.conv_stem(x)))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))
