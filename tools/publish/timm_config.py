"""What timm reads of a published folder, and whether the network is one of timm's."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from network.base_model import BaseModel
from utils.preprocess import CROP_FRACTION, Preprocess

# Our way to fit an image into a square: timm's name, and the share of the resized image that is shown
CROPS = {"squash": ("squash", 1.0), "crop": ("center", CROP_FRACTION), "pad": ("border", 1.0)}
MAX_LOGIT_DIFFERENCE = 1e-5  # relative to the largest logit
TRIAL_IMAGES = 2


def architecture_of(model: BaseModel) -> tuple[str, str]:
    """Return timm's name of the network if it has the same tensors, else "" and the reason why timm cannot build it."""
    net = model.net
    name = str((getattr(net, "pretrained_cfg", None) or {}).get("architecture") or "")
    if not name or not timm.is_model(name):
        return "", f"timm has no network {model.name}"
    if model.settings.head != "linear":
        return "", f"timm has no classifier like that of --head {model.settings.head}"
    if model.settings.pool != "avg":
        return "", f"timm has no pooling like that of --pool {model.settings.pool}"
    try:
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=model.num_classes)
    except Exception:  # a network that computes with its numbers as it is built needs memory for them
        theirs = timm.create_model(name, num_classes=model.num_classes)
    if _shapes(theirs) != _shapes(net):
        return "", f"its tensors are not those of timm's {name}"
    return name, ""


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def config_of(model: BaseModel, preprocess: Preprocess, names: list[str] | None, licence: str | None) -> dict[str, Any]:
    """Return timm's part of config.json, without the architecture.

    Args:
        names: one for each logit; None: they have none.
        licence: the hub's identifier, or None.
    """
    crop_mode, crop_pct = CROPS[preprocess.fit]
    own = dict(getattr(model.net, "pretrained_cfg", None) or {})
    same_size = tuple(own.get("input_size") or ())[1:] == (preprocess.scale, preprocess.scale)
    pretrained = {
        "num_classes": model.num_classes,
        "input_size": [3, preprocess.scale, preprocess.scale],
        "fixed_input_size": bool(own.get("fixed_input_size", False)),
        "pool_size": own.get("pool_size") if same_size else None,
        "interpolation": "bilinear",
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "first_conv": own.get("first_conv"),
        "classifier": own.get("classifier"),
        **({"license": licence} if licence else {}),
    }
    features = getattr(model.net, "num_features", None)
    config: dict[str, Any] = {"num_classes": model.num_classes}
    config |= {"num_features": features} if isinstance(features, int) else {}
    config |= {"label_names": names} if names else {}
    return {**config, "pretrained_cfg": pretrained}


def difference_in_timm(folder: Path, model: BaseModel, scale: int) -> float:
    """Return how far the logits of timm's network from `folder` are from those of `model`, relative to the largest.

    Raises:
        Exception: whatever timm raises for a folder or an image that it cannot take.
    """
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randint(
        0, 256, (TRIAL_IMAGES, 3, scale, scale), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        shown = model.normalise(images)
        ours = model.net(shown)
        return float((theirs(shown) - ours).abs().max() / ours.abs().max().clamp_min(1e-12))
