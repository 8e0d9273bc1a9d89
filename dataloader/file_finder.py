"""From a path that does not exist to the file it means: another ending, Unicode form or case, or backslashes."""

import os
import unicodedata
from pathlib import Path

from dataloader.decode import image_suffixes

# how a path differs from that of the file
ENDING, FORM, BACKSLASH, CASE = "ending", "Unicode form", "backslash", "case"


class FileFinder:
    """Looks for files, and reads each folder once."""

    def __init__(self) -> None:
        self._suffixes = image_suffixes()
        self._folders: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}

    def exists(self, path: str) -> bool:
        """Return whether `path` exists, or one file that it can mean does."""
        return os.path.lexists(path) or self.find(path) is not None

    def find(self, path: str) -> tuple[str, str] | None:
        """Return the one file that `path`, which does not exist, can mean, and how they differ.

        None where no file or several files fit.
        """
        if "\\" in path:
            other = path.replace("\\", "/")
            if not os.path.exists(other):
                other = (self.find(other) or ("", ""))[0]
            if other:
                return other, BACKSLASH
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, path)
            if other != path and os.path.exists(other):
                return other, FORM
        folder, name = os.path.split(path)
        same = self._index(folder)[0].get(_fold(name), [])
        if len(same) == 1:
            kind = FORM if unicodedata.normalize("NFC", same[0]) == unicodedata.normalize("NFC", name) else CASE
            return os.path.join(folder, same[0]), kind
        longer = self.with_ending(path)
        return (longer[0], ENDING) if len(longer) == 1 else None

    def with_ending(self, path: str) -> list[str]:
        """Return the image files whose name is that of `path` plus an ending."""
        folder, name = os.path.split(path)
        return [os.path.join(folder, other) for other in self._index(folder)[1].get(_fold(name), [])]

    def has_ending(self, path: str) -> bool:
        """Return whether `path` ends in the suffix of an image format."""
        return path.lower().endswith(self._suffixes)

    def _index(self, folder: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Return the names in `folder` by folded name and, those of images, by folded name without ending."""
        if folder not in self._folders:
            names: dict[str, list[str]] = {}
            stems: dict[str, list[str]] = {}
            try:
                present = sorted(os.listdir(folder or "."))
            except OSError:
                present = []
            for name in present:
                names.setdefault(_fold(name), []).append(name)
                if self.has_ending(name):
                    stems.setdefault(_fold(Path(name).stem), []).append(name)
            self._folders[folder] = names, stems
        return self._folders[folder]


def _fold(name: str) -> str:
    """Return the name in one Unicode form and one case."""
    return unicodedata.normalize("NFC", name).casefold()
