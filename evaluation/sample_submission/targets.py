"""Read from a sample submission in which form it has several labels per image, or numbers.

Labels are in one cell, as names or numbers with text between them, or each label has a column, which holds its
probability, or one of two words. Where the sample fits several forms, it is refused, and the message names the flags
that decide.
"""

import argparse
from dataclasses import dataclass
from typing import Literal

from evaluation.multilabel import THRESHOLD
from evaluation.sample_submission.columns import (
    all_classes,
    class_number,
    classes_of_columns,
    comparable,
    distinct_values,
    warn_of_placeholders,
)
from evaluation.sample_submission.ids import MAX_NAMED, named
from evaluation.sample_submission.table import SampleTable
from options.wording import count_of
from utils.classes import Classes
from utils.errors import UserError

JOINERS = (" ", ",", ";", "|", "/", "+", ", ", "; ")  # Texts that may stand between the labels of a cell.
NO_LABEL = "-"  # a cell of a sample that may stand for no label; an empty one does too
FLAG_WORDS = (("0", "1"), ("0.0", "1.0"), ("False", "True"), ("false", "true"))
MAX_VALUES = 1000  # different ones, that are looked at
LABEL_NOUNS, NUMBER_NOUNS = ("label", "labels"), ("number", "numbers")

TargetKind = Literal["number", "name", "probability", "flag", "value"]


@dataclass(frozen=True)
class TargetForm:
    """How the columns to predict hold labels or numbers.

    Attributes:
        kind: labels in one cell by "number" or "name"; of a column per label its "probability" or one of `words`,
            "flag"; "value": a column per number.
        column_classes: the label or number of each column, unless one cell holds all labels.
        joiner: the text between the labels of a cell. empty: a cell without a label.
        words: for an absent and for a present label.
    """

    kind: TargetKind
    column_classes: tuple[int, ...] = ()
    joiner: str = " "
    empty: str = ""
    words: tuple[str, str] = FLAG_WORDS[0]

    def describe(self) -> str:
        """Return in words what the columns hold."""
        if self.kind in ("number", "name"):
            what = "numbers" if self.kind == "number" else "names"
            return f"{what} of labels with {self.joiner!r} between them, {self.empty!r} for none,"
        flags = f"{self.words[0]} or {self.words[1]} for each label"
        return {"probability": "probabilities of labels", "flag": flags, "value": "numbers"}[self.kind]


def find_form(opt: argparse.Namespace, table: SampleTable, columns: list[int], classes: Classes) -> TargetForm:
    """Return the form of the `columns` to predict.

    Raises:
        UserError: a column is named after no label or number, or one has no column; the values fit no form, or several;
            or a flag contradicts the sample.
    """
    found = classes_of_columns(table, columns, classes)
    if classes.task == "regression":
        if classes.count == 1 and len(columns) == 1:
            found[:] = 0  # whatever its name is
        order = all_classes(table, columns, classes, found, NUMBER_NOUNS)
        _check_numbers(table, columns)
        return TargetForm("value", order)
    if len(columns) == 1 and found[0] < 0:
        if opt.probabilities:
            raise UserError(
                f"--probabilities and --like {table.path} contradict: the sample has one column to predict, and there "
                f"are {classes.count} labels. Leave --probabilities out."
            )
        return _joined_form(opt, table, columns[0], classes)
    order = all_classes(table, columns, classes, found, LABEL_NOUNS)
    if "labels" in opt.given or "joiner" in opt.given:
        flag = "labels" if "labels" in opt.given else "joiner"
        raise UserError(
            f"--{flag} and --like {table.path} contradict: the sample has a column for each label. Leave --{flag} out."
        )
    return _column_form(opt, table, columns, order)


