"""What report.html shows of errors and likely label errors: where the network looked, and what it finds alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np

import dataloader
from dataloader.list_checks import path_hashes
from evaluation.label_issues import Issues
from evaluation.report.page import Extra
from evaluation.report.pictures import MAX_ISSUES, NEIGHBOURS, most_confident_errors
from evaluation.results import EvaluationReport
from evaluation.scored import Scored
from inference.features import FindsNeighbours
from inference.gradcam import gradcam_maps
from inference.session import Inference
from options import changed

NO_ISSUES = Issues(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64), "")


def target_extra(run: Inference, folder: Path, metric: str) -> Extra:
    """Return what report.html of `folder` shows of predicted labels or numbers beyond the scores."""
    return Extra(
        NO_ISSUES,
        history=run.loaded.history,
        points=run.loaded.points,
        seed=run.opt.seed,
        metric=metric,
        folder=folder,
        title=run.loaded.title,
        about=f"{' + '.join(run.loaded.paths)} on {run.files.source}",
    )


def report_extra(
    run: Inference, scored: Scored, report: EvaluationReport, folder: Path, features: FindsNeighbours, metric: str
) -> Extra:
    """Return what report.html of `folder` shows beyond the scores: Grad-CAM maps, near images, and training's history.

    Args:
        report: what evaluation.results.write returned.
        features: those of the images of `scored`.
        metric: the one to show first.
    """
    shown = np.sort(scored.predictions.index[most_confident_errors(scored.predictions)])
    maps = {}
    if len(shown) and run.predictor.members:
        opt = changed(run.opt, cache="none", debug=False)  # each image is read once, and all are
        part = scored.files.select(np.isin(np.arange(len(scored.files)), shown))
        loader = dataloader.eval_loader(opt, part, run.predictor.preprocesses, shared=False)
        gradcam = gradcam_maps(run.predictor, loader)
        maps = {int(shown[place]): seen for place, seen in gradcam.items()}
    doubtful = scored.predictions.index[report.issues.row[:MAX_ISSUES]]
    image = path_hashes(scored.files)[scored.predictions.index]
    return replace(
        target_extra(run, folder, metric),
        issues=report.issues,
        maps=maps,
        note="this network has no spatial map, so there is none" if len(shown) and not maps else "",
        near=features.nearest_neighbours(np.union1d(shown, doubtful), scored.predictions.readable, image, NEIGHBOURS),
    )
