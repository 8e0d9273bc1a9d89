"""Compare training runs value by value: what crash_test and proof share."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CLOCKED = ("images_per_second", "data_wait")  # columns of metrics.csv that a clock measured


def scores(metrics: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv, without the columns that a clock measured."""
    with open(metrics, encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key not in CLOCKED} for row in csv.DictReader(file)]


def leaves(content: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) for each value in nested dicts, lists and tuples."""
    if isinstance(content, dict):
        items: Iterable[tuple[object, object]] = content.items()
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    else:
        yield path, content
        return
    for key, value in items:
        yield from leaves(value, f"{path}/{key}")
