"""Images that a command line names: files, folders, patterns, and lines of standard input."""

import glob
import os
from pathlib import Path

from dataloader.decode import image_suffixes
from dataloader.listing.folder import images_under
from dataloader.listing.lists import MAX_NAMES, SkippedItems
from utils.errors import UserError, path_hint

STANDARD_INPUT = "-"


def find_images(names: list[str], lines: bytes = b"") -> list[str]:
    """Return the paths of the images that `names` mean, each once, in the order of `names`.

    A folder means all images in it, sorted. A pattern, such as *.png, means its matches, sorted. STANDARD_INPUT means
    `lines`: a name per line, or names that end in a zero byte, as `find -print0` writes them.

    Raises:
        UserError: a name means no image.
    """
    skipped, found, missing = SkippedItems(), dict[str, None](), list[str]()
    for name in names:
        if name == STANDARD_INPUT:
            ending = b"\0" if b"\0" in lines else b"\n"
            given = [os.fsdecode(line.removesuffix(b"\r")) for line in lines.split(ending) if line.strip()]
            if not given:
                raise UserError("--images - reads names from standard input, and got none.")
        else:
            given = [name]
        for one in given:
            images = _images(one, skipped)
            found |= dict.fromkeys(images)
            missing += [] if images else [one]
    if missing:
        raise _nothing(missing)
    skipped.report()
    return list(found)


def _images(name: str, skipped: SkippedItems) -> list[str]:
    """Return the images that one name means; none if it means nothing."""
    if os.path.isdir(name):
        return images_under(name, skipped)
    if os.path.exists(name):
        return [name]
    images: list[str] = []
    for match in sorted(glob.glob(name, recursive=True)):
        if os.path.isdir(match):
            images += images_under(match, skipped)
        elif match.lower().endswith(image_suffixes()):
            images.append(match)
        else:
            skipped.add("file(s) skipped, which are not images by their suffix", match)
    return images


def _nothing(names: list[str]) -> UserError:
    """Return the error for names that mean no image."""
    first = names[0]
    if os.path.isdir(first):
        return UserError(f"--images {first}: the folder holds no image.")
    if glob.has_magic(first):
        folder = Path(first).parent
        return UserError(f"--images {first}: no image has such a name.{'' if folder.is_dir() else path_hint(folder)}")
    if len(names) == 1:
        return UserError(f"--images {first}: there is no such file.{path_hint(Path(first))}")
    shown = "\n".join(f"  {name}" for name in names[:MAX_NAMES])
    more = f"\n  … and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return UserError(f"--images: {len(names)} names mean no image:\n{shown}{more}")
