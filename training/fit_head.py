"""Fit the classifier before training, to features of the frozen network: LP-FT (Kumar et al., 2022).

A classifier of random weights sends gradients through the network that undo what it has learned, which few images do
not make up for. Training from the fitted one begins at the accuracy of a linear probe.
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dataloader.prefetch import BatchLoader
from network.base_model import BaseModel
from network.heads import final_layer
from training import linear_head
from training.linear_head import Head
from training.probe_init import is_untrained
from utils import distributed
from utils.batch import EvalBatch
from utils.errors import NotFinite, UserError
from utils.logger import log, progress

MAX_LOGISTIC = 1_000_000_000  # images x features x classes: a pass takes 0.15 s on a core, and a fit up to 1,600 passes
HELD_OUT = 5  # one image of this many in each class chooses the strength of the regularisation
USUAL_STRENGTH = 1  # its place among the strengths, where no class has HELD_OUT images


class Choice(NamedTuple):
    """What the held-out images say: the place of the best strength, their number, and the share classified right."""

    best: int
    images: int
    top1: float


def fit_head(
    model: BaseModel,
    loader: BatchLoader[EvalBatch],
    label: NDArray[np.int32],
    image: NDArray[np.uint64],
    seed: int,
) -> None:
    """Replace the classifier of `model` by one that is fitted to images, and log its score on some that are held out.

    Of several processes the first fits, and all of them call this. The network stays in its mode, and nothing is drawn
    from the random numbers of the run.

    Args:
        loader: the images, as evaluation shows them; in the first process, all of them.
        label: int32 (N,), their classes.
        image: uint64 (N,), equal where an image is listed again: all lines of an image are held out, or none.
        seed: decides which images are held out.

    Raises:
        UserError: the network does not end with one linear layer, or no image can be read.
        NotFinite: a feature is infinite or NaN.
    """
    layer = final_layer(model.net)
    if not isinstance(layer, nn.Linear):
        raise _no_linear_end(model)
    if is_untrained(model.net):
        raise UserError(f"--fit_head: {model.name} has no trained weights. Give --load, or leave --fit_head out.")
    weight, bias = distributed.broadcast_from_main(lambda: _fitted(model, layer, loader, label, image, seed))
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)


def _fitted(
    model: BaseModel,
    layer: nn.Linear,
    loader: BatchLoader[EvalBatch],
    label: NDArray[np.int32],
    image: NDArray[np.uint64],
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return weight (C, D) and bias (C,) of the classifier, float32 on the CPU."""
    began = time.monotonic()
    features, readable = _features(model, layer, loader, len(label))
    if not readable.any():
        raise UserError(f"--fit_head: none of the {len(label)} images can be read.")
    label, image = label[readable], image[readable]
    kind = linear_head.method(len(label), features.shape[1], model.num_classes, MAX_LOGISTIC)
    log.info(f"--fit_head: fitting the classifier to the features of {len(label)} images (linear, {kind}).")
    head, choice = _best_head(features[readable], label, image, kind, seed)
    found = "" if not choice.images else f", top1 {choice.top1:.4f} on {choice.images} of them that were held out"
    log.info(f"--fit_head: fitted in {time.monotonic() - began:.1f} s{found}.")
    return linear_head.whole_layer(head, model.num_classes)


def _features(
    model: BaseModel, layer: nn.Linear, loader: BatchLoader[EvalBatch], count: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return what `layer` is given for each image as evaluation shows it, float32 (N, D), and bool (N,): readable."""
    features = np.zeros((count, layer.in_features), np.float32)
    readable = np.zeros(count, bool)
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.inference_mode(), model.evaluating(), model.autocast():
            for batch in progress(loader, "features", len(loader)):
                logits = model(batch.images[0].to(model.device, non_blocking=True))
                inputs = seen.pop()
                own = nn.functional.linear(inputs, layer.weight, layer.bias)
                if not readable.any() and not torch.allclose(logits, own, rtol=1e-2, atol=1e-3, equal_nan=True):
                    raise _no_linear_end(model)
                rows = inputs.float().cpu()
                place = batch.index[batch.readable].numpy()
                features[place], readable[place] = rows[batch.readable].numpy(), True
    finally:
        hook.remove()
    if not np.isfinite(features).all():
        raise NotFinite(f"{model.name} gives infinite or NaN features. Give other weights, or --precision fp32.")
    return features, readable


def _no_linear_end(model: BaseModel) -> UserError:
    return UserError(
        f"--fit_head: {model.name} does not end with one linear layer, so no classifier can be fitted. "
        "Try: --no-fit_head"
    )


def _best_head(
    features: NDArray[np.float32], label: NDArray[np.int32], image: NDArray[np.uint64], kind: str, seed: int
) -> tuple[Head, Choice]:
    """Return the head of the strength that suits held-out images best, fitted to all images."""
    choice = _choose(features, label, kind, _held_out(label, image, seed))
    return linear_head.fit_best([features], label, linear_head.strengths_of(kind), choice.best, kind), choice


def _choose(features: NDArray[np.float32], label: NDArray[np.int32], kind: str, held_out: NDArray[np.bool_]) -> Choice:
    """Fit a head of each strength to most images, and choose by the mean cross entropy of those `held_out`, (N,)."""
    rest, own = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if not len(own):
        return Choice(USUAL_STRENGTH, 0, 0.0)
    target = torch.from_numpy(label[own].astype(np.int64))
    losses, hits = [], []
    for head in linear_head.fit([features], label, rest, linear_head.strengths_of(kind), kind):
        column = torch.from_numpy(np.searchsorted(head.present, label[own]))  # each class has images in `rest`
        logits = nn.functional.linear(torch.from_numpy(features[own]), head.weight, head.bias)
        losses.append(float(nn.functional.cross_entropy(logits, column)))
        hits.append(float((torch.from_numpy(head.present)[logits.argmax(dim=1)] == target).float().mean()))
    best = int(np.argmin(losses))
    return Choice(best, len(own), hits[best])


def _held_out(label: NDArray[np.int32], image: NDArray[np.uint64], seed: int) -> NDArray[np.bool_]:
    """Return bool (N,): one image of HELD_OUT in each class, at random; a class of fewer has none.

    All lines of an image, whose numbers `image` has, are held out or none. An image of two classes never is: the fit
    must not lose the last image of a class.
    """
    _, first, place = np.unique(image, return_index=True, return_inverse=True)
    if len(first) == len(label):
        return _one_of_each(label, seed)
    two_classes = np.bincount(place, label != label[first][place]) > 0
    sure = np.flatnonzero(~two_classes)
    chosen = np.zeros(len(first), bool)
    chosen[sure] = _one_of_each(label[first[sure]], seed)
    return chosen[place]


def _one_of_each(label: NDArray[np.int32], seed: int) -> NDArray[np.bool_]:
    """Return bool (N,): one of HELD_OUT in each class, at random."""
    order = np.random.default_rng([seed, 17]).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    ranked = label[order]
    rank = np.arange(len(label)) - np.searchsorted(ranked, ranked)
    chosen = np.zeros(len(label), bool)
    chosen[order[rank % HELD_OUT == HELD_OUT - 1]] = True
    return chosen
