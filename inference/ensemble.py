"""Fits the weights of an ensemble: --blend greedy and --blend optimal. ensemble_file.py keeps them."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloader.prefetch import BatchLoader
from dataloader.targets import take
from evaluation.cross_fit import image_keys
from evaluation.ranking import check_decides
from inference import blend, saved_probs
from inference.blend_targets import TargetCandidates
from inference.predictor import Predictor, SavedMember
from inference.session import Inference
from utils import distributed
from utils.batch import EvalBatch
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log
from utils.task import has_probabilities


def fit_ensemble(run: Inference, metric: str) -> tuple[Predictor, blend.BlendScores]:
    """Fit the weights of --blend greedy or optimal over the list, set them in `run.predictor`, and log what they gain.

    `metric` is what greedy improves.

    Returns:
        A predictor that gives the same blend, and the scores. Where all members' probabilities fit in memory
        (saved_probs.MAX_BYTES), it looks them up and runs no network again; of several processes, the main one holds
        them and predicts alone. Where they do not fit, it is `run.predictor`.

    Raises:
        UserError: there are too few labelled images; `metric` is the same for all networks, and greedy cannot choose;
            or predictions of labels or numbers take too much memory.
        NotFinite: a member gave NaN or infinite logits.
    """
    opt, predictor, classes, loader = run.opt, run.predictor, run.classes, run.batches()
    if opt.blend == "greedy":
        with distributed.share_errors():
            check_decides(metric, classes.count, "the weights of --blend greedy")
    shape = len(predictor.weights), len(run.files), classes.count
    size = 4 * math.prod(shape)
    kept = np.empty(shape, np.float32) if size <= saved_probs.MAX_BYTES else None
    title = f"members for --blend {opt.blend}"
    collected: _Collected | None
    if not has_probabilities(classes.task):
        with distributed.share_errors():
            if kept is None:
                raise UserError(
                    f"--blend {opt.blend} needs all predictions of all members in memory, {size / 1e9:.1f} GB; "
                    f"allowed: {saved_probs.MAX_BYTES / 1e9:.1f} GB. Try: --blend mean"
                )
        assert kept is not None
        collected = _collect_targets(predictor, loader, title, kept, classes)
    else:
        if kept is None:
            log.info(
                f"All probabilities are {size / 1e9:.1f} GB: the weights are fitted to the five most likely classes of "
                "each member, then the networks run again. The scores of the fit count these classes alone; those of "
                "the evaluation count all."
            )
        collected = _collect(predictor, loader, title, kept)
    weights, scores = distributed.broadcast_from_main(
        lambda: (
            blend.fit(collected.data, image_keys(run.files)[collected.rows], opt.blend, opt.seed, metric)
            if collected is not None
            else ([], {})
        )
    )
    for name, score in scores.items():
        log.info(f"{name:22s} " + "  ".join(f"{key} {number:.6f}" for key, number in score.items()))
    predictor.weights = weights
    log.info(
        "weights: " + ", ".join(f"{weight:.4f} {name}" for weight, name in zip(weights, run.loaded.paths, strict=True))
    )
    if kept is None:
        return predictor, scores
    if collected is None:
        return predictor.from_saved([], None), scores
    saved = [SavedMember(member[: len(collected.readable)]) for member in kept]
    return predictor.from_saved(saved, collected.readable), scores


class _Collected(NamedTuple):
    """What the members predict for the list.

    Attributes:
        data: what the weights are fitted to.
        rows: int64, the places in the list of the images of `data`.
        readable: bool (N,), which images all members could read.
    """

    data: blend.Fittable
    rows: NDArray[np.int64]
    readable: Tensor


class _OfBatch(NamedTuple):
    """What a fit takes of a batch.

    Attributes:
        candidates: as blend.candidates returns them.
        rows: int64, the places in the list of their images.
        readable: bool (B,).
        each: float32 (M, B, C), every member's probabilities, if they are kept.
    """

    candidates: tuple[Tensor, Tensor, Tensor]
    rows: Tensor
    readable: Tensor
    each: Tensor | None


def _collect(
    predictor: Predictor, loader: BatchLoader[EvalBatch], title: str, kept: NDArray[np.float32] | None
) -> _Collected | None:
    """Run the members over `loader`; several processes share its batches.

    Args:
        kept: float32 (M, N, C), which gets every probability; None: nothing is kept.

    Returns:
        What the main process collected; None in the others.
    """

    def take_likely(batch: EvalBatch, each: Tensor) -> _OfBatch:
        readable = predictor.readable(batch)
        known = readable & (batch.label >= 0)
        use = known.to(each.device)
        probability, target, class_of = blend.candidates(each[:, use], batch.label.to(each.device)[use])
        candidates = probability.cpu(), target.cpu(), class_of.cpu()
        return _OfBatch(candidates, batch.index[known], readable, each if kept is not None else None)

    columns: list[tuple[Tensor, ...]] = []
    done = 0
    for part in predictor.share(loader, title, take_likely):
        columns.append((*part.candidates, part.rows, part.readable))
        if kept is not None and part.each is not None:
            kept[:, done : done + len(part.readable)] = part.each.cpu().numpy()
        done += len(part.readable)
    if not distributed.is_main():
        return None
    probabilities, targets, classes, rows, readables = zip(*columns, strict=True)
    row = torch.cat(rows).numpy()
    data = blend.Candidates(
        torch.cat(probabilities, dim=1).numpy(), torch.cat(targets).numpy(), torch.cat(classes).numpy(), kept, row
    )
    return _Collected(data, row, torch.cat(readables))


def _collect_targets(
    predictor: Predictor, loader: BatchLoader[EvalBatch], title: str, kept: NDArray[np.float32], classes: Classes
) -> _Collected | None:
    """Run members that predict labels or numbers over `loader`, as `_collect` does; `kept` gets every prediction."""

    def take_all(batch: EvalBatch, each: Tensor) -> tuple[Tensor, Tensor]:
        return each, predictor.readable(batch)

    readables, done = [], 0
    for each, known in predictor.share(loader, title, take_all):
        kept[:, done : done + len(known)] = each.cpu().numpy()
        readables.append(known)
        done += len(known)
    if not distributed.is_main():
        return None
    readable, targets = torch.cat(readables), loader.dataset.files.targets
    assert targets is not None  # as the list of eval.py has them
    use = np.flatnonzero(readable.numpy())
    scored = kept[:, :done] if len(use) == done else kept[:, use]
    return _Collected(TargetCandidates(scored, take(targets, use), classes), use, readable)
