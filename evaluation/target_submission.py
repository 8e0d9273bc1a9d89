"""Write a submission of labels or numbers, in the form of submit.py's flags, and read it back to check it."""

import argparse
import csv
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from evaluation.multilabel import thresholds_of
from evaluation.sample_submission import Sample
from evaluation.scored import TargetScored
from evaluation.submission import check_ids, row_id, separator, write_like, write_pseudo_list
from utils import tables
from utils.errors import UserError
from utils.files import atomic_write, json_text
from utils.logger import log


def write(path: Path, scored: TargetScored, opt: argparse.Namespace, sample: Sample | None = None) -> None:
    """Write a row (CSV) or an object (JSON) for each line of the list, in its order.

    A multi-label row holds the labels whose probability is its threshold or more, with --joiner between them; with
    --probabilities, the probability of each label in a column of its own. A row of a regression holds each number in a
    column of its own. With `sample`, the rows, their order and their form are those of the sample. An unreadable image
    has no label, a probability of 0, or the mean of training.

    The file is read back, and takes its name only if it holds every line once, in order, with its prediction.

    Raises:
        UserError: names that would make the file ambiguous.
    """
    if not opt.debug and not np.array_equal(scored.predictions.index, np.arange(len(scored.files))):
        raise AssertionError(f"the predictions are not those of the lines of {scored.files.source}, in order")
    if sample is not None:
        threshold = thresholds_of(scored.classes).tolist()
        count = len(scored.predictions.index)
        write_like(path, sample, count, lambda row: _sample_cells(scored, row, sample, threshold))
        return
    check_ids(scored.files, scored.predictions.index, opt.id)
    with atomic_write(path, "w") as file:
        if opt.format == "json":
            content = _objects(scored, opt)
            file.write("[\n" + ",\n".join(map(json_text, content)) + "\n]\n")
        else:
            writer = tables.writer(file, separator(opt))
            writer.writerows(_table(scored, opt))
        file.flush()
        with open(file.name, encoding="utf-8", errors="surrogateescape", newline="") as written:
            same = json.load(written) == content if opt.format == "json" else _is_table(written, scored, opt)
        if not same:
            raise AssertionError(f"{path} does not read back as it was written; the file there, if any, is unchanged")


def warn_unused(scored: TargetScored, opt: argparse.Namespace) -> None:
    """Warn of given flags of the form that change nothing where each label or number is in a column of its own."""
    alone = scored.classes.task == "regression" or opt.probabilities
    unused = [f"--{name}" for name in ("labels", "joiner") if name in opt.given] if alone else []
    if unused:
        log.warning(f"{', '.join(unused)}: no effect, as no cell holds names or numbers of labels. Try: leave it out")
    if "columns" in opt.given and _columns_per_value(scored, opt):
        log.warning(
            f"--columns: the second name, {opt.columns[1]!r}, has no effect: each of {scored.classes.count} columns to "
            "predict is named as in classes.txt."
        )


def _columns_per_value(scored: TargetScored, opt: argparse.Namespace) -> bool:
    """Return whether each label or number has a column of its own."""
    return bool(opt.probabilities) if scored.classes.task == "multilabel" else scored.classes.count > 1


def _table(scored: TargetScored, opt: argparse.Namespace) -> Iterator[list[str]]:
    """Yield the rows of the CSV file, the header first."""
    if opt.header:
        names = [scored.classes.name(k) for k in range(scored.classes.count)]
        yield [opt.columns[0], *names] if _columns_per_value(scored, opt) else list(opt.columns)
    joined = scored.classes.task == "multilabel" and not opt.probabilities
    threshold = thresholds_of(scored.classes).tolist()
    for name, values in _rows(scored, opt):
        if joined:
            yield [name, _joined([str(one) for one in _labels(scored, opt, values, threshold)], opt.joiner)]
        else:
            yield [name, *(repr(float(value)) for value in values)]


def _is_table(file: IO[str], scored: TargetScored, opt: argparse.Namespace) -> bool:
    """Return whether a CSV file holds the rows of `_table`."""
    pairs = zip_longest(csv.reader(file, delimiter=separator(opt)), _table(scored, opt))
    return all(got == meant for got, meant in pairs)


