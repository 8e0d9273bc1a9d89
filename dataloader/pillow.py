"""What Pillow reads, as 8-bit RGB: alpha over white, and samples of more than 8 bits by their range.

A 16-bit file may hold 12 bits, and white may be 1.0 or 255 in a floating-point file: the format does not say which.
White is therefore the smallest of WHITE_LEVELS that no sample exceeds, or the brightest sample where that is below a
quarter of it. No image becomes black unless every sample is zero.
"""

import functools
import io
import warnings
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

WHITE_LEVELS = (1, 255, 1023, 4095, 16383, 65535)  # floating point; 8 to 16 bits
MAX_DARK_BYTE = 63  # of the upper bytes of 16-bit samples, where 14 bits or fewer are used
ORIENTATION, SAMPLE_FORMAT = 274, 339  # tags of TIFF and EXIF
UNSIGNED = 1  # a value of SAMPLE_FORMAT


def load_plugins() -> None:
    """Load Pillow's plugins now: without a free file descriptor, a later load fails and makes the format unknown."""
    _module()


def open_image(data: bytes) -> "ImageFile":
    """Return a PIL image of `data`, not loaded yet. Raises whatever Pillow raises."""
    return _module().open(io.BytesIO(data))


@functools.cache
def _module() -> ModuleType:
    """Return PIL.Image with all its plugins, and silence its warnings: this module judges what they are about."""
    import PIL.Image

    PIL.Image.init()
    warnings.filterwarnings("ignore", module="PIL")
    return PIL.Image


def orientation(image: "Image") -> int:
    """Return the EXIF orientation of a PIL image, 1 to 8; 1 where it has none, or its EXIF block is damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged block makes Pillow raise nearly anything; the image itself is intact
        return 1
    return next((known for known in range(2, 9) if value == known), 1)  # a rational 6/1 equals 6


def rawmode(image: "Image") -> str:
    """Return how the samples of a PIL image that is not loaded yet are packed, such as "RGB;16B"; "" if unknown."""
    for tile in getattr(image, "tile", [])[:1]:
        parts = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        return next((part for part in parts if isinstance(part, str)), "")
    return ""


def file_bytes(image: "Image") -> bytes:
    """Return the file of a PIL image that is not loaded yet; Pillow finds its place in it as before."""
    file: IO[bytes] = image.fp  # type: ignore[attr-defined]  # of those with a `rawmode`
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    return data


def to_rgb(image: "Image", data: bytes, packing: str) -> NDArray[np.uint8]:
    """Return a loaded PIL image as uint8 (H, W, 3) RGB.

    Args:
        data: the file, which is decoded again where Pillow kept only the upper bytes and they are dark.
        packing: its `rawmode`, from before it was loaded.

    Raises:
        ImageError: its samples are NaN, infinite, or lost. Whatever Pillow raises.
    """
    if image.mode[0] in "IF":
        return _grey_to_rgb(image)
    if ";16" in packing and image.mode in ("RGB", "RGBA", "RGBX", "LA"):
        colours = image.getextrema()[: 1 if image.mode == "LA" else 3]
        if max(high for _, high in colours) <= MAX_DARK_BYTE:  # type: ignore[misc]  # a pair for each of several bands
            return _decode_16_bit(data)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = _module().alpha_composite(_module().new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def to_8_bits(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Return samples of any type as uint8 of the same shape, scaled by their range as the module says.

    Where some are negative, the range begins at the smallest.

    Raises:
        ImageError: some are NaN or infinite.
    """
    low, high = samples.min(), samples.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("it holds samples that are NaN or infinite")
    low, high = min(low.item(), 0), high.item()
    if low < 0:
        samples, high = samples.astype(np.float64) - low, high - low
    white = next((white for white in WHITE_LEVELS if white >= high), high)
    white = high if low < 0 or 4 * high < white else white
    if not white:
        return np.zeros(samples.shape, np.uint8)
    if samples.dtype == np.uint16:
        return (np.arange(65536) * 255 // white).clip(0, 255).astype(np.uint8)[samples]
    return np.floor(samples.astype(np.float64) * 255 / white).astype(np.uint8)


def _grey_to_rgb(image: "Image") -> NDArray[np.uint8]:
    """Return a grey image of 16 bits, 32 bits or floating point as uint8 (H, W, 3)."""
    samples = np.asarray(image)
    tags = getattr(image, "tag_v2", None)
    if image.mode == "I" and tags is not None and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED:
        samples = samples.view(np.uint32)  # a type that Pillow lacks
    elif samples.dtype.kind == "u":
        samples = samples.astype(np.uint16, copy=False)  # in this machine's byte order
    grey = to_8_bits(samples)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(samples == transparent, np.uint8(255), grey)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _decode_16_bit(data: bytes) -> NDArray[np.uint8]:
    """Return a 16-bit colour image that uses the lower bits, such as 12 bits of a camera: OpenCV keeps them all."""
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        raise ImageError("its 16-bit samples are too dark to be shown in 8; save it with 8 bits per channel")
    colours = to_8_bits(samples[..., 2::-1])
    if samples.shape[2] == 3:
        return np.ascontiguousarray(colours)
    opaque = 4095 if samples[..., 3].max() <= 4095 else 65535
    alpha = samples[..., 3:].astype(np.float64) / opaque
    return np.round(colours * alpha + 255 * (1 - alpha)).astype(np.uint8)
