"""A cache that makes the second epoch nearly free: each image once, at the least size that the transforms can need.

    --cache disk:/fast/cache        one SQLite file, shared by runs and projects, and kept between them
    --cache ram                     the same, in memory, for this run

An entry is keyed by absolute path, size and time of the file and by how it was encoded, so a changed image gets a new
one. Entries are written whole or not at all, and a build that was killed continues where it was. An image that cannot
be read has no entry: it is read from its file, and fails there, as without a cache.
"""

import argparse
import hashlib
import os
import sqlite3
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from dataloader.decode import Image, Need, scaled, whole
from dataloader.file_list import FileList
from dataloader.reader import Files
from dataloader.stores import Disk, Ram
from utils import faults
from utils.errors import ImageError, UserError
from utils.logger import format_count, log, progress

HEADER = struct.Struct("<IIHH")  # full height and width, then those of the entry
KEY_BYTES = 16
SPAN = 256  # entries a transaction: what a kill can lose
PROBE = 64  # images encoded to foretell the size
MARGIN = 1.2  # of the forecast: pages are filled in part, and sizes vary


@dataclass(frozen=True)
class Encoding:
    """How an entry is kept: short side at most `size` pixels; "jpeg" of `quality`, or "raw" uint8."""

    size: int
    format: str
    quality: int

    def encode(self, image: Image, full: tuple[int, int]) -> bytes:
        """The entry of an image that was decoded to `image` and is `full` (height, width) in its file."""
        height, width = image.shape[:2]
        shrink = min(1.0, self.size / min(height, width))
        if shrink < 1:
            image = cv2.resize(
                image, (max(1, round(width * shrink)), max(1, round(height * shrink))), interpolation=cv2.INTER_AREA
            )
        image = np.ascontiguousarray(image)
        head = HEADER.pack(*full, *image.shape[:2])
        if self.format == "raw":
            return head + image.tobytes()
        return head + simplejpeg.encode_jpeg(image, quality=self.quality, colorspace="RGB", colorsubsampling="420")

    def decode(self, entry: Any, need: Need) -> tuple[Image, tuple[int, int]]:
        """What `encode` was given: the image, perhaps smaller, and its full size."""
        height, width, h, w = HEADER.unpack_from(entry)
        body = memoryview(entry)[HEADER.size :]
        if self.format == "raw":
            return np.frombuffer(body, np.uint8).reshape(h, w, 3), (height, width)
        factor = need(height, width) * max(height / h, width / w)
        return simplejpeg.decode_jpeg(body, "RGB", **scaled(h, w, factor)), (height, width)

    def need(self, height: int, width: int) -> float:
        """The share of an image's size that an entry holds."""
        return min(1.0, self.size / min(height, width))


class Cached:
    """Reads entries of a store, and files where it has none."""

    def __init__(self, files: Files, keys: NDArray[np.uint8], store: Ram | Disk, encoding: Encoding) -> None:
        self.files, self.keys, self.store, self.encoding = files, keys, store, encoding

    def read(self, index: int, need: Need = whole) -> tuple[Image, tuple[int, int]]:
        """See Reader."""
        entry = self.store.get(index, self.keys[index].tobytes())
        if entry is None or pixels(entry) > self.files.max_pixels:  # a run with another limit may have kept it
            return self.files.read(index, need)
        return self.encoding.decode(entry, need)


def pixels(entry: Any) -> int:
    """How many pixels the file of an entry has."""
    height, width, _, _ = HEADER.unpack_from(entry)
    return height * width


