"""The check of eval.py's images: a network that has learned from them answers them better than others."""

from evaluation.seen_images import warn_seen
from evaluation.thresholds import HALF
from inference.session import Inference
from options import choices


def warn_of_seen_images(run: Inference) -> None:
    """Warn where eval.py is about to score a member on images that it has learned from, or fits something to them.

    Where it fits, what cannot be told is a warning, too.
    """
    opt = run.opt
    fits = [f"--blend {opt.blend}"] if opt.blend in choices.FITTED_BLENDS else []
    fits += ["--calibrate"] if opt.calibrate else []
    fits += ["--fit_thresholds"] if opt.fit_thresholds not in (None, HALF) else []
    what = f"what {' and '.join(fits)} fits to them does not hold for" if fits else "its score says little about"
    warn_of_members(run, f"It knows their answers, so {what} other images.", doubts=bool(fits))


def warn_of_members(run: Inference, effect: str, doubts: bool = True) -> None:
    """Warn of each member that has learned from images of the list.

    Args:
        effect: a sentence about what is fitted to the images, or measured on them. doubts: whether to warn of a member
            of which that cannot be told, too.
    """
    for path, seen in zip(run.loaded.paths, run.loaded.seen, strict=True):
        warn_seen(path, seen, run.files, effect, doubts)
