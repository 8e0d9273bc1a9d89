"""Ensembles that know their weights: fitted on the validation list, kept in ensemble.yaml, used again by --ensemble."""

import argparse
import copy
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference import blend, saved_probs
from inference.loading import LoadedPredictor
from inference.predictor import Predictor, SavedMember
from inference.tta import TTA
from options import after_evaluation, choices
from options.parser import expanded
from options.plain_yaml import YamlError, read_yaml
from utils.errors import UserError, path_hint
from utils.files import write_yaml
from utils.logger import log

FIT = "python eval.py --load A B --blend greedy"
KEYS = {"load": list, "hashes": list, "weights": list, "blend": str, "tta": str}


def fit_ensemble(opt: argparse.Namespace, loaded: LoadedPredictor, loader: Any) -> tuple[Predictor, dict[str, Any]]:
    """Fit the weights of --blend greedy or optimal over `loader` (EvalBatch), and log what they gain.

    Returns:
        A predictor that gives the blend: where all members' probabilities fit in memory (saved_probs.MOST_BYTES), it
        holds them and runs no network again; else the networks themselves. `loaded.predictor` has the weights too.
        And what was measured, for `write_ensemble`.

    Raises:
        UserError: too few labelled images, or a member whose answers are no numbers.
    """
    predictor, files = loaded.predictor, loader.dataset.files
    members, count = len(predictor.weights), len(files)
    size = 4 * members * count * loaded.data["num_classes"]
    kept = (
        np.empty((members, count, loaded.data["num_classes"]), np.float32) if size <= saved_probs.MOST_BYTES else None
    )
    if kept is None:
        log.info(
            f"All probabilities are {size / 1e9:.1f} GB: the weights are fitted to the likeliest classes, then the networks run again."
        )
    rows, rights, readables, done = [], [], [], 0
    for batch, each in predictor.run(loader, f"members for --blend {opt.blend}"):
        readable = predictor.readable(batch)
        use = readable & (batch.label >= 0)
        label = batch.label.to(each.device)
        found = blend.candidates(each[:, use.to(each.device)], label[use.to(each.device)])
        rows.append(found[0].cpu())
        rights.append(found[1].cpu())
        readables.append(readable)
        if kept is not None:
            kept[:, done : done + len(label)] = each.cpu().numpy()
        done += len(label)
    data = blend.Candidates(torch.cat(rows, dim=1).numpy(), torch.cat(rights).numpy())
    weights, scores = blend.fit(data, opt.blend, opt.seed)
    for name, score in scores.items():
        log.info(f"{name:22s} top1 {score['top1']:.6f}  loss {score['loss']:.6f}")
    predictor.weights = weights
    log.info(
        "weights: " + ", ".join(f"{weight:.4f} {name}" for weight, name in zip(weights, loaded.paths, strict=True))
    )
    measured = {"list": str(files.source), "list_hash": files.content_hash(), "scores": scores}
    if kept is None:
        return predictor, measured
    held = copy.copy(predictor)
    held.members, held.views, held.preprocesses = [], [], ()
    held.saved = [SavedMember(member[:done]) for member in kept]
    held.saved_readable = torch.cat(readables)
    return held, measured


def write_ensemble(
    new: Path, folder: Path, opt: argparse.Namespace, loaded: LoadedPredictor, more: dict[str, Any]
) -> None:
    """Write ensemble.yaml into the folder `new`, which is going to be `folder`.

    It holds the members (paths from its folder), their identities, weights, views, and `more`, what was measured.
    """
    path = folder / "ensemble.yaml"
    if opt.debug:
        log.warning(f"--debug: the weights are of a few batches; {path} is not written.")
        return
    folder = folder.resolve()
    content = {
        "load": [os.path.relpath(Path(name).resolve(), folder) for name in loaded.paths],
        "hashes": list(loaded.identities),
        "weights": [round(weight, 6) for weight in loaded.predictor.weights],
        "blend": "mean" if opt.blend in choices.FITTED_BLENDS else opt.blend,
        "fitted_by": opt.blend,
        "tta": opt.tta,
        "scale": opt.scale,
        "fit": opt.fit,
        **more,
    }
    write_yaml(new / path.name, content)
    if any(str(name).endswith(".npz") for name in loaded.paths):
        use = "submit.py --load the same members, with their .npz of the test list, and --weights as above"
    else:
        use = after_evaluation(opt, path)
    log.info(f"Written: {path}; use it with {use}")


