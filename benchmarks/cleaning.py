"""Measure what cleaning the training list regains.

    python -m benchmarks.cleaning --data_root datasets/fashion-mnist --seeds 3
    python -m benchmarks.cleaning --data_root datasets/fashion-mnist --groups 0,2,4,6 5,7,9

The labels of a --share of the training images are changed: to any other class, or with --groups to another class of the
same group. tools.folds predicts each image by a network that has not seen it, and lists the likely label errors. Then
train.py trains on the true labels; on the changed ones; on the list in which every found label was looked at, and
corrected where it was wrong, as a person without mistakes would; and on the list without the --top likeliest ones. Each
is scored on the validation list. Regained is the gain of a list over the changed labels, as a share of what they cost.

The seed draws the changed labels, and is that of each training. Writes cleaning.md and cleaning.json; --resume
continues.
"""

import argparse
import csv
import os
import random
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness as bench
from benchmarks.kept_runs import KeptRuns
from dataloader.file_list import FileList, read_list
from options.parser import ToolParser, expanded
from utils import run_lock
from utils.errors import UserError
from utils.files import atomic_write, write_json
from utils.logger import log
from utils.run import run_tool

FIRST_SEED = 1
ROWS = ("true", "changed", "corrected", "dropped")  # the lists that are trained on
MIN_GROUP = 2


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark."""
    parser = ToolParser("-m benchmarks.cleaning", __doc__)
    parser.add_argument("--data_root", type=expanded, required=True, metavar="DIR", help="folder of the lists")
    parser.add_argument("--groups", nargs="+", metavar="CLASSES", help="classes that look alike, such as 0,2,4,6 5,7,9")
    parser.add_argument("--share", type=float, default=0.1, help="of the training images whose labels are changed")
    parser.add_argument("--top", type=int, default=900, metavar="N", help="likeliest errors that are dropped")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="choices of the changed labels")
    parser.add_argument("--folds", type=int, default=3, metavar="K", help="parts of the training list")
    parser.add_argument("--model", default="EfficientNet-Lite0", help="network, by its name in train.py")
    parser.add_argument("--scale", type=int, default=32, metavar="PX", help="side of the images")
    parser.add_argument("--epochs", type=int, default=1, metavar="N", help="of each training")
    parser.add_argument("--gpu", type=int, metavar="N", help="which GPU; -1: the CPU; default: GPU 0 if there is one")
    parser.add_argument("--resume", action="store_true", help="keep the seeds that an earlier call has ended")
    parser.add_argument("--out", type=expanded, default="results/cleaning", help="folder for lists, runs and table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), measure, again="run it again with --resume to continue")


def measure(opt: argparse.Namespace) -> None:
    """Measure every seed; write the table and the JSON."""
    if opt.seeds < 1 or not 0 < opt.share < 1 or opt.top < 1:
        raise UserError(
            f"--seeds {opt.seeds}, --share {opt.share:g}, --top {opt.top}; "
            "allowed: 1 or more, between 0 and 1, 1 or more."
        )
    root, out = Path(opt.data_root), Path(opt.out).resolve()
    files = {part: read_list(root / f"{part}.txt") for part in ("train", "val")}
    groups = read_groups(opt.groups, 1 + int(files["train"].label.max()))
    out.mkdir(parents=True, exist_ok=True)
    run_lock.acquire(out)
    kept = {name: value for name, value in vars(opt).items() if name not in ("seeds", "resume", "out")}
    about = {**kept, "lists": [one.fingerprint() for one in files.values()], "device": bench.device_name(opt.gpu)}
    kept_runs = KeptRuns(out, about, opt.resume)
    for seed in range(FIRST_SEED, FIRST_SEED + opt.seeds):
        if str(seed) not in kept_runs.done:
            kept_runs.add(str(seed), one_seed(opt, out / f"seed{seed}", files, groups, seed))
    found = {seed: kept_runs.done[seed] for seed in map(str, range(FIRST_SEED, FIRST_SEED + opt.seeds))}
    table = markdown(found, about)
    write_json(out / "cleaning.json", {**about, "seeds": found})
    with atomic_write(out / "cleaning.md", "w") as text:
        text.write(table)
    log.info(f"\n{table}\nWritten: {out}/cleaning.md, {out}/cleaning.json")


def read_groups(words: Sequence[str] | None, classes: int) -> list[list[int]]:
    """Return the groups of --groups, or one of all classes.

    Raises:
        UserError: a group has fewer than two classes, or a class that is none of the list's or is in two groups.
    """
    if words is None:
        return [list(range(classes))]
    try:
        groups = [[int(word) for word in group.split(",")] for group in words]
    except ValueError:
        groups = []
    flat = [label for group in groups for label in group]
    small = any(len(group) < MIN_GROUP for group in groups)
    if not flat or small or len(set(flat)) < len(flat) or not set(flat) <= set(range(classes)):
        raise UserError(
            f"--groups {' '.join(words)}; allowed: groups of two classes or more from 0 to {classes - 1}, "
            "each class in one of them, such as 0,2,4,6 5,7,9."
        )
    return groups


def changed_labels(true: Sequence[int], groups: Sequence[Sequence[int]], share: float, seed: int) -> list[int]:
    """Return the labels of which a `share` of the list's length is changed, each within the group of its class.

    Raises:
        UserError: the groups have fewer images.
    """
    of_class = {label: group for group in groups for label in group}
    pool = [place for place, label in enumerate(true) if label in of_class]
    count = round(share * len(true))
    if count > len(pool):
        raise UserError(f"--share {share:g} is {count} images, the groups have {len(pool)}. Give a smaller share.")
    rng = random.Random(seed)
    chosen = set(rng.sample(pool, count))
    return [
        rng.choice([other for other in of_class[label] if other != label]) if place in chosen else label
        for place, label in enumerate(true)
    ]


def one_seed(
    opt: argparse.Namespace, folder: Path, files: Mapping[str, FileList], groups: Sequence[Sequence[int]], seed: int
) -> dict[str, Any]:
    """Return what one choice of changed labels gives: scores by row, errors found, precision and recall."""
    shutil.rmtree(folder, ignore_errors=True)
    true = files["train"].label.tolist()
    changed = changed_labels(true, groups, opt.share, seed)
    wrong = {place for place, label in enumerate(true) if changed[place] != label}
    words = ["--model", opt.model, "--scale", str(opt.scale), "--epochs", str(opt.epochs), "--seed", str(seed)]
    words += bench.gpu_words({"gpu": opt.gpu})

    def trained(row: str, labels: Sequence[int | None]) -> float:
        lists = write_lists(folder / "lists" / row, files, labels)
        bench.run_script(["train.py", "--tag", row, "--data_root", str(lists), "--val_freq", "1", *words], folder)
        with open(folder / "logs" / row / "metrics.csv", newline="") as file:
            score = float(list(csv.DictReader(file))[-1]["val_top1"])
        log.info(f"seed {seed}  {row:10s} {100 * score:6.2f} %")
        return score

    scores = {"true": trained("true", true), "changed": trained("changed", changed)}
    lists = folder / "lists" / "changed"
    folds = ["--folds", str(opt.folds), "--", "--tag", "folds", "--data_root", str(lists), *words]
    bench.run_script(["-m", "tools.folds", *folds], folder)
    with open(folder / "results" / "folds" / "oof" / "label_issues.csv", newline="") as file:
        place_of = {os.path.abspath(files["train"].path(place)): place for place in range(len(true))}
        found = [place_of[row["path"]] for row in csv.DictReader(file)]
    corrected: list[int | None] = list(changed)
    dropped: list[int | None] = list(changed)
    for place in found:
        corrected[place] = true[place]
    for place in found[: opt.top]:
        dropped[place] = None
    scores |= {"corrected": trained("corrected", corrected), "dropped": trained("dropped", dropped)}
    right = len(wrong.intersection(found))
    return {**scores, "found": len(found), "precision": right / max(1, len(found)), "recall": right / len(wrong)}


def write_lists(folder: Path, files: Mapping[str, FileList], labels: Sequence[int | None]) -> Path:
    """Write train.txt with `labels`, without the images that have None, and val.txt; return the folder."""
    folder.mkdir(parents=True)
    for part, given in (("train", labels), ("val", files["val"].label.tolist())):
        one = files[part]
        lines = [
            f"{os.path.abspath(one.path(place))} {label}\n" for place, label in enumerate(given) if label is not None
        ]
        (folder / f"{part}.txt").write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    return folder


def markdown(seeds: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """Return the table: mean, lowest and highest of the seeds, and what each list regains of the loss."""
    lines = [
        f"{about['model']}, {about['scale']} px, {about['epochs']} epochs, {about['folds']} folds, {len(seeds)} seeds, "
        f"{about['device']}; {about['share']:.0%} of the labels changed, groups: {about['groups'] or 'all classes'}.",
        "",
        "| | mean (lowest–highest) | regained |",
        "|---|---|---|",
    ]
    mean = {row: statistics.mean(one[row] for one in seeds.values()) for row in ROWS}
    cost = mean["true"] - mean["changed"]
    for row in ROWS:
        values = [100 * one[row] for one in seeds.values()]
        back = f"{(mean[row] - mean['changed']) / cost:.0%}" if row in ROWS[2:] and cost > 0 else ""
        lines.append(f"| {row}, top-1 | {100 * mean[row]:.2f} ({min(values):.2f}–{max(values):.2f}) | {back} |")
    for name in ("precision", "recall"):
        values = [100 * one[name] for one in seeds.values()]
        lines.append(
            f"| {name} of the errors found, % | {statistics.mean(values):.1f} ({min(values):.1f}–{max(values):.1f}) | |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
