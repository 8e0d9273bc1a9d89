"""Find labels that are likely wrong, by confident learning (Northcutt et al., 2021)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import Predictions
from evaluation.scored import Scored
from utils import tables
from utils.files import atomic_write


class Issues(NamedTuple):
    """M likely label errors, the likeliest first.

    Attributes:
        row: int64 (M,), rows of the predictions.
        quality: float32 (M,), the probability of the label.
        suggested: int64 (M,), the likeliest other class.
        method: how they were found, in words.
    """

    row: NDArray[np.int64]
    quality: NDArray[np.float32]
    suggested: NDArray[np.int64]
    method: str


def find(predictions: Predictions, num_classes: int) -> Issues:
    """Find likely label errors: by cleanlab if every probability was kept, else by `confident_joint_off_diagonal`."""
    scorable, rows = predictions.scorable, predictions.rows
    present = np.unique(predictions.label[scorable])
    if rows is not None and len(rows.row) == len(scorable) and len(present) == num_classes > 1:
        from cleanlab.filter import find_label_issues

        mask = find_label_issues(
            predictions.label[scorable], rows.probability[scorable], filter_by="confident_learning", n_jobs=1
        )
        found, method = np.flatnonzero(scorable)[mask], "cleanlab's confident learning, from all probabilities"
    else:
        found = confident_joint_off_diagonal(predictions, num_classes)
        if rows is None or len(rows.row) < len(scorable):
            reason = f"as {len(scorable):,} × {num_classes:,} probabilities are too many to keep"
        else:
            reason = f"as {num_classes - len(present):,} of {num_classes:,} classes have no image here"
        method = f"confident learning from the {predictions.top.shape[1]} likeliest classes of each image, {reason}"
    found = found[np.argsort(predictions.true_probability[found], kind="stable")]
    top, label = predictions.top[found], predictions.label[found]
    other = np.where(top[:, 0] != label, top[:, 0], top[:, min(1, top.shape[1] - 1)])
    return Issues(found, predictions.true_probability[found], other, method)


def confident_joint_off_diagonal(predictions: Predictions, num_classes: int) -> NDArray[np.int64]:
    """Return the rows off the diagonal of the confident joint, int64 (M,), from the top K probabilities of each image.

    The threshold of a class is its mean probability over the images with its label. An image is an issue if the
    likeliest of the classes at or above their thresholds is not its label, and the network does not predict its label
    either (as in cleanlab). With K = C this is the paper's rule. With K below C, the other classes count as being
    below their thresholds.
    """
    scorable = np.flatnonzero(predictions.scorable)
    label, top, probability = predictions.label[scorable], predictions.top[scorable], predictions.probability[scorable]
    count = np.bincount(label, minlength=num_classes)
    total = np.bincount(label, weights=predictions.true_probability[scorable], minlength=num_classes)
    threshold = np.divide(total, count, out=np.full(num_classes, np.inf), where=count > 0)
    above = probability >= threshold[top] - 1e-6
    first = top[np.arange(len(top)), above.argmax(axis=1)]  # top is sorted: the first above is the likeliest
    return scorable[above.any(axis=1) & (first != label) & (top[:, 0] != label)]


def write(path: Path, issues: Issues, scored: Scored) -> None:
    """Write label_issues.csv for datasets/clean.py; a person fills in `action` (keep, drop, relabel) and `new_label`.

    Labels are the numbers of the list file: see dataloader.file_list.FileList.file_label.
    """
    predictions, files, classes = scored
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["path", "label", "action", "new_label", "quality", "label_name", "suggested_name"])
        for row, quality, other in zip(*(column.tolist() for column in issues[:3]), strict=True):
            label = int(predictions.label[row])
            where = files.path(int(predictions.index[row]))
            new = files.file_label(other)
            labels = [files.file_label(label), "", new if new >= 0 else ""]
            writer.writerow([where, *labels, f"{quality:.6f}", classes.name(label), classes.name(other)])
