r"""CSV files that read back as they were written, whatever names they hold, and a strict reader.

Those that are written are UTF-8 with a line feed after each row, and quote a field that needs it. A field with a
carriage return needs it, which Python's own writer overlooks if rows end in "\n". File names keep their bytes
(surrogateescape). A name that begins with =, +, - or @ stays as it is, although a spreadsheet reads it as a formula:
ids must match.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
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


class Reader(Iterator[list[str]]):
    """Read the rows of a CSV file strictly: a quotation mark that is out of place is an error.

    Python's own reader takes such a mark as text, and an unclosed one swallows the rows below without a word.

    Attributes:
        line_num: the line of the file where the row read last begins, from 1; for an error, where the wrong row begins.
        end: the line where it ends: a quoted field may hold line breaks.
    """

    def __init__(self, lines: Iterable[str], delimiter: str = ",", skip_spaces: bool = False) -> None:
        self._rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=skip_spaces, strict=True)
        self.line_num = 0

    @property
    def end(self) -> int:
        """Return the line where the row ends that was read last."""
        return self._rows.line_num

    def __next__(self) -> list[str]:
        """Return the next row. Raises csv.Error for one that is not CSV."""
        self.line_num = self.end + 1
        try:
            return next(self._rows)
        except csv.Error as error:
            if self.end <= self.line_num:
                raise
            raise csv.Error(
                f"a quoted field that begins there goes on to line {self.end} ({error}). Close it in its own line, "
                'or remove the quotation mark; within a quoted field, a mark is written twice ("")'
            ) from error


def dict_reader(lines: Iterable[str]) -> "csv.DictReader[str]":
    """Return a csv.DictReader that reads as `Reader` does."""
    reader = csv.DictReader(())
    reader.reader = Reader(lines)  # type: ignore[assignment]  # it asks no more of it than rows and line_num
    return reader