def apply_ensemble_file(opt: argparse.Namespace) -> argparse.Namespace:
    """`opt`, or with --ensemble a copy whose load, weights, blend, tta, scale and fit are the file's (but those given win).

    A member of weight 0 is left out: it would cost time and change nothing.

    Raises:
        UserError: the file is missing or of another kind, or a member is gone. One that has changed since is refused by
            load_predictor.
    """
    if not opt.ensemble:
        return opt
    path = Path(opt.ensemble)
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path} for --ensemble.{path_hint(path)}\nWrite one: {FIT}") from error
    except (OSError, YamlError) as error:
        raise UserError(f"--ensemble {path} cannot be read: {error}.\nWrite one: {FIT}") from error
    wrong = [
        key for key, kind in KEYS.items() if not isinstance(content, dict) or not isinstance(content.get(key), kind)
    ]
    if wrong or len({len(content[key]) for key in ("load", "hashes", "weights")}) != 1:
        raise UserError(
            f"--ensemble {path} is no file of `eval.py --blend`: {', '.join(wrong) or 'load, hashes, weights'} missing or unfit."
        )
    content = _typed(content, path)
    used = [k for k, weight in enumerate(content["weights"]) if weight > 0]
    load = [os.path.normpath(path.parent / expanded(content["load"][k])) for k in used]
    for name in load:
        if not os.path.isfile(name):
            raise UserError(
                f"--ensemble {path}: there is no {name}. Put it back, or fit the ensemble anew with eval.py --blend."
            )
    settings = {name: content.get(name) for name in ("tta", "blend", "scale", "fit") if name not in opt.given}
    if settings.get("blend") == "rank" and vars(opt).get("pseudo_label") is not None:
        raise UserError(
            f"--ensemble {path} blends by rank, and ranks are no probabilities for --pseudo_label. Give --blend mean too."
        )
    members = {
        "load": load,
        "weights": [content["weights"][k] for k in used],
        "identities": [content["hashes"][k] for k in used],
    }
    return argparse.Namespace(**{**vars(opt), **settings, **members})


def _typed(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the texts of an ensemble.yaml as what they stand for.

    Raises:
        UserError: somebody's hand has made something else of it; all of it at once.
    """
    wrong = [
        f"{key} holds what is no text"
        for key in ("load", "hashes")
        if not all(isinstance(one, str) for one in content[key])
    ]
    weights = [_number(one) for one in content["weights"]]
    if not all(0 <= one < math.inf for one in weights) or not any(weights):
        wrong.append(f"weights are {content['weights']}; allowed: numbers from 0 on, not all 0")
    for key, allowed in (("blend", blend.WAYS), ("tta", TTA), ("fit", ("squash", "crop", "pad", None))):
        if not isinstance(content.get(key), str | None) or content.get(key) not in allowed:
            wrong.append(f"{key} is {content.get(key)!r}; allowed: {', '.join(str(one) for one in allowed if one)}")
    scale = None if content.get("scale") is None else _number(content["scale"])
    if scale is not None and scale not in range(8, 4097):
        wrong.append(f"scale is {content['scale']!r}; allowed: 8 to 4096")
    if wrong:
        raise UserError(f"--ensemble {path}:\n  " + "\n  ".join(wrong) + f"\nMend it, or fit it anew: {FIT}")
    return {**content, "weights": weights, "scale": None if scale is None else int(scale)}


def _number(text: Any) -> float:
    """The number that `text` is; NaN, which is in no range, where it is none."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
