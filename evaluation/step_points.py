"""Points of a run by step, in logs/<tag>/steps.csv: training between two points, and validations, on one axis."""

import csv
import math
from pathlib import Path
from typing import Any

from utils.errors import UserError

COLUMNS = ("step", "epoch", "train_loss", "train_top1", "lr", "grad_norm", "val_loss", "val_top1")
MAX_TABLE_BYTES = 200_000_000  # of a CSV of a run; a longer one is another program's

Row = dict[str, float]


def read_table(path: Path, required: tuple[str, ...]) -> tuple[list[Row], list[str]]:
    """Read a CSV of numbers that a run wrote, such as metrics.csv.

    Args:
        path: the file.
        required: columns that it must have, and each row a number in each.

    Returns:
        The rows, {column: number}, without empty fields; and what is wrong with the file, one text per kind of problem.

    Raises:
        UserError: it cannot be read, or is no such table; the message has no hint, for the caller continues.
        FileNotFoundError: there is no such file.
    """
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise UserError(f"{path} has more than {MAX_TABLE_BYTES:,} bytes, so it is not read.")
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            lines = csv.reader(file, strict=True)
            names = next(lines, [])
            if not set(required) <= set(names):
                found = ", ".join(names)[:200] or "nothing"
                raise UserError(f"{path}: its first line must name {', '.join(required)}; it holds {found!r}.")
            rows, broken = [], []
            for fields in lines:
                row = _row(names, fields, required)
                if row is None:
                    broken.append(lines.line_num)
                else:
                    rows.append(row)
    except FileNotFoundError:
        raise
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return rows, [f"{path}: {_lines(broken)} is damaged and left out"] if broken else []


def _row(names: list[str], fields: list[str], required: tuple[str, ...]) -> Row | None:
    """Return the numbers of a line; None if it is damaged."""
    try:
        row = {name: float(text) for name, text in zip(names, fields, strict=True) if text}
    except ValueError:  # too few or too many fields, or one that is no number
        return None
    return row if all(math.isfinite(row.get(name, math.nan)) for name in required) else None


def _lines(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:5]))}{more}"


def steps_per_epoch(points: list[Any]) -> float:
    """Return how many optimizer steps an epoch has, by the last of the points of steps.csv; 0 if there is none."""
    last = points[-1] if points else {}
    return last["step"] / last["epoch"] if last.get("epoch") else 0.0
