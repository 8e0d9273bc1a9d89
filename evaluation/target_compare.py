"""Compare predicted labels or numbers with another evaluation of the same list: `eval.py --compare`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from dataloader.list_checks import units_of
from dataloader.targets import LabelSets
from evaluation.compare import ADVICE, is_number, other_target, rows_of
from evaluation.multilabel import average_precisions, likeliest_labels, mean_of_known, thresholds_of
from evaluation.paired import Difference, error_scores, paired_scores, precision_scores
from evaluation.scored import TargetScored
from evaluation.targets import TargetPredictions, label_sets, numbers
from utils import tables
from utils.classes import Classes
from utils.errors import UserError
from utils.files import atomic_write

MAX_VALUES = 20_000_000  # probabilities of an evaluation; with more, resamples of mAP take minutes
LABEL_HEADS = ("target", "predicted", "probability", "target_name", "predicted_name")


@dataclass(frozen=True)
class OtherTargets:
    """Another evaluation of the first M images of a list.

    Attributes:
        path: of its predictions.csv.
        value: float64 (M, T), the predicted numbers, NaN where unreadable; or float32 (M, K), the probability of each
            label, from probs.npz.
        readable: bool (M,).
        labels: of labels, those that each image is predicted to have, sorted; None for numbers.
    """

    path: str
    value: NDArray[np.floating]
    readable: NDArray[np.bool_]
    labels: list[list[int]] | None = None


class TargetCompared(NamedTuple):
    """The paired difference, the rows whose prediction changed, int64 (M,), and the other evaluation."""

    difference: Difference
    rows: NDArray[np.int64]
    other: OtherTargets


def prediction_heads(classes: Classes) -> list[str]:
    """Return the columns of predictions.csv after `path`."""
    if classes.task == "multilabel":
        return list(LABEL_HEADS)
    return [f"{kind}_{classes.name(k)}" for k in range(classes.count) for kind in ("target", "predicted")]


def compare(scored: TargetScored, other: OtherTargets, seed: int, resamples: int) -> TargetCompared:
    """Compare by mAP, or by mae, on the images that both evaluations could read.

    Raises:
        UserError: no image is readable in both.
    """
    predictions, files, classes = scored
    rows = np.flatnonzero(predictions.scorable & other.readable)
    if not len(rows):
        raise UserError(f"--compare: no image is readable both in {other.path} and here. {ADVICE}")
    image = units_of(files)[predictions.index[rows]]
    if classes.task == "multilabel":
        here = _predicted_labels(scored, rows)
        assert other.labels is not None  # as the task is multilabel
        changed = [row for row, labels in zip(rows.tolist(), here, strict=True) if labels != other.labels[row]]
        difference = _precision_difference(predictions, other, rows, image, seed, resamples)
        return TargetCompared(difference, np.array(changed, np.int64), other)
    true, that = numbers(predictions)[rows], np.asarray(other.value[rows], np.float64)
    these = np.asarray(predictions.value[rows], np.float64)
    scores = error_scores(np.abs(these - true).mean(axis=1), np.abs(that - true).mean(axis=1))
    difference = paired_scores("mae", scores, image, seed, resamples)
    return TargetCompared(difference, rows[(these != that).any(axis=1)], other)


def _precision_difference(
    predictions: TargetPredictions,
    other: OtherTargets,
    rows: NDArray[np.int64],
    image: NDArray[np.integer],
    seed: int,
    resamples: int,
) -> Difference:
    """Return the difference in mAP on `rows`. Of more than MAX_VALUES probabilities, it has no interval.

    Args:
        image: as paired_scores takes it, of `rows`.
    """
    size = len(rows) * predictions.value.shape[1]
    if size <= MAX_VALUES:
        this, that = np.asarray(predictions.value[rows]), np.asarray(other.value[rows], np.float32)
        scores = precision_scores(label_sets(predictions).rows(rows).astype(bool), this, that)
        return paired_scores("mAP", scores, image, seed, resamples)
    both = predictions.readable & other.readable
    values = (predictions.value, np.asarray(other.value, np.float32))
    here, there = (
        mean_of_known(average_precisions(TargetPredictions(predictions.index, value, both, predictions.targets)))
        for value in values
    )
    reason = f"{size:,} probabilities are more than {MAX_VALUES:,}"
    return Difference("mAP", here, there, here - there, None, len(rows), reason)


def _predicted_labels(scored: TargetScored, rows: NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield the labels that each image of `rows` is predicted to have, sorted."""
    threshold = thresholds_of(scored.classes)
    for row in rows.tolist():
        yield sorted(likeliest_labels(scored.predictions.value[row], threshold).tolist())


