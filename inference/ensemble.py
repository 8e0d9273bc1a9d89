"""Ensembles with fitted weights: --blend fits them, ensemble.yaml keeps them; ensemble_file.py reads it."""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloader.prefetch import BatchLoader
from dataloader.targets import take
from evaluation.calibration import labels_at_temperature
from evaluation.cross_fit import image_keys
from evaluation.ranking import check_decides
from evaluation.thresholds import ONE, FittedThresholds
from inference import blend, saved_probs
from inference.blend_targets import TargetCandidates
from inference.ensemble_file import REQUIRED
from inference.predictor import Predictor, SavedMember
from inference.session import Inference
from options import NO_TEST_LIST, after_evaluation, changed, choices
from options.plain_yaml import YamlError, read_yaml
from utils import distributed, weight_sources
from utils.batch import EvalBatch
from utils.classes import Classes
from utils.errors import UserError
from utils.files import write_yaml
from utils.logger import log
from utils.task import has_probabilities


@dataclass(frozen=True)
class EnsembleMember:
    """A member of an ensemble.yaml: its file, utils.checkpoint.identity of it, and its weight."""

    path: str
    identity: str
    weight: float


def ensemble_content(
    folder: Path,
    members: Sequence[EnsembleMember],
    tta: str,
    *,
    blend: str = "mean",
    scale: int | None = None,
    fit: str | None = None,
    more: Mapping[str, object],
) -> dict[str, object]:
    """Return what ensemble.yaml in `folder` holds: members by paths relative to it, weights, views, then `more`.

    A repository of the hub keeps its name.
    """
    folder = folder.resolve()
    return {
        "load": [_relative(member.path, folder) for member in members],
        "hashes": [member.identity for member in members],
        "weights": [round(member.weight, 6) for member in members],
        "blend": blend,
        "tta": tta,
        "scale": scale,
        "fit": fit,
        **more,
    }


def _relative(source: str, folder: Path) -> str:
    """Return a value of --load as ensemble.yaml in the absolute `folder` names it: a hub's name stays as it is."""
    if source.startswith(weight_sources.HUB):
        return source
    return os.path.relpath(Path(source.removeprefix(weight_sources.LOCAL)).resolve(), folder)


def expand_folds(
    members: Sequence[EnsembleMember], hashes: Mapping[str, str]
) -> tuple[list[EnsembleMember], str] | None:
    """Return the networks behind members that are all oof.npz of tools.folds, and their views; None for other members.

    An oof.npz says how well the networks of its folds predict images that they have not seen. To predict others, each
    of its K networks takes the weight of the file, divided by K.

    Args:
        members: with their fitted weights.
        hashes: the sha256 of each member's file.
    """
    found, views = [], set[str]()
    for member in members:
        beside = _folds_of(member.path, hashes[member.path])
        if beside is None:
            return None
        views.add(beside["tta"])
        folder = Path(member.path).parent
        shares = zip(beside["load"], beside["hashes"], strict=True)
        found += [
            EnsembleMember(str(folder / path), identity, member.weight / len(beside["load"]))
            for path, identity in shares
        ]
    if len(views) > 1:
        log.warning(
            f"The folds were predicted with --tta {' and '.join(sorted(views))}, and an ensemble has one --tta. "
            "So its members are the files, which submit.py cannot predict with. Try: the same --tta for all folds"
        )
        return None
    return found, views.pop()


def _folds_of(path: str, sha256: str) -> dict[str, Any] | None:
    """Return the content of the ensemble.yaml beside `path` if it belongs to exactly this file of `sha256`."""
    if not path.endswith(".npz"):
        return None
    try:
        content = read_yaml(Path(path).with_name("ensemble.yaml"))
    except (OSError, YamlError):
        return None
    oof = content.get("oof") if isinstance(content, dict) else None
    if not isinstance(oof, dict) or oof.get("sha256") != sha256:
        return None
    return content if all(isinstance(content.get(key), kind) for key, kind in REQUIRED.items()) else None


Scores = dict[str, dict[str, float]]  # {a member, or the blend: its scores by name}


