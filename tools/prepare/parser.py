"""The flags of datasets/prepare.py: a sub-command for each source, and which flags go together."""

import argparse
import re

from dataloader.listing.splits import DEFAULT_VAL
from options.parser import ToolParser, expanded
from tools.prepare.drawings import COLLECTIONS, LEVELS
from tools.prepare.elpv import TARGETS
from utils.errors import UserError

DEFAULT_SIDE = 256  # pixels


def option_parser(description: str = "") -> argparse.ArgumentParser:
    """Return the parser, with a sub-command for each source; `description` is its --help."""
    parser = ToolParser("datasets/prepare.py", description)
    kinds = parser.add_subparsers(dest="kind", required=True)
    fashion = kinds.add_parser("fashion-mnist", help="real product images, 28 pixels, 10 classes", allow_abbrev=False)
    fashion.add_argument("--out", type=expanded, default="datasets/fashion-mnist", help="folder for lists and images")
    fashion.add_argument("--train", type=int, default=12000, help="training images")
    fashion.add_argument("--val", type=int, default=10000, help="validation images, from the set's own test part")
    fashion.add_argument(
        "--test", type=int, default=2000, help="images for submission, from the training part, none of them in --train"
    )
    text = "cut --train to a long tail: the last class keeps 1/F of the first, with exponential steps between"
    fashion.add_argument("--imbalance", type=float, default=1.0, metavar="F", help=text)
    fashion.add_argument("--seed", type=int, default=42, help="which images are chosen")

    _add_packaged(kinds)
    folder = kinds.add_parser("folder", help="one folder of images per class", allow_abbrev=False)
    folder.add_argument("root", type=expanded, help="the folder that holds the class folders")
    folder.add_argument(
        "--val_root", type=expanded, metavar="DIR", help="class folders for val.txt, numbered as in the training root"
    )

    table = kinds.add_parser("csv", help="a CSV file with a header", allow_abbrev=False)
    table.add_argument("file", type=expanded, help="the CSV file (UTF-8)")
    table.add_argument(
        "--path_column", metavar="NAME", help="the column of image paths; without it, the columns are listed"
    )
    table.add_argument("--label_column", metavar="NAME", help="the column of labels: names, or whole numbers")
    text = "--task multilabel: what separates the labels in --label_column, such as ';'"
    table.add_argument("--label_separator", metavar="TEXT", help=text)
    text = "--task regression: the columns of numbers to predict, instead of --label_column"
    table.add_argument("--target_columns", nargs="+", metavar="NAME", help=text)
    table.add_argument(
        "--split_column", metavar="NAME", help="a column that holds train, val or test; instead of --val"
    )
    table.add_argument(
        "--group_column", metavar="NAME", help="a column that holds what belongs together (photos of one product)"
    )
    table.add_argument(
        "--keep_labels", action="store_true", help="labels are class numbers already; do not renumber them"
    )
    table.add_argument(
        "--delimiter", metavar="SIGN", help="what separates fields (`tab` for a tab); detected by default"
    )

    coco = kinds.add_parser("coco", help="a JSON file in the format of COCO or AliProducts", allow_abbrev=False)
    coco.add_argument("file", type=expanded, help="the JSON file")

    ready = kinds.add_parser("list", help="an existing list: image path, space, label per line", allow_abbrev=False)
    ready.add_argument("file", type=expanded, help="the list")
    for kind in (table, coco, ready):
        kind.add_argument(
            "--root", type=expanded, metavar="DIR", help="where relative paths start; by default the folder of the file"
        )
        text = "the list to make: train (with --val held out of it), val of all images, or test without labels"
        kind.add_argument("--part", choices=("train", "val", "test"), default="train", help=text)
        text = "what to append to file names (.jpg); by default the suffix of the file that exists"
        kind.add_argument("--suffix", metavar="TEXT", help=text)
    for kind in (folder, table, coco, ready):
        _add_shared(kind)
    return parser


