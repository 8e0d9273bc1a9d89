"""Predictions that arrive in parts: in memory, or beyond some size in a temporary file."""

import tempfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import MAX_ROW_VALUES
from utils.errors import UserError


class RowStore:
    """Collects the rows of an array, (N, K), in order. More than MAX_ROW_VALUES numbers go into a temporary file.

    The file is deleted with the last use of the array, or with the process.
    """

    def __init__(self, count: int, dtype: type) -> None:
        """`count`: the most rows. `dtype`: of the array."""
        self.count, self.dtype, self.done = count, np.dtype(dtype), 0
        self._memory: NDArray[Any] | None = None
        self._file: IO[bytes] | None = None
        self._width = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (n, K).

        Raises:
            UserError: the disk of the temporary file is full.
        """
        if self._memory is None and self._file is None:
            self._width = rows.shape[1]
            if self.count * self._width <= MAX_ROW_VALUES:
                self._memory = np.empty((self.count, self._width), self.dtype)
            else:
                self._file = tempfile.TemporaryFile()
        if self._memory is not None:
            self._memory[self.done : self.done + len(rows)] = rows
        elif self._file is not None:
            self._write(rows)
        self.done += len(rows)

    def array(self, width: int = 0) -> NDArray[Any]:
        """Return the rows that were added, (n, K); (0, width) if there are none. No row may be added after this."""
        if self._memory is not None:
            return self._memory[: self.done]
        if self._file is None:
            return np.empty((0, width), self.dtype)
        with self._file as file:
            file.flush()
            # writes to the array stay in memory; the mapping keeps the file, which has no name
            return np.memmap(file, self.dtype, "c", shape=(self.done, self._width))

    def _write(self, rows: NDArray[Any]) -> None:
        """Append to the file: a full disk is an error here, but would end the process where a mapping is written."""
        assert self._file is not None
        try:
            self._file.write(np.ascontiguousarray(rows, self.dtype).data)
            self._file.flush()
        except OSError as error:
            size = self.count * self._width * self.dtype.itemsize
            raise UserError(
                f"The predictions of {self.count} images take {size / 1e9:.1f} GB in {tempfile.gettempdir()}, "
                f"which failed: {error}.\nTry: TMPDIR=/another/disk before the command"
            ) from error
