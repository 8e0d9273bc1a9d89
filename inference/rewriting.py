"""The checkpoint of --load gets what eval.py fits: --calibrate a temperature, --fit_thresholds thresholds."""

from pathlib import Path

from inference.session import Inference
from utils import checkpoint, run_lock
from utils.errors import UserError
from utils.files import check_writable
from utils.logger import log
from utils.weight_files import is_safetensors


def announce_rewriting(run: Inference) -> None:
    """Log which checkpoint --calibrate or --fit_thresholds will change, before the work, and keep it from others.

    --debug changes none: what a few batches give is no fit.

    Raises:
        UserError: the weights are published ones, which stay as they are; or the checkpoint's folder cannot be written;
            or another command has the run.
    """
    added = {"calibrate": "the temperature", "fit_thresholds": "the thresholds"}
    asked = [name for name in added if getattr(run.opt, name)]
    if run.opt.debug:
        if asked:
            flags = " and ".join(f"--{name}" for name in asked)
            log.warning(f"--debug: no checkpoint is changed, as a few batches are too few for {flags}.")
        return
    target = rewritten_file(run)
    if asked and target is not None:
        _refuse_published(target, run.loaded.paths[0], asked[0])
        check_writable(target.resolve())  # a link stays, and its target is replaced
        for name in asked:
            what = f"{added[name]} to {_named(target)}"
            log.info(f"--{name} adds {what}: that file is rewritten, its weights stay as they are.")
        if run.loaded.active_folder is not None:
            run_lock.acquire(run.loaded.active_folder, shared=True)


def rewritten_file(run: Inference) -> Path | None:
    """Return the checkpoint that gets what is fitted; None for a blend, and for a file of weights alone."""
    loaded = run.loaded
    one_network = len(loaded.paths) == 1 and not loaded.saved
    return Path(loaded.paths[0]) if one_network and not loaded.weights_alone else None


def fitted_with(run: Inference) -> dict[str, object]:
    """Return the views, the size and the fit of a run of one network, to be stored with what is fitted to it.

    With other settings the probabilities differ, so the loader warns.
    """
    preprocess = run.predictor.members[0].preprocess
    return {"tta": run.opt.tta, "scale": preprocess.scale, "fit": preprocess.fit}


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


def store(run: Inference, target: Path, key: str, content: object, what: str, use: str) -> None:
    """Set one key of the checkpoint `target`, and log it.

    Args:
        target: from `rewritten_file`. what: the content in words. use: how later commands use it.

    Raises:
        UserError: the checkpoint was replaced meanwhile, or cannot be written.
    """
    log.info(f"Writing {what} into {_named(target)}")
    others = checkpoint.amend(target, key, content, run.loaded.identities[0])
    names = ", ".join(other.name for other in others)
    without = f" ({names}, the same file until now, stays as it was)" if names else ""
    log.info(f"Stored in {target}{without}; {use}")


def _named(path: Path) -> str:
    """Return the path, and where it leads if it is a link."""
    real = path.resolve()
    return f"{path} (a link to {real})" if path.is_symlink() else str(path)
