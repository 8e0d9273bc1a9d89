"""What Pillow reads, as 8-bit RGB: alpha over white, and samples of more than 8 bits by their range.

A file of 16 bits may hold 12, and one of floating point may mean 1.0 by white or 255: the format does not say which. So
white is the least of WHITES that no sample exceeds, or the brightest sample where that is not a quarter of it. No picture
comes out black unless every sample is nought.
"""

import functools
import io
import warnings
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.errors import ImageError

WHITES = (1, 255, 1023, 4095, 16383, 65535)  # floating point; 8 to 16 bits
DARK = 63  # the upper byte of a 16-bit sample, where 14 bits or fewer are used
ORIENTATION, SAMPLE_FORMAT = 274, 339  # tags of TIFF and EXIF
UNSIGNED = 1


def load_plugins() -> None:
    """Load Pillow's plugins: one that could not be opened later, without a free descriptor, would make its format unknown."""
    _module()


def open_image(data: bytes) -> Any:
    """Return a PIL image of `data`, which is not loaded yet. Raises whatever Pillow raises."""
    return _module().open(io.BytesIO(data))


@functools.cache
def _module() -> Any:
    """PIL.Image with all its plugins, and without its warnings: what they are of is judged here."""
    import PIL.Image

    PIL.Image.init()
    warnings.filterwarnings("ignore", module="PIL")
    return PIL.Image


def turn_of(image: Any) -> int:
    """Return the orientation of a PIL image, 1 to 8; 1 where it has none, or an EXIF block that is damaged."""
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged block makes Pillow raise nearly anything; the picture is whole all the same
        return 1
    return next((known for known in range(2, 9) if turn == known), 1)  # a rational 6/1 equals 6


def rawmode(image: Any) -> str:
    """How the samples of a PIL image that is not loaded yet are packed, such as "RGB;16B"; "" where there is nothing to tell."""
    for tile in image.tile[:1]:
        parts = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        return next((part for part in parts if isinstance(part, str)), "")
    return ""


def to_rgb(image: Any, data: bytes, packed: str) -> NDArray[np.uint8]:
    """Return a loaded PIL image as uint8 (H, W, 3) RGB.

    Args:
        data: the file, which is decoded once more where Pillow has kept the upper bytes alone and they are dark.
        packed: its `rawmode`, from before it was loaded.

    Raises:
        ImageError: its samples are NaN or infinite, or lost. Whatever Pillow raises.
    """
    if image.mode[0] in "IF":
        return _grey(image)
    colours = image.mode in ("RGB", "RGBA", "RGBX", "LA")
    if (
        ";16" in packed
        and colours
        and max(high for _, high in image.getextrema()[: 1 if image.mode == "LA" else 3]) <= DARK
    ):
        return _whole_samples(data)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = _module().alpha_composite(_module().new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def to_8_bits(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Return samples of any type as uint8, of the same shape: by their range, as above; from the least, where some are negative.

    Raises:
        ImageError: some are NaN or infinite.
    """
    low, high = samples.min(), samples.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("it holds samples that are NaN or infinite")
    low, high = min(low.item(), 0), high.item()
    if low < 0:
        samples, high = samples.astype(np.float64) - low, high - low
    white = next((white for white in WHITES if white >= high), high)
    white = high if low < 0 or 4 * high < white else white
    if not white:
        return np.zeros(samples.shape, np.uint8)
    if samples.dtype == np.uint16:
        return (np.arange(65536) * 255 // white).clip(0, 255).astype(np.uint8)[samples]
    return np.floor(samples.astype(np.float64) * 255 / white).astype(np.uint8)


def _grey(image: Any) -> NDArray[np.uint8]:
    """Grey of 16 or 32 bits, or of floating point."""
    samples = np.asarray(image)
    tags = getattr(image, "tag_v2", None)
    if image.mode == "I" and tags is not None and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED:
        samples = samples.view(np.uint32)  # of which Pillow knows none
    elif samples.dtype.kind == "u":
        samples = samples.astype(np.uint16, copy=False)  # of this machine's byte order
    grey = to_8_bits(samples)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(samples == clear, np.uint8(255), grey)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _whole_samples(data: bytes) -> NDArray[np.uint8]:
    """Colours of 16 bits of which the lower are used, as in 12 bits of a camera: OpenCV keeps them all."""
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if read is None or read.dtype != np.uint16 or read.ndim != 3:
        raise ImageError("its 16-bit samples are too dark to be shown in 8; save it with 8 bits a channel")
    colours = to_8_bits(read[..., 2::-1])
    if read.shape[2] == 3:
        return np.ascontiguousarray(colours)
    white = 4095 if read[..., 3].max() <= 4095 else 65535
    share = read[..., 3:].astype(np.float64) / white
    return np.round(colours * share + 255 * (1 - share)).astype(np.uint8)
