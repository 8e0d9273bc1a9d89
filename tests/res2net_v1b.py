"""Res2Net-v1b (Gao et al., 2019) as its authors' code builds and names it; there is no package of it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, SCALE = 26, 4


class Bottle2neck(nn.Module):
    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None, first: bool) -> None:
        super().__init__()
        width = math.floor(planes * WIDTH / 64)
        self.conv1 = nn.Conv2d(inplanes, width * SCALE, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * SCALE)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if first else None
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, stride, 1, bias=False) for _ in range(SCALE - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(SCALE - 1))
        self.conv3 = nn.Conv2d(width * SCALE, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu, self.downsample, self.width = nn.ReLU(), downsample, width

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.relu(self.bn1(self.conv1(x))), self.width, 1)
        outs: list[Tensor] = []
        for k in range(SCALE - 1):
            given = parts[k] if k == 0 or self.pool else outs[-1] + parts[k]
            outs.append(self.relu(self.bns[k](self.convs[k](given))))
        outs.append(self.pool(parts[-1]) if self.pool else parts[-1])
        out = self.bn3(self.conv3(torch.cat(outs, 1)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Res2Net(nn.Module):
    def __init__(self, layers: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.inplanes = 64
        stem: list[Any] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        stem += [nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        self.conv1 = nn.Sequential(*stem, nn.Conv2d(32, 64, 3, 1, 1, bias=False))
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        for k, count in enumerate(layers):
            setattr(self, f"layer{k + 1}", self._layer(64 * 2**k, count, 1 if k == 0 else 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, num_classes)

    def _layer(self, planes: int, count: int, stride: int) -> nn.Sequential:
        downsample = nn.Sequential(
            nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(self.inplanes, planes * 4, 1, bias=False),
            nn.BatchNorm2d(planes * 4),
        )
        blocks = [Bottle2neck(self.inplanes, planes, stride, downsample, first=True)]
        self.inplanes = planes * 4
        return nn.Sequential(
            *blocks, *(Bottle2neck(self.inplanes, planes, 1, None, first=False) for _ in range(count - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))
