"""Write a submission in the form that a competition asks for, and read it back to check it.

What a row holds about its image is decided in `predicted_classes` and `predicted_cells`.
"""

import argparse
import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from evaluation.metrics import MAX_TOP
from evaluation.sample_submission import Kind, Sample
from evaluation.sample_submission.table import SampleTable, error_handling
from evaluation.scored import Scored, TargetScored
from options.wording import count_of
from utils import tables
from utils.classes import Classes
from utils.errors import UserError
from utils.files import atomic_write, json_text
from utils.logger import log
from utils.text import exact

# What the row of an unreadable image holds, where it is not the commonest class.
UNREADABLE = {"multilabel": "no label", "regression": "the mean of training"}

MAX_LINES = 4  # A message names this many lines of one path.

Row = tuple[str, Sequence[str | int]]  # an id, and the names or numbers of its classes


def check_top_k(opt: argparse.Namespace, classes: Classes) -> None:
    """Raise UserError where --top_k asks for more classes than are predicted. Call it before the networks run."""
    allowed = min(MAX_TOP, classes.count)
    if opt.top_k > allowed:
        raise UserError(
            f"--top_k is {opt.top_k}; allowed: 1 to {allowed} (at most {MAX_TOP}, and at most the number of classes)."
        )


def check_joiner(opt: argparse.Namespace, classes: Classes, sample: Sample | None = None) -> None:
    """Raise UserError where a class cannot be told from the text between several of a row.

    Call it before the networks run: which classes they predict should not decide whether the file can be written. Where
    a sample says what is between its labels, there is no other text to give, so only a label that is predicted counts.
    """
    several = classes.task == "multilabel" or opt.top_k > 1
    of_sample = sample is not None and sample.targets is not None and "joiner" not in opt.given
    if not several or of_sample or opt.probabilities or opt.format == "json":
        return
    kind, noun = opt.labels if sample is None else sample.kind, "label" if classes.task == "multilabel" else "class"
    for name in (classes.name(label) if kind == "name" else str(label) for label in range(classes.count)):
        if opt.joiner in name:
            raise UserError(
                f"The {noun} {name!r} contains --joiner {opt.joiner!r}, which separates several in a row. "
                "Try: another --joiner" + (", or --labels number" if kind == "name" else "")
            )


def warn_unused(opt: argparse.Namespace) -> None:
    """Warn of a given --joiner that nothing is written with."""
    if opt.top_k == 1 and "joiner" in opt.given:
        log.warning("--joiner has no effect, as each row holds one class. Try: leave it out, or --top_k 2")


def write(path: Path, scored: Scored, opt: argparse.Namespace, sample: Sample | None = None) -> None:
    """Write a row (CSV) or an object (JSON) for each line of the list, in its order, in the form of submit.py's flags.

    With `sample`, the rows, their order and their form are those of the sample. An unreadable image gets the most
    frequent training class. The file is read back, and takes its name only if it holds every line once, in order, with
    its prediction.

    Raises:
        UserError: names that would make the file ambiguous, or --top_k beyond the classes.
    """
    predictions, files, classes = scored
    check_top_k(opt, classes)
    check_joiner(opt, classes, sample)
    if not opt.debug and not np.array_equal(predictions.index, np.arange(len(files))):
        raise AssertionError(
            f"{len(predictions.index)} predictions for {len(files)} lines of {files.source}, or in another order"
        )
    if sample is not None:
        write_like(path, sample, len(predictions.index), lambda image: predicted_cells(scored, image, sample, opt))
        return
    rows = _rows(scored, opt)
    check_ids(files, predictions.index, opt.id)
    with atomic_write(path, "w") as file:
        _write_json(file, rows) if opt.format == "json" else _write_csv(file, rows, opt)
        file.flush()
        if _read_back(file.name, opt) != [(name, [str(one) for one in classes]) for name, classes in rows]:
            raise AssertionError(f"{path} does not read back as it was written; the file there, if any, is unchanged")


# ------------------------------------------------------------------------------------------------ what a row holds


