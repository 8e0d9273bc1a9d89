"""Text for people: names of any bytes can be printed, and none of them controls a terminal."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import TextIO

# Control characters except tab and line feed, marks of writing direction, unusual line ends, and lone surrogates,
# which stand for bytes of a file name that are not UTF-8.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


def number_in(text: str) -> Decimal | None:
    """Return the finite number that all of `text` is, such as 7, -1 or 2.50, exactly; None if it is none."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def visible(text: str) -> str:
    r"""Return `text` for a screen, a log or a page: invisible characters become \x1b, \xff or \u202e."""
    return _HIDDEN.sub(_escape, text)


def _escape(match: "re.Match[str]") -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte
        return f"\\x{code - 0xDC00:02x}"
    return "\\r" if code == 13 else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def for_page(value: object) -> object:
    """Return `value`, made visible if it is text: jinja2's `finalize`. Markup, already escaped, stays as it is."""
    return visible(value) if type(value) is str else value


def exact(path: str) -> str:
    """Return a path as UTF-8 text that keeps its bytes (surrogateescape), whatever the system's encoding of names."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "surrogateescape")


def prepare_streams() -> None:
    """Let stdout and stderr escape the characters that the terminal cannot encode, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a notebook's, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def say(text: str, stream: TextIO | None = None) -> None:
    """Print `text`, made visible, to `stream` (stderr if None)."""
    stream = stream or sys.stderr
    with still_there(stream):
        print(visible(text), file=stream, flush=True)


@contextlib.contextmanager
def still_there(stream: TextIO) -> Iterator[None]:
    """Ignore errors of a terminal that was closed (EIO); later output to `stream` goes to /dev/null."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
