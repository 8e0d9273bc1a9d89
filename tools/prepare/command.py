"""Make list files (train.txt, val.txt, test.txt, classes.txt) and, for a built-in set, the images.

    python datasets/prepare.py fashion-mnist --out datasets/fashion-mnist --train 12000
    python datasets/prepare.py elpv --out datasets/elpv --folds 5 --fold 1
    python datasets/prepare.py openclipart --out datasets/openclipart --level leaf
    python datasets/prepare.py stamps --out datasets/stamps
    python datasets/prepare.py folder photos/ --out datasets --val 0.1
    python datasets/prepare.py csv products.csv --path_column image --label_column category --root photos/
    python datasets/prepare.py coco train.json --root train/
    python datasets/prepare.py list all.txt --val 0.1 --out datasets

fashion-mnist: real product images (Zalando), 60,000 + 10,000, from Debian's package dataset-fashion-mnist or through
torchvision; where both are unavailable, scikit-learn's digits replace them, with a warning.
elpv: 2,624 grey images of solar cells, from PyPI's elpv-dataset. openclipart: 6,900 drawings under 8,121 names, from
Debian's openclipart-png. stamps: 793 images (of 796 files), from Debian's tuxpaint-stamps-default. Where a package
is missing, root installs it with apt; pip downloads elpv's and installs nothing. Each prints its licence.
folder: one folder per class, as in ImageNet. csv: a table with a header. coco: JSON in the format of COCO or
AliProducts. list: an existing list. All but fashion-mnist hold out a share of each class for val.txt;
`python datasets/prepare.py folder --help` shows the other ways to split.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dataloader.file_finder import FileFinder
from dataloader.list_advice import prepare_command
from dataloader.listing.class_names import check_names, read_classes
from dataloader.listing.folder import read_folder, read_unlabelled
from dataloader.listing.lists import Listing, as_on_disk, check_apart, normalise_list, write_all
from dataloader.listing.splits import DEFAULT_VAL, group_by, split_and_log
from options.commands import words
from options.parser import ToolParser, expanded
from options.wording import count_of
from tools.prepare.coco import read_coco
from tools.prepare.drawings import COLLECTIONS, LEVELS, prepare_drawings
from tools.prepare.elpv import TARGETS, prepare_elpv
from tools.prepare.fashion import prepare_fashion
from tools.prepare.flags import split_plan
from tools.prepare.ready import read_ready
from tools.prepare.table import read_csv
from utils.errors import UserError, path_hint
from utils.logger import log
from utils.run import run_tool

DEFAULT_SIDE = 256  # pixels
FIRST_PATHS = 20  # of each list, that are looked for


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and run; return the exit code: 0 success, 2 a user's mistake, 130 interrupted."""
    return run_tool(lambda: option_parser().parse_args(argv), prepare)


def prepare(opt: argparse.Namespace) -> None:
    """Check the options and make the lists. Raises UserError where that is impossible."""
    check_options(opt)
    try:
        COMMANDS[opt.kind](opt)
    except OSError as error:
        raise UserError(
            f"{error}.\nIs the disk full (`df -h`), or the folder not writable? Another folder: --out DIR."
        ) from error


# ------------------------------------------------------------------------------------------------ options


def option_parser() -> argparse.ArgumentParser:
    """Return the parser, with a sub-command for each source."""
    parser = ToolParser("datasets/prepare.py", __doc__)
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


# ------------------------------------------------------------------------------------------------ lists


def prepare_lists(opt: argparse.Namespace) -> None:
    """Read a source, split it, and write its lists. Raises UserError where that is impossible."""
    out = Path(opt.out).resolve()
    given = None
    if opt.classes is not None:
        given = read_classes(Path(opt.classes))
    elif getattr(opt, "part", None) == "val":  # validation is numbered like the training list
        if not (out / "classes.txt").is_file():
            raise UserError(
                f"There is no {out / 'classes.txt'} with the numbers of the classes. "
                "Make train.txt first, or give --classes FILE."
            )
        given = read_classes(out / "classes.txt")
    _keep_source(opt, out)
    root = getattr(opt, "root", None)
    if opt.kind != "folder" and root is not None and not Path(root).is_dir():  # the images may be elsewhere
        log.warning(f"--root {root} is no folder here, so no listed image can be read.{path_hint(Path(root))}")
    listing = READERS[opt.kind](opt, given)
    check_names(listing.names)
    if opt.kind != "folder":
        for images in listing.lists.values():
            images.paths = as_on_disk(images.paths, opt.suffix)
        _warn_elsewhere(opt, listing)
    if opt.test is not None:
        if "test" in listing.lists:
            raise UserError(f"{opt.file} holds images for test.txt, and so does --test {opt.test}; leave one out.")
        listing.lists["test"] = read_unlabelled(opt.test)
    listing.lists = {name: normalise_list(images, name) for name, images in listing.lists.items()}
    for name, images in listing.lists.items():
        if not images.paths:
            raise UserError(f"No image is left for {out / name}.txt; the warnings above give the reasons.")
    _warn_labelled_test(listing)
    _split(listing, opt)
    if "train" in listing.lists and "val" in listing.lists:
        check_apart(listing.lists["train"], listing.lists["val"])
    write_all(listing, out, opt.check)


