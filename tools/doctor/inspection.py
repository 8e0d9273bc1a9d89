"""Inspect one file: whether training can read it, what is unusual, and a fingerprint of its content.

`identify` asks the file system alone; `inspect_file` reads and decodes. Both open regular files only, so a pipe or a
device in a list cannot block them.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path, PurePath
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.decode import MAX_PIXELS, Image, decode
from tools.doctor.findings import MASKS
from utils import faults
from utils.errors import ImageError

VERSION = 3  # part of the key: if `inspect_file` changes, every file is read again
KEY_BYTES = 16
MAX_FILE_BYTES = 1 << 31
MAX_ASPECT = 20
SMALL = 64  # pixels; short side for fingerprints, for which JPEGs decode at an eighth or more
SKETCH = 12  # side of the sketch, in pixels
MIN_SKETCH_STD = 3.0  # levels; below, a sketch is too plain to be compared
MAX_FLAT_LEVELS = 2  # of 255; an image of one colour varies by no more in any channel
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
KNOWN_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}


class FileInfo(NamedTuple):
    """What is kept of a file. `flags`: bits of MASKS; `digest` and `dhash`: int64, 0 if there is none."""

    flags: int = 0
    height: int = 0
    width: int = 0
    digest: int = 0  # 64 bits of BLAKE2b over the bytes
    dhash: int = 0  # 64-bit difference hash
    sketch: bytes = b""  # SKETCH x SKETCH x 3 uint8 RGB; empty if the image is too plain to be compared, or unreadable
    detail: str = ""


def identify(path: str, max_pixels: int = MAX_PIXELS) -> bytes | FileInfo:
    """Return the key of a file's state (path, size, time, limit), KEY_BYTES long, or a FileInfo if there is none."""
    try:
        status = faults.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        with contextlib.suppress(OSError, ValueError):  # no link, or a name that no file can have
            return FileInfo(MASKS["dangling_link"], detail=f"it points to {Path(path).readlink()}")
        absent = isinstance(error, FileNotFoundError)
        return FileInfo(MASKS["missing"], detail="" if absent else getattr(error, "strerror", None) or str(error))
    if not stat.S_ISREG(status.st_mode):
        return FileInfo(MASKS["not_a_file"], detail=f"it is {_kind(status.st_mode)}")
    if status.st_size == 0:
        return FileInfo(MASKS["empty"])
    state = f"\0{status.st_size}\0{status.st_mtime_ns}\0{VERSION}\0{max_pixels}".encode()
    return hashlib.blake2b(os.fsencode(path) + state, digest_size=KEY_BYTES).digest()


def inspect_file(path: str, max_pixels: int = MAX_PIXELS) -> FileInfo:
    """Read the file, and decode it if it has at most `max_pixels`. Problems of the file are returned, not raised.

    Raises:
        MachineFault: the machine failed repeatedly; see utils.faults.
    """
    return faults.with_retries(lambda: _inspect(path, max_pixels), path)


def _inspect(path: str, max_pixels: int) -> FileInfo:
    try:
        data = _read(path)
    except OSError as error:
        if faults.is_machine_fault(error):
            raise
        return FileInfo(MASKS["unreadable"], detail=error.strerror or str(error))
    if data is None:
        return FileInfo(MASKS["too_large"], detail=f"over {MAX_FILE_BYTES >> 30} GiB: not read")
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True) or 1
    kind = sniff(data)
    flags = MASKS["wrong_extension"] if kind and not _suffix_fits(path, kind) else 0
    try:
        image, (height, width) = decode(data, lambda high, wide: min(1.0, SMALL / max(1, min(high, wide))), max_pixels)
    except ImageError as error:
        name, detail = _classify(data, kind, str(error), max_pixels)
        return FileInfo(flags | MASKS[name], digest=digest, detail=detail)
    except cv2.error as error:
        if faults.is_machine_fault(error):
            raise
        return FileInfo(flags | MASKS["unreadable"], digest=digest, detail=type(error).__name__)
    flags |= MASKS["tiny"] * (min(height, width) < 2)
    flags |= MASKS["extreme_aspect"] * (max(height, width) > MAX_ASPECT * min(height, width))
    if _flat(image) and _flat(image if image.shape[:2] == (height, width) else decode(data, max_pixels=max_pixels)[0]):
        return FileInfo(
            flags | MASKS["one_colour"], height, width, digest, detail=f"all pixels are about {_colour(image)}"
        )
    dhash, sketch = fingerprint(image)
    return FileInfo(
        flags, height, width, digest, dhash, sketch, f"it is a {kind}" if flags & MASKS["wrong_extension"] else ""
    )


