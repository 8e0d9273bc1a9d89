"""Columns whose cells hold several labels, such as `red;shoe`: what separates the labels, and what to do about it."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

SEPARATORS = (";", "|", ",", " ")
IN_NAMES = (",", " ")  # class names hold them too: "Dress, red", "hot dog"
MIN_SETS = 2  # different cells that are sets, where names hold the separator too


class LabelSets(NamedTuple):
    """What separates the labels of a column, one of its cells, and the flag that reads it."""

    separator: str
    example: str

    @property
    def advice(self) -> str:
        """Return a line to try, with the flag that takes the cells apart."""
        return f'Try: --label_separator "{self.separator}", for --task multilabel'


def find_label_sets(labels: Iterable[str]) -> LabelSets | None:
    """Return how the cells `labels` of a column are separated; None if each seems to be one label.

    They are separated where half or more of the different cells that hold the separator consist of labels that the
    column has elsewhere. For a comma and a space, these must be whole cells: "Dress, red" and "Shirt, red" are names.
    """
    cells = set(labels)
    for separator in SEPARATORS:
        pieces_of = {cell: {piece.strip() for piece in cell.split(separator)} - {""} for cell in cells}
        divided = {cell: pieces for cell, pieces in pieces_of.items() if len(pieces) > 1}
        known, needed = cells, MIN_SETS
        if separator not in IN_NAMES:
            counts = Counter(piece for pieces in pieces_of.values() for piece in pieces)
            known, needed = {piece for piece, count in counts.items() if count > 1}, 1
        sets = [cell for cell, pieces in divided.items() if pieces <= known]
        if len(sets) >= needed and 2 * len(sets) >= len(divided):
            return LabelSets(separator, min(sets))
    return None
