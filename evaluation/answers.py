"""The likeliest classes of a few images, as a table for people, as CSV, or as JSON."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from evaluation.scored import Scored
from utils import tables
from utils.files import atomic_write, json_text
from utils.outputs import Output, begins_with
from utils.text import exact, visible

COLUMNS = ("file", "rank", "label", "class", "probability")
DEFAULT_TOP = 5
FORMATS = ("table", "csv", "json")


class Likely(NamedTuple):
    """One class of an image's answer: its number, its name, and its probability."""

    label: int
    name: str
    probability: float


class Answer(NamedTuple):
    """The likeliest classes of one image, the first of them first; none of an image that cannot be read."""

    file: str
    classes: list[Likely]


def planned(out: Path) -> Output:
    """Return what `write` is going to write to `out`."""
    return Output(out, "the predictions of --images", lambda path: begins_with(*COLUMNS)(path) or _is_ours(path))


def _is_ours(path: Path) -> bool:
    """Return whether a file is JSON as `write` writes it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, list) and all(
        isinstance(one, dict) and set(one) == {"file", "classes"} for one in content
    )


def answers(scored: Scored, top: int) -> list[Answer]:
    """Return the `top` likeliest classes of each image, in the order of the images."""
    predictions, files, classes = scored
    found = []
    for row, index in enumerate(predictions.index.tolist()):
        pairs = zip(predictions.top[row, :top].tolist(), predictions.probability[row, :top].tolist(), strict=True)
        likely = [Likely(label, classes.name(label), probability) for label, probability in pairs]
        found.append(Answer(files.as_written(index), likely if predictions.readable[row] else []))
    return found


def write(path: Path, found: Sequence[Answer], form: str) -> None:
    """Write the answers to a file, in one of FORMATS."""
    with atomic_write(path, "w") as file:
        write_to(file, found, form)


def write_to(file: IO[str], found: Sequence[Answer], form: str) -> None:
    """Write the answers to a stream, in one of FORMATS."""
    if form == "table":
        file.writelines(f"{line}\n" for line in table(found))
    elif form == "json":
        content = [{"file": exact(one.file), "classes": [_as_dict(likely) for likely in one.classes]} for one in found]
        file.write(json_text(content, indent=2) + "\n")
    else:
        writer = tables.writer(file)
        writer.writerow(COLUMNS)
        for file_name, classes in found:
            empty = [(exact(file_name), "", "", "", "")]
            rows = [(exact(file_name), rank, *likely) for rank, likely in enumerate(classes, 1)]
            writer.writerows(rows or empty)


def _as_dict(likely: Likely) -> dict[str, object]:
    return {"label": likely.label, "class": likely.name, "probability": likely.probability}


def table(found: Sequence[Answer]) -> list[str]:
    """Return the lines of a table: file, class, probability, with one line per class."""
    rows = [("file", "class", "probability")]
    for file_name, classes in found:
        lines = [(visible(likely.name), f"{likely.probability:11.2%}") for likely in classes] or [
            ("cannot be read", "")
        ]
        rows += [(visible(file_name) if place == 0 else "", *line) for place, line in enumerate(lines)]
    first, second = (max(map(_columns, column)) for column in list(zip(*rows, strict=True))[:2])
    return [
        f"{_padded(file_name, first)}  {_padded(name, second)}  {value}".rstrip() for file_name, name, value in rows
    ]


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: a Chinese character takes two."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(bool(unicodedata.combining(letter)) for letter in text)


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - _columns(text))