def fingerprint(image: Image) -> tuple[int, bytes]:
    """Return dHash (int64) and sketch of an RGB image; the sketch is empty if the image is too plain to be compared.

    A bit of dHash (Krawetz, 2013) says whether a cell is darker than its right neighbour, in 8 rows of 9 cells. A
    difference of one level does not count, so the noise of a white background sets no bits.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(cells[:, 1:] - cells[:, :-1] > 1)
    sketch = cv2.resize(image, (SKETCH, SKETCH), interpolation=cv2.INTER_AREA)
    return int.from_bytes(bits.tobytes(), "big", signed=True), sketch.tobytes() if float(
        sketch.std()
    ) >= MIN_SKETCH_STD else b""


def similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the correlation of sketches, uint8 (M, SKETCH * SKETCH * 3) each, as float32 (M,) from -1 to 1.

    Brightness and contrast cancel out. Colours do not, as one mean is taken over all channels.
    """
    a, b = (side.astype(np.float32) for side in (first, second))
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    return (a * b).sum(axis=1) / np.sqrt(np.maximum((a * a).sum(axis=1) * (b * b).sum(axis=1), 1e-6))


def sniff(data: bytes) -> str:
    """Return the format by the first bytes, a key of SUFFIXES, or ""."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    heads = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG": "PNG",
        b"GIF8": "GIF",
        b"BM": "BMP",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
    }
    return next((kind for head, kind in heads.items() if data.startswith(head)), "")


def _read(path: str) -> bytes | None:
    """Return the bytes, or None if the file is too large. A pipe that has taken the file's place does not block."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb", buffering=0) as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("no longer a regular file")
        return None if status.st_size > MAX_FILE_BYTES else file.readall()


def _classify(data: bytes, kind: str, complaint: str, max_pixels: int) -> tuple[str, str]:
    """Return the name of the problem and a detail, for an image that does not decode."""
    if f"over {max_pixels} pixels" in complaint or "DecompressionBomb" in complaint:
        return "too_large", f"over {max_pixels} pixels"
    if "cannot identify" in complaint and not kind:
        return "unreadable", "not a known image format"
    if "cannot identify" in complaint:  # Pillow's message contains an address that differs between runs
        complaint = f"the {kind}'s header is damaged"
    return ("truncated" if _cut_short(data, kind) or "truncated" in complaint.lower() else "unreadable"), complaint


def _cut_short(data: bytes, kind: str) -> bool:
    """Return whether the end marker of the format is missing."""
    if kind == "WebP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind == "JPEG":  # cameras and servers append a few bytes; a cut file may end in zeros
        return b"\xff\xd9" not in data[-4096:]
    end = {"PNG": b"IEND", "GIF": b"\x3b"}.get(kind)
    return end is not None and end not in data[-16:]


def _suffix_fits(path: str, kind: str) -> bool:
    suffix = PurePath(path).suffix.lower()
    return suffix in SUFFIXES[kind] or suffix not in KNOWN_SUFFIXES


def _flat(image: Image) -> bool:
    lowest, highest = (np.asarray(edge(image, axis=(0, 1))) for edge in (np.min, np.max))
    return int((highest.astype(int) - lowest).max()) <= MAX_FLAT_LEVELS


def _colour(image: Image) -> str:
    return "#{:02x}{:02x}{:02x}".format(*np.median(image.reshape(-1, 3), axis=0).astype(int).tolist())


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
