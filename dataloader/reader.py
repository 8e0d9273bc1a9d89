"""Where the pixels of a sample come from: its file, or a cache that holds it at a smaller size (cache.py)."""

from typing import Protocol

from dataloader.decode import MAX_PIXELS, Image, ScaleFn, full_size, read_image
from dataloader.file_list import FileList
from dataloader.pillow import load_plugins


class Reader(Protocol):
    """Reads the images of a list by index."""

    def read(self, index: int, scale_fn: ScaleFn = full_size) -> tuple[Image, tuple[int, int]]:
        """Return image `index`, uint8 RGB (h, w, 3), and the (height, width) of the upright image in full size.

        The image is at least as large as `scale_fn` asks, or as large as the source has it.

        Raises:
            ImageError: the image cannot be read; the message names the path.
            MachineFault: the machine failed repeatedly.
        """


class FileReader:
    """Reads the listed files themselves; an image of more than `max_pixels` counts as unreadable."""

    def __init__(self, files: FileList, max_pixels: int = MAX_PIXELS) -> None:
        self.files, self.max_pixels = files, max_pixels
        load_plugins()

    def read(self, index: int, scale_fn: ScaleFn = full_size) -> tuple[Image, tuple[int, int]]:
        """Return an image and its full size, as Reader says."""
        return read_image(self.files.path(index), scale_fn, self.max_pixels)
