"""Where cached images are kept: in the memory of this process, or in one SQLite file that runs and projects share.

SQLite reads with `read()`, never through a memory map: a file truncated during a run causes an error, not SIGBUS.
Each entry carries a checksum. A damaged entry is read from the image's own file instead, and makes the next run rebuild
the store.
"""

import contextlib
import os
import shutil
import sqlite3
import threading
import zlib
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from utils import distributed, faults
from utils.logger import log

Entry = tuple[int, bytes, bytes]  # index in the list, key, body
PAGE_BYTES = 16384  # an entry of 20 kB takes two reads instead of five
LOCK_TIMEOUT_SECONDS = 60.0  # while another run writes
SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key BLOB NOT NULL UNIQUE, crc32 INTEGER NOT NULL, body BLOB NOT NULL)"
DAMAGE_MARKER = "damaged"  # a run leaves a file of this name where it meets an unusable entry
_local = threading.local()  # a connection belongs to one thread, and must not survive a fork


class MemoryStore:
    """Entries in the memory of this process, in a few large blocks, whose pages workers share that are forked later."""

    def __init__(self, count: int) -> None:
        """`count`: images of the list."""
        self.blocks: list[NDArray[np.uint8]] = []
        self.span = np.full((count, 3), -1, np.int64)  # block, start, end of each entry

    def get(self, index: int, key: bytes) -> memoryview | None:
        """Return the entry of image `index`, or None."""
        block, start, end = self.span[index].tolist()
        return None if block < 0 else memoryview(self.blocks[block][start:end])

    def missing(self, keys: NDArray[np.uint8]) -> list[int]:
        """Return the indices of the images, of those with `keys` (N, 16), that have no entry."""
        return np.flatnonzero(self.span[:, 0] < 0).tolist()

    def put(self, entries: list[Entry]) -> None:
        """Add entries, as one block."""
        ends = np.cumsum([len(body) for _, _, body in entries])
        for (index, _, body), end in zip(entries, ends.tolist(), strict=True):
            self.span[index] = len(self.blocks), end - len(body), end
        self.blocks.append(np.frombuffer(b"".join(body for _, _, body in entries), np.uint8))

    def free_bytes(self) -> int:
        """Return how many bytes may still be added: each process of torchrun on this machine adds as many."""
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // distributed.local_world_size()

    def close(self) -> None:
        """Do nothing: SqliteStore alone has something to close."""


