"""Where a sample's pixels come from: its file, or a cache that holds it smaller (cache.py)."""

from typing import Protocol

from dataloader.decode import MAX_PIXELS, Image, Need, read_image, whole
from dataloader.file_list import FileList
from dataloader.pillow import load_plugins


class Reader(Protocol):
    """Gives the pictures of a list by index."""

    def read(self, index: int, need: Need = whole) -> tuple[Image, tuple[int, int]]:
        """Image `index`: uint8 RGB (h, w, 3), and the (height, width) of the upright image in full size.

        The picture is at least as large as `need` asks, or as large as there is; `need` speaks of full-size pixels.

        Raises:
            ImageError: it cannot be read; the message names the path.
            MachineFault: the machine failed, again and again.
        """


class Files:
    """Reads the listed files themselves; an image of more than `max_pixels` counts as unreadable."""

    def __init__(self, files: FileList, max_pixels: int = MAX_PIXELS) -> None:
        self.files, self.max_pixels = files, max_pixels
        load_plugins()

    def read(self, index: int, need: Need = whole) -> tuple[Image, tuple[int, int]]:
        """See Reader."""
        return read_image(self.files.path(index), need, self.max_pixels)