def _add_packaged(kinds: "argparse._SubParsersAction[ToolParser]") -> None:
    """Add the sub-commands of the sets that a package holds."""
    elpv = kinds.add_parser("elpv", help="solar cells, 300 pixels, grey, 2 classes", allow_abbrev=False)
    text = (
        "defect: functional or defective; type: monocrystalline or polycrystalline; severity: four degrees, for "
        "--task ordinal; probability: 0, 1/3, 2/3 or 1, for --task regression"
    )
    elpv.add_argument("--target", choices=tuple(TARGETS), default="defect", help=text)
    clipart = kinds.add_parser("openclipart", help="clip art, 22 classes, or 96", allow_abbrev=False)
    stamps = kinds.add_parser("stamps", help="Tux Paint's stamps, 16 classes, or 48", allow_abbrev=False)
    text = "for --task multilabel: all folders of a drawing are its labels, also those of its copies"
    clipart.add_argument("--multilabel", action="store_true", help=text)
    for name, kind in (("openclipart", clipart), ("stamps", stamps)):
        least = COLLECTIONS[name].min_images
        text = "the classes: the top folders, or all folders that hold drawings (a long tail of classes)"
        kind.add_argument("--level", choices=LEVELS, default="top", help=text)
        text = f"leave out classes with fewer drawings ({', '.join(f'{level}: {least[level]}' for level in LEVELS)})"
        kind.add_argument("--min_images", type=int, metavar="N", help=text)
        text = "the longest side of the images, in pixels; larger ones are shrunk"
        kind.add_argument("--side", type=int, metavar="PIXELS", default=DEFAULT_SIDE, help=text)
    for name, kind in (("elpv", elpv), ("openclipart", clipart), ("stamps", stamps)):
        _add_split(kind, f"datasets/{name}", "folder for lists and images")
        text = "a folder with the package's files (of an unpacked .deb or wheel); by default where they are installed"
        kind.add_argument("--source", type=expanded, metavar="DIR", help=text)
        text = "take a package of another version or content, with a warning"
        kind.add_argument("--any_version", action="store_true", help=text)


def _add_split(kind: argparse.ArgumentParser, out: str, holds: str) -> None:
    """Add the flags that say where the lists go, and which images are held out."""
    kind.add_argument("--out", type=expanded, default=out, help=holds)
    kind.add_argument(
        "--val",
        type=float,
        metavar="SHARE",
        help=f"the share of each class that goes to val.txt ({DEFAULT_VAL}); 0: none",
    )
    kind.add_argument("--folds", type=int, metavar="K", help="cross-validation: divide into K parts, see --fold")
    kind.add_argument(
        "--fold",
        type=int,
        metavar="k",
        help="which of the --folds parts, from 1 to K, goes to val.txt; instead of --val",
    )
    kind.add_argument("--seed", type=int, default=42, help="the same seed gives the same split")


def _add_shared(kind: argparse.ArgumentParser) -> None:
    """Add the flags of every source that is not built in."""
    _add_split(kind, "datasets", "folder for the lists")
    text = "keep images together whose paths (below the root) match REGEX with the same captured text"
    kind.add_argument("--group_by", metavar="REGEX", help=text)
    kind.add_argument(
        "--classes",
        type=expanded,
        metavar="FILE",
        help="a classes.txt that fixes the class numbers; other labels are errors",
    )
    kind.add_argument(
        "--test", type=expanded, metavar="DIR", help="write test.txt from all images in this folder, without labels"
    )
    kind.add_argument("--check", action="store_true", help="check that the listed files exist")


