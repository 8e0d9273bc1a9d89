"""Write a submission of labels or numbers, in the form of submit.py's flags, and read it back to check it."""

import argparse
import csv
import json
from pathlib import Path
from typing import IO

import numpy as np

from evaluation.scored import TargetScored
from evaluation.submission import check_ids, row_id, separator
from utils import tables
from utils.errors import UserError
from utils.files import atomic_write, json_text
from utils.logger import log

Cells = list[list[str]]


def write(path: Path, scored: TargetScored, opt: argparse.Namespace) -> None:
    """Write a row (CSV) or an object (JSON) for each line of the list, in its order.

    A multi-label row holds the labels whose probability is --threshold or more, with --joiner between them; with
    --probabilities, the probability of each label in a column of its own. A row of a regression holds each number in a
    column of its own. An unreadable image has no label, a probability of 0, or the mean of training.

    The file is read back, and takes its name only if it holds every line once, in order, with its prediction.

    Raises:
        UserError: names that would make the file ambiguous.
    """
    if not opt.debug and not np.array_equal(scored.predictions.index, np.arange(len(scored.files))):
        raise AssertionError(f"the predictions are not those of the lines of {scored.files.source}, in order")
    head, rows = _head(scored, opt), _rows(scored, opt)
    check_ids([row[0] for row in rows])
    with atomic_write(path, "w") as file:
        if opt.format == "json":
            _write_json(file, head, rows, opt)
        else:
            writer = tables.writer(file, separator(opt))
            writer.writerows([head, *rows] if opt.header else rows)
        file.flush()
        if _read_back(file.name, head, opt) != rows:
            raise AssertionError(f"{path} does not read back as it was written; the file there, if any, is unchanged")


def log_summary(out: Path, scored: TargetScored) -> None:
    """Log how many rows the submission `out` has, and warn of images that were not read, or not reached (--debug)."""
    readable, count = scored.predictions.readable, len(scored.files)
    guessed = int((~readable).sum())
    if guessed:
        what = "no label" if scored.classes.task == "multilabel" else "the mean of training"
        log.warning(f"{guessed} of {count} images could not be read; their rows hold {what}.")
    if len(readable) < count:
        log.warning(f"--debug: {len(readable)} of {count} rows; this is not a submission.")
    log.info(f"{len(readable)} predictions: {out}")


def _columns_per_value(scored: TargetScored, opt: argparse.Namespace) -> bool:
    """Return whether each label or number has a column of its own."""
    return bool(opt.probabilities) if scored.classes.task == "multilabel" else scored.classes.count > 1


def _head(scored: TargetScored, opt: argparse.Namespace) -> list[str]:
    if not _columns_per_value(scored, opt):
        return list(opt.columns)
    return [opt.columns[0], *(scored.classes.name(k) for k in range(scored.classes.count))]


def _rows(scored: TargetScored, opt: argparse.Namespace) -> Cells:
    predictions, files, classes = scored
    named = [classes.name(k) if opt.labels == "name" else str(k) for k in range(classes.count)]
    joined = classes.task == "multilabel" and not opt.probabilities
    if joined and opt.format == "csv":
        for name in named:
            if not opt.joiner or opt.joiner in name:
                raise UserError(
                    f"The label {name!r} contains --joiner {opt.joiner!r}. Give another --joiner, or --labels number."
                )
    missing = np.zeros(classes.count) if classes.mean is None else np.array(classes.mean)
    rows = []
    for row, index in enumerate(predictions.index.tolist()):
        values = predictions.value[row] if predictions.readable[row] else missing
        if joined:
            chosen = (values >= opt.threshold) & predictions.readable[row]
            cells = [opt.joiner.join(named[k] for k in np.flatnonzero(chosen).tolist())]
        else:
            cells = [repr(float(value)) for value in values]
        rows.append([row_id(files.as_written(index), opt.id), *cells])
    return rows


def _write_json(file: IO[str], head: list[str], rows: Cells, opt: argparse.Namespace) -> None:
    content = [{"id": row[0], "predicted": dict(zip(head[1:], row[1:], strict=True))} for row in rows]
    file.write("[\n" + ",\n".join(map(json_text, content)) + "\n]\n")


def _read_back(path: str, head: list[str], opt: argparse.Namespace) -> Cells:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        if opt.format == "json":
            return [[row["id"], *(row["predicted"][name] for name in head[1:])] for row in json.load(file)]
        rows = list(csv.reader(file, delimiter=separator(opt)))
    return [] if opt.header and rows.pop(0) != head else rows
