"""Bytes to RGB uint8: libjpeg-turbo for JPEG at the smallest fast scale that suffices, else OpenCV, else Pillow.

Every image is returned as RGB (height, width, 3), upright (EXIF orientation applied), whatever it was: grey, palette,
alpha (over white), 16-bit or CMYK.
"""

import os
import re
import stat
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NoReturn

import cv2
import numpy as np
import simplejpeg

from dataloader import jpeg, pillow
from utils import faults
from utils.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image

Image = cv2.typing.MatLike  # here always uint8 (H, W, 3), RGB
ScaleFn = Callable[[int, int], float]  # (height, width) of the upright image -> the smallest scale of it that suffices

MAX_PIXELS = 178_956_970  # Pillow warns of a decompression bomb above; it refuses twice as many
JPEG_EIGHTHS = (1, 2, 3, 4)  # libjpeg-turbo does not vectorise 5/8 to 7/8: they take longer than full size
PNG_UNUSUAL_CHUNKS = (b"tRNS", b"eXIf", b"acTL")  # Transparency, orientation, animation: OpenCV and Pillow differ.
PNG_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
PNG_ORIENTATION_KEYS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
EXIF_TRANSFORMS = {  # orientation: (rotation, then flip)
    2: (None, 1),
    3: (cv2.ROTATE_180, None),
    4: (None, 0),
    5: (cv2.ROTATE_90_CLOCKWISE, 1),
    6: (cv2.ROTATE_90_CLOCKWISE, None),
    7: (cv2.ROTATE_90_COUNTERCLOCKWISE, 1),
    8: (cv2.ROTATE_90_COUNTERCLOCKWISE, None),
}
LFS_POINTER, WEB_PAGE = "a Git LFS pointer", "a web page"  # text in the place of an image
PILLOW_STUBS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow opens these, but needs another program to decode


def text_instead(data: bytes) -> str:
    """Return what the text in place of an image's bytes is: LFS_POINTER, WEB_PAGE, or "" for neither."""
    begin = data[:64].lstrip().lower()
    if begin.startswith(b"version https://git-lfs"):
        return LFS_POINTER
    return WEB_PAGE if begin.startswith((b"<!doctype html", b"<html")) else ""


@cache
def image_suffixes() -> tuple[str, ...]:
    """Return the file suffixes that `decode` reads, lower case with their dots: those of Pillow's decoders."""
    import PIL.Image

    formats = PIL.Image.registered_extensions()
    readable = (name for name, kind in formats.items() if kind in PIL.Image.OPEN and kind not in PILLOW_STUBS)
    return tuple(sorted(readable))


def full_size(height: int, width: int) -> float:
    """Return 1: the ScaleFn for the whole image in full size."""
    return 1.0


def read_image(path: str, scale_fn: ScaleFn = full_size, max_pixels: int = MAX_PIXELS) -> tuple[Image, tuple[int, int]]:
    """Read and decode the file at `path`, as `decode` does. Never waits for a pipe; may call `scale_fn` more than once.

    Raises:
        ImageError: the image cannot be read or decoded; the message names the path.
        MachineFault: the machine failed repeatedly; see utils.faults.
    """
    try:
        return faults.with_retries(lambda: decode(read_file(path), scale_fn, max_pixels), path)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except (OSError, ValueError, cv2.error) as error:  # ValueError: a zero byte in the path
        raise ImageError(f"{path}: {getattr(error, 'strerror', error)}") from error


def thumbnail(path: str, side: int, max_pixels: int = MAX_PIXELS) -> Image | None:
    """Return the image at `path` for display, its longer side at most `side` pixels; None where it cannot be read."""
    try:
        image, _ = read_image(path, lambda height, width: min(1.0, side / max(height, width)), max_pixels)
    except ImageError:
        return None
    return shrink(image, side / max(image.shape[:2]))


def shrink(image: Image, scale: float) -> Image:
    """Return the image resized by `scale`, each side at least 1 pixel; the image itself where `scale` is 1 or more."""
    if scale >= 1:
        return image
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def read_file(path: str) -> bytes:
    """Return the bytes of a regular file. Do not wait: a pipe without a writer would block a worker forever.

    Raises:
        OSError: the file cannot be read.
        ValueError: the path holds a zero byte.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb", buffering=0) as file:  # a folder fails here, with the system's reason
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(None, "not a regular file")
        return file.readall()


def decode(data: bytes, scale_fn: ScaleFn = full_size, max_pixels: int = MAX_PIXELS) -> tuple[Image, tuple[int, int]]:
    """Decode the bytes of an image file.

    Args:
        scale_fn: given the upright image's height and width, returns the smallest scale in (0, 1] that suffices. A JPEG
            is decoded at the smallest of JPEG_EIGHTHS that is no smaller, which costs a fraction of the time.
        max_pixels: the most pixels, height times width, of the full-size image; a larger one is not decoded.

    Returns:
        uint8 (h, w, 3) RGB, and the (height, width) of the upright image in full size.

    Raises:
        ImageError: the data is not an image, is cut short, or exceeds `max_pixels`.
    """
    if not data:
        raise ImageError("the file is empty")
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(data, scale_fn, max_pixels)
    if text := text_instead(data):
        raise ImageError(f"{text}, not the image" + (" (try: git lfs pull)" if text == LFS_POINTER else ""))
    image = _decode_opencv(data, max_pixels)
    if image is None:
        image = _decode_pillow(data, max_pixels)
    return image, image.shape[:2]


def _decode_jpeg(data: bytes, scale_fn: ScaleFn, max_pixels: int) -> tuple[Image, tuple[int, int]]:
    """Return a JPEG as `decode` does."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (KeyError, ValueError):  # damage, or sampling factors that TurboJPEG has no name for
        image = _decode_pillow(data, max_pixels)
        return image, image.shape[:2]
    _check_size(height, width, max_pixels)
    if colours not in ("YCbCr", "Gray", "RGB"):  # CMYK and YCCK
        _check_intact(data, jpeg.first_warning(data))
        image = _decode_pillow(data, max_pixels)
        return image, image.shape[:2]
    try:
        orientation = jpeg.orientation(data)
    except Exception as error:
        _raise_image_error(error)
    full = (width, height) if orientation >= 5 else (height, width)
    size = jpeg_size_args(height, width, scale_fn(*full))
    try:
        image = simplejpeg.decode_jpeg(data, "RGB", **size)
    except ValueError as error:
        _check_intact(data, str(error))
        try:
            image = simplejpeg.decode_jpeg(data, "RGB", **size, strict=False)
        except ValueError:  # TurboJPEG treats every warning about the header as an error
            return _decode_pillow(data, max_pixels), full
    return _upright(image, orientation), full


