"""eval.py --calibrate: fits a temperature, and writes it into the checkpoint."""

from pathlib import Path

from evaluation.calibration import Fitted, fit_label_temperature, fit_temperature
from evaluation.metrics import Predictions
from evaluation.targets import TargetPredictions
from inference.session import Inference
from utils import checkpoint, run_lock
from utils.errors import UserError
from utils.logger import log
from utils.weight_files import is_safetensors


def announce_rewriting(run: Inference) -> None:
    """Log which checkpoint --calibrate or --fit_thresholds will change, before the work, and keep it from others.

    Raises:
        UserError: the weights are published ones, which stay as they are; or another command has the run.
    """
    added = {"calibrate": "the temperature", "fit_thresholds": "the thresholds"}
    asked = [name for name in added if getattr(run.opt, name)]
    target = rewritten_file(run)
    if asked and target is not None:
        _refuse_published(target, run.loaded.paths[0], asked[0])
        for name in asked:
            log.info(
                f"--{name} adds {added[name]} to {named(target)}: that file is rewritten, its weights stay as they are."
            )
        if run.loaded.run is not None:
            run_lock.acquire(run.loaded.run, shared=True)


def rewritten_file(run: Inference) -> Path | None:
    """Return the checkpoint that gets what is fitted; None for a blend, and for a file of weights alone."""
    loaded = run.loaded
    one_network = len(loaded.paths) == 1 and not loaded.saved
    return Path(loaded.paths[0]) if one_network and not loaded.weights_alone else None


def _refuse_published(target: Path, source: str, flag: str) -> None:
    """Raise UserError where `source`, a value of --load, is a folder, a repository or a file of safetensors."""
    if target.is_file():
        with target.open("rb") as file:
            if not is_safetensors(file):
                return
    raise UserError(
        f"--{flag} adds what it fits to a checkpoint, and {source} holds published weights, which stay as they are.\n"
        f"Allowed: --load with the checkpoint (.pt) that was published. First give it to eval.py --{flag}, then "
        "publish it again.\nTry: python -m tools.publish --load best.pt --out DIR --overwrite"
    )


def calibrate(run: Inference, predictions: Predictions | TargetPredictions) -> Fitted:
    """Fit a temperature to `predictions`, log it, and write it into the checkpoint, if there is one to hold it.

    Raises:
        UserError: no labelled image can be read; or the checkpoint was replaced meanwhile, or cannot be written.
    """
    if isinstance(predictions, Predictions):
        fitted = fit_temperature(predictions)
    else:
        fitted = fit_label_temperature(predictions, run.opt.seed)
    log.info(
        f"Temperature {fitted.temperature:.4f}: loss {fitted.loss_before:.4f} -> {fitted.loss_after:.4f}, "
        f"calibration error {fitted.ece_before:.4f} -> {fitted.ece_after:.4f} on {fitted.images} images"
    )
    target = rewritten_file(run)
    if target is None:
        what = (
            "a file of weights alone holds no temperature" if run.loaded.weights_alone else "it is of this blend alone"
        )
        log.info(f"No checkpoint was changed ({what}); use it with --temperature {fitted.temperature:.6f}")
        return fitted
    log.info(f"Writing the temperature into {named(target)}")
    content = {**fitted._asdict(), "tta": run.opt.tta}
    others = checkpoint.amend(target, "calibration", content, run.loaded.identities[0])
    names = ", ".join(other.name for other in others)
    without = f" ({names}, the same file until now, stays without it)" if names else ""
    log.info(f"Stored in {target}{without}; use it with --temperature ckpt")
    return fitted


def temperature_flag(run: Inference, fitted: Fitted | None) -> str | None:
    """Return what --temperature is to say in a later command, for a fitted temperature; None without one."""
    if fitted is None:
        return None
    return f"{fitted.temperature:.6f}" if rewritten_file(run) is None else "ckpt"


def named(path: Path) -> str:
    """Return the path, and where it leads if it is a link."""
    real = path.resolve()
    return f"{path} (a link to {real})" if path.is_symlink() else str(path)
