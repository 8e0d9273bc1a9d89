r"""CSV files that read back as they were written, whatever names they hold.

They are UTF-8 with a line feed after each row, and quote a field that needs it. A field with a carriage return needs
it, which Python's own writer overlooks if rows end in "\n". File names keep their bytes (surrogateescape). A name that
begins with =, +, - or @ stays as it is, although a spreadsheet reads it as a formula: ids must match.
"""

import csv
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from _csv import Writer


class _Rows:
    """A file that receives whole rows ending in CR LF, and writes them with LF."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, row: str) -> int:
        """Write one row."""
        return self.file.write(row.removesuffix("\r\n") + "\n")


def writer(file: IO[str], delimiter: str = ",") -> "Writer":
    """Return a csv.writer for an atomic_write file."""
    return csv.writer(_Rows(file), delimiter=delimiter, lineterminator="\r\n")


def dict_writer(file: IO[str], names: Sequence[str]) -> "csv.DictWriter[str]":
    """Return a csv.DictWriter of the columns `names` for an atomic_write file; it ignores other keys."""
    return csv.DictWriter(_Rows(file), names, restval="", extrasaction="ignore", lineterminator="\r\n")
