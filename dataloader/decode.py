"""Bytes to RGB uint8: libjpeg-turbo for JPEG, at the smallest quick scale that serves; OpenCV, then Pillow for the rest.

Every image comes out as RGB (height, width, 3), upright (EXIF orientation applied), whatever it was: grey, palette,
alpha (over white), 16-bit or CMYK.
"""

import os
import re
import stat
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import NoReturn

import cv2
import numpy as np
import simplejpeg

from dataloader import jpeg, pillow
from utils import faults
from utils.errors import ImageError

Image = cv2.typing.MatLike  # here always uint8 (H, W, 3), RGB
Need = Callable[
    [int, int], float
]  # (height, width) of the upright image -> the smallest factor of its size that serves

MAX_PIXELS = 178_956_970  # Pillow warns of a decompression bomb above; it refuses twice as many
SCALES = (1, 2, 3, 4)  # eighths; the others are not vectorised: 5/8 to 7/8 take longer than decoding in full
PNG_ODD = (b"tRNS", b"eXIf", b"acTL")  # of an animation OpenCV takes another frame
PNG_TEXT, PNG_TURNS = (b"tEXt", b"zTXt", b"iTXt"), (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
TURNS = {
    2: (None, 1),
    3: (cv2.ROTATE_180, None),
    4: (None, 0),
    5: (cv2.ROTATE_90_CLOCKWISE, 1),
    6: (cv2.ROTATE_90_CLOCKWISE, None),
    7: (cv2.ROTATE_90_COUNTERCLOCKWISE, 1),
    8: (cv2.ROTATE_90_COUNTERCLOCKWISE, None),
}  # fmt: skip  (EXIF orientation: rotate, then flip)


STUBS = (
    "BUFR",
    "EPS",
    "GRIB",
    "HDF5",
    "MPEG",
    "WMF",
)  # Pillow opens them, but cannot decode them without another program


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
    """Read and decode the file at `path`; see `decode`. Never waits for a pipe; `need` may be asked again.

    Raises:
        ImageError: it cannot be read or decoded; the message names the path.
        MachineFault: the machine failed, again and again; see utils.faults.
    """
    try:
        return faults.patiently(lambda: decode(read_file(path), need, max_pixels), path)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except (OSError, ValueError, cv2.error) as error:  # ValueError: a zero byte in the path
        raise ImageError(f"{path}: {getattr(error, 'strerror', error)}") from error


def thumbnail(path: str, side: int, max_pixels: int = MAX_PIXELS) -> Image | None:
    """The image at `path`, for people to look at: its longer side is `side` pixels at most. None where it cannot be read."""
    try:
        image, _ = read_image(path, lambda height, width: min(1.0, side / max(height, width)), max_pixels)
    except ImageError:
        return None
    height, width = image.shape[:2]
    shrink = min(1.0, side / max(height, width))
    return cv2.resize(
        image, (max(1, round(width * shrink)), max(1, round(height * shrink))), interpolation=cv2.INTER_AREA
    )


def read_file(path: str) -> bytes:
    """Return the bytes of a regular file. Opened without waiting: a pipe that nobody writes to would hold a worker for ever.

    Raises:
        OSError, ValueError: it cannot be read; a zero byte in the path.
    """
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
    if colours not in ("YCbCr", "Gray", "RGB"):  # CMYK and YCCK
        _check_whole(data, jpeg.complaint_of(data))
        image = _decode_pillow(data, max_pixels)
        return image, image.shape[:2]
    try:
        turn = jpeg.orientation(data)
    except Exception as error:
        _refuse(error)
    size = (width, height) if turn >= 5 else (height, width)
    least = scaled(height, width, need(*size))
    try:
        image = simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError as error:
        _check_whole(data, str(error))
        try:
            image = simplejpeg.decode_jpeg(data, "RGB", **least, strict=False)
        except ValueError:  # TurboJPEG takes no warning of the header lightly
            return _decode_pillow(data, max_pixels), size
    return _upright(image, turn), size


def _check_whole(data: bytes, complaint: str) -> None:
    """Raise ImageError for a JPEG that is damaged; what libjpeg complains of may be odd alone."""
    if "memory" in complaint.lower():
        raise MemoryError(complaint)
    if complaint and not jpeg.is_whole(data, complaint):
        raise ImageError(f"damaged JPEG ({complaint})")


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
    """Anything Pillow opens: its first frame, upright, alpha over white, deep samples by their range (pillow.py)."""
    try:
        image = pillow.open_image(data)
        _check_size(image.height, image.width, max_pixels)
        packed = pillow.rawmode(image)
        image.load()
        turn = pillow.turn_of(image)
        pixels = pillow.to_rgb(image, data, packed)
    except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything
        _refuse(error)
    return _upright(pixels, turn)


def _refuse(error: Exception) -> NoReturn:
    """Raise the ImageError of what Pillow raised; a fault of the machine, or what is one already, stays what it is."""
    if isinstance(error, ImageError) or faults.is_fault(error):
        raise error
    raise ImageError(
        f"not a readable image ({type(error).__name__}: {re.sub('<[^>]*>', 'the file', str(error))})"
    ) from error


def _upright(image: Image, turn: int) -> Image:
    if turn == 1:
        return image
    rotation, flip = TURNS[turn]
    if rotation is not None:
        image = cv2.rotate(image, rotation)
    return image if flip is None else cv2.flip(image, flip)


def _plain_png(data: bytes) -> bool:
    """Whole, sums right, 8-bit, grey or RGB, still, without transparency or orientation: OpenCV renders it as Pillow does."""
    if len(data) < 33 or data[24] != 8 or data[25] not in (0, 2):
        return False
    at, name, view = 8, b"", memoryview(data)
    while at + 12 <= len(data) and name != b"IEND":  # a chunk: length, name, body, checksum
        length, name = struct.unpack_from(">I4s", data, at)
        if name in PNG_ODD or (name in PNG_TEXT and data.startswith(PNG_TURNS, at + 8)):
            return False
        if struct.unpack_from(">I", data, min(at + 8 + length, len(data) - 4))[0] != zlib.crc32(
            view[at + 4 : at + 8 + length]
        ):
            return False  # Pillow will say so; libpng would print a line without the path
        at += 12 + length
    return name == b"IEND" and at <= len(data)


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(
            f"{width}x{height} is over {max_pixels} pixels: a decompression bomb? (the limit: --max_pixels)"
        )
