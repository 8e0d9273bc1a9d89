"""Where cached images are kept: in this process's memory, or in one SQLite file that runs and projects share.

SQLite reads with `read()`, never through a memory map: a file that is cut short under a run gives an error, not SIGBUS.
Each entry carries a checksum. What is damaged is read from the image's own file instead, and the next run builds the
store again.
"""

import os
import shutil
import sqlite3
import threading
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from utils import faults
from utils.logger import log

Entry = tuple[int, bytes, bytes]  # index in the list, key, body
PAGE_BYTES = 16384  # an entry of 20 kB takes two reads instead of five
LOCK_SECONDS = 60.0  # how long to wait for another run that writes
SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key BLOB NOT NULL UNIQUE, crc32 INTEGER NOT NULL, body BLOB NOT NULL)"
DAMAGED = "damaged"  # a file of this name: a run met an entry that it could not use
_local = threading.local()  # a connection belongs to one thread, and must not be carried over a fork


class Ram:
    """Entries in this process's memory, in few large blocks, so that workers that are forked later share the pages."""

    def __init__(self, count: int) -> None:
        self.blocks: list[NDArray[np.uint8]] = []
        self.place = np.full((count, 3), -1, np.int64)  # block, start, end of each entry

    def get(self, index: int, key: bytes) -> memoryview | None:
        """Return the entry of image `index`, or None."""
        block, start, end = self.place[index].tolist()
        return None if block < 0 else memoryview(self.blocks[block][start:end])

    def lacking(self, keys: NDArray[np.uint8]) -> list[int]:
        """Return which images (of those of `keys`, (N, 16)) have no entry."""
        return np.flatnonzero(self.place[:, 0] < 0).tolist()

    def put(self, entries: list[Entry]) -> None:
        """Add entries, as one block."""
        ends = np.cumsum([len(body) for _, _, body in entries])
        for (index, _, body), end in zip(entries, ends.tolist(), strict=True):
            self.place[index] = len(self.blocks), end - len(body), end
        self.blocks.append(np.frombuffer(b"".join(body for _, _, body in entries), np.uint8))

    def room(self) -> int:
        """Return how many bytes may still be added."""
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """Do nothing; Disk has something to close."""


class Disk:
    """Entries in `images-<n>.sqlite` in a folder: many readers and one writer at a time, in any number of processes.

    A store that is damaged is replaced by one of the next number, never changed in place: a run that still reads the
    old one keeps its file to the end.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder`, or begin one; a damaged one is left for a new one, with a warning."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self._warned = folder, _newest(folder), False
        for old in folder.glob("data.mdb"):
            log.info(
                f"{old} is a cache of an earlier version, which is not read any more. Delete it to free {old.stat().st_size / 1e9:.1f} GB."
            )
        wrong = self._begin()
        if wrong:
            log.warning(f"The cache {self.path} is damaged ({wrong}): it is built again.")
            self.close()
            old, self.path = self.path, _next(self.path)
            for left in (old, old.with_name(f"{old.name}-journal"), folder / DAMAGED):
                left.unlink(missing_ok=True)
            self._begin()

    def get(self, index: int, key: bytes) -> bytes | None:
        """Return the entry of `key`; None without one, and, with a warning, where it cannot be read as it was written."""
        try:
            found = self._find(key)
        except sqlite3.Error:
            try:
                faults.patiently(
                    lambda: os.close(os.open(self.path, os.O_RDONLY)), self.path
                )  # no damage, where that fails
                found = self._find(key)
            except (sqlite3.Error, OSError) as error:
                self._note_damage(error)
                return None
        if found is None:
            return None
        crc32, body = found
        if zlib.crc32(body) != crc32:
            self._note_damage("an entry's checksum differs")
            return None
        return body

    def _find(self, key: bytes) -> tuple[int, bytes] | None:
        return self._connection().execute("SELECT crc32, body FROM entries WHERE key = ?", (key,)).fetchone()

    def lacking(self, keys: NDArray[np.uint8]) -> list[int]:
        """Return which images (of those of `keys`, (N, 16)) have no entry; looks at the index alone."""
        find = self._connection().execute
        return [
            index
            for index, key in enumerate(keys)
            if find("SELECT 1 FROM entries WHERE key = ?", (key.tobytes(),)).fetchone() is None
        ]

    def put(self, entries: list[Entry]) -> None:
        """Add entries in one transaction: all are there afterwards, or, after a kill, none."""
        rows = ((key, zlib.crc32(body), body) for _, key, body in entries)
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", rows)

    def room(self) -> int:
        """Return how many bytes may still be added."""
        return shutil.disk_usage(self.folder).free

    def close(self) -> None:
        """Close this thread's connection; workers that start afterwards open their own."""
        held = _connections().pop((str(self.path), os.getpid()), None)
        if held is not None:
            held.close()

    def _begin(self) -> str:
        """Make the table where there is none; returns what is wrong with the file, or an empty text."""
        if (self.folder / DAMAGED).exists():
            return "an earlier run could not read an entry"
        try:
            connection = self._connection(create=True)
            if not _is_ours(connection):
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.execute(SCHEMA)
            pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        except sqlite3.OperationalError:
            raise  # a full disk, a folder that cannot be written: no damage
        except sqlite3.DatabaseError as error:
            return str(error)
        held = os.stat(self.path).st_size
        return f"it has {held} of {pages * size} bytes" if held < pages * size else ""

    def _connection(self, create: bool = False) -> sqlite3.Connection:
        """Return this thread's connection in this process, opened when first needed; only `create` makes a file where there is none."""
        place = (str(self.path), os.getpid())
        held = _connections()
        if place not in held:
            held[place] = sqlite3.connect(
                f"file:{quote(os.fsencode(self.path.absolute()))}?mode={'rwc' if create else 'rw'}",
                uri=True,
                timeout=LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            held[place].execute("PRAGMA cell_size_check = ON")
        return held[place]

    def _note_damage(self, why: object) -> None:
        """Warn once, and leave word for the next run; of a store that another run has replaced, warn alone."""
        if not self._warned:
            self._warned = True
            if not self.path.exists():
                log.warning(
                    f"The cache {self.path} is gone: another run builds it again. Its images are read from their files."
                )
                return
            log.warning(
                f"The cache {self.path} is damaged ({why}). Such images are read from their files; the next run builds it again."
            )
            try:
                (self.folder / DAMAGED).touch()
            except OSError:
                return  # a full or read-only disk: the next run meets the damage itself


def _connections() -> dict[tuple[str, int], Any]:
    if not hasattr(_local, "held"):
        _local.held = {}
    return _local.held


def _is_ours(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone())


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("images-"))


def _newest(folder: Path) -> Path:
    found = [path for path in folder.glob("images-*.sqlite") if path.stem.removeprefix("images-").isdecimal()]
    return max(found, key=_number, default=folder / "images-1.sqlite")


def _next(path: Path) -> Path:
    return path.with_name(f"images-{_number(path) + 1}.sqlite")
