"""Out-of-fold predictions: each image of the training list, predicted by the one network that has not seen it."""

import gc
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from dataloader.targets import LabelSets
from evaluation.cross_fit import image_keys
from evaluation.cut_points import positions
from evaluation.targets import of_list
from evaluation.thresholds import FittedThresholds, fit_thresholds
from inference import Features, open_inference, predict, predict_targets, saved_probs
from inference.thresholds import log_fitted
from options import Options, build_parser, parse_eval
from options.choices import TASKS
from options.commands import words
from tools.folds import cut_points, flags
from tools.folds.plan import OOF, Fold, FoldsRun
from tools.folds.seen import check_network
from utils import checkpoint
from utils.logger import log
from utils.run import seed_everything, tune_malloc
from utils.task import has_probabilities

# What a prediction takes from the training, so that it equals the validation there.
SAME = ("gpu", "workers", "loader", "worker_timeout", "seed", "deterministic", "max_pixels")
CACHE = ("cache", "cache_size", "cache_format", "cache_quality")


def predict_folds(run: FoldsRun) -> list[str]:
    """Write the probabilities of each held-out part, unless they are there; return the identity of each network.

    Raises:
        UserError: a checkpoint is missing, damaged or trained on another list, no image of a part can be read, or
            probabilities take too much memory.
        NotFinite: a network gave NaN or infinite logits.
    """
    saved_probs.check_size(len(run.files), run.classes.count, "The out-of-fold probabilities", run.classes.task)
    tune_malloc()
    seed_everything(run.train.seed, run.train.deterministic)
    found = []
    for fold in run.folds:
        path = checkpoint_of(run, fold)
        content = checkpoint.load(path)
        check_network(run, fold, path, content)
        found.append(checkpoint.identity(content))
        settings, batch_size = _settings(run, found[-1], content["data"]), int(content["opt"]["batch_size"])
        del content
        if _noted(fold.probs) == settings:
            log.info(f"{fold.tag}: its held-out part is predicted already.")
            continue
        _predict(run, fold, settings, batch_size)
        gc.collect()  # a network holds reference cycles
    return found


def checkpoint_of(run: FoldsRun, fold: Fold) -> Path:
    """Return the checkpoint that predicts for a fold."""
    return fold.checkpoints / f"{flags.which_checkpoint(run.opt, run.train)}.pt"


def _predict(run: FoldsRun, fold: Fold, settings: str, batch_size: int) -> None:
    """Predict the held-out part of a fold, and write the predictions and `settings` to fold.probs."""
    opt = prediction_flags(run.train, [str(checkpoint_of(run, fold))], run.opt.tta, batch_size)
    part = held_out(run, fold)
    inference = open_inference(opt, part, tasks=TASKS)
    more: dict[str, NDArray[Any]] = {"settings": np.array(settings)}
    if not has_probabilities(inference.classes.task):
        targets = predict_targets(inference.predictor, inference.batches(), inference.classes.count)
        saved_probs.write(fold.probs, targets.value, targets.readable, part, inference.classes, more)
        return
    cut = cut_points.set_aside(inference)
    with Features(inference.predictor, len(part)) as features:  # for the neighbours in the report
        predictions, probabilities = predict(inference.predictor, inference.batches(), keep=True, features=features)
    assert probabilities is not None  # as they are kept
    more |= {} if features.rows is None else {"features": features.rows}
    more |= {cut_points.POSITION: positions(predictions)} if cut else {}
    saved_probs.write(fold.probs, probabilities, predictions.readable, part, inference.classes, more)


def prediction_flags(train: Options, load: list[str], tta: str, batch_size: int) -> Options:
    """Return eval.py's options that predict with `load` as the training validated."""
    values = {name: getattr(train, name) for name in (*SAME, *CACHE)}
    return parse_eval(words(build_parser("eval"), values | {"load": load, "tta": tta, "batch_size": batch_size}))


def held_out(run: FoldsRun, fold: Fold) -> FileList:
    """Return the list of the images that a fold holds out."""
    return run.files.select(run.fold_of == fold.number - 1)


def _settings(run: FoldsRun, identity: str, data: Mapping[str, Any]) -> str:
    """Return what decides the probabilities of a fold, beside its list, which the plan fixes.

    `data`: that of its checkpoint.
    """
    cut = " without its cut points" if data.get("cut_points") is not None else ""  # earlier versions kept them
    return f"{identity} {run.opt.tta}{cut}"


def _noted(path: Path) -> str:
    """Return the settings of the probabilities in `path`; "" if there are none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return str(content["settings"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return ""


def write_oof(run: FoldsRun) -> tuple[Path, FittedThresholds | None]:
    """Join the predictions of all parts in the order of the list, with cut points of ordered classes from other parts.

    Thresholds of labels are fitted to them if that is asked for.

    Beside what probs.npz holds, oof.npz has `fold`, int64 (N,), from 1, the arrays of `true_targets`, and where images
    belong together `group`, int64 (N,).

    Returns:
        The path of oof.npz, and the thresholds of --fit_thresholds, which it holds too; None: labels count from 0.5 on.
    """
    joined: NDArray[np.floating] | None = None
    readable = np.zeros(len(run.files), bool)
    for fold in run.folds:
        saved, rows = saved_probs.read(str(fold.probs)), np.flatnonzero(run.fold_of == fold.number - 1)
        saved_probs.check_same_list(held_out(run, fold), saved)
        if joined is None:
            joined = np.empty((len(run.files), saved.values.shape[1]), saved.values.dtype)
        joined[rows], readable[rows] = saved.values, saved.readable
    assert joined is not None  # there are two folds or more
    cut_points.cross_fit(run, joined, readable)
    path, classes, fitted = run.folder / OOF, run.classes, None
    if run.opt.fit_thresholds:
        values = np.asarray(joined, np.float32)  # as they are, for the task has several labels
        predictions = of_list(np.arange(len(run.files)), values, readable, run.files.targets)
        fitted = fit_thresholds(predictions, run.opt.fit_thresholds, image_keys(run.files), run.train.seed)
        log_fitted(fitted)
        classes = replace(classes, thresholds=fitted.values)
    more = true_targets(run.files) | {"fold": run.fold_of + 1}
    more |= {} if run.files.group is None else {"group": run.files.group}
    saved_probs.write(path, joined, readable, run.files, classes, more, seen=[])  # no network predicts what it has seen
    return path, fitted


def true_targets(files: FileList) -> dict[str, NDArray[Any]]:
    """Return what is true of each image, as arrays of a file.

    `labels` int64 (N,); of several labels per image `labels` int64 (M,) and `label_start` int64 (N + 1,), where the
    labels of image i are labels[label_start[i]:label_start[i + 1]]; of numbers `targets` float64 (N, T).
    """
    if files.targets is None:
        return {"labels": files.label.astype(np.int64)}
    if isinstance(files.targets, LabelSets):
        return {"labels": files.targets.label.astype(np.int64), "label_start": files.targets.start}
    return {"targets": files.targets}