def open_reader(files: FileList, opt: argparse.Namespace, side: int) -> Files | Cached:
    """The reader that --cache asks for; builds what is missing of the cache, with a progress bar.

    Args:
        side: the short side, in pixels, that what is done with the images can need; --cache_size overrides it.

    Raises:
        UserError: there is not enough room (the message says how much it would take), or the cache cannot be written.
    """
    source = Files(files, opt.max_pixels)
    if opt.cache == "none":
        return source
    encoding = Encoding(opt.cache_size or side, opt.cache_format, opt.cache_quality)
    keys = entry_keys(files, encoding)
    try:
        store = Ram(len(files)) if opt.cache == "ram" else Disk(Path(opt.cache.removeprefix("disk:")))
        build(source, keys, store, encoding)
        store.close()
    except sqlite3.Error as error:
        raise UserError(
            f"The cache {opt.cache} cannot be written: {error}.\n"
            "Make room there (`df -h`), put it elsewhere (--cache disk:DIR), or leave --cache out."
        ) from error
    return Cached(source, keys, store, encoding)


def entry_keys(files: FileList, encoding: Encoding) -> NDArray[np.uint8]:
    """Return uint8 (N, 16): a hash of each file's absolute path, size and time, and of the encoding."""
    here, salt = str(Path.cwd()), repr(encoding).encode()  # os.path.abspath asks for the folder each time

    def keys_of(first: int) -> bytes:
        parts = []
        for index in range(first, min(first + 4096, len(files))):
            path = files.path(index)
            try:
                status = faults.status(path)
                stamp = f"\0{status.st_size}\0{status.st_mtime_ns}\0"
            except (OSError, ValueError):  # ValueError: a zero byte in the path
                stamp = "\0missing\0"
            name = os.fsencode(os.path.normpath(os.path.join(here, path)))
            parts.append(hashlib.blake2b(name + stamp.encode() + salt, digest_size=KEY_BYTES).digest())
        return b"".join(parts)

    with ThreadPoolExecutor(16) as pool:
        spans = range(0, len(files), 4096)
        joined = b"".join(
            progress(pool.map(keys_of, spans), f"looking at the files of {files.source.name}", len(spans))
        )
    return np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES)


def build(source: Files, keys: NDArray[np.uint8], store: Ram | Disk, encoding: Encoding) -> None:
    """Encode what the store lacks, in threads (decoding, resizing and encoding let go of the GIL)."""
    files, lacking = source.files, store.lacking(keys)
    if not lacking:
        log.info(f"The cache holds all {len(files)} images of {files.source}.")
        return
    _check_room(source, lacking, store, encoding)
    done = 0
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(None, f"caching {files.source.name}", len(lacking)) as bar,
    ):
        for first in range(0, len(lacking), SPAN):
            span = lacking[first : first + SPAN]
            bodies = pool.map(lambda index: _encode(source, index, encoding), span)
            entries = [
                (index, keys[index].tobytes(), body)
                for index, body in zip(span, bodies, strict=True)
                if body is not None
            ]
            store.put(entries)
            done += len(entries)
            bar.update(len(span))
    unread = len(lacking) - done
    log.info(f"Cached {done} images of {files.source}" + (f"; {unread} could not be read." if unread else "."))


def _encode(source: Files, index: int, encoding: Encoding) -> bytes | None:
    try:
        return encoding.encode(*source.read(index, encoding.need))
    except ImageError:
        return None  # met again, and named, when a batch wants it


def _check_room(source: Files, lacking: list[int], store: Ram | Disk, encoding: Encoding) -> None:
    probe = [lacking[k] for k in np.linspace(0, len(lacking) - 1, min(PROBE, len(lacking))).astype(int)]
    sizes = [len(entry) for entry in (_encode(source, index, encoding) for index in probe) if entry is not None]
    wanted = MARGIN * len(lacking) * (float(np.mean(sizes)) if sizes else 0)
    what = f"{format_count(len(lacking))} images of {encoding.size} px as {encoding.format}"
    log.info(f"Caching {what}: about {wanted / 1e9:.2f} GB of {store.room() / 1e9:.1f} GB that are free.")
    if wanted > 0.95 * store.room():
        raise UserError(
            f"The cache of {what} takes about {wanted / 1e9:.1f} GB, and {store.room() / 1e9:.1f} GB are free.\n"
            "Make it smaller (--cache_size, --cache_format jpeg, --cache_quality), put it elsewhere (--cache disk:DIR), or do without."
        )
