"""Grad-CAM (Selvaraju et al., 2017): where a network looked, from the last features that still have places."""

import math
from collections import deque

import torch
from torch import Tensor, nn

from dataloader.prefetch import BatchLoader
from evaluation.report.pictures import Maps
from inference.predictor import Predictor
from network.base_model import BaseModel
from utils.batch import EvalBatch
from utils.logger import progress

MAX_ACTIVATIONS = 64  # searched for features: the last blocks of any network
MIN_MAP_SIDE = 4  # cells; a coarser map says little about an image


def gradcam_maps(predictor: Predictor, loader: BatchLoader[EvalBatch]) -> Maps:
    """Return a map for each image of a loader, from the first network's first view.

    Returns:
        {place in the list: (uint8 (S, S, 3), float32 (h, w) from 0 to 1)}: what the network saw, and what in it was
        evidence for its first prediction. {} where the network has no features with places.
    """
    model, view = predictor.members[0].model, predictor.views[0][0]
    maps: Maps = {}
    with model.evaluating():
        for batch in progress(loader, "Grad-CAM", len(loader)):
            images = view.transform(batch.images[predictor.preprocesses.index(view.preprocess)].to(model.device))
            with model.autocast():  # the weights may be cast already
                found = gradcam(model, images)
            if found is None:
                return {}
            squares = images.permute(0, 2, 3, 1).cpu().numpy()
            maps.update(zip(batch.index.tolist(), zip(squares, found.cpu().numpy(), strict=True), strict=True))
    return maps


def gradcam(model: BaseModel, images: Tensor, classes: Tensor | None = None) -> Tensor | None:
    """Compute Grad-CAM of uint8 (B, 3, S, S) images, or of normalised floats.

    The features are the last output inside the network that has a gradient and places: at least MIN_MAP_SIDE per side,
    else at least two. In a transformer whose classifier reads only the class token, the last attention's input is used.

    Args:
        classes: int64 (B,), the class of each image to explain; by default its first prediction.

    Returns:
        float32 (B, h, w), each scaled to 0..1; None where the network has no such features.
    """
    fine: deque[Tensor] = deque(maxlen=MAX_ACTIVATIONS)
    coarse: deque[Tensor] = deque(maxlen=MAX_ACTIVATIONS)

    def remember(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            there = _as_map(model.net, output)
            if there is not None:
                (fine if there.shape[-1] >= MIN_MAP_SIDE else coarse).appendleft(output)

    with torch.enable_grad(), model.evaluating() as net:
        hooks = [module.register_forward_hook(remember) for module in net.modules()]
        try:
            logits = net(model.normalise(images).requires_grad_(True)).float()
        finally:
            for hook in hooks:
                hook.remove()
        newest = [*fine, *coarse]
        if not newest:
            return None
        classes = logits.argmax(dim=1) if classes is None else classes
        slopes = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), newest, allow_unused=True)
    for features, slope in zip(newest, slopes, strict=True):
        if slope is not None:
            there, steep = _as_map(model.net, features), _as_map(model.net, slope)
            assert there is not None and steep is not None
            if steep.any():
                heat = (there * steep.mean(dim=(2, 3), keepdim=True)).sum(dim=1).relu().detach().float()
                return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    return None


def _as_map(net: nn.Module, output: Tensor) -> Tensor | None:
    """Return an output as (B, C, h, h), whatever its layout; None where it has no places.

    Images are square, so maps are. Any other shape is attention heads, channels, or tokens that are pooled in part.
    """
    if output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
        return output
    if output.ndim == 4 and output.shape[1] == output.shape[2] > 1:  # channels last, as in Swin
        return output.permute(0, 3, 1, 2)
    if output.ndim == 3 and output.shape[2] == getattr(net, "num_features", output.shape[2]):
        tokens = output[:, int(getattr(net, "num_prefix_tokens", 0)) :]
        side = math.isqrt(tokens.shape[1])
        if side > 1 and side * side == tokens.shape[1]:
            return tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return None