def _warn_labelled_test(listing: Listing) -> None:
    """Warn of images to predict that are labelled too."""
    if "test" not in listing.lists:
        return
    to_predict = set(listing.lists["test"].paths)
    labelled = {path for name, images in listing.lists.items() if name != "test" for path in images.paths}
    shared = len(to_predict & labelled)
    if shared:
        log.warning(f"{shared} of the {len(to_predict)} images of test.txt are labelled in another list too.")


def _keep_source(opt: argparse.Namespace, out: Path) -> None:
    """Raise UserError where an output would replace the source file."""
    source = getattr(opt, "file", None)
    if source is None or not Path(source).is_file():
        return
    for name in ("train", "val", "test", "classes"):
        target = out / f"{name}.txt"
        if target.exists() and target.samefile(source):
            again = _again(opt, out=str(out / "split"))
            raise UserError(
                f"{source} would be replaced by the {target.name} made from it. Use another folder.\nTry: {again}"
            )


def _again(opt: argparse.Namespace, **changed: str) -> str:
    """Return the command of `opt` with the options `changed`."""
    actions = option_parser()._actions
    kinds = next(action for action in actions if isinstance(action, argparse._SubParsersAction))
    return prepare_command(opt.kind, *words(kinds.choices[opt.kind], {**vars(opt), **changed}))


def _warn_elsewhere(opt: argparse.Namespace, listing: Listing) -> None:
    """Warn where none of the first images is there; name the folder beside the source that has them, if one does.

    The images may be on another machine, so this is no error.
    """
    root = _root(opt)
    paths = [path for images in listing.lists.values() for path in images.paths[:FIRST_PATHS]]
    if not paths or not root.is_dir() or any(map(os.path.lexists, paths)):
        return
    first, finder = os.path.relpath(paths[0], root), FileFinder()
    relative = not first.startswith("../")  # else the source has absolute paths, which --root does not change
    fitting = [str(one) for one in root.glob("*") if relative and one.is_dir() and finder.exists(str(one / first))]
    reason = f"; relative paths start at {root}/" if relative else ""
    command = f"\nTry: {_again(opt, root=fitting[0])}" if len(fitting) == 1 else ""
    log.warning(
        f"None of the first {count_of(len(paths), 'listed image')} is there, such as {paths[0]!r}{reason}.{command}"
    )


def _root(opt: argparse.Namespace) -> Path:
    """Return where the relative paths of a table, a JSON file or a list start."""
    return Path(opt.root if opt.root is not None else Path(opt.file).parent).resolve()


def _split(listing: Listing, opt: argparse.Namespace) -> None:
    """Divide the training images into train and val, unless the source already does."""
    train = listing.lists.get("train")
    if train is None or "val" in listing.lists or getattr(opt, "split_column", None) is not None:
        return
    if opt.group_by is not None:
        root = _root(opt)
        train.groups = group_by([os.path.relpath(path, root) for path in train.paths], opt.group_by)
    others = {name: images for name, images in listing.lists.items() if name != "train"}
    listing.lists = split_and_log(train, split_plan(opt)) | others


def _read_folder(opt: argparse.Namespace, given: list[str] | None) -> Listing:
    return read_folder(opt.root, opt.val_root, given, opt.out)


Reader = Callable[[argparse.Namespace, list[str] | None], Listing]
READERS: dict[str, Reader] = {"folder": _read_folder, "csv": read_csv, "coco": read_coco, "list": read_ready}
COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "fashion-mnist": prepare_fashion,
    "elpv": prepare_elpv,
    **dict.fromkeys(COLLECTIONS, prepare_drawings),
    **dict.fromkeys(READERS, prepare_lists),
}


if __name__ == "__main__":
    sys.exit(main())
