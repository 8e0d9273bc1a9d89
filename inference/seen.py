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
    effect = f"It knows their answers, so what {' and '.join(fits)} fits to them does not hold for other images."
    for path, seen in zip(run.loaded.paths, run.loaded.seen, strict=True):
        warn_seen(path, seen, run.files, effect)
