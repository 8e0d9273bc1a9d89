"""A cache of decoded images, each kept once at the smallest size that the transforms can need.

    --cache disk:/fast/cache        one SQLite file, shared by runs and projects, and kept between them
    --cache ram                     the same, in memory, for this run

The key of an entry is the file's absolute path, size and modification time, and the encoding; a changed image
therefore gets a new entry. Entries are written whole or not at all, and an interrupted build continues at the next
start. An image that cannot be read has no entry: the run reads its file and meets the error there, as without a cache.
Nor has one with a side that is too long for an entry.
"""

import hashlib
import os
import sqlite3
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from dataloader.decode import MAX_PIXELS, Image, ScaleFn, full_size, jpeg_size_args, shrink
from dataloader.file_list import FileList
from dataloader.reader import FileReader
from dataloader.stores import MemoryStore, SqliteStore
from options.wording import count_of
from utils import faults
from utils.cores import usable_cores
from utils.errors import ImageError, UserError
from utils.logger import format_count, log, progress

HEADER = struct.Struct("<IIHH")  # full height and width, then those of the entry
MAX_SIDE = 65_500  # pixels: the limit of libjpeg; the header could hold 65,535
KEY_BYTES = 16
TRANSACTION_SIZE = 256  # entries: what a kill can lose
SAMPLE_SIZE = 64  # images encoded to predict the size of the cache
SIZE_MARGIN = 1.2  # of the prediction: pages are partly filled, and sizes vary
MAX_DISK_SHARE = 0.95  # of the free bytes
KEY_CHUNK = 4096  # keys computed together

Store = MemoryStore | SqliteStore
Body = bytes | memoryview


@dataclass(frozen=True)
class CacheConfig:
    """Where and how images are cached.

    Attributes:
        location: "none", "ram" or "disk:<folder>".
        size: the short side in pixels; None: what the transforms need.
        format: "jpeg" of `quality` (1 to 100), or "raw".
    """

    location: str = "none"
    size: int | None = None
    format: str = "jpeg"
    quality: int = 95


@dataclass(frozen=True)
class Encoding:
    """How an entry is kept: its short side at most `size` pixels, as "jpeg" of `quality` or "raw" uint8."""

    size: int
    format: str
    quality: int

    def encode(self, image: Image, full: tuple[int, int]) -> bytes | None:
        """Return the entry of an image, decoded to `image` from `full` (height, width); None: a side is too long."""
        image = np.ascontiguousarray(shrink(image, self.size / min(image.shape[:2])))
        if max(image.shape) > MAX_SIDE:
            return None
        head = HEADER.pack(*full, *image.shape[:2])
        if self.format == "raw":
            return head + image.tobytes()
        return head + simplejpeg.encode_jpeg(image, quality=self.quality, colorspace="RGB", colorsubsampling="420")

    def decode(self, entry: Body, scale_fn: ScaleFn) -> tuple[Image, tuple[int, int]]:
        """Return the image of an entry, perhaps smaller than it was encoded, and its full size."""
        height, width, entry_height, entry_width = HEADER.unpack_from(entry)
        body = memoryview(entry)[HEADER.size :]
        if self.format == "raw":
            return np.frombuffer(body, np.uint8).reshape(entry_height, entry_width, 3), (height, width)
        scale = scale_fn(height, width) * max(height / entry_height, width / entry_width)
        return simplejpeg.decode_jpeg(body, "RGB", **jpeg_size_args(entry_height, entry_width, scale)), (height, width)

    def target_scale(self, height: int, width: int) -> float:
        """Return the scale at which an entry holds an image of this full size: a ScaleFn."""
        return min(1.0, self.size / min(height, width))


class CachedReader:
    """Reads the entries of a store, and the file of an image that has none."""

    def __init__(self, files: FileReader, keys: NDArray[np.uint8], store: Store, encoding: Encoding) -> None:
        """`keys`: uint8 (N, 16), as `entry_keys` returns them."""
        self.files, self.keys, self.store, self.encoding = files, keys, store, encoding

    def read(self, index: int, scale_fn: ScaleFn = full_size) -> tuple[Image, tuple[int, int]]:
        """Return an image and its full size, as dataloader.reader.Reader says."""
        entry = self.store.get(index, self.keys[index].tobytes())
        if entry is None or full_pixels(entry) > self.files.max_pixels:  # a run with another limit may have written it
            return self.files.read(index, scale_fn)
        return self.encoding.decode(entry, scale_fn)


def full_pixels(entry: Body) -> int:
    """Return how many pixels the file of an entry has."""
    height, width, _, _ = HEADER.unpack_from(entry)
    return height * width


