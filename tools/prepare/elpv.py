"""ELPV: 2,624 grey images of solar cells, 300 x 300 pixels, from electroluminescence (PyPI's elpv-dataset)."""

import argparse
from pathlib import Path

import numpy as np

from dataloader.listing.lists import ImageList, Listing, write_all
from dataloader.listing.splits import split_and_log
from tools.prepare.flags import split_plan
from tools.prepare.packages import Package, check_content, check_outside, pypi_folder
from utils.errors import UserError
from utils.files import write_replaced
from utils.logger import log, progress

DATA = "elpv_dataset/data"
PACKAGE = Package(
    name="elpv-dataset",
    version="1.0.0.post1",
    patterns=("labels.csv", "images/*.png"),
    files=2625,
    sha256="f6db68a781ba0ee69f30e9edc9dd6d628a12cf6873f8bd6a3109af4dee86aba6",
    licence=(
        "CC BY-NC-SA 4.0, so not for commercial use; cite Deitsch et al., 2019 and 2021, and Buerhop-Lutz et al., 2018."
    ),
)
CELL_TYPES = {"mono": "monocrystalline", "poly": "polycrystalline"}
DEGREES = (0.0, 1 / 3, 2 / 3, 1.0)  # the probability of a defect, as the experts gave it
TARGETS = {  # classes.txt of each --target
    "defect": ["functional", "defective"],
    "type": list(CELL_TYPES.values()),
    "severity": ["functional", "likely functional", "likely defective", "defective"],
    "probability": ["probability of a defect"],
}


def prepare_elpv(opt: argparse.Namespace) -> None:
    """Copy the images, and write their lists; existing files are replaced.

    Raises:
        UserError: the package is unavailable, or its content is not as expected.
    """
    out = Path(opt.out).resolve()
    with pypi_folder(PACKAGE, DATA, opt) as folder:
        check_outside(folder, out)
        check_content(PACKAGE, folder, opt)
        labels = read_labels(folder / "labels.csv", opt.target)
        paths = []
        for name in progress(list(labels), "copying images"):
            paths.append(str(out / "images" / Path(name).name))
            write_replaced(Path(paths[-1]), (folder / name).read_bytes())
    numbers = list(labels.values())
    if opt.target == "probability":
        images = ImageList(paths, None, values=[[DEGREES[number]] for number in numbers])
    else:
        images = ImageList(paths, numbers)
    parts = split_and_log(images, split_plan(opt))
    log.info("The package does not tell the modules of the cells, so a split divides the cells of a module.")
    write_all(Listing(TARGETS[opt.target], parts), out)


def read_labels(path: Path, target: str) -> dict[str, int]:
    """Return the class of each image, {path below the folder of labels.csv: class number}.

    A line is a path, the probability of a defect, and the type of the cell, with spaces between. The probability is 0,
    1/3, 2/3 or 1: of these four, the number is that of "severity" and "probability". For "defect", 0 is functional and
    the rest is defective: any doubt of the experts counts as a defect.

    Raises:
        UserError: a line is not of this form, or names no image of the folder.
    """
    labels: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        try:
            name, probability, kind = words[0], float(words[1]), list(CELL_TYPES).index(words[2])
        except (IndexError, ValueError):
            raise UserError(
                f"{path}, line {number}: {line!r}; expected a path, a probability, and {' or '.join(CELL_TYPES)}."
            ) from None
        if name in labels or Path(name).is_absolute() or not (path.parent / name).is_file():
            raise UserError(f"{path}, line {number}: {name!r} is named twice, or is no file of {path.parent}.")
        degree = int(np.argmin([abs(probability - one) for one in DEGREES]))
        if abs(probability - DEGREES[degree]) > 0.01:
            raise UserError(f"{path}, line {number}: the probability is {words[1]}; expected 0, 1/3, 2/3 or 1.")
        labels[name] = {"type": kind, "defect": int(degree > 0)}.get(target, degree)
    return labels