def _check_numbers(table: SampleTable, columns: list[int]) -> None:
    """Raise UserError where a cell to predict holds text that is no number."""
    for value in distinct_values(table, columns, None, MAX_VALUES):
        if not _is_number(value):
            raise UserError(
                f"--like {table.path}: the columns to predict hold {value!r}, and the checkpoint predicts numbers.\n"
                "Give the sample of this task, or a checkpoint of labels or classes."
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ a column per label


def _column_form(opt: argparse.Namespace, table: SampleTable, columns: list[int], order: tuple[int, ...]) -> TargetForm:
    """Return whether the columns hold probabilities or words, by the flags or else by the values."""
    values = distinct_values(table, columns, None, MAX_VALUES)
    words = next((pair for pair in FLAG_WORDS if values and set(values) <= set(pair)), None)
    if opt.probabilities:
        return TargetForm("probability", order)
    if "threshold" in opt.given:
        return TargetForm("flag", order, words=words or FLAG_WORDS[0])
    if words is not None and len(values) == 2:
        return TargetForm("flag", order, words=words)
    numbers = [float(value) for value in values if _is_number(value)]
    if len(numbers) == len(values) and any(0 < number < 1 for number in numbers):
        return TargetForm("probability", order)
    strange = [value for value in values if not _is_number(value)]
    if strange and words is None:
        reason = f"it holds {named(strange)}"
    else:
        reason = f"all values are {values[0]}" if len(values) == 1 else "it is empty" if not values else named(values)
    raise UserError(
        f"--like {table.path} does not show what is in its {count_of(len(columns), 'column')}: {reason}.\n"
        "Allowed: probabilities, of which one is between 0 and 1; or 0 and 1, each of them somewhere.\n"
        f"Try: --probabilities, or --threshold {THRESHOLD} for 0 or 1"
    )


# ------------------------------------------------------------------------------------------------ labels in one cell


def _joined_form(opt: argparse.Namespace, table: SampleTable, column: int, classes: Classes) -> TargetForm:
    """Return how one cell holds the labels: by flags, or by what fits every cell of the sample."""
    empty, seen = _empty_cell(table, column, classes)
    same = classes.names == [str(label) for label in range(classes.count)]
    kinds: tuple[TargetKind, ...] = ("number",) if same else ("number", "name")
    kinds = (opt.labels,) if "labels" in opt.given else kinds
    if "joiner" in opt.given and len(kinds) == 1:
        warn_of_placeholders(table, column, classes, kinds[0], opt.joiner)
        return TargetForm(kinds[0], joiner=opt.joiner, empty=empty)
    joiners = (opt.joiner,) if "joiner" in opt.given else JOINERS
    fits = {
        joiner: [kind for kind in kinds if _fits(table, column, classes, kind, joiner, empty)] for joiner in joiners
    }
    forms = [TargetForm(kind, joiner=joiner, empty=empty) for joiner, some in fits.items() for kind in some]
    if classes.named_otherwise() is not None and "labels" not in opt.given:
        # Numbers that are no names are what a table of other numbers would never hold.
        forms = forms if any(form.kind == "name" for form in forms) else []
    split = [form for form in forms if _occurs(table, column, form.joiner)]
    alone = [form for form in forms if form not in split]  # each cell is one label, whatever is between two
    if len(forms) == 1 and (split or "joiner" in opt.given):
        return forms[0]
    if len(split) == 1 and not alone:
        return split[0]
    if not seen:
        reason = "no cell holds a label"
    elif not forms:
        values = distinct_values(table, [column], None, MAX_NAMED)
        reason = f"these values are no labels of the checkpoint, whatever is between them: {named(map(repr, values))}"
    elif not split and "joiner" not in opt.given:
        reason = "no cell has two labels, so it does not show what is between them"
    else:
        fitting = [f"--labels {form.kind} --joiner {form.joiner!r}" for form in (*split, *alone[:1])]
        reason = f"it fits {' and '.join(fitting)}"
    kind = f"--labels {opt.labels}" if "labels" in opt.given else "--labels name, or --labels number; with"
    raise UserError(
        f"--like {table.path} does not show how column {table.header[column]!r} holds the labels: {reason}.\n"
        f"Try: {kind} --joiner TEXT, what is between two labels"
    )


def _empty_cell(table: SampleTable, column: int, classes: Classes) -> tuple[str, bool]:
    """Return what the sample has in a cell without labels, and whether any cell has labels."""
    names = {comparable(name) for name in classes.names or ()}
    dash, seen = False, False
    for cells in table.rows():
        text = comparable(cells[column])
        is_dash = text == NO_LABEL and NO_LABEL not in names
        dash, seen = dash or is_dash, seen or (bool(text) and not is_dash)
    return NO_LABEL if dash else "", seen


def _fits(table: SampleTable, column: int, classes: Classes, kind: TargetKind, joiner: str, empty: str) -> bool:
    """Return whether every cell holds different labels of `kind` with `joiner` between them, and one of them does."""
    names = {comparable(name) for name in classes.names or ()}

    def is_label(part: str) -> bool:
        if kind == "name":
            return part == part.strip() and comparable(part) in names
        return class_number(part, classes.count) >= 0

    any_label = False
    for cells in table.rows():
        text = cells[column].strip()
        if text in ("", empty):
            continue
        parts = text.split(joiner)
        if not all(map(is_label, parts)) or len(set(parts)) < len(parts):
            return False
        any_label = True
    return any_label


def _occurs(table: SampleTable, column: int, joiner: str) -> bool:
    """Return whether some cell has `joiner` in it."""
    return any(joiner in cells[column].strip() for cells in table.rows())
