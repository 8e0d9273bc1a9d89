"""eval.py --fit_thresholds: fits from which probability a label counts as predicted, and stores it in a checkpoint."""

import numpy as np

from evaluation.calibration import labels_at_temperature
from evaluation.cross_fit import image_keys
from evaluation.multilabel import describe_thresholds
from evaluation.results import writes_ensemble
from evaluation.targets import TargetPredictions
from evaluation.thresholds import HALF, MIN_POSITIVES, SCORES, FittedThresholds, fit_thresholds
from inference.rewriting import fitted_with, rewritten_file, store
from inference.session import Inference
from utils.logger import log


def fit_and_log(run: Inference, predictions: TargetPredictions) -> FittedThresholds | None:
    """Fit thresholds to `predictions`, and log them. Raises UserError where no readable image has a label.

    Returns:
        The thresholds; None for --fit_thresholds half, which removes those of the checkpoint.
    """
    if run.opt.fit_thresholds == HALF:
        return None
    image = image_keys(run.files)[predictions.index]
    fitted = fit_thresholds(predictions, run.opt.fit_thresholds, image, run.opt.seed)
    log_fitted(fitted)
    return fitted


def keep_thresholds(run: Inference, fitted: FittedThresholds | None) -> None:
    """Write thresholds into the checkpoint, if there is one to hold them; None removes those that it holds.

    A checkpoint holds them for temperature 1: another temperature moves them as it moves the probabilities. --debug
    changes no checkpoint.

    Raises:
        UserError: the checkpoint was replaced meanwhile, or cannot be written.
    """
    if run.opt.debug:  # announce_rewriting has said so
        return
    target = rewritten_file(run)
    if target is None:
        where = "; ensemble.yaml holds these" if fitted is not None and writes_ensemble(run.opt) else ""
        what = "only a checkpoint of one network, with its options, holds thresholds"
        log.info(f"No checkpoint was changed: {what}{where}.")
        return
    content = None
    if fitted is not None:
        plain = labels_at_temperature(np.array(fitted.values), 1 / run.predictor.temperature).tolist()
        content = {**fitted._asdict(), "values": plain, **fitted_with(run)}
    store(run, target, "thresholds", content, "the thresholds", "eval.py, submit.py and the rest use them from now on")


def threshold_flag(run: Inference, fitted: FittedThresholds | None, temperature: float | None) -> list[float] | None:
    """Return what --threshold is to say in a later command: fitted thresholds that no checkpoint holds, else None.

    Those of a few batches (--debug) are no later command's.

    Args:
        temperature: that of the later command, where it is another one than this run's.
    """
    if fitted is None or run.opt.debug or rewritten_file(run) is not None:
        return None
    values = fitted.values[:1] if len(set(fitted.values)) == 1 else fitted.values
    if temperature is None:
        return values
    return labels_at_temperature(np.array(values), temperature / run.predictor.temperature).tolist()


def log_fitted(fitted: FittedThresholds) -> None:
    """Log the thresholds and what they gain. Scores on the images that they are fitted to are optimistic."""
    shared = f"; {fitted.shared} label(s) with fewer than {MIN_POSITIVES} images share one" if fitted.shared else ""
    log.info(f"Labels count as predicted {describe_thresholds(fitted.values)}{shared}")
    for name in SCORES:
        log.info(
            f"{name} {fitted.before[name]:.4f} -> {fitted.after[name]:.4f} on the {fitted.images} images that they are "
            f"fitted to, which is optimistic; cross-fitted: {fitted.cross_fitted[name]:.4f}"
        )
