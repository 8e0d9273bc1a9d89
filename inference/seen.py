"""The check of eval.py's fits: a network that has learned from the images answers them better than others."""

from evaluation.seen_images import warn_seen
from evaluation.thresholds import HALF
from inference.session import Inference
from options import choices


def warn_of_seen_images(run: Inference) -> None:
    """Warn where eval.py is about to fit something to images that a member has learned from."""
    opt = run.opt
    fits = [f"--blend {opt.blend}"] if opt.blend in choices.FITTED_BLENDS else []
    fits += ["--calibrate"] if opt.calibrate else []
    fits += ["--fit_thresholds"] if opt.fit_thresholds not in (None, HALF) else []
    if not fits:
        return
    warn_of_members(
        run, f"It knows their answers, so what {' and '.join(fits)} fits to them does not hold for other images."
    )


def warn_of_members(run: Inference, effect: str) -> None:
    """Warn of each member that has learned from images of the list, or of which that cannot be told.

    Args:
        effect: a sentence about what is fitted to the images, or measured on them.
    """
    for path, seen in zip(run.loaded.paths, run.loaded.seen, strict=True):
        warn_seen(path, seen, run.files, effect)
