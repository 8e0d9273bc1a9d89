"""eval.py --calibrate: fits a temperature, and writes it into the checkpoint."""

from evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    FittedTemperature,
    fit_label_temperature,
    fit_temperature,
)
from evaluation.metrics import Predictions
from evaluation.targets import TargetPredictions
from inference.rewriting import fitted_with, rewritten_file, store
from inference.session import Inference
from utils.logger import log


def calibrate(run: Inference, predictions: Predictions | TargetPredictions) -> FittedTemperature:
    """Fit a temperature to `predictions`, and log it. Raises UserError where no labelled image can be read."""
    if isinstance(predictions, Predictions):
        fitted = fit_temperature(predictions)
    else:
        fitted = fit_label_temperature(predictions, run.opt.seed)
    log.info(
        f"Temperature {fitted.temperature:.4f}: loss {fitted.loss_before:.4f} -> {fitted.loss_after:.4f}, "
        f"calibration error {fitted.ece_before:.4f} -> {fitted.ece_after:.4f} on {fitted.images} images"
    )
    if fitted.is_at_end:
        log.warning(
            f"The temperature is at the end of what is tried, {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}. "
            "No prediction is wrong here, the network has learned these images, or the probabilities say nothing about "
            "these labels. Such a temperature makes later probabilities far too sure or unsure. Check the list."
        )
    return fitted


def keep_temperature(run: Inference, fitted: FittedTemperature) -> None:
    """Write a temperature into the checkpoint, if there is one to hold it; not under --debug.

    Raises:
        UserError: the checkpoint was replaced meanwhile, or cannot be written.
    """
    if run.opt.debug:  # announce_rewriting has said so
        return
    target = rewritten_file(run)
    if target is None:
        what = (
            "a file of weights alone holds no temperature" if run.loaded.weights_alone else "it is of this blend alone"
        )
        log.info(f"No checkpoint was changed ({what}); use it with --temperature {fitted.temperature:.6f}")
        return
    content = {**fitted._asdict(), **fitted_with(run)}
    store(run, target, "calibration", content, "the temperature", "use it with --temperature ckpt")


def temperature_flag(run: Inference, fitted: FittedTemperature | None) -> str | None:
    """Return what --temperature is to say in a later command, for a fitted temperature.

    None without one, and for that of a few batches (--debug).
    """
    if fitted is None or run.opt.debug:
        return None
    return f"{fitted.temperature:.6f}" if rewritten_file(run) is None else "ckpt"