def _objects(scored: TargetScored, opt: argparse.Namespace) -> list[dict[str, object]]:
    """Return the objects of the JSON file.

    `predicted` is the list of the labels; with --probabilities, or for several numbers, {name: number}; or one number.
    """
    names = [scored.classes.name(k) for k in range(scored.classes.count)]
    threshold = thresholds_of(scored.classes).tolist()
    found: list[dict[str, object]] = []
    for name, values in _rows(scored, opt):
        predicted: object = values[0] if len(values) == 1 else dict(zip(names, values, strict=True))
        if scored.classes.task == "multilabel" and not opt.probabilities:
            predicted = _labels(scored, opt, values, threshold)
        elif scored.classes.task == "multilabel":
            predicted = dict(zip(names, values, strict=True))
        found.append({"id": name, "predicted": predicted})
    return found


def _rows(scored: TargetScored, opt: argparse.Namespace) -> Iterator[tuple[str, list[float]]]:
    """Yield the id of each image, and what is predicted of it."""
    for row, index in enumerate(scored.predictions.index.tolist()):
        yield row_id(scored.files.as_written(index), opt.id), _values(scored, row)


def _values(scored: TargetScored, row: int) -> list[float]:
    """Return what is predicted of the image of `row`; of an unreadable one probabilities of 0, or the mean."""
    predictions, _, classes = scored
    missing = np.zeros(classes.count) if classes.mean is None else np.array(classes.mean)
    values = predictions.value[row] if predictions.readable[row] else missing
    found: list[float] = values.tolist()
    return found


def _sample_cells(scored: TargetScored, row: int, sample: Sample, threshold: list[float]) -> list[str]:
    """Return the text of each column to predict, for the image of `row`; probabilities have 7 digits."""
    form, values = sample.targets, _values(scored, row)
    assert form is not None  # as the task has several labels or numbers
    if form.kind == "value":
        return [repr(values[k]) for k in form.column_classes]
    if form.kind == "probability":
        return [f"{values[k]:.7g}" for k in form.column_classes]
    chosen = _chosen(values, threshold)
    if form.kind == "flag":
        present = set(chosen)
        return [form.words[k in present] for k in form.column_classes]
    labels = [scored.classes.name(k) if form.kind == "name" else str(k) for k in chosen]
    return [_joined(labels, form.joiner) or form.empty]


def _labels(
    scored: TargetScored, opt: argparse.Namespace, values: list[float], threshold: list[float]
) -> list[str] | list[int]:
    """Return the labels whose probability is its threshold or more, as numbers or names."""
    chosen = _chosen(values, threshold)
    return [scored.classes.name(k) for k in chosen] if opt.labels == "name" else chosen


def write_pseudo_labels(path: Path, scored: TargetScored, min_probability: float) -> None:
    """Write a multi-label training list of the images of which every label is sure; an image without labels has `-`.

    The labels are those of the submission. The number of images is logged; if there is none, no file is written.

    Args:
        min_probability: how sure each label of an image must be; see `sureness`.
    """
    predictions, _, classes = scored
    threshold, chosen, best, named = thresholds_of(classes), dict[int, str](), 0.0, set[int]()
    for row in np.flatnonzero(predictions.readable).tolist():
        values = np.asarray(predictions.value[row], np.float64)
        sure = float(sureness(values, threshold).min())
        best = max(best, sure)
        if sure >= min_probability:
            labels = _chosen(values.tolist(), threshold.tolist())
            named.update(labels)
            chosen[row] = ",".join(map(str, labels)) or "-"
    write_pseudo_list(
        path,
        scored,
        chosen,
        f"--pseudo_label {min_probability:g}: no image reaches it with all of its labels (the highest is {best:.4f})",
        f"with {len(named)} of {classes.count} labels, reach {min_probability:g} with all of their labels",
    )


def sureness(values: NDArray[np.float64], threshold: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how sure each label is present, or absent, as a probability from 0.5 to 1, float64 (K,).

    The odds of a probability, float64 (K,), are divided by those of its threshold, (K,), so that the threshold becomes
    0.5: with a threshold of 0.5, the sureness is max(p, 1 - p). It is 0 where odds are no number.
    """
    present, absent = values * (1 - threshold), (1 - values) * threshold
    total = present + absent
    return np.divide(np.maximum(present, absent), total, out=np.zeros_like(values), where=total > 0)


def _chosen(values: list[float], threshold: list[float]) -> list[int]:
    """Return the numbers of the labels whose probability is its threshold or more."""
    return [k for k, value in enumerate(values) if value >= threshold[k] and value > 0]


def _joined(labels: list[str], joiner: str) -> str:
    """Return the labels of one CSV field. Raises UserError where they could not be taken apart again."""
    for name in labels:
        if not joiner or joiner in name:
            raise UserError(
                f"The label {name!r} contains --joiner {joiner!r}. Give another --joiner, or --labels number."
            )
    return joiner.join(labels)
