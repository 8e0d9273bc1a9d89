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


def write_colours(folder: Path) -> Path:
    """Write the lists of each task but "single" over the same 30 pictures, 18 to train with, 8 and 4.

    Their targets are: which of red and green are bright, how bright these are, and how many of them. Return `folder`.
    """
    rng = np.random.default_rng(0)
    lines: dict[tuple[str, str], list[str]] = {}
    for k in range(30):
        part = "train" if k < 18 else "val" if k < 26 else "test"
        bright = rng.random(2) < 0.5
        image = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
        image[..., 2] += np.uint8(150 * bright[0])  # OpenCV's order is blue, green, red
        image[..., 1] += np.uint8(150 * bright[1])
        cv2.imwrite(str(folder / f"{k}.png"), image)
        targets = {
            "multilabel": ",".join(map(str, np.flatnonzero(bright))) or "-",
            "regression": f"{image[..., 2].mean():.3f},{image[..., 1].mean() / 1000:.5f}",
            "ordinal": str(bright.sum()),
        }
        for task, target in targets.items():
            lines.setdefault((task, part), []).append(f"../{k}.png" + (f" {target}" if part != "test" else ""))
    for (task, part), some in lines.items():
        (folder / task).mkdir(exist_ok=True)
        (folder / task / f"{part}.txt").write_text("\n".join(some) + "\n")
    (folder / "multilabel/classes.txt").write_text("red\ngreen\n")
    (folder / "regression/classes.txt").write_text("redness\ngreenness\n")
    return folder


def unpack(name: str, folder: Path) -> Path:
    """One of KEPT as <folder>/<name>.pt."""
    path = folder / f"{name}.pt"
    path.write_bytes(lzma.decompress((DATA / f"{name}.pt.xz").read_bytes()))
    return path
