"""Make list files (train.txt, val.txt, test.txt, classes.txt) and, for a built-in set, the images.

    python datasets/prepare.py fashion-mnist --out datasets/fashion-mnist --train 12000
    python datasets/prepare.py folder photos/ --out datasets --val 0.1
    python datasets/prepare.py csv products.csv --path_column image --label_column category --root photos/
    python datasets/prepare.py coco train.json --root train/
    python datasets/prepare.py list all.txt --val 0.1 --out datasets

fashion-mnist: real product images (Zalando), 60,000 + 10,000, from Debian's package dataset-fashion-mnist or through
torchvision; where neither can be had, scikit-learn's digits take their place, and it says so.
folder: one folder a class, as ImageNet has them. csv: a table with a header. coco: JSON as COCO or AliProducts has it.
list: a list that is ready. All four hold out a share of each class for val.txt; `python datasets/prepare.py folder --help`
shows the other ways.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dataloader.list_advice import prepare_command
from options.commands import words
from options.parser import ToolParser, expanded
from tools.prepare.coco import read_coco
from tools.prepare.fashion import prepare_fashion
from tools.prepare.folder import read_folder, read_unlabelled
from tools.prepare.lists import Found, as_on_disk, check_apart, check_names, read_classes, tidy, write_all
from tools.prepare.ready import read_ready
from tools.prepare.splits import Plan, group_by, split
from tools.prepare.table import read_csv
from utils.errors import UserError
from utils.logger import log
from utils.run import run_tool

DEFAULT_VAL = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code: 0 done, 2 a user's mistake, 130 interrupted."""
    return run_tool(lambda: option_parser().parse_args(argv), prepare)


def prepare(opt: argparse.Namespace) -> None:
    """Check the options, and make the lists. Raises UserError where that cannot be."""
    check_options(opt)
    try:
        COMMANDS[opt.kind](opt)
    except OSError as error:
        raise UserError(
            f"{error}.\nIs the disk full (`df -h`), or may the folder not be written? --out DIR names another."
        ) from error


# ------------------------------------------------------------------------------------------------ options


