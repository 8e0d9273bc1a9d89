"""Score one checkpoint, or the average of several, on the validation list.

    python eval.py --load checkpoints/resnest/20_ResNeSt101.pt -b 24
    python eval.py --load a.pt b.pt --weights 2 1 --tta x8
    python eval.py --load a.pt b.pt probs.npz --blend greedy

Writes results/<tag>/<epoch>/: metrics.json, predictions.csv, per_class.csv, pictures; probs.npz with --save_probs.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options import parse_eval
from utils.run import run_command

if TYPE_CHECKING:
    from network import Predictor


def main(opt: argparse.Namespace) -> None:
    # Heavy imports stand here, so that --help and a mistyped flag answer at once.
    import dataloader
    from network import fit_ensemble, load_predictor, predict, with_ensemble
    from utils import blend, saved_probs
    from utils.logger import log, start_logging
    from utils.report import results
    from utils.run import get_device, seed_everything

    start_logging()
    seed_everything(opt.seed, opt.deterministic)
    opt = with_ensemble(opt)
    files = dataloader.open_list(opt, "val")
    loaded = load_predictor(opt, get_device(opt.gpu), files)
    classes = dataloader.Classes.from_dict(loaded.data)
    dataloader.check_labels(files, classes.count, "the checkpoint")

    if opt.save_probs:
        saved_probs.check_size(len(files), classes.count, "--save_probs")
    predictor, folder = loaded.predictor, Path(opt.result_dir) / opt.tag / loaded.name
    if opt.blend in blend.FITTED:
        predictor = fit_ensemble(opt, loaded, dataloader.eval_loader(opt, files, predictor.ways), folder / "ensemble.yaml")
    loader = dataloader.eval_loader(opt, files, predictor.ways)
    predictions, probabilities = predict(predictor, loader, keep=opt.save_probs)
    scored = results.Scored(predictions, files, classes)
    metrics = results.write(folder, scored, vars(opt))
    if probabilities is not None:
        results.write_probabilities(folder / "probs.npz", probabilities, scored)
    log.info(results.headline(metrics))
    log.info(f"Results: {folder}/")


def evaluate(predictor: "Predictor", loader: Any, num_classes: int) -> dict[str, Any]:
    """The scores of utils.metrics.score over a loader of EvalBatch; what train.py prints and main() reproduces."""
    from network import predict
    from utils import metrics

    return metrics.score(predict(predictor, loader)[0], num_classes)


if __name__ == "__main__":
    sys.exit(run_command(parse_eval, main))
