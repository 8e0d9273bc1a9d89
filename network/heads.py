"""Classifiers for long tails and look-alikes, and GeM pooling, which replace those of any network."""

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from network.settings import NetworkSettings
from network.sizes import check_size, own_size
from utils.errors import UserError

NUM_SUBCENTERS = 3  # per class in sub-centre ArcFace, as in its paper
EPSILON = 1e-6


class CosineHead(nn.Module):
    """Logits (B, C) = scale * cos(angle between a feature and a class's weight), in fp32 under any autocast.

    With several `centres` per class the nearest counts (Deng et al., 2020, sub-centre ArcFace, section 3.2). ArcFace's
    margin belongs to the loss, so that evaluation uses plain cosines (Deng et al., 2019, eq. 3).
    """

    def __init__(self, in_features: int, out_features: int, scale: float, centres: int = 1) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scale, self.centres = in_features, out_features, scale, centres
        self.weight = nn.Parameter(torch.empty(out_features * centres, in_features))
        nn.init.xavier_normal_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) of features (B, D)."""
        with torch.autocast(features.device.type, enabled=False):
            cosine = F.linear(F.normalize(features.float()), F.normalize(self.weight.float()))
            if self.centres > 1:
                cosine = cosine.unflatten(1, (self.out_features, self.centres)).amax(dim=2)
            return self.scale * cosine


@runtime_checkable
class HasClassifier(Protocol):
    """A network that gives its last part, as timm's do."""

    def get_classifier(self) -> nn.Module:
        """Return the last part."""


def final_layer(net: nn.Module) -> nn.Module | None:
    """Return the last layer where it is one Linear or a CosineHead, else None.

    A network with an `aux_head`, as timm's VOLO, adds the logits of two classifiers.
    """
    if getattr(net, "aux_head", None) is not None:
        return None
    head = net.get_classifier() if isinstance(net, HasClassifier) else None
    return head if isinstance(head, nn.Linear | CosineHead) else None


class GeM(nn.Module):
    """Generalised mean over a map: (mean of x^p)^(1/p), with p learnt from 3 on (Radenovic et al., 2018, eq. 4).

    Maps (B, C, H, W), or (B, H, W, C) with `channels_last`, -> (B, C), or (B, C, 1, 1) without `flatten`.
    """

    def __init__(self, flatten: bool = True, channels_last: bool = False) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))
        self.flatten, self.axes = flatten, (1, 2) if channels_last else (2, 3)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the pooled features, in the dtype of the maps."""
        with torch.autocast(maps.device.type, enabled=False):
            pooled = (
                maps.float().clamp(min=EPSILON).pow(self.p).mean(self.axes, keepdim=not self.flatten).pow(1 / self.p)
            )
        return pooled.to(maps.dtype)

    def is_identity(self) -> bool:
        """Return False: timm asks each pooling."""
        return False


def apply_head_and_pool(net: nn.Module, settings: NetworkSettings) -> nn.Module:
    """Replace the classifier by that of --head and the pooling by that of --pool, in place, and return `net`.

    Raises:
        UserError: the network has no single linear classifier, or no pooled map. Or it is timm's and cannot take images
            of this --scale.
    """
    if settings.head != "linear":
        name, old = _classifier(net, settings)
        centres = NUM_SUBCENTERS if settings.head == "subcenter" else 1
        _replace_module(net, name, CosineHead(old.in_features, old.out_features, settings.head_scale, centres))
    if settings.pool == "gem":
        pools = [
            (name, part)
            for name, part in net.named_modules()
            if isinstance(part, SelectAdaptivePool2d) and part.pool_type
        ]
        pools = pools or [(name, part) for name, part in net.named_modules() if name == "avgpool"]
        if len(pools) != 1:
            raise UserError(
                f"--pool gem needs a network that pools one map into features; {settings.model} does not. "
                "Leave --pool out."
            )
        name, pool = pools[0]
        ours = not isinstance(pool, SelectAdaptivePool2d)  # iResNet's, which keeps its two axes
        rows_first = not ours and tuple(getattr(pool.pool, "dim", ())) == (1, 2)
        flat = not ours and (not isinstance(pool.flatten, nn.Identity) or getattr(pool.pool, "flatten", False))
        _replace_module(net, name, GeM(flatten=flat, channels_last=rows_first))
    return _smoke_test(net, settings)


def _smoke_test(net: Any, settings: NetworkSettings) -> nn.Module:
    """Run a black image through a network of timm that has new parts, or another size than its own; return `net`.

    Transformers have a fixed size, windows need a divisor, and timm's networks pool in more ways than can be foreseen.

    Raises:
        UserError: the network cannot take the image, or gives logits of another shape.
    """
    own = own_size(net)
    parts = " ".join(
        [f"--head {settings.head}"] * (settings.head != "linear") + ["--pool gem"] * (settings.pool == "gem")
    )
    if not settings.model.startswith("timm:") or (settings.scale == own and not parts) or settings.rebuilt:
        return net
    flags = f"--scale {settings.scale}{parts and f' and {parts}'}"
    advice = f"give --scale {own}, its own size" if settings.scale != own else f"leave {parts} out"
    found = check_size(net, settings.scale, settings.model, flags, advice)
    if parts and found != (1, net.num_classes):
        raise UserError(
            f"{settings.model} does not work with {parts}: it would give {found} for one image, "
            f"not {(1, net.num_classes)}. Leave {parts} out."
        )
    return net


def _classifier(net: Any, settings: NetworkSettings) -> tuple[str, nn.Linear]:
    get = getattr(net, "get_classifier", None)
    old = get() if get else net.fc
    if not isinstance(old, nn.Linear):
        raise UserError(
            f"--head {settings.head} needs a network with one linear classifier; {settings.model} has none. "
            "Leave --head out."
        )
    return next(name for name, part in net.named_modules() if part is old), old


def _replace_module(net: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(net.get_submodule(owner), last, part)
