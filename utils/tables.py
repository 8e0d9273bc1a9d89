r"""CSV files that read back as they were written, whatever the names in them.

UTF-8, a line feed after each row, fields in quotes where they need them; a carriage return counts among what needs
them, which Python's own writer forgets beside "\n". File names keep their bytes (surrogateescape). A name is not
changed for a spreadsheet's sake: one that begins with =, +, - or @ stays as it is, for ids must match.
"""

import csv
from collections.abc import Sequence
from typing import IO, Any


class _Rows:
    """Take whole rows that end in CR LF, and pass them on with LF."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, row: str) -> int:
        """Write one row."""
        return self.file.write(row.removesuffix("\r\n") + "\n")


def writer(file: IO[str], delimiter: str = ",") -> Any:
    """Return a csv.writer for an atomic_write file."""
    return csv.writer(_Rows(file), delimiter=delimiter, lineterminator="\r\n")


def dict_writer(file: IO[str], names: Sequence[str]) -> "csv.DictWriter[str]":
    """Return a csv.DictWriter of the columns `names`, for an atomic_write file: other keys are left out, a cell without one is empty."""
    return csv.DictWriter(_Rows(file), names, restval="", extrasaction="ignore", lineterminator="\r\n")