def _check_intact(data: bytes, warning: str) -> None:
    """Raise ImageError for a JPEG that is damaged; a `warning` of libjpeg's may be about something harmless."""
    if "memory" in warning.lower():
        raise MemoryError(warning)
    if warning and not jpeg.is_intact(data, warning):
        raise ImageError(f"damaged JPEG ({warning})")


def jpeg_size_args(height: int, width: int, scale: float) -> dict[str, int]:
    """Return simplejpeg's arguments for decoding a JPEG of this size at the fastest scale that is at least `scale`."""
    eighths = next((eighths for eighths in JPEG_EIGHTHS if eighths / 8 >= scale), 8)
    return {"min_height": -(-height * eighths // 8), "min_width": -(-width * eighths // 8)}


def _decode_opencv(data: bytes, max_pixels: int) -> Image | None:
    """Return an intact 8-bit PNG, grey or RGB; None for anything that OpenCV cannot read, or reads unlike Pillow."""
    if data[:4] != b"\x89PNG" or not _is_simple_png(data):
        return None
    _check_size(*_png_size(data), max_pixels)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode_pillow(data: bytes, max_pixels: int) -> Image:
    """Return anything that Pillow opens: its first frame, upright, alpha over white, deep samples by their range."""
    try:
        image = pillow.open_image(data)
        _check_size(image.height, image.width, max_pixels)
        rawmode = pillow.rawmode(image)
        image.load()
        orientation = pillow.orientation(image)
        pixels = pillow.to_rgb(image, data, rawmode)
    except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything
        _raise_image_error(error)
    return _upright(pixels, orientation)


def from_pillow(image: "PIL.Image.Image") -> Image:
    """Return a PIL image as `decode` returns a file: uint8 (h, w, 3) RGB, upright, alpha over white.

    Raises:
        ImageError: it cannot be decoded.
    """
    try:
        packing = pillow.rawmode(image)
        data = pillow.file_bytes(image) if ";16" in packing else b""
        image.load()
        return _upright(pillow.to_rgb(image, data, packing), pillow.orientation(image))
    except Exception as error:
        _raise_image_error(error)


def _raise_image_error(error: Exception) -> NoReturn:
    """Raise the ImageError for what Pillow raised; a fault of the machine, or an ImageError, is raised as it is."""
    if isinstance(error, ImageError) or faults.is_machine_fault(error):
        raise error
    reason = re.sub("<[^>]*>", "the file", str(error))
    raise ImageError(f"not a readable image ({type(error).__name__}: {reason})") from error


def _upright(image: Image, orientation: int) -> Image:
    """Return the image turned upright from EXIF `orientation`, 1 to 8."""
    if orientation == 1:
        return image
    rotation, flip = EXIF_TRANSFORMS[orientation]
    if rotation is not None:
        image = cv2.rotate(image, rotation)
    return image if flip is None else cv2.flip(image, flip)


def _is_simple_png(data: bytes) -> bool:
    """Return whether OpenCV renders a PNG as Pillow does.

    It must be intact (checksums match), 8-bit, grey or RGB, still, and without transparency or orientation.
    """
    if len(data) < 33 or data[24] != 8 or data[25] not in (0, 2):
        return False
    at, name, view = 8, b"", memoryview(data)
    while at + 12 <= len(data) and name != b"IEND":  # a chunk: length, name, body, checksum
        length, name = struct.unpack_from(">I4s", data, at)
        if name in PNG_UNUSUAL_CHUNKS:
            return False
        if name in PNG_TEXT_CHUNKS and data.startswith(PNG_ORIENTATION_KEYS, at + 8):
            return False
        end = at + 8 + length
        checksum = struct.unpack_from(">I", data, min(end, len(data) - 4))[0]
        if checksum != zlib.crc32(view[at + 4 : end]):
            return False  # Pillow reports it; libpng would print a line without the path
        at = end + 4
    return name == b"IEND" and at <= len(data)


def _png_size(data: bytes) -> tuple[int, int]:
    """Return the (height, width) of a PNG."""
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise ImageError for an image of more than `max_pixels`."""
    if height * width > max_pixels:
        raise ImageError(
            f"{width}x{height} is over {max_pixels} pixels: a decompression bomb? (the limit: --max_pixels)"
        )
