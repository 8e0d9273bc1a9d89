"""Cut JPEG photographs to measure on from the pictures of this machine, and write their list.

    python -m benchmarks.photos --out datasets/photos --count 1500

Sides are 500 to 1200 pixels, quality is 90, as in product photographs. Pictures come from the folders of Debian's
plasma-workspace-wallpapers and tuxpaint-stamps-default, or from --source. The same seed gives the same files.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from options.parser import ToolParser, expanded
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log, progress
from utils.outputs import Output, check
from utils.run import run_tool

FOLDERS = ("/usr/share/wallpapers", "/usr/share/backgrounds", "/usr/share/tuxpaint/stamps")
QUALITY = 90
CLASSES = 10
MIN_SOURCE_BYTES, MIN_SOURCE_SIDE = 100_000, 600  # of a picture to cut from; pixels


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and write; return the exit code."""
    parser = ToolParser("-m benchmarks.photos", __doc__)
    parser.add_argument("--out", type=expanded, default="datasets/photos", help="folder for the images and lists")
    parser.add_argument("--count", type=int, default=1500, help="how many images")
    parser.add_argument("--source", type=expanded, help="a folder of pictures to cut from")
    parser.add_argument("--seed", type=int, default=42)

    def act(opt: argparse.Namespace) -> None:
        make_photos(Path(opt.out), opt.count, [opt.source] if opt.source else list(FOLDERS), opt.seed)

    return run_tool(lambda: parser.parse_args(argv), act)


def make_photos(out: Path, count: int, folders: list[str], seed: int = 42) -> Path:
    """Cut `count` JPEGs into `out`, and write train.txt beside them; return the path of the list.

    Raises:
        UserError: there is no picture with sides of 600 pixels or more.
    """
    sources = find_pictures(folders)
    if not sources:
        raise UserError(
            f"There are no pictures to cut from in {', '.join(folders)}.\n"
            "Try: apt-get install plasma-workspace-wallpapers (Debian), or --source DIR with a folder of pictures."
        )
    out = out.resolve()
    check([Output(out / "train.txt", "a list of these photographs", _is_ours)], {})
    out.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng(seed).integers(len(sources), size=count)
    lines: list[str] = [""] * count

    def cut_all_of(which: int) -> None:
        picture = cv2.imread(str(sources[which]), cv2.IMREAD_COLOR)
        for index in np.flatnonzero(chosen == which).tolist():
            assert picture is not None, sources[which]
            path = out / f"photo_{index:05d}.jpg"
            cv2.imwrite(
                str(path), _cut(picture, np.random.default_rng((seed, index))), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
            )
            lines[index] = f"{path} {index % CLASSES}\n"

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(progress(pool.map(cut_all_of, range(len(sources))), "cutting photographs", len(sources)))
    with atomic_write(out / "train.txt", "w") as file:
        file.writelines(lines)
    size = sum(path.stat().st_size for path in out.glob("photo_*.jpg")) / count / 1000
    log.info(
        f"{out}/train.txt: {count} JPEGs of 500 to 1200 px, {size:.0f} kB on average, from {len(sources)} pictures"
    )
    return out / "train.txt"


def _is_ours(path: Path) -> bool:
    return b"/photo_00000.jpg " in path.read_bytes()[:5000].split(b"\n")[0]


def find_pictures(folders: list[str]) -> list[Path]:
    """Return the largest picture of each folder below `folders`, if its sides are 600 pixels or more."""
    largest: dict[Path, Path] = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.is_file():
                held = largest.get(path.parent)
                largest[path.parent] = path if held is None or path.stat().st_size > held.stat().st_size else held
    return [path for path in largest.values() if path.stat().st_size > MIN_SOURCE_BYTES and _large(path)]


def _large(path: Path) -> bool:
    import PIL.Image

    with PIL.Image.open(path) as image:
        return min(image.size) >= MIN_SOURCE_SIDE


def _cut(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a random rectangle, and shrink it to sides of 500 to 1200 pixels; it is never enlarged."""
    height, width = (int(side) for side in rng.integers(500, 1201, 2))
    fit = min(1.0, picture.shape[0] / height, picture.shape[1] / width)
    height, width = int(height * fit), int(width * fit)
    shrink = rng.uniform(1, min(picture.shape[0] / height, picture.shape[1] / width, 2.5))
    h, w = int(height * shrink), int(width * shrink)
    top, left = int(rng.integers(picture.shape[0] - h + 1)), int(rng.integers(picture.shape[1] - w + 1))
    return cv2.resize(picture[top : top + h, left : left + w], (width, height), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    sys.exit(main())