def predicted_classes(scored: Scored, row: int, kind: Kind, top_k: int) -> list[str] | list[int]:
    """Return the names or the numbers of the `top_k` likeliest classes of the image of `row`.

    For an unreadable image these are the commonest classes of the training list; where their counts are not known, the
    first classes.
    """
    predictions, _, classes = scored
    labels = (predictions.top[row] if predictions.readable[row] else _commonest(scored))[:top_k].tolist()
    return [classes.name(label) for label in labels] if kind == "name" else labels


def predicted_cells(scored: Scored, row: int, sample: Sample, opt: argparse.Namespace) -> list[str]:
    """Return what the submission holds about the image of `row`: the text of each column to predict.

    Probabilities have 7 digits. Those of an unreadable image are the shares of the classes in the training list, or
    equal ones where these are not known.
    """
    predictions, _, classes = scored
    if sample.kind != "probability":
        return [_join(predicted_classes(scored, row, sample.kind, opt.top_k), opt)]
    if predictions.readable[row]:
        assert predictions.rows is not None, "predict() was to keep every probability"
        probability = predictions.rows.probability[row]
    else:
        counts = np.array(classes.train_counts or [1] * classes.count, np.float64)
        probability = counts / counts.sum()
    return [f"{value:.7g}" for value in probability[list(sample.column_classes)].tolist()]


def _commonest(scored: Scored) -> NDArray[np.int64]:
    """Return the classes by the number of their training images, int64 (C,), the largest first."""
    counts = np.array(scored.classes.train_counts or [0] * scored.classes.count)
    return np.argsort(-counts, kind="stable")


def _join(classes: Sequence[str | int], opt: argparse.Namespace) -> str:
    """Return the classes of one CSV field."""
    return str(opt.joiner).join(map(str, classes))


# ------------------------------------------------------------------------------------------------ like a sample


def write_like(path: Path, sample: Sample, count: int, cells_of: Callable[[int], list[str]]) -> None:
    """Write a CSV file with the header, the ids and the order of the sample, and read it back row by row.

    Args:
        count: of images that are predicted, the first of the list; under --debug not all.
        cells_of: returns the text of each column to predict, for the image of that number.
    """
    table = sample.table
    with atomic_write(path) as binary:
        file = io.TextIOWrapper(binary, table.encoding, error_handling(table.encoding), newline="")
        writer = tables.writer(file, table.separator)
        writer.writerow(table.header)
        writer.writerows(_filled_rows(sample, count, cells_of))
        file.detach()  # flushes, and leaves `binary` open
        binary.flush()
        written = SampleTable(Path(binary.name), table.encoding, table.separator, table.header)
        pairs = zip_longest(written.all_rows(), chain([table.header], _filled_rows(sample, count, cells_of)))
        if any(got != meant for got, meant in pairs):
            raise AssertionError(f"{path} does not read back as it was written; the file there, if any, is unchanged")


def _filled_rows(sample: Sample, count: int, cells_of: Callable[[int], list[str]]) -> Iterator[list[str]]:
    """Yield the rows of the sample with our predictions, those of the first `count` images of the list."""
    for image, row in sample.rows():
        if image < count:
            yield sample.filled(row, cells_of(image))


# ------------------------------------------------------------------------------------------------ in the list's order


def _rows(scored: Scored, opt: argparse.Namespace) -> list[Row]:
    """Return (id, classes), the likeliest first, for each image."""
    predictions, files, _ = scored
    return [
        (row_id(files.as_written(index), opt.id), predicted_classes(scored, row, opt.labels, opt.top_k))
        for row, index in enumerate(predictions.index.tolist())
    ]


def row_id(path: str, how: str) -> str:
    """Return the id of an image: "path" as listed, its "file" name, or that without its ending, the "stem"."""
    path = exact(path)
    name = path if how == "path" else os.path.basename(path)
    return name.removesuffix(Path(name).suffix) if how == "stem" else name


def check_ids(files: FileList, index: NDArray[np.int64], how: str) -> None:
    """Warn where the images at `index`, int64 (N,), have an id twice.

    Where the list has a path twice, no --id tells them apart.
    """
    paths = [files.as_written(image) for image in index.tolist()]
    twice = [name for name, count in Counter(row_id(path, how) for path in paths).items() if count > 1]
    if not twice:
        return
    text = f"{count_of(len(twice), 'id')} in more than one row (the first: {twice[0]})."
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        again = [image for image, path in zip(index.tolist(), paths, strict=True) if path == repeated[0]]
        lines = ", ".join(str(files.line[image]) for image in again[:MAX_LINES])
        text += f" {files.source} has {count_of(len(repeated), 'path')} in more than one line "
        text += f"(the first: {repeated[0]}, lines {lines}). Keep one line per image."
    if how != "path":
        text += " --id path makes the ids of different paths unique." if repeated else " --id path makes them unique."
    log.warning(text)


