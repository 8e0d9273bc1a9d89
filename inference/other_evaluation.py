"""eval.py --compare: reads the other evaluation, before anything is predicted."""

from pathlib import Path

import numpy as np

import dataloader
from evaluation.compare import OtherClasses, read_classes
from evaluation.results import PROBS
from evaluation.target_compare import OtherTargets, read_labels, read_numbers
from inference import saved_probs
from inference.session import Inference
from utils.classes import names_agree
from utils.errors import UserError
from utils.task import has_probabilities


def open_other(run: Inference) -> OtherClasses | OtherTargets | None:
    """Return the evaluation that --compare names; None without --compare.

    mAP needs every probability of each label, and predictions.csv holds those from the thresholds on. So labels are
    compared by the probs.npz beside it.

    Raises:
        UserError: a file is missing, damaged, or of another list or other labels; or the two are of two evaluations.
    """
    path, files, classes = run.opt.compare, run.files, run.classes
    if not path:
        return None
    images = dataloader.evaluated_images(run.opt, files)
    if has_probabilities(classes.task):
        return read_classes(path, files, classes, images)
    if classes.task == "regression":
        return read_numbers(path, files, classes, images)
    labels, sure = read_labels(path, files, classes, images)
    return _labels_with_probabilities(path, run, labels, sure)


def _labels_with_probabilities(
    path: str, run: Inference, labels: list[list[int]], sure: list[list[str]]
) -> OtherTargets:
    """Return the evaluation of labels, with the probabilities of all labels from the probs.npz beside `path`.

    Args:
        labels, sure: the predicted labels of each image, and the text of their probabilities.
    """
    beside = Path(path).with_name(PROBS)
    again = f"Try: python eval.py … --save_probs, with the --load and the --tag of {Path(path).parent}/"
    if not beside.is_file():
        raise UserError(
            f"--compare needs the probabilities of all labels for mAP. {path} holds those from the thresholds on, and "
            f"there is no {beside}, which has all of them.\n{again}"
        )
    saved = saved_probs.read(str(beside))
    if saved.data.get("task") != "multilabel" or not names_agree(saved.data["class_names"], run.classes.names):
        raise UserError(f"--compare: {beside} is of other labels than this checkpoint.\n{again}")
    count = len(labels)
    part = run.files if count == len(run.files) else run.files.select(np.arange(len(run.files)) < count)
    saved_probs.check_same_list(part, saved)
    for row, (some, words) in enumerate(zip(labels, sure, strict=True)):
        if [f"{saved.values[row, label]:.6f}" for label in some] != words or (some and not saved.readable[row]):
            raise UserError(
                f"--compare: row {row + 2} of {path} has other probabilities than {beside}, so they are of two "
                f"evaluations.\n{again}"
            )
    return OtherTargets(path, saved.values, saved.readable, [sorted(some) for some in labels])
