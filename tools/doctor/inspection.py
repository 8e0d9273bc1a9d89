"""One file: can training read it, what is odd about it, and what does it look like in a few bytes.

`identify` asks the file system alone; `look` reads and decodes. Neither opens anything but a regular file, so a pipe or
a device in a list cannot make them wait.
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

VERSION = 2  # a change of what `look` finds must look at every file anew: part of the key
KEY_BYTES = 16
MAX_BYTES = 1 << 31  # a larger file is not read
MAX_ASPECT = 20
SMALL = 64  # short side, in pixels, that fingerprints are made from: JPEGs decode at an eighth or more
SKETCH = 12  # side of the sketch, in pixels
PLAIN = 3.0  # a sketch whose standard deviation is below: too plain to be told from others
LEVELS = 2  # an image whose every channel stays within so many of 255 levels is of one colour
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
KNOWN_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}


class Look(NamedTuple):
    """What is kept of a file. `flags`: bits of MASKS; digest and dhash int64, 0 where there is none."""

    flags: int = 0
    height: int = 0
    width: int = 0
    digest: int = 0  # 64 bits of BLAKE2b over the bytes
    dhash: int = 0  # 64-bit difference hash
    sketch: bytes = (
        b""  # SKETCH x SKETCH x 3 uint8 RGB; empty where the image is too plain to be compared, or unreadable
    )
    detail: str = ""


def identify(path: str, max_pixels: int = MAX_PIXELS) -> bytes | Look:
    """The key of the file's state (path, size, time, the limit), KEY_BYTES long; or a Look, where there is no file to be read."""
    try:
        status = faults.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        with contextlib.suppress(OSError, ValueError):  # no link, or a name that no file can have
            return Look(MASKS["dangling_link"], detail=f"it points to {Path(path).readlink()}")
        absent = isinstance(error, FileNotFoundError)
        return Look(MASKS["missing"], detail="" if absent else getattr(error, "strerror", None) or str(error))
    if not stat.S_ISREG(status.st_mode):
        return Look(MASKS["not_a_file"], detail=f"it is {_kind(status.st_mode)}")
    if status.st_size == 0:
        return Look(MASKS["empty"])
    state = f"\0{status.st_size}\0{status.st_mtime_ns}\0{VERSION}\0{max_pixels}".encode()
    return hashlib.blake2b(os.fsencode(path) + state, digest_size=KEY_BYTES).digest()


def look(path: str, max_pixels: int = MAX_PIXELS) -> Look:
    """Read the file, and decode it where it has at most `max_pixels`; never raises on account of the file.

    Raises:
        MachineFault: the machine failed, again and again; see utils.faults.
    """
    return faults.with_retries(lambda: _look(path, max_pixels), path)


def _look(path: str, max_pixels: int) -> Look:
    try:
        data = _read(path)
    except OSError as error:
        if faults.is_machine_fault(error):
            raise
        return Look(MASKS["unreadable"], detail=error.strerror or str(error))
    if data is None:
        return Look(MASKS["too_large"], detail=f"over {MAX_BYTES >> 30} GiB: not read")
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True) or 1
    kind = sniff(data)
    flags = MASKS["wrong_extension"] if kind and not _suffix_fits(path, kind) else 0
    try:
        image, (height, width) = decode(data, lambda high, wide: min(1.0, SMALL / max(1, min(high, wide))), max_pixels)
    except ImageError as error:
        name, detail = _classify(data, kind, str(error), max_pixels)
        return Look(flags | MASKS[name], digest=digest, detail=detail)
    except cv2.error as error:
        if faults.is_machine_fault(error):
            raise
        return Look(flags | MASKS["unreadable"], digest=digest, detail=type(error).__name__)
    flags |= MASKS["tiny"] * (min(height, width) < 2)
    flags |= MASKS["extreme_aspect"] * (max(height, width) > MAX_ASPECT * min(height, width))
    if _flat(image) and _flat(image if image.shape[:2] == (height, width) else decode(data, max_pixels=max_pixels)[0]):
        return Look(flags | MASKS["one_colour"], height, width, digest, detail=f"all of it is about {_colour(image)}")
    dhash, sketch = fingerprint(image)
    return Look(
        flags, height, width, digest, dhash, sketch, f"it is a {kind}" if flags & MASKS["wrong_extension"] else ""
    )


def fingerprint(image: Image) -> tuple[int, bytes]:
    """dHash (int64) and sketch of an RGB image; an empty sketch where it is too plain to be compared.

    dHash (Krawetz, 2013): is each cell of 8 rows of 9 darker than its right neighbour? A step of a level counts as none, so
    that the noise of a white background sets no bits.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(cells[:, 1:] - cells[:, :-1] > 1)
    sketch = cv2.resize(image, (SKETCH, SKETCH), interpolation=cv2.INTER_AREA)
    return int.from_bytes(bits.tobytes(), "big", signed=True), sketch.tobytes() if float(sketch.std()) >= PLAIN else b""


def likeness(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How alike sketches are, uint8 (M, SKETCH * SKETCH * 3) each: correlation, -1 to 1, float32 (M,).

    Brightness and contrast cancel out; colours do not, as one mean is taken over all channels.
    """
    a, b = (side.astype(np.float32) for side in (first, second))
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    return (a * b).sum(axis=1) / np.sqrt(np.maximum((a * a).sum(axis=1) * (b * b).sum(axis=1), 1e-6))


def sniff(data: bytes) -> str:
    """The format by the first bytes, a key of SUFFIXES; "" for others."""
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
    """The bytes; None for a file that is too large. Never waits: a pipe put in the file's place meanwhile reads as nothing."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb", buffering=0) as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("no longer a regular file")
        return None if status.st_size > MAX_BYTES else file.readall()


def _classify(data: bytes, kind: str, complaint: str, max_pixels: int) -> tuple[str, str]:
    """The problem's name and the detail to show, for an image that does not decode."""
    if f"over {max_pixels} pixels" in complaint or "DecompressionBomb" in complaint:
        return "too_large", f"over {max_pixels} pixels"
    if "cannot identify" in complaint and not kind:
        return "unreadable", "no image format that is known"
    if "cannot identify" in complaint:  # Pillow's message holds an address, which differs from run to run
        complaint = f"the {kind}'s header is damaged"
    return ("truncated" if _cut_short(data, kind) or "truncated" in complaint.lower() else "unreadable"), complaint


def _cut_short(data: bytes, kind: str) -> bool:
    """Whether the format's end is missing."""
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
    return int((highest.astype(int) - lowest).max()) <= LEVELS


def _colour(image: Image) -> str:
    return "#{:02x}{:02x}{:02x}".format(*np.median(image.reshape(-1, 3), axis=0).astype(int).tolist())


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