class SqliteStore:
    """Entries in `images-<n>.sqlite` in a folder: many readers and one writer at a time, in any number of processes.

    A damaged store is replaced by one with the next number, never changed in place: a run that still reads the old one
    keeps its file to the end.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder`, or create one; replace a damaged one, with a warning.

        Raises:
            sqlite3.Error: the store cannot be read or written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self._warned = folder, _newest(folder), False
        for old in folder.glob("data.mdb"):
            size = old.stat().st_size / 1e9
            log.info(
                f"{old} is the cache of an earlier version, which is no longer read. Delete it to free {size:.1f} GB."
            )
        damage = self._create()
        if damage:
            log.warning(f"The cache {self.path} is damaged ({damage}) and will be rebuilt.")
            self.close()
            old, self.path = self.path, _next(self.path)
            for left in (old, old.with_name(f"{old.name}-journal"), folder / DAMAGE_MARKER):
                left.unlink(missing_ok=True)
            self._create()

    def get(self, index: int, key: bytes) -> bytes | None:
        """Return the entry of `key`; None if there is none or, with a warning, if it is damaged.

        Raises:
            MachineFault: the machine failed repeatedly.
        """
        try:
            found = self._find(key)
        except sqlite3.Error:
            try:
                # where even opening the file fails, the machine is at fault and the store is not damaged
                faults.with_retries(lambda: os.close(os.open(self.path, os.O_RDONLY)), self.path)
                found = self._find(key)
            except (sqlite3.Error, OSError) as error:
                self._report_damage(error)
                return None
        if found is None:
            return None
        crc32, body = found
        if zlib.crc32(body) != crc32:
            self._report_damage("the checksum of an entry differs")
            return None
        return body

    def _find(self, key: bytes) -> tuple[int, bytes] | None:
        """Return the checksum and the body of an entry."""
        return self._connection().execute("SELECT crc32, body FROM entries WHERE key = ?", (key,)).fetchone()

    def missing(self, keys: NDArray[np.uint8]) -> list[int]:
        """Return the indices of the images, of those with `keys` (N, 16), that have no entry; reads the index alone."""
        execute = self._connection().execute
        query = "SELECT 1 FROM entries WHERE key = ?"
        return [index for index, key in enumerate(keys) if execute(query, (key.tobytes(),)).fetchone() is None]

    def put(self, entries: list[Entry]) -> None:
        """Add entries in one transaction: after a kill, all of them are there or none."""
        rows = ((key, zlib.crc32(body), body) for _, key, body in entries)
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", rows)

    def free_bytes(self) -> int:
        """Return how many bytes may still be added."""
        return shutil.disk_usage(self.folder).free

    def close(self) -> None:
        """Close this thread's connection; workers that start afterwards open their own."""
        connection = _connections().pop((str(self.path), os.getpid()), None)
        if connection is not None:
            connection.close()

    def _create(self) -> str:
        """Create the table if it is missing; return what is damaged about the file, or an empty text."""
        if (self.folder / DAMAGE_MARKER).exists():
            return "an earlier run could not read an entry"
        self.close()  # this thread may have read a file of that name which is deleted by now
        try:
            connection = self._connection(create=True)
            if not _has_table(connection):
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.execute(SCHEMA)
            pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        except sqlite3.OperationalError:
            raise  # a full disk or a folder that is not writable: no damage
        except sqlite3.DatabaseError as error:
            return str(error)
        present = os.stat(self.path).st_size
        return f"it has {present} of {pages * size} bytes" if present < pages * size else ""

    def _connection(self, create: bool = False) -> sqlite3.Connection:
        """Return this thread's connection in this process, opened on first use; `create` allows to create the file."""
        key = (str(self.path), os.getpid())
        connections = _connections()
        if key not in connections:
            connections[key] = sqlite3.connect(
                f"file:{quote(os.fsencode(self.path.absolute()))}?mode={'rwc' if create else 'rw'}",
                uri=True,
                timeout=LOCK_TIMEOUT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            connections[key].execute("PRAGMA cell_size_check = ON")
        return connections[key]

    def _report_damage(self, reason: object) -> None:
        """Warn once, and leave the marker for the next run; only warn of a store that another run has replaced."""
        if self._warned:
            return
        self._warned = True
        if not self.path.exists():
            log.warning(
                f"The cache {self.path} is gone: another run rebuilds it. Images are read from their files instead."
            )
            return
        log.warning(
            f"The cache {self.path} is damaged ({reason}). Affected images are read from their files; "
            "the next run rebuilds the cache."
        )
        with contextlib.suppress(OSError):  # on a full or read-only disk, the next run meets the damage itself
            (self.folder / DAMAGE_MARKER).touch()


def _connections() -> dict[tuple[str, int], sqlite3.Connection]:
    """Return the connections of this thread, by path and process."""
    if not hasattr(_local, "connections"):
        _local.connections = {}
    return _local.connections


def _has_table(connection: sqlite3.Connection) -> bool:
    """Return whether the file has the table of entries."""
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone())


def _number(path: Path) -> int:
    """Return n of `images-<n>.sqlite`."""
    return int(path.stem.removeprefix("images-"))


def _newest(folder: Path) -> Path:
    """Return the store of the highest number in `folder`, or the name of the first."""
    found = [path for path in folder.glob("images-*.sqlite") if path.stem.removeprefix("images-").isdecimal()]
    return max(found, key=_number, default=folder / "images-1.sqlite")


def _next(path: Path) -> Path:
    """Return the name of the store that replaces `path`."""
    return path.with_name(f"images-{_number(path) + 1}.sqlite")
