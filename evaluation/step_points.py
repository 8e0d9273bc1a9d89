"""Points of a run by step, in logs/<tag>/steps.csv: training between two points, and validations, on one axis."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import tables
from utils.errors import UserError
from utils.files import atomic_write

COLUMNS = ("step", "epoch", "train_loss", "train_top1", "lr", "grad_norm", "val_loss", "val_top1")
MAX_VALIDATIONS = 2000  # rows of them in steps.csv; metrics.csv has all
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
            lines = tables.Reader(file)
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


def steps_per_epoch(points: Sequence[Row]) -> float:
    """Return how many optimizer steps an epoch has, by the last of the points of steps.csv; 0 if there is none."""
    return points[-1]["step"] / points[-1]["epoch"] if points and points[-1]["epoch"] else 0.0


def thinned(rows: Sequence[Row], limit: int) -> list[Row]:
    """Return at most `limit` rows: neighbours become one, at the place of the second, with the means of both."""
    kept = list(rows)
    while len(kept) > limit:
        kept = [_mean(kept[place : place + 2]) for place in range(0, len(kept), 2)]
    return kept


def _mean(pair: Sequence[Row]) -> Row:
    found = {name: [row[name] for row in pair if name in row] for name in {name for row in pair for name in row}}
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return means | {name: pair[-1][name] for name in ("step", "epoch") if name in pair[-1]}


# ------------------------------------------------------------------------------------------------ writing


def rows_of(curves: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the rows of steps.csv: points of training, and validations at their steps.

    Args:
        curves: training.step_curves.StepCurves.state_dict. A stretch of which no step was taken has no point.
        history: scores per epoch. Of more than MAX_VALIDATIONS validations, every second (fourth, …) is kept, counted
            from the newest.
    """
    sums = np.mean([own.double().numpy() for own in curves["sums"]], axis=0)  # one per process
    per_epoch, rates = curves["per_epoch"], curves["lr"].tolist()
    rows: dict[int, Row] = {}
    for point, (loss, losses, norm, norms, right, compared) in enumerate(sums.tolist()):
        means = {"train_loss": (loss, losses), "train_top1": (right, compared), "grad_norm": (norm, norms)}
        found = {name: _short(total / count) for name, (total, count) in means.items() if count}
        if found:
            step = min((point + 1) * curves["stride"], curves["step"])
            rows[step] = {"step": step, "epoch": round(step / per_epoch, 6), "lr": rates[point], **found}
    validated = [row for row in history if "val_loss" in row]
    apart = 1
    while len(validated) > MAX_VALIDATIONS * apart:
        apart *= 2
    for row in validated[::-1][::apart]:
        step = row["epoch"] * per_epoch
        scores = {name: row[name] for name in ("val_loss", "val_top1") if name in row}
        rows[step] = {"step": step, "epoch": row["epoch"], **rows.get(step, {}), **scores}
    return [rows[step] for step in sorted(rows)]


def _short(value: float) -> float:
    """Return a mean of float32 with the digits that float32 has."""
    return float(f"{value:.7g}")


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write steps.csv."""
    with atomic_write(path, "w") as file:
        writer = tables.dict_writer(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