def fit_ensemble(run: Inference, metric: str) -> tuple[Predictor, Scores]:
    """Fit the weights of --blend greedy or optimal over the list, and log what they gain.

    `metric` is what greedy improves.

    Returns:
        A predictor that gives the blend, and the scores. Where all members' probabilities fit in memory
        (saved_probs.MAX_BYTES), the predictor holds them and runs no network again; of several processes, the main one
        holds them and predicts alone. `run.predictor` gets the weights too.

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
    found: _Found | None
    if not has_probabilities(classes.task):
        with distributed.share_errors():
            if kept is None:
                raise UserError(
                    f"--blend {opt.blend} needs all predictions of all members in memory, {size / 1e9:.1f} GB; "
                    f"allowed: {saved_probs.MAX_BYTES / 1e9:.1f} GB. Try: --blend mean"
                )
        assert kept is not None
        found = _collect_targets(predictor, loader, title, kept, classes)
    else:
        if kept is None:
            log.info(
                f"All probabilities are {size / 1e9:.1f} GB: the weights are fitted to the five most likely classes of "
                "each member, then the networks run again. The scores of the fit count these classes alone; those of "
                "the evaluation count all."
            )
        found = _collect(predictor, loader, title, kept)
    weights, scores = distributed.broadcast_from_main(
        lambda: (
            blend.fit(found.data, image_keys(run.files)[found.rows], opt.blend, opt.seed, metric)
            if found is not None
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
    held = copy.copy(predictor)
    held.members, held.views, held.preprocesses = [], [], ()
    held.saved = []
    if found is not None:
        held.saved_readable = found.readable
        held.saved = [SavedMember(member[: len(found.readable)]) for member in kept]
    return held, scores


class _Found(NamedTuple):
    """What the members predict for the list.

    Attributes:
        data: what the weights are fitted to.
        rows: int64, the places in the list of the images of `data`.
        readable: bool (N,), which images all members could read.
    """

    data: blend.Fittable
    rows: NDArray[np.int64]
    readable: Tensor


class _Collected(NamedTuple):
    """What a fit takes of a batch: blend.candidates, and the places in the list of their images; readable bool (B,).

    each: every member's probabilities, if they are kept.
    """

    candidates: tuple[Tensor, Tensor, Tensor]
    rows: Tensor
    readable: Tensor
    each: Tensor | None


def _collect(
    predictor: Predictor, loader: BatchLoader[EvalBatch], title: str, kept: NDArray[np.float32] | None
) -> _Found | None:
    """Run the members over `loader`; several processes share its batches.

    Args:
        kept: float32 (M, N, C), which gets every probability; None: nothing is kept.

    Returns:
        What the main process found; None in the others.
    """

    def take_likely(batch: EvalBatch, each: Tensor) -> _Collected:
        readable = predictor.readable(batch)
        known = readable & (batch.label >= 0)
        use = known.to(each.device)
        probability, target, place = blend.candidates(each[:, use], batch.label.to(each.device)[use])
        found = probability.cpu(), target.cpu(), place.cpu()
        return _Collected(found, batch.index[known], readable, each if kept is not None else None)

    columns: list[tuple[Tensor, ...]] = []
    done = 0
    for found in predictor.share(loader, title, take_likely):
        columns.append((*found.candidates, found.rows, found.readable))
        if kept is not None and found.each is not None:
            kept[:, done : done + len(found.readable)] = found.each.cpu().numpy()
        done += len(found.readable)
    if not distributed.is_main():
        return None
    probabilities, targets, places, rows, readables = zip(*columns, strict=True)
    row = torch.cat(rows).numpy()
    data = blend.Candidates(
        torch.cat(probabilities, dim=1).numpy(), torch.cat(targets).numpy(), torch.cat(places).numpy(), kept, row
    )
    return _Found(data, row, torch.cat(readables))


def _collect_targets(
    predictor: Predictor, loader: BatchLoader[EvalBatch], title: str, kept: NDArray[np.float32], classes: Classes
) -> _Found | None:
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
    return _Found(TargetCandidates(scored, take(targets, use), classes), use, readable)


def thresholds_content(fitted: FittedThresholds, temperature: float) -> dict[str, object]:
    """Return what ensemble.yaml holds of thresholds: for temperature 1, while `fitted` are for `temperature`.

    One value is that of all labels. They have nine digits, which tell any two float32 probabilities apart.
    """
    values = fitted.values[:1] if fitted.rule == ONE else fitted.values
    plain = labels_at_temperature(np.array(values), 1 / temperature)
    return {"rule": fitted.rule, "images": fitted.images, "values": [float(f"{value:.9g}") for value in plain]}


def write_ensemble(
    new: Path, folder: Path, run: Inference, scores: Scores | None = None, thresholds: FittedThresholds | None = None
) -> None:
    """Write ensemble.yaml into the folder `new`, which will replace `folder`.

    It holds the members (paths relative to its folder), their identities, weights and views, the list, the `scores` of
    fitted weights, and the fitted `thresholds` of labels, if any.
    """
    opt, loaded, files = run.opt, run.loaded, run.files
    path = folder / "ensemble.yaml"
    if opt.debug:
        log.warning(f"--debug: the weights were fitted to a few batches, so {path} is not written.")
        return
    members = [
        EnsembleMember(str(name), identity, weight)
        for name, identity, weight in zip(loaded.paths, loaded.identities, loaded.predictor.weights, strict=True)
    ]
    blended = "mean" if opt.blend in choices.FITTED_BLENDS else opt.blend
    more: dict[str, object] = {"fitted_by": opt.blend, "list": str(files.source), "list_hash": files.content_hash()}
    if scores is not None:
        more["scores"] = scores
    if thresholds is not None:
        more["thresholds"] = thresholds_content(thresholds, loaded.predictor.temperature)
    expanded_folds = expand_folds(members, dict(zip(loaded.paths, loaded.hashes, strict=True)))
    if expanded_folds is not None:
        members, tta = expanded_folds
        content = ensemble_content(folder, members, tta, blend=blended, more=more)
    else:
        content = ensemble_content(folder, members, opt.tta, blend=blended, scale=opt.scale, fit=opt.fit, more=more)
    write_yaml(new / path.name, content)
    if any(member.path.endswith(".npz") for member in members):
        use = "submit.py --load the same members, with their .npz of the test list, and --weights as above"
    else:
        # an oof.npz does not say where the test list of its networks is
        known = expanded_folds is not None or run.has_test_list()
        use = after_evaluation(opt if known else changed(opt, test_list=NO_TEST_LIST), path)
    log.info(f"Written: {path}; use it with {use}")