def write_changed(path: Path, scored: TargetScored, compared: TargetCompared) -> None:
    """Write changed.csv: a row per image whose labels or numbers differ, in the order of the list."""
    predictions, files, classes = scored
    names = [classes.name(k) for k in range(classes.count)]
    other = compared.other
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        if other.labels is not None:
            writer.writerow(["path", "target", "predicted", "other_predicted"])
            here = _predicted_labels(scored, compared.rows)
            for row, labels in zip(compared.rows.tolist(), here, strict=True):
                sets = label_sets(predictions).of(row).tolist(), labels, other.labels[row]
                writer.writerow([files.path(int(predictions.index[row])), *(" ".join(map(str, one)) for one in sets)])
            return
        kinds = ("target", "predicted", "other_predicted")
        writer.writerow(["path", *(f"{kind}_{name}" for name in names for kind in kinds)])
        for row in compared.rows.tolist():
            columns = numbers(predictions)[row].tolist(), predictions.value[row].tolist(), other.value[row].tolist()
            cells = [repr(cell) for triple in zip(*columns, strict=True) for cell in triple]
            writer.writerow([files.path(int(predictions.index[row])), *cells])


# ------------------------------------------------------------------------------------------------ the other file


def read_numbers(path: str, files: FileList, classes: Classes, images: int) -> OtherTargets:
    """Read the predictions.csv of another evaluation of a regression.

    Args:
        images: how many images of the list, from the first, are evaluated.

    Raises:
        UserError: there is no such file, it has other columns, or it belongs to another list.
    """
    value = np.full((images, classes.count), np.nan)
    assert isinstance(files.targets, np.ndarray)  # as the list of a regression has numbers
    for row, cells in enumerate(rows_of(path, files, images, ["path", *prediction_heads(classes)])):
        own = files.targets[row].tolist()
        try:
            true = [float(cell) for cell in cells[0::2]]
            found = [float(cell) if cell else np.nan for cell in cells[1::2]]
        except ValueError as error:
            raise UserError(f"--compare: row {row + 2} of {path} holds no number ({error}). {ADVICE}") from error
        if true != own:
            raise other_target(path, row, "target", ", ".join(cells[0::2]), ", ".join(map(str, own)))
        value[row] = found
    return OtherTargets(path, value, ~np.isnan(value).any(axis=1))


def read_labels(path: str, files: FileList, classes: Classes, images: int) -> tuple[list[list[int]], list[list[str]]]:
    """Read the predictions.csv of another evaluation of several labels per image.

    Args:
        images: how many images of the list, from the first, are evaluated.

    Returns:
        The labels of each image, and the text of their probabilities, in the order of the file.

    Raises:
        UserError: there is no such file, it has other columns, or it belongs to another list.
    """
    sets, found, sure = files.targets, [], []
    assert isinstance(sets, LabelSets)  # as the list has labels
    for row, cells in enumerate(rows_of(path, files, images, ["path", *prediction_heads(classes)])):
        own = " ".join(map(str, sets.of(row).tolist()))
        if cells[0] != own:
            raise other_target(path, row, "target", cells[0] or "none", own or "none")
        words, probabilities = cells[1].split(), cells[2].split()
        known = all(is_number(word, classes.count) for word in words)
        if not known or len(words) != len(probabilities):
            raise UserError(
                f"--compare: row {row + 2} of {path} predicts {cells[1]!r} with the probabilities {cells[2]!r}; "
                f"allowed: labels from 0 to {classes.count - 1}, each with its probability. {ADVICE}"
            )
        found.append(list(map(int, words)))
        sure.append(probabilities)
    return found, sure
