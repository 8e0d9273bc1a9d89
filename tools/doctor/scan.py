"""All files of all lists: looked at in threads, each once, and kept in SQLite, so that a second run reads only what is new.

2.5 million images take about 50 bytes each in memory; sketches stay on the disk until a pair is compared.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.decode import MAX_PIXELS
from dataloader.file_list import FileList
from tools.doctor import inspection
from tools.doctor.inspection import KEY_BYTES, SKETCH, Look
from utils.errors import UserError
from utils.logger import progress

SPAN = 512  # files a transaction: what a kill can lose
PIECE = 32  # files a task, where only the file system is asked
TABLES = """
CREATE TABLE IF NOT EXISTS looks (
    key BLOB PRIMARY KEY, flags INTEGER, height INTEGER, width INTEGER, digest INTEGER, dhash INTEGER, sketch BLOB, detail TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS thumbnails (key BLOB PRIMARY KEY, jpeg BLOB) WITHOUT ROWID;
"""


class Store:
    """doctor.sqlite: what was seen of each state (path, size, time) of a file."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it. Raises UserError where it is no database, or cannot be written."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.base = sqlite3.connect(path, timeout=60)
            self.base.execute("PRAGMA synchronous = NORMAL")
            self.base.executescript(TABLES)
            self.base.execute("SELECT key, flags, height, width, digest, dhash, sketch, detail FROM looks LIMIT 1")
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{path} cannot be used: {error}.\nDelete it (it only saves time), or write elsewhere: --out DIR."
            ) from error

    def get(self, key: bytes) -> Look | None:
        """What was seen, without the sketch's bytes (`sketch` is b"1" where there is one)."""
        sketch = "CASE WHEN length(sketch) THEN x'31' ELSE x'' END"
        query = f"SELECT flags, height, width, digest, dhash, {sketch}, detail FROM looks WHERE key = ?"
        row = self.base.execute(query, (key,)).fetchone()
        return None if row is None else Look(*row)

    def put(self, looks: dict[bytes, Look]) -> None:
        """Keep what was seen: all of it, or, after a kill, nothing. Raises UserError where the disk is full."""
        self._write(
            "INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(key, *seen) for key, seen in looks.items()],
        )

    def sketches(self, keys: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """In the order of `keys`: sketches, uint8 (M, SKETCH * SKETCH * 3), and short sides in pixels (M,); zeros where there is none."""
        held, side = np.zeros((len(keys), SKETCH * SKETCH * 3), np.uint8), np.zeros(len(keys), np.int64)
        for row, key in enumerate(keys):
            found = self.base.execute("SELECT sketch, min(height, width) FROM looks WHERE key = ?", (key,)).fetchone()
            if found and len(found[0]) == held.shape[1]:
                held[row], side[row] = np.frombuffer(found[0], np.uint8), found[1]
        return held, side

    def thumbnail(self, key: bytes, make: Callable[[], bytes]) -> bytes:
        """The JPEG kept under `key`; made, and kept, where there is none yet."""
        found = self.base.execute("SELECT jpeg FROM thumbnails WHERE key = ?", (key,)).fetchone()
        if found:
            return found[0]
        jpeg = make()
        self._write("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", [(key, jpeg)])
        return jpeg

    def close(self) -> None:
        self.base.close()

    def _write(self, query: str, rows: list[tuple]) -> None:
        try:
            with self.base:
                self.base.executemany(query, rows)
        except sqlite3.Error as error:
            hint = "Free some space (`df -h`), or write elsewhere: --out DIR."
            raise UserError(f"{self.path} cannot be written: {error}.\n{hint} What was seen so far is kept.") from error


@dataclass
class Scan:
    """What was seen of the N images of all lists, which are counted through: list 0's first, then list 1's, …"""

    lists: list[FileList]
    first: NDArray[np.int64]  # (lists + 1,): where each list begins
    key: NDArray[np.uint8]  # (N, KEY_BYTES), zeros where there is no file
    flags: NDArray[np.uint32]
    digest: NDArray[np.int64]  # 0 where nothing was read
    dhash: NDArray[np.int64]
    comparable: NDArray[np.bool_]  # has a sketch
    label: NDArray[np.int32]  # -1 in a list without labels
    max_pixels: int = MAX_PIXELS  # an image with more is not decoded
    details: dict[int, str] = field(default_factory=dict)
    read: int = 0  # files looked at in this run
    known: int = 0  # lines whose file the store knew, or that repeat an earlier line

    def which(self, image: int) -> tuple[int, int]:
        """The list of image `image`, and its index there."""
        place = int(np.searchsorted(self.first, image, side="right")) - 1
        return place, image - int(self.first[place])

    def path(self, image: int) -> str:
        """The path of image `image`."""
        place, index = self.which(image)
        return self.lists[place].path(index)

    def line(self, image: int) -> int:
        """Its line in its list."""
        place, index = self.which(image)
        return int(self.lists[place].line[index])

    def list_of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The list of each of `images`."""
        return np.searchsorted(self.first, images, side="right") - 1


def scan(lists: list[FileList], store: Store, workers: int, max_pixels: int = MAX_PIXELS) -> Scan:
    """Look at every file that the store does not know; the rest costs a question to the file system."""
    first = np.concatenate([[0], np.cumsum([len(files) for files in lists])]).astype(np.int64)
    count = int(first[-1])
    seen = Scan(
        lists,
        first,
        np.zeros((count, KEY_BYTES), np.uint8),
        np.zeros(count, np.uint32),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, bool),
        np.concatenate([files.label for files in lists]),
        max_pixels,
    )
    pool = ThreadPoolExecutor(workers)
    try:
        with progress(None, "looking at images", count) as bar:
            for images, paths in _spans(seen):
                _scan_span(seen, store, pool, images, paths)
                bar.update(len(images))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the images in hand, not for the span
    return seen


def _spans(seen: Scan) -> Iterator[tuple[range, list[str]]]:
    for place, files in enumerate(seen.lists):
        begin = int(seen.first[place])
        for start in range(0, len(files), SPAN):
            end = min(start + SPAN, len(files))
            yield range(begin + start, begin + end), [files.path(index) for index in range(start, end)]


def _scan_span(seen: Scan, store: Store, pool: ThreadPoolExecutor, images: range, paths: list[str]) -> None:
    identify = partial(inspection.identify, max_pixels=seen.max_pixels)
    look_at = partial(inspection.look, max_pixels=seen.max_pixels)
    pieces = [paths[k : k + PIECE] for k in range(0, len(paths), PIECE)]
    states = [state for piece in pool.map(lambda piece: [identify(path) for path in piece], pieces) for state in piece]
    looks: dict[bytes, Look | None] = {state: store.get(state) for state in states if isinstance(state, bytes)}
    fresh = {
        state: path
        for state, path in zip(states, paths, strict=True)
        if isinstance(state, bytes) and looks[state] is None
    }
    new = dict(zip(fresh, pool.map(look_at, fresh.values()), strict=True))
    if new:
        store.put(new)
    looks.update(new)
    seen.read += len(new)
    for image, state in zip(images, states, strict=True):
        look = looks[state] if isinstance(state, bytes) else state
        assert look is not None
        if isinstance(state, bytes):
            seen.key[image] = np.frombuffer(state, np.uint8)
        seen.flags[image], seen.digest[image], seen.dhash[image] = look.flags, look.digest, look.dhash
        seen.comparable[image] = bool(look.sketch)
        if look.detail:
            seen.details[image] = look.detail
    seen.known += sum(isinstance(state, bytes) for state in states) - len(new)


def default_workers() -> int:
    """Threads: one a core, and some for the disk."""
    return max(4, os.cpu_count() or 1)
