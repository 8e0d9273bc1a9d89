"""Find the size of the test images that serves a network best: random crops show larger objects than testing does.

    python -m tools.best_scale --load checkpoints/lite0/best.pt --list datasets/fashion-mnist/val.txt

(Touvron et al., 2019, "Fixing the train-test resolution discrepancy".) Scores each size on a validation list. p is that
of McNemar's exact test against the checkpoint's own size: above 0.05 the difference may be chance, and the best of many
scores has been lucky too. Writes best_scale.csv and best_scale.png. Prints the command that submits at the best size,
if that is better by more than chance.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from options import command
from options.parser import ToolParser, expanded
from tools.predicting import add_flags, open_checkpoint, require_classes
from utils import run_lock, tables
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log
from utils.outputs import check_folder
from utils.run import run_tool

if TYPE_CHECKING:
    from torch import nn

    from dataloader.file_list import FileList

FACTORS = (0.75, 0.875, 1.0, 1.125, 1.25, 1.5)
STEPS_PIXELS = (8, 14, 16, 28, 32)  # what convolutions like; the sides of patches; those of windows of patches
MAX_P_VALUE = 0.05


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser("-m tools.best_scale", __doc__)
    parser.add_argument("--load", type=expanded, required=True, metavar="CKPT")
    parser.add_argument("--list", type=expanded, required=True, help="a validation list: path, space, label")
    parser.add_argument(
        "--scales",
        nargs="+",
        type=int,
        metavar="PX",
        help="by default 0.75 to 1.5 times the checkpoint's, in steps of 8 px, or of what the network takes",
    )
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16", "fast"))
    parser.add_argument("--out", type=expanded, default="results/best_scale", metavar="DIR")
    add_flags(parser, batch_size=24)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and try; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), run)


def run(opt: argparse.Namespace) -> None:
    """Score each size, print the table and the command, write the CSV and the plot.

    Raises:
        UserError: the checkpoint does not say at what size it was trained; or what the functions below raise.
    """
    from dataloader import Classes, align_labels
    from dataloader.file_list import read_list
    from evaluation.report.tool_plots import line
    from evaluation.seen_images import warn_seen
    from network.loading import build_from_checkpoint
    from utils import checkpoint
    from utils.seen_lists import seen_lists

    out = Path(opt.out)
    run_lock.acquire(out)
    content = checkpoint.load(opt.load)
    # before the list, which another task's labels would make unreadable
    require_classes(content, opt.load, "tools.best_scale")
    files = read_list(opt.list)
    check_folder(out, ("best_scale.csv", "best_scale.png"), opt, files)
    data = content.get("data") or {}
    preprocess = data.get("preprocess")
    if preprocess is None:
        raise UserError(f"{opt.load} does not say at what size it was trained. Give a checkpoint of train.py.")
    effect = "Its scores on them say nothing, and nor does the best size."
    warn_seen(f"--load {opt.load}", seen_lists(content), files, effect)
    files = align_labels(files, Classes.from_dict(data), "the checkpoint")
    own = int(preprocess["scale"])
    net = build_from_checkpoint(content, opt.load)[0].net
    scales = sorted({own, *(_checked(net, opt.load, opt.scales) if opt.scales else _near(net, opt.load, own))})
    del net  # each size is scored with a network of its own
    found = {}
    for scale in scales:
        found[scale] = _score(opt, files, scale)
        log.info(f"{scale} px: top1 {found[scale][0]['top1']:.6f}")
    rows = [_row(files, scale, found, own) for scale in scales]
    log.info(f"\n{'px':>6s} {'top1':>9s} {'loss':>9s} {'gained':>7s} {'lost':>6s} {'p':>8s}")
    for row in rows:
        numbers = f"{row['scale']:6d} {row['top1']:9.6f} {row['loss']:9.6f} {row['gained']:7d} {row['lost']:6d}"
        log.info(f"{numbers} {row['p']:8.4f}" + ("  trained" if row["scale"] == own else ""))
    with atomic_write(out / "best_scale.csv", "w") as file:
        writer = tables.dict_writer(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    top1 = [row["top1"] for row in rows]
    line(out / "best_scale.png", scales, top1, ("test size, px", f"top-1 of {len(files)} images"), own)
    best = max(rows, key=lambda row: (row["top1"], -row["loss"]))
    if best["scale"] == own or best["p"] > MAX_P_VALUE:
        log.info(f"\nNo size is better than its own, {own} px, by more than chance: leave --scale out.")
    else:
        kept = {name: getattr(opt, name) for name in ("precision", "batch_size", "workers", "gpu")}
        log.info(f"\n{command('submit', kept | {'load': [opt.load], 'scale': best['scale']})}")
    log.info(f"Written: {out}/best_scale.csv, best_scale.png")


def _checked(net: "nn.Module", path: str, scales: list[int]) -> list[int]:
    """Return the sizes of --scales. Raises UserError if `net`, of the checkpoint `path`, does not take one of them."""
    from network.sizes import check_size

    for side in scales:
        check_size(net, side, path, "--scales", "give sizes that it takes, or leave --scales out")
    return scales


def _near(net: "nn.Module", path: str, own: int) -> set[int]:
    """Return sizes about FACTORS times `own` that `net`, of the checkpoint `path`, takes.

    They are multiples of the first of STEPS_PIXELS at which it takes all of them, else those that it takes at any.

    Raises:
        UserError: it takes none but its own.
    """
    from network.sizes import takes_size

    taken = set[int]()
    for step in STEPS_PIXELS:
        near = {max(step, round(own * factor / step) * step) for factor in FACTORS}
        fitting = {side for side in near if takes_size(net, side)}
        if fitting == near:
            return near
        taken |= fitting
    if taken <= {own}:
        raise UserError(f"{path} takes no images of a size near {own} px but its own: there is no size to choose.")
    return taken


def _row(
    files: "FileList", scale: int, found: dict[int, tuple[dict[str, float], NDArray[np.bool_]]], own: int
) -> dict[str, float]:
    """Return the scores at `scale`, and how it differs from the size `own`: images gained and lost, and McNemar's p."""
    from dataloader.list_checks import units_of
    from evaluation.compare import mcnemar

    (score, hit), (_, own_hit) = found[scale], found[own]
    test = mcnemar(hit, own_hit, units_of(files))
    changed = {"gained": test.only_this, "lost": test.only_other, "p": test.p_value}
    return {"scale": scale, "top1": score["top1"], "loss": score["loss"], **changed}


def _score(opt: argparse.Namespace, files: "FileList", scale: int) -> tuple[dict[str, float], NDArray[np.bool_]]:
    """Return the scores at `scale`, and which images were classified correctly, bool (N,)."""
    from evaluation.metrics import score
    from inference import predict

    words = ("--scale", str(scale), "--precision", opt.precision)
    run = open_checkpoint(opt, files, *words, match_classes=False)  # they match already
    predictions = predict(run.predictor, run.batches())[0]
    hit = (predictions.top[:, 0] == predictions.label) & predictions.readable
    return score(predictions, run.classes.count), hit


if __name__ == "__main__":
    sys.exit(main())
