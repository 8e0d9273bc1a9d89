"""Checkpoints as train.py writes them, made without training."""

from pathlib import Path
from typing import Any

import torch

from conftest import NAMES
from network import get_model
from options import parse_train
from utils import checkpoint

RESNET, VIT = "timm:test_resnet", "timm:test_vit"


def shown(capfd: Any) -> str:
    """Return what was printed, on either stream."""
    return "".join(capfd.readouterr())


def make(
    path: Path,
    lists: Path,
    noise: float = 0.0,
    model: str = RESNET,
    options: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> str:
    """Write a checkpoint as train.py would: a network of one seed, moved by `noise`; return its path as text."""
    scale = 160 if model == VIT else 32
    words = ["--model", model, "--no-pretrained", "--scale", str(scale), "--num_classes", "3", "--transform", "light"]
    opt = parse_train([*words, "-b", "6"]).replace(**(options or {}))
    torch.manual_seed(0)
    net = get_model(model)(opt)
    weights = {name: value.clone() for name, value in net.net.state_dict().items()}
    generator = torch.Generator().manual_seed(round(noise * 1000))
    for value in weights.values():
        if value.is_floating_point():
            value += noise * torch.rand(value.shape, generator=generator)
    kept = {name: value for name, value in vars(opt).items() if name not in ("given", "config", "overwrite")}
    known = {name: str(lists / f"{name}.txt") for name in ("train", "val", "test")}
    about = {"num_classes": 3, "class_names": list(NAMES), "class_images": [12] * 3, "lists": known}
    about |= {"preprocess": net.preprocess().as_dict(), **(data or {})}
    content = {"model": model, "epoch": 2, "opt": kept, "data": about, "weights": weights, "showing": "raw"}
    checkpoint.save(path, content)
    return str(path)