def build_reader(
    files: FileList, cache: CacheConfig, min_source_side: int, max_pixels: int = MAX_PIXELS
) -> FileReader | CachedReader:
    """Return a reader of the listed images; with a cache, first add the missing entries, with a progress bar.

    Args:
        min_source_side: the short side, in pixels, that the transforms can need; `cache.size` overrides it.
        max_pixels: the most pixels of a readable image.

    Raises:
        UserError: the cache does not fit (the message says how much it takes), or cannot be written.
    """
    source = FileReader(files, max_pixels)
    if cache.location == "none":
        return source
    encoding = Encoding(cache.size or min_source_side, cache.format, cache.quality)
    if encoding.size < min_source_side:
        log.warning(
            f"--cache_size {encoding.size} is less than the {min_source_side} px that {files.source.name} needs here: "
            "images lose detail, and scores are others than without the cache. Try: leave --cache_size out"
        )
    keys = entry_keys(files, encoding)
    try:
        in_memory = cache.location == "ram"
        store = MemoryStore(len(files)) if in_memory else SqliteStore(Path(cache.location.removeprefix("disk:")))
        add_missing(source, keys, store, encoding)
        store.close()
    except sqlite3.Error as error:
        raise UserError(
            f"The cache {cache.location} cannot be written: {error}.\n"
            "Free space there (`df -h`), use another folder (--cache disk:DIR), or leave --cache out."
        ) from error
    return CachedReader(source, keys, store, encoding)


def entry_keys(files: FileList, encoding: Encoding) -> NDArray[np.uint8]:
    """Return uint8 (N, 16): a hash of each file's absolute path, size and modification time, and of the encoding."""
    here, salt = str(Path.cwd()), repr(encoding).encode()  # os.path.abspath would ask for the folder each time

    def keys_from(first: int) -> bytes:
        keys = []
        for index in range(first, min(first + KEY_CHUNK, len(files))):
            path = files.path(index)
            try:
                status = faults.stat(path)
                stamp = f"\0{status.st_size}\0{status.st_mtime_ns}\0"
            except (OSError, ValueError):  # ValueError: a zero byte in the path
                stamp = "\0missing\0"
            name = os.fsencode(os.path.normpath(os.path.join(here, path)))
            keys.append(hashlib.blake2b(name + stamp.encode() + salt, digest_size=KEY_BYTES).digest())
        return b"".join(keys)

    with ThreadPoolExecutor(16) as pool:
        starts = range(0, len(files), KEY_CHUNK)
        chunks = progress(pool.map(keys_from, starts), f"examining the files of {files.source.name}", len(starts))
        joined = b"".join(chunks)
    return np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES)


def add_missing(source: FileReader, keys: NDArray[np.uint8], store: Store, encoding: Encoding) -> None:
    """Encode the images that the store lacks, in threads: decoding, resizing and encoding release the GIL.

    Args:
        keys: uint8 (N, 16), one for each image of `source`, as `entry_keys` gives them.

    Raises:
        UserError: the entries do not fit.
    """
    files, missing = source.files, store.missing(keys)
    if not missing:
        log.info(f"The cache holds all {len(files)} images of {files.source}.")
        return
    _check_space(source, missing, store, encoding)
    written = 0
    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        progress(None, f"caching {files.source.name}", len(missing)) as bar,
    ):
        for first in range(0, len(missing), TRANSACTION_SIZE):
            chunk = missing[first : first + TRANSACTION_SIZE]
            bodies = pool.map(lambda index: _encode(source, index, encoding), chunk)
            pairs = zip(chunk, bodies, strict=True)
            entries = [(index, keys[index].tobytes(), body) for index, body in pairs if body is not None]
            store.put(entries)
            written += len(entries)
            bar.update(len(chunk))
    left = len(missing) - written
    rest = f"; {left} have no entry: they cannot be read, or a side is over {MAX_SIDE:,} px." if left else "."
    log.info(f"Cached {count_of(written, 'image')} of {files.source}{rest}")


def _encode(source: FileReader, index: int, encoding: Encoding) -> bytes | None:
    """Return the entry of an image; None where it has none, so that a batch reads its file, or reports the error."""
    try:
        return encoding.encode(*source.read(index, encoding.target_scale))
    except ImageError:
        return None


def _check_space(source: FileReader, missing: list[int], store: Store, encoding: Encoding) -> None:
    """Raise UserError where the missing entries do not fit, as a sample of them predicts."""
    places = np.linspace(0, len(missing) - 1, min(SAMPLE_SIZE, len(missing))).astype(int)
    entries = (_encode(source, missing[place], encoding) for place in places.tolist())
    sizes = [len(entry) for entry in entries if entry is not None]
    wanted = SIZE_MARGIN * len(missing) * (float(np.mean(sizes)) if sizes else 0)
    images = f"{format_count(len(missing))} images of {encoding.size} px as {encoding.format}"
    free = store.free_bytes()
    log.info(f"Caching {images}: about {wanted / 1e9:.2f} GB; {free / 1e9:.1f} GB are free.")
    if wanted > MAX_DISK_SHARE * free:
        raise UserError(
            f"The cache of {images} takes about {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.\n"
            "Make it smaller (--cache_size, --cache_format jpeg, --cache_quality), "
            "use another folder (--cache disk:DIR), or leave --cache out."
        )
