"""Read a CSV file of unknown form row by row: its encoding, its separator, its header, and then each row."""

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from utils import tables
from utils.errors import UserError

DELIMITERS = ",;\t|"
ROWS_TO_GUESS_FROM = 1000


@dataclass(frozen=True)
class SampleTable:
    """A CSV file with a header, which is never held as a whole.

    Attributes:
        path: the file.
        encoding: "utf-8", "utf-8-sig" (with a byte-order mark) or "utf-16".
        separator: of its columns.
        header: the names of its columns.
    """

    path: Path
    encoding: str
    separator: str
    header: list[str]

    def rows(self) -> Iterator[list[str]]:
        """Yield the cells of each row below the header, as `all_rows` does."""
        return islice(self.all_rows(), 1, None)

    def all_rows(self) -> Iterator[list[str]]:
        """Yield the cells of each row, the header first; blank lines are left out.

        Raises:
            UserError: the file is not CSV, or a row is of another length than the header.
        """
        with open_text(self.path, self.encoding) as file:
            reader = tables.Reader(file, self.separator)
            try:
                for cells in reader:
                    if cells and len(cells) != len(self.header):
                        raise UserError(
                            f"--like {self.path}, line {reader.line_num} has {len(cells)} fields, the header "
                            f"{len(self.header)} (separator {self.separator!r})."
                        )
                    if cells:
                        yield cells
            except (csv.Error, UnicodeError) as error:
                raise UserError(f"--like {self.path}, line {reader.line_num} is not CSV: {error}.") from error

    def first_rows(self) -> list[list[str]]:
        """Return the first ROWS_TO_GUESS_FROM rows."""
        return list(islice(self.rows(), ROWS_TO_GUESS_FROM))


def open_table(path: Path) -> SampleTable:
    """Return the table of a file. Raises UserError where it cannot be read, or has no row below its header."""
    encoding = _encoding(path)
    separator, header = max(
        ((one, _header_if_even(path, encoding, one)) for one in DELIMITERS), key=lambda found: len(found[1])
    )
    if len(header) < 2:  # no separator fits all of the first rows: `rows` will name the one that is wrong
        headers = ((one, _header(path, encoding, one)) for one in DELIMITERS)
        separator, header = max(headers, key=lambda found: len(found[1]))
    table = SampleTable(path, encoding, separator, header)
    if not any(True for _ in table.first_rows()):
        raise UserError(f"--like {path} has no row below its header; expected a header, then one row per image.")
    return table


def open_text(path: str | Path, encoding: str) -> io.TextIOWrapper:
    """Open a file as text; bytes that are not UTF-8 are kept (surrogateescape)."""
    return open(path, encoding=encoding, errors=error_handling(encoding), newline="")


def error_handling(encoding: str) -> str:
    """Return how to treat what `encoding` cannot express: UTF-16 has no place for single bytes."""
    return "strict" if encoding == "utf-16" else "surrogateescape"


def _encoding(path: Path) -> str:
    """Return the encoding of a file by its byte-order mark. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UserError(f"--like {path} cannot be read: {error.strerror}.") from error
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"


def _header_if_even(path: Path, encoding: str, separator: str) -> list[str]:
    """Return the header where the first rows have as many fields as it has; else an empty one."""
    try:
        with open_text(path, encoding) as file:
            lines = islice(tables.Reader(file, separator), ROWS_TO_GUESS_FROM)
            rows = [cells for cells in lines if cells]
    except (csv.Error, UnicodeError):
        return []
    return rows[0] if rows and len({len(cells) for cells in rows}) == 1 else []


def _header(path: Path, encoding: str, separator: str) -> list[str]:
    """Return the first row. Raises UserError where it is not CSV."""
    try:
        with open_text(path, encoding) as file:
            return next(tables.Reader(file, separator), [])
    except (csv.Error, UnicodeError) as error:
        raise UserError(f"--like {path}, line 1 is not CSV: {error}.") from error
