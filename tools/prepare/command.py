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
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dataloader.file_finder import FileFinder
from dataloader.list_advice import prepare_command
from dataloader.listing.class_names import check_names, read_classes
from dataloader.listing.folder import read_folder, read_unlabelled
from dataloader.listing.lists import Listing, as_on_disk, check_apart, normalise_list, write_all
from dataloader.listing.splits import group_by, split_and_log
from options.commands import words
from options.wording import count_of
from tools.prepare.coco import read_coco
from tools.prepare.drawings import COLLECTIONS, prepare_drawings
from tools.prepare.elpv import prepare_elpv
from tools.prepare.fashion import prepare_fashion
from tools.prepare.flags import split_plan
from tools.prepare.parser import check_options, option_parser
from tools.prepare.ready import read_ready
from tools.prepare.table import read_csv
from utils.errors import UserError, path_hint
from utils.logger import log
from utils.run import run_tool

FIRST_PATHS = 20  # of each list, that are looked for


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and run; return the exit code: 0 success, 2 a user's mistake, 130 interrupted."""
    return run_tool(lambda: option_parser(__doc__ or "").parse_args(argv), prepare)


def prepare(opt: argparse.Namespace) -> None:
    """Check the options and make the lists. Raises UserError where that is impossible."""
    check_options(opt)
    try:
        COMMANDS[opt.kind](opt)
    except OSError as error:
        raise UserError(
            f"{error}.\nIs the disk full (`df -h`), or the folder not writable? Another folder: --out DIR."
        ) from error


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
