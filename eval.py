"""Score one checkpoint, or the average of several, on the validation list.

    python eval.py --load checkpoints/resnest/20_ResNeSt101.pt -b 24
    python eval.py --load a.pt b.pt --weights 2 1 --tta x8
    python eval.py --load a.pt b.pt probs.npz --blend greedy
    python eval.py --load a.pt --calibrate --compare results/old/20/predictions.csv

Writes results/<tag>/<epoch>/, for a checkpoint of another tag results/<tag>/<its tag>_<epoch>_<views>/: report.html,
metrics.json, predictions.csv, per_class.csv, confused.csv, label_issues.csv, pictures; probs.npz with --save_probs, changed.csv
with --compare.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options import after_evaluation, choices, parse_eval
from utils.run import run_command

if TYPE_CHECKING:
    from evaluation.metrics import Predictions
    from inference import Predictor


def main(opt: argparse.Namespace) -> None:
    # Heavy imports stand here, so that --help and a mistyped flag answer at once.
    import dataloader
    from evaluation import results
    from inference import (
        Features,
        fit_ensemble,
        load_predictor,
        predict,
        rows_to_keep,
        saved_probs,
        with_ensemble,
        write_ensemble,
    )
    from utils import run_lock
    from utils.logger import log, start_logging
    from utils.outputs import check, inputs
    from utils.run import get_device, seed_everything

    start_logging()
    seed_everything(opt.seed, opt.deterministic)
    asked, opt = opt, with_ensemble(opt)
    run_lock.acquire(Path(opt.result_dir) / opt.tag, shared=True)
    loaded = load_predictor(opt, get_device(opt.gpu))
    classes = dataloader.Classes.from_dict(loaded.data)
    files = dataloader.align_labels(dataloader.open_list(opt, "val", known=loaded.lists), classes, "the checkpoint")
    loaded.check_list(files)

    if opt.save_probs:
        saved_probs.check_size(len(files), classes.count, "--save_probs")
    predictor, folder = loaded.predictor, Path(opt.result_dir) / opt.tag / loaded.name
    check(results.planned(folder, opt), inputs(opt, files))
    run_lock.acquire(folder)
    if opt.calibrate and loaded.run is not None:
        run_lock.acquire(loaded.run, shared=True)
    if opt.blend in choices.FITTED_BLENDS:
        predictor, measured = fit_ensemble(opt, loaded, dataloader.eval_loader(opt, files, predictor.preprocesses))
    loader = dataloader.eval_loader(opt, files, predictor.preprocesses)
    rows = rows_to_keep(len(files), classes.count, sample=opt.calibrate, seed=opt.seed)
    features = Features(predictor, len(files))
    with features if opt.report else contextlib.nullcontext():  # the report alone shows neighbours
        predictions, probabilities = predict(predictor, loader, keep=opt.save_probs, rows=rows, features=features)
    scored = results.Scored(predictions, files, classes)
    fitted = calibrate(opt, loaded, predictions) if opt.calibrate else None
    with results.place(folder, opt) as new:
        found = results.write(new, scored, opt, fitted, folder, loaded.identities)
        if opt.blend in choices.FITTED_BLENDS:
            write_ensemble(new, folder, opt, loaded, measured)
        if probabilities is not None:
            saved_probs.write(new / results.PROBS, probabilities, predictions.readable, files, classes)
        if opt.report and found.metrics["count"]:
            results.write_page(new, scored, found, report_extra(opt, loaded, scored, found, folder, features))
        results.set_aside(folder, loaded.identities)
    if found.compared:
        log.info(f"{results.against(opt.compare, found.compared)}: {folder}/changed.csv")
    log.info(results.headline(found.metrics))
    log.info(f"Results: {folder}/")
    ensemble = folder / "ensemble.yaml" if opt.blend in choices.FITTED_BLENDS else None
    temperature = None if fitted is None else "ckpt" if stored(opt) else f"{fitted.temperature:.6f}"
    if submission_follows(opt, loaded, fits=ensemble is not None):
        log.info(f"Next: {after_evaluation(asked, ensemble, temperature)}")


def submission_follows(opt: argparse.Namespace, loaded: Any, fits: bool) -> bool:
    """Whether submit.py can follow: there is a test list, all members are networks, and weights that were fitted are written."""
    import dataloader
    from utils.errors import UserError

    plain = argparse.Namespace(**vars(opt), test_list=None)
    try:
        path = dataloader.known_list(plain, "test", loaded.lists)[0] or dataloader.list_path(plain, "test")
    except UserError:  # the members had different ones
        return False
    return path.is_file() and not loaded.saved and not (fits and opt.debug)


def stored(opt: argparse.Namespace) -> bool:
    """Whether a fitted temperature has a place in a checkpoint: there is one, and no file of probabilities."""
    return bool(opt.load) and len(opt.load) == 1 and not opt.load[0].endswith(".npz")


def calibrate(opt: argparse.Namespace, loaded: Any, predictions: Any) -> Any:
    """Fit a temperature (evaluation.calibration.Fitted), say it, and store it in the checkpoint where there is one."""
    from evaluation.calibration import fit_temperature
    from utils import checkpoint
    from utils.logger import log

    fitted = fit_temperature(predictions)
    log.info(
        f"Temperature {fitted.temperature:.4f}: loss {fitted.loss_before:.4f} -> {fitted.loss_after:.4f}, calibration error "
        f"{fitted.ece_before:.4f} -> {fitted.ece_after:.4f} on {fitted.images} images"
    )
    if stored(opt):
        others = checkpoint.amend(
            Path(opt.load[0]), "calibration", {**fitted._asdict(), "tta": opt.tta}, loaded.identities[0]
        )
        without = (
            f" ({', '.join(other.name for other in others)}, the same until now, stay without it)" if others else ""
        )
        log.info(f"Stored in {opt.load[0]}{without}; use it with --temperature ckpt")
    else:
        log.info(f"It is of this mean alone; use it with --temperature {fitted.temperature:.6f}")
    return fitted


def report_extra(opt: argparse.Namespace, loaded: Any, scored: Any, found: Any, folder: Path, features: Any) -> Any:
    """What report.html of `folder` shows beyond the scores (evaluation.report.page.Extra): Grad-CAM, the nearest images of errors."""
    import numpy as np

    import dataloader
    from evaluation.report.page import Extra
    from evaluation.report.pictures import NEIGHBOURS, surest_errors
    from inference import gradcam_maps

    shown = np.sort(scored.predictions.index[surest_errors(scored.predictions)])
    maps: dict = {}
    if len(shown) and loaded.predictor.members:
        once = argparse.Namespace(**{**vars(opt), "cache": "none", "debug": False})
        part = scored.files.select(np.isin(np.arange(len(scored.files)), shown))
        places = gradcam_maps(loaded.predictor, dataloader.eval_loader(once, part, loaded.predictor.preprocesses))
        maps = {int(shown[place]): seen for place, seen in places.items()}
    note = "this network has no spatial map, so there is none" if len(shown) and not maps else ""
    near = features.nearest_neighbours(shown, scored.predictions.readable, NEIGHBOURS)
    extra = Extra(found.issues, maps, note, near, loaded.history, seed=opt.seed, folder=folder, title=loaded.title)
    extra.about = f"{' + '.join(loaded.paths)} on {scored.files.source}"
    return extra


def evaluate(
    predictor: "Predictor", loader: Any, num_classes: int, see: "Callable[[Predictions], None] | None" = None
) -> dict[str, Any]:
    """The scores of evaluation.metrics.score over a loader of EvalBatch; what train.py prints and main() reproduces.

    `see` is shown the predictions.
    """
    from evaluation import metrics
    from inference import predict

    predictions = predict(predictor, loader)[0]
    if see is not None:
        see(predictions)
    return metrics.score(predictions, num_classes)


if __name__ == "__main__":
    sys.exit(run_command(parse_eval, main))
