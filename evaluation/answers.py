"""What is predicted of a few images, as a table for people, as CSV, or as JSON."""

import json
from pathlib import Path
from typing import IO, NamedTuple

from evaluation.multilabel import likeliest_labels, thresholds_of
from evaluation.scored import Scored, TargetScored
from utils import tables
from utils.files import atomic_write, json_text
from utils.names import columns, padded
from utils.outputs import Output, begins_with
from utils.text import exact, visible

COLUMNS = ("file", "rank", "label", "class", "probability")
NUMBER_COLUMNS = ("file", "name", "value")
NO_LABEL = "-"  # as in a list
DEFAULT_TOP = 5
FORMATS = ("table", "csv", "json")


class Likely(NamedTuple):
    """One class of an image's answer: its number, its name, and its probability."""

    label: int
    name: str
    probability: float


class Number(NamedTuple):
    """One number of an image's answer: what it is, and its value."""

    name: str
    value: float


class Answer(NamedTuple):
    """What is predicted of one image.

    Attributes:
        classes: the likeliest classes, the likeliest first, or all labels from their thresholds on; None: it cannot be
            read.
        numbers: those of a regression instead.
    """

    file: str
    classes: list[Likely] | None = None
    numbers: list[Number] | None = None


class Answers(NamedTuple):
    """The answers for some images, in their order, and the task of the network."""

    task: str
    each: list[Answer]


def planned(out: Path) -> Output:
    """Return what `write` is going to write to `out`."""
    return Output(out, "the predictions of --images", _is_ours)


def _is_ours(path: Path) -> bool:
    """Return whether a file is CSV or JSON as `write` writes it."""
    if begins_with(*COLUMNS)(path) or begins_with(*NUMBER_COLUMNS)(path):
        return True
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, list) and all(
        isinstance(one, dict) and set(one) in ({"file", "classes"}, {"file", "values"}) for one in content
    )


def answers(scored: Scored | TargetScored, top: int) -> Answers:
    """Return what is predicted of each image, in the order of the images.

    Of one class per image, it is the `top` likeliest ones; else the labels from their thresholds on, the likeliest
    first; or the numbers.
    """
    return _target_answers(scored) if isinstance(scored, TargetScored) else _class_answers(scored, top)


def _class_answers(scored: Scored, top: int) -> Answers:
    predictions, files, classes = scored
    found = []
    for row, index in enumerate(predictions.index.tolist()):
        pairs = zip(predictions.top[row, :top].tolist(), predictions.probability[row, :top].tolist(), strict=True)
        likely = [Likely(label, classes.name(label), probability) for label, probability in pairs]
        found.append(Answer(files.as_written(index), likely if predictions.readable[row] else None))
    return Answers(classes.task, found)


def _target_answers(scored: TargetScored) -> Answers:
    predictions, files, classes = scored
    threshold = thresholds_of(classes)
    found = []
    for row, index in enumerate(predictions.index.tolist()):
        name, values = files.as_written(index), predictions.value[row]
        if not predictions.readable[row]:
            found.append(Answer(name))
        elif classes.task == "multilabel":
            labels = likeliest_labels(values, threshold).tolist()
            found.append(Answer(name, [Likely(label, classes.name(label), float(values[label])) for label in labels]))
        else:
            numbers = [Number(classes.name(k), value) for k, value in enumerate(values.tolist())]
            found.append(Answer(name, numbers=numbers))
    return Answers(classes.task, found)


def write(path: Path, found: Answers, form: str) -> None:
    """Write the answers to a file, in one of FORMATS."""
    with atomic_write(path, "w") as file:
        write_to(file, found, form)


def write_to(file: IO[str], found: Answers, form: str) -> None:
    """Write the answers to a stream, in one of FORMATS."""
    if form == "table":
        file.writelines(f"{line}\n" for line in table(found))
    elif form == "json":
        file.write(json_text([_as_dict(one, found.task) for one in found.each], indent=2) + "\n")
    else:
        writer = tables.writer(file)
        writer.writerow(NUMBER_COLUMNS if found.task == "regression" else COLUMNS)
        writer.writerows(row for one in found.each for row in _csv_rows(one, found.task))


def _as_dict(one: Answer, task: str) -> dict[str, object]:
    """Return an answer as an object of JSON. An image that cannot be read has null; of one class per image, []."""
    if task == "regression":
        values = None if one.numbers is None else {number.name: number.value for number in one.numbers}
        return {"file": exact(one.file), "values": values}
    if one.classes is None and task == "multilabel":
        return {"file": exact(one.file), "classes": None}
    likely = one.classes or []
    found = [{"label": each.label, "class": each.name, "probability": each.probability} for each in likely]
    return {"file": exact(one.file), "classes": found}


def _csv_rows(one: Answer, task: str) -> list[tuple[object, ...]]:
    """Return the rows of an answer. Without a class the one row has empty cells; NO_LABEL: the image has no label."""
    name = exact(one.file)
    if task == "regression":
        return [(name, *number) for number in one.numbers or ()] or [(name, "", "")]
    none = NO_LABEL if one.classes is not None else ""
    return [(name, rank, *likely) for rank, likely in enumerate(one.classes or (), 1)] or [(name, "", none, "", "")]


def table(found: Answers) -> list[str]:
    """Return the lines of a table: file, class, probability, with one line per class; or file, name, value."""
    rows = [("file", "name", "value") if found.task == "regression" else ("file", "class", "probability")]
    for one in found.each:
        lines = [(visible(likely.name), f"{likely.probability:11.2%}") for likely in one.classes or ()]
        lines += [(visible(number.name), f"{number.value:.6g}") for number in one.numbers or ()]
        if not lines:
            lines = [("cannot be read" if one.classes is None else "no label", "")]
        rows += [(visible(one.file) if place == 0 else "", *line) for place, line in enumerate(lines)]
    first, second = (max(map(columns, column)) for column in list(zip(*rows, strict=True))[:2])
    return [f"{padded(file_name, first)}  {padded(name, second)}  {value}".rstrip() for file_name, name, value in rows]
