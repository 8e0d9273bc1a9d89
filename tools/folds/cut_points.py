"""Cut points out of fold: those of each held-out part are fitted to the predictions of the other parts.

A network that learns ordered classes as numbers has cut points that its last validation fitted, which was on the part
that it holds out. With them the predictions of that part would know its labels.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.cut_points import fit_positions
from inference import Inference, saved_probs
from tools.folds.plan import FoldsRun
from utils.logger import log
from utils.task import ordered_probabilities

POSITION = "position"  # array of a fold's file: what its network predicts, float32 (N,), if it has fitted cut points


def set_aside(inference: Inference) -> bool:
    """Let the network of a fold predict without its fitted cut points; return whether it has some."""
    classes = inference.classes
    if classes.cut_points is None:
        return False
    for member in inference.predictor.members:
        member.model.set_target_units(replace(classes, cut_points=None))
    return True


def cross_fit(run: FoldsRun, values: NDArray[np.floating], readable: NDArray[np.bool_]) -> None:
    """Replace the log probabilities `values` (N, C) of networks with fitted cut points, by those with other ones.

    The cut points of each part are fitted to the positions that the other networks predict for their parts. With
    several views, the mean of their positions is cut.

    Args:
        readable: bool (N,).
    """
    position, cut = np.zeros(len(values), np.float32), np.zeros(len(values), bool)
    for fold in run.folds:
        with np.load(fold.probs, allow_pickle=False) as content:
            if POSITION in content:
                rows = run.fold_of == fold.number - 1
                position[rows], cut[rows] = content[POSITION], True
    if not cut.any():
        return
    label, count = run.files.label, run.classes.count
    for number in range(len(run.folds)):
        held, rest = cut & (run.fold_of == number), cut & readable & (run.fold_of != number)
        found = fit_positions(position[rest], label[rest], count)
        probability = ordered_probabilities(torch.from_numpy(position[held]), count, found)
        values[held] = saved_probs.to_log_float16(probability.numpy())
    log.info(
        "Cut points: those of each part are fitted to the out-of-fold predictions of the other parts. In the ensemble "
        "each network keeps its own, of its last validation."
    )
