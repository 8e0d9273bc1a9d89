"""Where a network looked: Grad-CAM (Selvaraju et al., 2017) on the last map of features that still has a height and a width."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from network.base_model import BaseModel
from network.inference import Predictor
from utils.logger import progress


def explain(predictor: Predictor, loader: Any) -> dict[int, NDArray[np.float32]]:
    """A map for each image of a loader of EvalBatch, by its place in the list; of the first network's first view.

    Returns:
        {index: float32 (h, w), 0 to 1}: what spoke for the class that this network names first. {} where the network
        has no spatial map (a transformer of tokens).
    """
    model, view = predictor.members[0].model, predictor.views[0][0]
    maps: dict[int, NDArray[np.float32]] = {}
    for batch in progress(loader, "Grad-CAM", len(loader)):
        images = view.change(batch.images[predictor.ways.index(view.way)].to(model.device))
        with model.autocast():  # the weights may be cast already
            found = gradcam(model, images)
        if found is None:
            return {}
        maps.update(zip(batch.index.tolist(), found.cpu().numpy(), strict=True))
    return maps


def gradcam(model: BaseModel, images: Tensor, classes: Tensor | None = None) -> Tensor | None:
    """Grad-CAM of uint8 (B, 3, S, S) images, or of normalised floats.

    Args:
        classes: int64 (B,), the class of each image whose evidence is mapped; by default the one named first.

    Returns:
        float32 (B, h, w), each scaled to 0..1; None where the network's last features are tokens, not a map.
    """
    last: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: Any, output: Any) -> None:
        """Keep the newest output that has places: a map (B, C, h, w) or tokens (B, N, C)."""
        if isinstance(output, Tensor) and output.requires_grad and output.ndim in (3, 4) and output.shape[1] > 1:
            if output.ndim == 4 and output.shape[2] * output.shape[3] == 1:
                return  # pooled: no places are left
            last[:] = [output]

    with torch.enable_grad(), model.evaluating() as net:
        hooks = [module.register_forward_hook(remember) for module in net.modules()]
        try:
            logits = net(model.normalise(images).requires_grad_(True)).float()
        finally:
            for hook in hooks:
                hook.remove()
        if not last or last[0].ndim != 4:
            return None
        classes = logits.argmax(dim=1) if classes is None else classes
        features = last[0]
        (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    if features.shape[2] != features.shape[3] and features.shape[1] == features.shape[2]:  # (B, h, w, C), as Swin has it
        features, slope = features.permute(0, 3, 1, 2), slope.permute(0, 3, 1, 2)
    heat = (features * slope.mean(dim=(2, 3), keepdim=True)).sum(dim=1).relu().detach().float()
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