def separator(opt: argparse.Namespace) -> str:
    """Return the character between two columns."""
    return "\t" if opt.separator == "tab" else opt.separator


def _write_csv(file: IO[str], rows: list[Row], opt: argparse.Namespace) -> None:
    writer = tables.writer(file, separator(opt))
    if opt.header:
        writer.writerow(opt.columns)
    writer.writerows([name, _join(classes, opt)] for name, classes in rows)


def _write_json(file: IO[str], rows: list[Row]) -> None:
    content = [{"id": name, "predicted": classes[0] if len(classes) == 1 else classes} for name, classes in rows]
    file.write("[\n" + ",\n".join(map(json_text, content)) + "\n]\n")


def _read_back(path: str, opt: argparse.Namespace) -> list[tuple[str, list[str]]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        if opt.format == "json":
            content = [(row["id"], row["predicted"]) for row in json.load(file)]
            return [(name, [str(one) for one in (got if isinstance(got, list) else [got])]) for name, got in content]
        rows = list(csv.reader(file, delimiter=separator(opt)))
    if opt.header and rows.pop(0) != list(opt.columns):
        return []
    return [(name, got.split(opt.joiner) if opt.top_k > 1 else [got]) for name, got in rows]


def write_pseudo_labels(path: Path, scored: Scored, min_probability: float) -> None:
    """Write a training list of the images whose likeliest class has at least `min_probability` (Lee, 2013).

    The number of images is logged; if there is none, no file is written.
    """
    predictions, _, classes = scored
    chosen = predictions.readable & (predictions.probability[:, 0] >= min_probability)
    best = float(predictions.probability[predictions.readable, 0].max(initial=0.0))
    labels = predictions.top[chosen, 0]
    write_pseudo_list(
        path,
        scored,
        dict(zip(np.flatnonzero(chosen).tolist(), map(str, labels.tolist()), strict=True)),
        f"--pseudo_label {min_probability:g}: no image reaches it (the highest is {best:.4f})",
        f"in {len(np.unique(labels))} of {classes.count} classes, reach {min_probability:g}",
    )


def write_pseudo_list(
    path: Path, scored: Scored | TargetScored, chosen: dict[int, str], nothing: str, reached: str
) -> None:
    """Write a training list of the images of some rows, with absolute paths, and log how many they are.

    Without any, the file of an earlier run is removed.

    Args:
        chosen: rows of the predictions, ascending, and the label or labels of each. nothing: to log if there is none.
        reached: to log about those that are written.
    """
    index = scored.predictions.index
    if not chosen:
        log.warning(f"{nothing}. {path} is not written.")
        path.unlink(missing_ok=True)
        return
    with atomic_write(path, "w") as file:
        for row, label in chosen.items():
            file.write(f"{os.path.abspath(scored.files.path(int(index[row])))} {label}\n")
    log.info(f"{len(chosen)} of {len(index)} images, {reached}: {path}")


def log_summary(out: Path, scored: Scored | TargetScored) -> None:
    """Log how many rows the submission `out` has, and warn of images that were not read, or not reached (--debug)."""
    readable, count = scored.predictions.readable, len(scored.files)
    guessed = int((~readable).sum())
    if guessed:
        held = UNREADABLE.get(scored.classes.task, "the commonest training class")
        if scored.classes.task not in UNREADABLE and scored.classes.train_counts is None:  # an average of several lists
            held = f"class {scored.classes.name(0)!r}, or equal probabilities: the commonest class is not known"
        log.warning(f"{guessed} of {count} images could not be read; their rows hold {held}.")
    if len(readable) < count:
        log.warning(f"--debug: {len(readable)} of {count} rows; this is not a submission.")
    log.info(f"{count_of(len(readable), 'prediction')}: {out}")
