"""Bytes to RGB uint8: libjpeg-turbo for JPEG, at the smallest quick scale that serves; OpenCV, then Pillow for the rest.

Every image comes out as RGB (height, width, 3), upright (EXIF orientation applied), whatever it was: grey, palette,
alpha (over white), 16-bit or CMYK.
"""

import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
import simplejpeg

from utils.errors import ImageError

Image = cv2.typing.MatLike  # here always uint8 (H, W, 3), RGB
Need = Callable[[int, int], float]  # (height, width) of the upright image -> the smallest factor of its size that serves

MAX_PIXELS = 178_956_970  # Pillow warns of a decompression bomb above; it refuses twice as many
SCALES = (1, 2, 3, 4)  # eighths; the others are not vectorised: 5/8 to 7/8 take longer than decoding in full
PADDING = "extraneous bytes before marker 0xd9"  # after the whole picture, as some cameras leave them: no damage
TURNS = {
    2: (None, 1),
    3: (cv2.ROTATE_180, None),
    4: (None, 0),
    5: (cv2.ROTATE_90_CLOCKWISE, 1),
    6: (cv2.ROTATE_90_CLOCKWISE, None),
    7: (cv2.ROTATE_90_COUNTERCLOCKWISE, 1),
    8: (cv2.ROTATE_90_COUNTERCLOCKWISE, None),
}  # fmt: skip  (EXIF orientation: rotate, then flip)


STUBS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow opens them, but cannot decode them without another program


@cache
def image_suffixes() -> tuple[str, ...]:
    """Return the endings of file names, lower case with their dots, whose files `decode` reads: those of Pillow's decoders."""
    import PIL.Image

    names = PIL.Image.registered_extensions()
    return tuple(sorted(suffix for suffix, kind in names.items() if kind in PIL.Image.OPEN and kind not in STUBS))


def whole(height: int, width: int) -> float:
    """A Need: the image in full size."""
    return 1.0


def read_image(path: str, need: Need = whole, max_pixels: int = MAX_PIXELS) -> tuple[Image, tuple[int, int]]:
    """Read and decode the file at `path`; see `decode`. Raises ImageError, which names the path; never waits for a pipe."""
    try:
        data = _read(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ImageError(f"{path}: {getattr(error, 'strerror', error)}") from error
    try:
        return decode(data, need, max_pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def thumbnail(path: str, side: int, max_pixels: int = MAX_PIXELS) -> Image | None:
    """The image at `path`, for people to look at: its longer side is `side` pixels at most. None where it cannot be read."""
    try:
        image, _ = read_image(path, lambda height, width: min(1.0, side / max(height, width)), max_pixels)
    except (ImageError, cv2.error):
        return None
    height, width = image.shape[:2]
    shrink = min(1.0, side / max(height, width))
    return cv2.resize(image, (max(1, round(width * shrink)), max(1, round(height * shrink))), interpolation=cv2.INTER_AREA)


def _read(path: str) -> bytes:
    """The bytes of a regular file. Opened without waiting: a pipe that nobody writes to would hold a worker for ever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb", buffering=0) as file:  # a folder fails here, with the system's reason
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(None, "not a regular file")
        return file.readall()


def decode(data: bytes, need: Need = whole, max_pixels: int = MAX_PIXELS) -> tuple[Image, tuple[int, int]]:
    """Decode `data`.

    Args:
        need: given the upright image's height and width, the share of that size that serves, in (0, 1]; a JPEG is
            then decoded at the smallest of SCALES that is no smaller, which costs a fraction of the time.
        max_pixels: height times width of the full-size image at most; above, nothing is decoded.

    Returns:
        uint8 (h, w, 3) RGB, and the (height, width) of the upright image in full size.

    Raises:
        ImageError: not an image, cut short, or over `max_pixels`.
    """
    if not data:
        raise ImageError("the file is empty")
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(data, need, max_pixels)
    image = _decode_opencv(data, max_pixels)
    if image is None:
        image = _decode_pillow(data, max_pixels)
    return image, image.shape[:2]


def _decode_jpeg(data: bytes, need: Need, max_pixels: int) -> tuple[Image, tuple[int, int]]:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (KeyError, ValueError):  # damage, or sampling factors that TurboJPEG has no name for
        image = _decode_pillow(data, max_pixels)
        return image, image.shape[:2]
    _check_size(height, width, max_pixels)
    turn = orientation(data)
    size = (width, height) if turn >= 5 else (height, width)
    if colours not in ("YCbCr", "Gray", "RGB"):  # CMYK and YCCK
        return _decode_pillow(data, max_pixels), size
    least = scaled(height, width, need(*size))
    try:
        image = simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError as error:
        if PADDING not in str(error):
            raise ImageError(f"damaged JPEG ({error})") from error
        image = simplejpeg.decode_jpeg(data, "RGB", **least, strict=False)
    return _upright(image, turn), size


def scaled(height: int, width: int, factor: float) -> dict[str, int]:
    """What simplejpeg is asked for, so that a JPEG of that size has at least `factor` of it: the least size it may give."""
    eighths = next((eighths for eighths in SCALES if eighths / 8 >= factor), 8)
    return {"min_height": -(-height * eighths // 8), "min_width": -(-width * eighths // 8)}


def _decode_opencv(data: bytes, max_pixels: int) -> Image | None:
    """8-bit PNG, grey or RGB, that is whole; None for what OpenCV does not know, or would render otherwise than Pillow."""
    if data[:4] != b"\x89PNG" or not _plain_png(data):
        return None
    _check_size(*_png_size(data), max_pixels)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode_pillow(data: bytes, max_pixels: int) -> Image:
    """Anything Pillow opens: its first frame, alpha over white, 16 bits cut to 8."""
    import PIL.Image
    import PIL.ImageOps

    try:
        image: Any = PIL.Image.open(io.BytesIO(data))
        _check_size(image.height, image.width, max_pixels)
        image = PIL.ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey
            return np.repeat((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything
        raise ImageError(f"not a readable image ({type(error).__name__}: {re.sub('<[^>]*>', 'the file', str(error))})") from error


def orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 1 where there is none. Reads the few segments before the picture."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA or length < 2:
            return 1
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    return 1


def _exif_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
        for k in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, first + 2 + 12 * k)
            if tag == 0x0112 and kind == 3:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _upright(image: Image, turn: int) -> Image:
    if turn == 1:
        return image
    rotation, flip = TURNS[turn]
    if rotation is not None:
        image = cv2.rotate(image, rotation)
    return image if flip is None else cv2.flip(image, flip)


def _plain_png(data: bytes) -> bool:
    """Whole, sums right, 8-bit, grey or RGB, without transparency or orientation: OpenCV renders it as Pillow does."""
    if len(data) < 33 or data[24] != 8 or data[25] not in (0, 2):
        return False
    at, name, view = 8, b"", memoryview(data)
    while at + 12 <= len(data) and name != b"IEND":  # a chunk: length, name, body, checksum
        length, name = struct.unpack_from(">I4s", data, at)
        if name in (b"tRNS", b"eXIf"):
            return False
        if struct.unpack_from(">I", data, min(at + 8 + length, len(data) - 4))[0] != zlib.crc32(view[at + 4 : at + 8 + length]):
            return False  # Pillow will say so; libpng would print a line without the path
        at += 12 + length
    return name == b"IEND" and at <= len(data)


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(f"{width}x{height} is over {max_pixels} pixels: a decompression bomb? (the limit: --max_pixels)")