def check_options(opt: argparse.Namespace) -> None:
    """Raise one UserError with all problems of the flags, alone and together."""
    wrong = [] if 0 <= opt.seed < 2**32 else [f"--seed is {opt.seed}; allowed: 0 to {2**32 - 1}."]
    if opt.kind == "fashion-mnist":
        wrong += [] if opt.train > 0 else [f"--train is {opt.train}; allowed: 1 or more."]
        if not 1 <= opt.imbalance < float("inf"):
            wrong.append(f"--imbalance is {opt.imbalance}; allowed: 1 or more.")
        wrong += [
            f"--{name} is {value}; allowed: 0 or more."
            for name, value in (("val", opt.val), ("test", opt.test))
            if value < 0
        ]
    else:
        wrong += _wrong_split(opt) + (_wrong_table(opt) if opt.kind == "csv" else [])
        wrong += [
            f"--{name} is {value}; allowed: 1 or more."
            for name in ("min_images", "side")
            if (value := getattr(opt, name, None)) is not None and value < 1
        ]
    if wrong:
        raise UserError("\n".join(wrong) + f"\nAll flags: `python datasets/prepare.py {opt.kind} --help`.")


def _wrong_split(opt: argparse.Namespace) -> list[str]:
    """Return the problems of the flags that say how to split."""
    wrong = []
    if opt.val is not None and not 0 <= opt.val < 1:
        wrong.append(f"--val is {opt.val}; allowed: from 0 to below 1, a share of each class.")
    if (opt.folds is None) != (opt.fold is None):
        wrong.append("--folds and --fold go together: `--folds 5 --fold 1`.")
    elif opt.folds is not None and (opt.folds < 2 or not 1 <= opt.fold <= opt.folds):
        wrong.append(
            f"--folds is {opt.folds}, --fold is {opt.fold}; allowed: 2 or more folds, and a fold from 1 to that number."
        )
    if opt.folds is not None and opt.val is not None:
        wrong.append("--val and --folds both say what goes to val.txt; use one of them.")
    fixed = next((f"--{name}" for name in ("val_root", "split_column") if getattr(opt, name, None) is not None), None)
    fixed = f"--part {opt.part}" if getattr(opt, "part", "train") != "train" else fixed
    splitting = [
        f"--{name}" for name in ("val", "folds", "group_by", "group_column") if getattr(opt, name, None) is not None
    ]
    if fixed and splitting:
        wrong.append(
            f"{fixed} says which images go where, so {', '.join(splitting)} would have no effect; leave one out."
        )
    if getattr(opt, "test", None) is not None and getattr(opt, "part", None) == "test":
        wrong.append("--part test and --test both make test.txt; use one of them.")
    suffix = getattr(opt, "suffix", None)
    if suffix is not None and ("." not in suffix or "/" in suffix):
        wrong.append(f"--suffix is {suffix!r}; allowed: the end of a file's name, with its dot, such as .jpg.")
    pattern = getattr(opt, "group_by", None)
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            wrong.append(f"--group_by {pattern!r} is not a regular expression: {error}.")
    return wrong


def _wrong_table(opt: argparse.Namespace) -> list[str]:
    """Return the problems of the flags for CSV files."""
    wrong = []
    if opt.split_column is not None and opt.part != "train":
        wrong.append("--part and --split_column both say where rows go; use one of them.")
    single = opt.delimiter is None or opt.delimiter in ("tab", "\\t") or len(opt.delimiter) == 1
    if not single or opt.delimiter in ('"', "\r", "\n"):
        wrong.append(
            f"--delimiter is {opt.delimiter!r}; allowed: one character other than a quote or a line break, or `tab`."
        )
    if opt.target_columns is not None:
        clashing = [name for name in ("label_column", "label_separator", "classes") if getattr(opt, name) is not None]
        clashing += ["keep_labels"] * opt.keep_labels
        wrong += [f"--target_columns and --{name} contradict: numbers are no classes; use one." for name in clashing]
    if opt.label_separator is not None and (opt.keep_labels or not opt.label_separator):
        wrong.append("--label_separator needs a text, and does not go with --keep_labels.")
    if opt.group_by is not None and opt.group_column is not None:
        wrong.append("--group_by and --group_column both say what belongs together; use one of them.")
    return wrong
