"""Inspect each file of all lists once, in threads, and keep the results in SQLite for later runs.

Memory is about 50 bytes per image; sketches stay on disk until a pair is compared.
"""

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
from dataloader.targets import as_text
from tools.doctor import inspection
from tools.doctor.inspection import KEY_BYTES, SKETCH, FileInfo
from utils.cores import usable_cores
from utils.errors import UserError
from utils.logger import progress

TRANSACTION_FILES = 512  # the most that an interruption can lose
FILES_PER_TASK = 32  # if only the file system is asked
TABLES = """
CREATE TABLE IF NOT EXISTS looks (
    key BLOB PRIMARY KEY, flags INTEGER, height INTEGER, width INTEGER, digest INTEGER, dhash INTEGER, sketch BLOB,
    detail TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS thumbnails (key BLOB PRIMARY KEY, jpeg BLOB) WITHOUT ROWID;
"""


class Store:
    """Keep FileInfo per state (path, size, time) of a file in doctor.sqlite."""

    def __init__(self, path: Path) -> None:
        """Open or create the database. Raise UserError if it is no database, or cannot be written."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.base = sqlite3.connect(path, timeout=60)
            self.base.execute("PRAGMA synchronous = NORMAL")
            self.base.executescript(TABLES)
            self.base.execute("SELECT key, flags, height, width, digest, dhash, sketch, detail FROM looks LIMIT 1")
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{path} cannot be used: {error}.\nTry: delete it (it only saves time), or --out with another folder."
            ) from error

    def get(self, key: bytes) -> FileInfo | None:
        """Return what is known of a file, without the bytes of its sketch: `sketch` is b"1" if there is one."""
        sketch = "CASE WHEN length(sketch) THEN x'31' ELSE x'' END"
        query = f"SELECT flags, height, width, digest, dhash, {sketch}, detail FROM looks WHERE key = ?"
        row = self.base.execute(query, (key,)).fetchone()
        return None if row is None else FileInfo(*row)

    def put(self, looks: dict[bytes, FileInfo]) -> None:
        """Write all of `looks` in one transaction. Raise UserError if the disk is full."""
        self._write(
            "INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(key, *seen) for key, seen in looks.items()],
        )

    def sketches(self, keys: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return sketches, uint8 (M, SKETCH * SKETCH * 3), and short sides (M,) in pixels; zeros for missing ones."""
        held, side = np.zeros((len(keys), SKETCH * SKETCH * 3), np.uint8), np.zeros(len(keys), np.int64)
        for row, key in enumerate(keys):
            found = self.base.execute("SELECT sketch, min(height, width) FROM looks WHERE key = ?", (key,)).fetchone()
            if found and len(found[0]) == held.shape[1]:
                held[row], side[row] = np.frombuffer(found[0], np.uint8), found[1]
        return held, side

    def thumbnail(self, key: bytes, make: Callable[[], bytes]) -> bytes:
        """Return the JPEG under `key`; if there is none yet, `make` and keep it."""
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
            hint = "Try: free some space (`df -h`), or --out with a folder elsewhere."
            raise UserError(f"{self.path} cannot be written: {error}.\n{hint} The results so far are kept.") from error


@dataclass
class Scan:
    """What is known of the N images of all lists; image numbers run through list 0, then list 1, …"""

    lists: list[FileList]
    first: NDArray[np.int64]  # (lists + 1,): the first image of each list
    key: NDArray[np.uint8]  # (N, KEY_BYTES), zeros if there is no file
    flags: NDArray[np.uint32]
    digest: NDArray[np.int64]  # 0 if nothing was read
    dhash: NDArray[np.int64]
    comparable: NDArray[np.bool_]  # has a sketch
    label: NDArray[np.int32]  # the class; a number for each set of labels, or of numbers; -1 in a list without labels
    max_pixels: int = MAX_PIXELS  # an image with more is not decoded
    details: dict[int, str] = field(default_factory=dict)
    read: int = 0  # files inspected in this run
    known: int = 0  # lines whose file was in the store, or that repeat an earlier line

    def which(self, image: int) -> tuple[int, int]:
        """Return the list of an image, and its index there."""
        list_number = int(np.searchsorted(self.first, image, side="right")) - 1
        return list_number, image - int(self.first[list_number])

    def path(self, image: int) -> str:
        """Return the path of an image."""
        list_number, index = self.which(image)
        return self.lists[list_number].path(index)

    def line(self, image: int) -> int:
        """Return the line of an image in its list."""
        list_number, index = self.which(image)
        return int(self.lists[list_number].line[index])

    def list_of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the list of each of `images`, int64."""
        return np.searchsorted(self.first, images, side="right") - 1


def scan(lists: list[FileList], store: Store, workers: int, max_pixels: int = MAX_PIXELS) -> Scan:
    """Inspect every file that is not in the store; of the others, only the state is asked for."""
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
        target_numbers(lists),
        max_pixels,
    )
    pool = ThreadPoolExecutor(workers)
    try:
        with progress(None, "inspecting images", count) as bar:
            for images, paths in _blocks(seen):
                _scan_block(seen, store, pool, images, paths)
                bar.update(len(images))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for running tasks only
    return seen


def target_numbers(lists: list[FileList]) -> NDArray[np.int32]:
    """Return a number for each image of all lists, int32 (N,), that is equal for images with equal targets.

    It is the class, where an image has one; -1 in a list without labels.
    """
    known: dict[str, int] = {}
    parts = []
    for files in lists:
        part = files.label
        if files.targets is not None:
            texts = (as_text(files.targets, index) for index in range(len(files)))
            part = np.fromiter((known.setdefault(text, len(known)) for text in texts), np.int32, len(files))
        parts.append(part)
    return np.concatenate(parts)


def _blocks(seen: Scan) -> Iterator[tuple[range, list[str]]]:
    for list_number, files in enumerate(seen.lists):
        begin = int(seen.first[list_number])
        for start in range(0, len(files), TRANSACTION_FILES):
            end = min(start + TRANSACTION_FILES, len(files))
            yield range(begin + start, begin + end), [files.path(index) for index in range(start, end)]


def _scan_block(seen: Scan, store: Store, pool: ThreadPoolExecutor, images: range, paths: list[str]) -> None:
    identify = partial(inspection.identify, max_pixels=seen.max_pixels)
    look_at = partial(inspection.inspect_file, max_pixels=seen.max_pixels)
    pieces = [paths[k : k + FILES_PER_TASK] for k in range(0, len(paths), FILES_PER_TASK)]
    states = [state for piece in pool.map(lambda piece: [identify(path) for path in piece], pieces) for state in piece]
    looks: dict[bytes, FileInfo | None] = {state: store.get(state) for state in states if isinstance(state, bytes)}
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
    """Return one thread per core, and at least four, for the disk."""
    return max(4, usable_cores())
