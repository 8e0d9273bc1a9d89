"""A network of 4,000 parameters and a data set of small PNGs, for tests that need a whole run many times."""

import lzma
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch

from network.base_model import BaseModel, Step

DATA = Path(__file__).parent / "data"
# checkpoints in tests/data/, as the code wrote them before checkpoints had a schema
KEPT = ("sgd", "adamw_cut", "ranger_fp16")
WORDS = (
    "--model Tiny --no-pretrained --preset original "
    "--scale 32 -b 6 -w 0 --gpu -1 --lr 0.01 --transform light --precision fp32"
)
FLAGS = WORDS.split()


class Tiny(BaseModel):
    def build(self, arch: str) -> torch.nn.Module:
        return timm.create_model("test_resnet", stem_width=4, channels=(4, 4, 8, 8), num_classes=self.num_classes)

    def update(self, images: torch.Tensor, targets: Any, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        with self.autocast():
            logits = self(images)
            loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()


def write_images(folder: Path) -> Path:
    """Write train.txt (12 images, 3 classes), val.txt (6), test.txt (3), classes.txt and PNGs, equal on any machine.

    Return `folder`.
    """
    rng = np.random.default_rng(0)
    for part, each in (("train", 4), ("val", 2), ("test", 1)):
        lines = []
        for label in range(3):
            for k in range(each):
                image = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
                image[..., label] += 120
                path = folder / f"{part}_image_of_class_{label}_{k}.png"
                cv2.imwrite(str(path), image)
                lines.append(path.name if part == "test" else f"{path.name} {label}")
        (folder / f"{part}.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    return folder


def unpack(name: str, folder: Path) -> Path:
    """One of KEPT as <folder>/<name>.pt."""
    path = folder / f"{name}.pt"
    path.write_bytes(lzma.decompress((DATA / f"{name}.pt.xz").read_bytes()))
    return path