def option_parser() -> argparse.ArgumentParser:
    """The parser, with a sub-command for each source."""
    parser = ToolParser("datasets/prepare.py", __doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    fashion = kinds.add_parser("fashion-mnist", help="real product images, 28 pixels, 10 classes", allow_abbrev=False)
    fashion.add_argument("--out", type=expanded, default="datasets/fashion-mnist", help="folder for lists and images")
    fashion.add_argument("--train", type=int, default=12000, help="training images")
    fashion.add_argument("--val", type=int, default=10000, help="validation images, of the set's own test part")
    fashion.add_argument(
        "--test", type=int, default=2000, help="images for submission, of the training part, apart from --train"
    )
    fashion.add_argument("--seed", type=int, default=42, help="which images are chosen")

    folder = kinds.add_parser("folder", help="one folder of images a class", allow_abbrev=False)
    folder.add_argument("root", type=expanded, help="the folder that holds the class folders")
    folder.add_argument(
        "--val_root", type=expanded, metavar="DIR", help="class folders for val.txt, numbered as in the training root"
    )

    table = kinds.add_parser("csv", help="a CSV file with a header", allow_abbrev=False)
    table.add_argument("file", type=expanded, help="the CSV file (UTF-8)")
    table.add_argument(
        "--path_column", metavar="NAME", help="the column of image paths; left out, the columns are named"
    )
    table.add_argument("--label_column", metavar="NAME", help="the column of labels: names, or whole numbers")
    table.add_argument(
        "--split_column", metavar="NAME", help="a column that says train, val or test; in place of --val"
    )
    table.add_argument(
        "--group_column", metavar="NAME", help="a column that says what belongs together (one product's photos)"
    )
    table.add_argument(
        "--keep_labels", action="store_true", help="labels are class numbers already, and stay as they are"
    )
    table.add_argument(
        "--delimiter", metavar="SIGN", help="what stands between fields (`tab` for a tab); found out if left out"
    )

    coco = kinds.add_parser("coco", help="a JSON file, as COCO or AliProducts has it", allow_abbrev=False)
    coco.add_argument("file", type=expanded, help="the JSON file")

    ready = kinds.add_parser("list", help="a list that is ready: image path, space, label per line", allow_abbrev=False)
    ready.add_argument("file", type=expanded, help="the list")
    for kind in (table, coco, ready):
        kind.add_argument(
            "--root", type=expanded, metavar="DIR", help="where relative paths start; the file's folder if left out"
        )
        text = "the list to make: train (with --val of it held out), all into val, or test without labels"
        kind.add_argument("--part", choices=("train", "val", "test"), default="train", help=text)
        text = "what file names end in beside the names given (.jpg); left out, the ending that the file there has"
        kind.add_argument("--suffix", metavar="TEXT", help=text)
    for kind in (folder, table, coco, ready):
        _add_shared(kind)
    return parser


def _add_shared(kind: argparse.ArgumentParser) -> None:
    """Flags of every source but the built-in ones."""
    kind.add_argument("--out", type=expanded, default="datasets", help="folder for the lists")
    kind.add_argument(
        "--val",
        type=float,
        metavar="SHARE",
        help=f"the share of each class that goes to val.txt ({DEFAULT_VAL}); 0: none",
    )
    kind.add_argument("--folds", type=int, metavar="K", help="cross-validation: divide into K parts …")
    kind.add_argument(
        "--fold", type=int, metavar="k", help="… of which the k-th, from 1 to K, goes to val.txt; in place of --val"
    )
    text = "images whose paths (below the root) agree in what REGEX catches go to the same side of the split"
    kind.add_argument("--group_by", metavar="REGEX", help=text)
    kind.add_argument("--seed", type=int, default=42, help="the same seed gives the same split")
    kind.add_argument(
        "--classes",
        type=expanded,
        metavar="FILE",
        help="classes.txt that decides the class numbers; other labels are errors",
    )
    kind.add_argument(
        "--test", type=expanded, metavar="DIR", help="write test.txt from all images in this folder, unlabelled"
    )
    kind.add_argument("--check", action="store_true", help="look whether the listed files are there")


def check_options(opt: argparse.Namespace) -> None:
    """Raise one UserError with all that is wrong with the flags and between them."""
    wrong = [] if 0 <= opt.seed < 2**32 else [f"--seed is {opt.seed}; allowed: 0 to {2**32 - 1}."]
    if opt.kind == "fashion-mnist":
        wrong += [] if opt.train > 0 else [f"--train is {opt.train}; allowed: 1 or more."]
        wrong += [
            f"--{name} is {value}; allowed: 0 or more."
            for name, value in (("val", opt.val), ("test", opt.test))
            if value < 0
        ]
    else:
        wrong += _wrong_split(opt) + (_wrong_table(opt) if opt.kind == "csv" else [])
    if wrong:
        raise UserError("\n".join(wrong) + f"\nAll flags: `python datasets/prepare.py {opt.kind} --help`.")


def _wrong_split(opt: argparse.Namespace) -> list[str]:
    """What is wrong with the flags that say how to split."""
    wrong = []
    if opt.val is not None and not 0 <= opt.val < 1:
        wrong.append(f"--val is {opt.val}; allowed: from 0 to below 1, a share of each class.")
    if (opt.folds is None) != (opt.fold is None):
        wrong.append("--folds and --fold go together: `--folds 5 --fold 1`.")
    elif opt.folds is not None and (opt.folds < 2 or not 1 <= opt.fold <= opt.folds):
        wrong.append(
            f"--folds is {opt.folds}, --fold {opt.fold}; allowed: 2 folds or more, and a fold from 1 to their number."
        )
    if opt.folds is not None and opt.val is not None:
        wrong.append("--val and --folds both say what goes to val.txt; give one of them.")
    fixed = next((f"--{name}" for name in ("val_root", "split_column") if getattr(opt, name, None) is not None), None)
    fixed = f"--part {opt.part}" if getattr(opt, "part", "train") != "train" else fixed
    splitting = [
        f"--{name}" for name in ("val", "folds", "group_by", "group_column") if getattr(opt, name, None) is not None
    ]
    if fixed and splitting:
        wrong.append(
            f"{fixed} says which images go where, so {', '.join(splitting)} would do nothing; leave one side out."
        )
    if opt.test is not None and getattr(opt, "part", None) == "test":
        wrong.append("--part test and --test both make test.txt; give one of them.")
    suffix = getattr(opt, "suffix", None)
    if suffix is not None and ("." not in suffix or "/" in suffix):
        wrong.append(f"--suffix is {suffix!r}; allowed: the end of a file's name, with its dot, such as .jpg.")
    if opt.group_by is not None:
        try:
            re.compile(opt.group_by)
        except re.error as error:
            wrong.append(f"--group_by {opt.group_by!r} is no regular expression: {error}.")
    return wrong


def _wrong_table(opt: argparse.Namespace) -> list[str]:
    wrong = []
    if opt.split_column is not None and opt.part != "train":
        wrong.append("--part and --split_column both say where rows go; give one of them.")
    if (
        opt.delimiter is not None
        and opt.delimiter not in ("tab", "\\t")
        and (len(opt.delimiter) != 1 or opt.delimiter in '"\r\n')
    ):
        wrong.append(
            f"--delimiter is {opt.delimiter!r}; allowed: one sign other than a quote or a line break, or `tab`."
        )
    if opt.group_by is not None and opt.group_column is not None:
        wrong.append("--group_by and --group_column both say what belongs together; give one of them.")
    return wrong


# ------------------------------------------------------------------------------------------------ lists


def prepare_lists(opt: argparse.Namespace) -> None:
    """Read a source, split it, write its lists."""
    out = Path(opt.out).resolve()
    given = None
    if opt.classes is not None:
        given = read_classes(Path(opt.classes))
    elif getattr(opt, "part", None) == "val":  # what numbered the training list
        if not (out / "classes.txt").is_file():
            raise UserError(
                f"There is no {out / 'classes.txt'} to number validation by; make train.txt first, or say --classes FILE."
            )
        given = read_classes(out / "classes.txt")
    _keep_source(opt, out)
    found = READERS[opt.kind](opt, given)
    check_names(found.names)
    if opt.kind != "folder":
        for part in found.parts.values():
            part.paths = as_on_disk(part.paths, opt.suffix)
    if opt.test is not None:
        if "test" in found.parts:
            raise UserError(f"{opt.file} holds the images for test.txt, and so does --test {opt.test}; leave one out.")
        found.parts["test"] = read_unlabelled(opt.test)
    found.parts = {name: tidy(part, name) for name, part in found.parts.items()}
    for name, part in found.parts.items():
        if not part.paths:
            raise UserError(f"No image is left for {out / name}.txt; the warnings above say why.")
    _split(found, opt)
    if "train" in found.parts and "val" in found.parts:
        check_apart(found.parts["train"], found.parts["val"])
    write_all(found, out, opt.check)


def _keep_source(opt: argparse.Namespace, out: Path) -> None:
    """Raise UserError where a list that is to be written is the file that is to be read."""
    source = getattr(opt, "file", None)
    if source is None or not Path(source).is_file():
        return
    for name in ("train", "val", "test", "classes"):
        target = out / f"{name}.txt"
        if target.exists() and target.samefile(source):
            kinds = next(
                action for action in option_parser()._actions if isinstance(action, argparse._SubParsersAction)
            )
            again = prepare_command(opt.kind, *words(kinds.choices[opt.kind], {**vars(opt), "out": str(out / "split")}))
            raise UserError(
                f"{source} would be replaced by the {target.name} that is made of it. Give another folder.\nTry: {again}"
            )


def _split(found: Found, opt: argparse.Namespace) -> None:
    """Divide the training images into train and val, unless the source did."""
    train = found.parts.get("train")
    if train is None or "val" in found.parts or getattr(opt, "split_column", None) is not None:
        return
    if opt.group_by is not None:
        root = Path(opt.root if opt.root is not None else Path(opt.file).parent).resolve()
        train.groups = group_by([os.path.relpath(path, root) for path in train.paths], opt.group_by)
    share = DEFAULT_VAL if opt.val is None else opt.val
    parts = split(train, Plan(share, opt.folds, opt.fold, opt.seed))
    log.info(
        f"Split by seed {opt.seed}: "
        + ", ".join(f"{len(part.paths):,} images for {name}" for name, part in parts.items())
    )
    found.parts = {**parts, **{name: part for name, part in found.parts.items() if name != "train"}}


Reader = Callable[[argparse.Namespace, list[str] | None], Found]
READERS: dict[str, Reader] = {"folder": read_folder, "csv": read_csv, "coco": read_coco, "list": read_ready}
COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "fashion-mnist": prepare_fashion,
    **dict.fromkeys(READERS, prepare_lists),
}


if __name__ == "__main__":
    sys.exit(main())
