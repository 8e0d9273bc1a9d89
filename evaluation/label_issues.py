"""Which labels are likely wrong: confident learning (Northcutt et al., 2021)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import Predictions
from utils import tables
from utils.files import atomic_write


class Issues(NamedTuple):
    """row: int64 (M,), rows of the predictions, likeliest error first. quality: float32 (M,), the label's probability.

    suggested: int64 (M,), the likeliest other class. method: how they were found, in words.
    """

    row: NDArray[np.int64]
    quality: NDArray[np.float32]
    suggested: NDArray[np.int64]
    method: str


def find(predictions: Predictions, num_classes: int) -> Issues:
    """Likely label errors: cleanlab's where every probability was kept, else the bounded variant of `confident`."""
    seen, rows = predictions.seen, predictions.rows
    present = np.unique(predictions.label[seen])
    if rows is not None and len(rows.row) == len(seen) and len(present) == num_classes > 1:
        from cleanlab.filter import find_label_issues

        mask = find_label_issues(
            predictions.label[seen], rows.probability[seen], filter_by="confident_learning", n_jobs=1
        )
        found, method = np.flatnonzero(seen)[mask], "cleanlab's confident learning, from all probabilities"
    else:
        found = confident(predictions, num_classes)
        if rows is None or len(rows.row) < len(seen):
            reason = f"as {len(seen):,} × {num_classes:,} probabilities are too many to keep"
        else:
            reason = f"as {num_classes - len(present):,} of {num_classes:,} classes have no image here"
        method = f"confident learning from the {predictions.top.shape[1]} likeliest classes of each image, {reason}"
    found = found[np.argsort(predictions.true_probability[found], kind="stable")]
    top, label = predictions.top[found], predictions.label[found]
    other = np.where(top[:, 0] != label, top[:, 0], top[:, min(1, top.shape[1] - 1)])
    return Issues(found, predictions.true_probability[found], other, method)


def confident(predictions: Predictions, num_classes: int) -> NDArray[np.int64]:
    """Rows off the diagonal of the confident joint, int64 (M,), from the top K probabilities of each image.

    A class's threshold is the mean probability of it over the images that carry its label. An image is an issue where,
    among the classes at or above their thresholds, the likeliest is not its label, and the network does not name its
    label either (as cleanlab has it). With K = C it is the paper's rule;
    with fewer, classes beyond the K likeliest are taken to be below their thresholds.
    """
    seen = np.flatnonzero(predictions.seen)
    label, top, probability = predictions.label[seen], predictions.top[seen], predictions.probability[seen]
    count = np.bincount(label, minlength=num_classes)
    total = np.bincount(label, weights=predictions.true_probability[seen], minlength=num_classes)
    threshold = np.divide(total, count, out=np.full(num_classes, np.inf), where=count > 0)
    above = probability >= threshold[top] - 1e-6
    first = top[np.arange(len(top)), above.argmax(axis=1)]  # top is sorted: the first above is the likeliest
    return seen[above.any(axis=1) & (first != label) & (top[:, 0] != label)]


def write(path: Path, issues: Issues, scored: Any) -> None:
    """Write label_issues.csv, for datasets/clean.py: fill in `action` (keep, drop, relabel) and, to relabel, `new_label`.

    Both numbers are the list's own: see dataloader.file_list.FileList.file_label.
    """
    predictions, files, classes = scored
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["path", "label", "action", "new_label", "quality", "label_name", "suggested_name"])
        for row, quality, other in zip(*(column.tolist() for column in issues[:3]), strict=True):
            label = int(predictions.label[row])
            where = files.path(int(predictions.index[row]))
            new = files.file_label(other)
            cells = [
                where,
                files.file_label(label),
                "",
                new if new >= 0 else "",
                f"{quality:.6f}",
                classes.name(label),
                classes.name(other),
            ]
            writer.writerow(cells)
