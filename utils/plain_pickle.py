"""What a pickle of another program may hold beside tensors: settings, NumPy scalars and arrays, and paths, as data.

torch's unpickler refuses every global that is not on a list. `ALLOWED` extends the list for one `torch.load`. Each
name on it stands for a reader in this file, not for what the pickle names; only argparse.Namespace is itself.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

NUMBERS = re.compile(r"[biufc][1-9][0-9]?")  # NumPy's codes of plain numbers
MAX_ARRAY_BYTES = 1 << 30


class DType:
    """The dtype of a NumPy scalar or array, as its pickle writes it."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not NUMBERS.fullmatch(code):
            raise ValueError(f"a NumPy value of dtype {code!r}; allowed: plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order, the second entry."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """An array: `reconstruct` makes it empty, its state fills it."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Fill the array from (version, shape, dtype, column order, bytes)."""
        _, shape, dtype, columns_first, raw = state
        flat = np.frombuffer(_raw(raw), dtype.dtype)
        self.value = flat.reshape(shape, order="F" if columns_first else "C")


def _raw(value: Any) -> bytes:
    """Return bytes: a pickle of protocol 2 holds them as text in Latin-1."""
    raw = value.encode("latin-1") if isinstance(value, str) else bytes(value)
    if len(raw) > MAX_ARRAY_BYTES:
        raise ValueError(f"a NumPy array of {len(raw)} bytes; allowed: up to {MAX_ARRAY_BYTES}")
    return raw


def scalar(dtype: DType, raw: Any) -> bool | int | float | complex:
    """Return a NumPy scalar as a Python number."""
    return np.frombuffer(_raw(raw), dtype.dtype, count=1)[0].item()


def reconstruct(*_: object) -> Array:
    """Return an array that its state fills."""
    return Array()


def ndarray() -> None:
    """Stand for numpy.ndarray, the type that an array's pickle names; it is never called."""


def posix_path(*parts: str) -> str:
    """Return a path as text."""
    return _joined(PurePosixPath, parts)


def windows_path(*parts: str) -> str:
    """Return a path of Windows as text."""
    return _joined(PureWindowsPath, parts)


def _joined(kind: type[PurePath], parts: tuple[str, ...]) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("a path whose parts are no text")
    return str(kind(*parts))


READERS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "numpy.dtype": DType,
    "numpy.ndarray": ndarray,
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": reconstruct for core in ("core", "_core")},
    **{f"pathlib{part}.{kind}Path": posix_path for part in ("", "._local") for kind in ("Posix", "PurePosix")},
    **{f"pathlib{part}.{kind}Path": windows_path for part in ("", "._local") for kind in ("Windows", "PureWindows")},
}
# torch fills an object from its state only if its class is on the list: Array.
ALLOWED = [
    (Array, f"{__name__}.Array"),
    *((reader, name) for name, reader in READERS.items()),
]
