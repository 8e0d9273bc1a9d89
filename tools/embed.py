"""Write the features of a network, the nearest neighbours of each image, and their votes as a member of an ensemble.

    python -m tools.embed --load checkpoints/lite0/best.pt --list datasets/fashion-mnist/val.txt --out results/embed
    python -m tools.embed --load checkpoints/lite0/best.pt --list datasets/fashion-mnist/val.txt \\
        --among datasets/fashion-mnist/train.txt --neighbours 20
    torchrun --standalone --nproc_per_node=2 -m tools.embed --load checkpoints/lite0/best.pt \\
        --list datasets/fashion-mnist/val.txt

Writes features.npy (float32, N x D, rows of length 1: the input of the classifier) and features.csv (row, path, label
as in the list). The row of an image that cannot be read is NaN, and neighbours.csv leaves it out.
--neighbours adds neighbours.csv, the nearest images by cosine in --among (by default in the list itself, without the
image), and neighbours.png: each row is a query and its nearest images, framed in green where the labels agree.
An image of --list that is in --among too is refused: its own label would vote for it.
With --among it also writes knn.npz, the votes of these labels as probabilities, for `eval.py --load best.pt knn.npz`.
(Without --among there is no knn.npz: a blend would be scored on the labels that voted.) Needs faiss-cpu.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from options import command
from options.parser import ToolParser, expanded
from options.wording import count_of
from tools.predicting import add_flags, open_checkpoint, require_classes
from utils import distributed, run_lock, tables
from utils.classes import Classes
from utils.errors import UserError
from utils.files import atomic_write, atomic_write_all
from utils.logger import log
from utils.outputs import check_folder, remove_stale
from utils.run import run_tool

if TYPE_CHECKING:
    from torch import Tensor

    from dataloader.file_list import FileList
    from evaluation.report.tool_plots import Cell
    from utils.batch import EvalBatch, Unreadable

KNN_TEMPERATURE = 0.07  # votes weigh exp(cosine / KNN_TEMPERATURE), as in Wu et al., 2018, section 3.4
OUTPUTS = ("features.npy", "features.csv", "neighbours.csv", "neighbours.png", "knn.npz")
MAX_QUERIES, MAX_NEIGHBOURS = 8, 8  # in the picture


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser("-m tools.embed", __doc__)
    parser.add_argument("--load", type=expanded, required=True, metavar="CKPT")
    parser.add_argument("--list", type=expanded, required=True, help="images to embed: path, space, label")
    parser.add_argument("--unlabelled", action="store_true", help="--list has only paths, like test.txt")
    parser.add_argument(
        "--among", type=expanded, help="a labelled list to search for neighbours; by default the list itself"
    )
    parser.add_argument(
        "--neighbours", type=int, default=0, metavar="K", help="how many nearest images to find for each; 0: none"
    )
    parser.add_argument("--out", type=expanded, default="results/embed", metavar="DIR")
    add_flags(parser, batch_size=64)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and write; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), run)


def run(opt: argparse.Namespace) -> None:
    """Embed the list, and find neighbours if asked.

    Raises:
        UserError: --neighbours has no list with labels to choose from, or FAISS is missing; the checkpoint or a list
            is unusable.
    """
    from dataloader import align_labels
    from dataloader.file_list import read_list
    from dataloader.list_checks import listed_images, warn_repeated
    from inference import saved_probs
    from utils import checkpoint
    from utils.seen_lists import entry, joined, seen_lists

    if opt.neighbours:
        _import_faiss()  # if it is missing, say so before the features are computed
        if opt.unlabelled and not opt.among:
            raise UserError("--neighbours of a list without labels needs --among LIST, a list with labels.")
    out = Path(opt.out)
    if distributed.is_main():
        run_lock.acquire(out)
    # before the list, which another task's labels would make unreadable
    content = checkpoint.load(opt.load)
    require_classes(content, opt.load, "tools.embed")
    seen = seen_lists(content)
    del content
    files = read_list(opt.list, labelled=not opt.unlabelled)
    among = read_list(opt.among) if opt.neighbours and opt.among else None
    if opt.neighbours and among is None:
        warn_repeated(files)
    if among is not None:
        check_apart(files, among)
    if distributed.is_main():
        check_folder(out, OUTPUTS, opt, files)
    features, readable, classes = embed(opt, files)
    features[~readable] = np.nan  # what the network makes of a blank picture is not of the image
    if distributed.is_main():
        remove_stale(out / name for name in OUTPUTS if not name.startswith("features."))  # of other features
        write_features(out, features, files)
    if not opt.neighbours:
        return
    files = align_labels(files, classes, "the checkpoint")
    pool_files, pool, kept = files, features, readable
    if among is not None:
        pool_files = align_labels(among, classes, "the checkpoint")
        pool, kept, _ = embed(opt, pool_files)
    if not distributed.is_main():  # the main process has the features of all
        return
    own = None if opt.among else listed_images(files, "no line of an image is a neighbour of another")
    queries = np.flatnonzero(readable)
    near, cosine = neighbours(features[queries], pool, opt.neighbours, kept, own, rows=queries)
    found = files.select(readable)
    _write_neighbours(out / "neighbours.csv", found, pool_files, near, cosine)
    saved_probs.check_size(2 * len(files), classes.count, "The neighbours' votes")
    votes = np.full((len(files), classes.count), 1 / classes.count, np.float32)  # of an unreadable image, none
    votes[queries] = knn_vote(pool_files.label[near], cosine, classes.count)
    if not opt.unlabelled:
        top1 = float((votes.argmax(axis=1) == files.label)[readable].mean())
        log.info(f"kNN top1 {top1:.6f} ({count_of(len(queries), 'image')})")
    picture(out / "neighbours.png", found, pool_files, near, cosine, classes)
    log.info(f"Written: {out}/neighbours.csv, neighbours.png")
    if among is not None:
        seen = joined(seen, [entry(among.source, among.fingerprint())])  # its images have voted
        saved_probs.write(out / "knn.npz", saved_probs.to_log_float16(votes), readable, files, classes, seen=seen)
        script, flag = ("submit", "test_list") if opt.unlabelled else ("eval", "val_list")
        same = {name: getattr(opt, name) for name in ("batch_size", "workers", "gpu")}
        blend = command(script, same | {"load": [opt.load, str(out / "knn.npz")], flag: opt.list})
        log.info(f"Written: {out}/knn.npz. To blend it with the network:\n{blend}")


def check_apart(files: "FileList", among: "FileList") -> None:
    """Raise UserError where an image is in the list and in --among too: it would be its own nearest neighbour."""
    from dataloader.list_checks import shared_images

    shared = shared_images(among, files)
    if len(shared):
        first = int(shared[0])
        raise UserError(
            f"{len(shared)} of {len(files)} images of {files.source} are in --among {among.source} too, the first: "
            f"{files.path(first)} ({files.location(first)}). The label of each would vote for itself.\n"
            "Take them out of one list. Or leave --among out: then the neighbours are those in the list, without the "
            "image itself."
        )


def embed(opt: argparse.Namespace, files: "FileList") -> tuple[NDArray[np.float32], NDArray[np.bool_], Classes]:
    """Return features float32 (N, D) with rows of length 1, which images were readable, bool (N,), and the classes.

    The features are the input of the classifier of --load. Several processes share the images; the main one gets the
    features, and N is 0 in the others.

    Raises:
        UserError: the network has no classifier that is one linear layer.
    """
    import torch

    from dataloader import check_readable
    from inference import Features

    run = open_checkpoint(opt, files, match_classes=False, shared=True)
    features = Features(run.predictor, len(files), np.float32)
    with distributed.share_errors():
        if features.head is None:
            raise UserError(
                f"{opt.load}: its classifier is not a single layer; "
                "allowed: a network whose last layer is one Linear, or one of --head."
            )

    def take(batch: "EvalBatch", _: "Tensor") -> "tuple[Tensor | None, Tensor, Unreadable]":
        return features.take(len(batch.label)), batch.readable, batch.bad

    readable = [torch.zeros(0, dtype=torch.bool)]
    with features:
        for found, known, bad in run.predictor.share(run.batches(), f"features of {files.source.name}", take):
            assert found is not None, "the classifier has seen the batch"
            features.add(found)
            readable.append(known)
            for _, reason in bad:
                log.warning(f"Unreadable, so it has no features and no neighbours: {reason}")
    kept = torch.cat(readable).numpy()
    distributed.broadcast_from_main(lambda: check_readable(files, np.arange(len(files)), kept))
    return features.rows if features.rows is not None else np.zeros((0, 0), np.float32), kept, run.classes


def write_features(folder: Path, features: NDArray[np.float32], files: "FileList") -> None:
    """Write features.npy, float32 (N, D), and features.csv, one row per image; a full disk leaves both as they were."""
    with atomic_write_all([folder / "features.npy", folder / "features.csv"]) as (rows, table):
        np.save(rows, features, allow_pickle=False)
        text = io.TextIOWrapper(table, encoding="utf-8", errors="surrogateescape", newline="")
        writer = tables.writer(text)
        writer.writerow(["row", "path", "label"])
        writer.writerows([row, files.path(row), int(files.label[row])] for row in range(len(files)))
        text.detach()
    log.info(f"Written: {folder}/features.npy {features.shape}, features.csv")


def _import_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "--neighbours needs FAISS, which is not installed. Try: python -m pip install faiss-cpu"
        ) from error
    return faiss


def neighbours(
    queries: NDArray[np.float32],
    pool: NDArray[np.float32],
    k: int,
    readable: NDArray[np.bool_],
    image: NDArray[np.integer] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k nearest rows of `pool` (M, D) for each of `queries` (N, D), exactly, by cosine.

    Both have rows of length 1.

    Args:
        readable: bool (M,); only readable rows are neighbours.
        image: (M,), where the queries are of the pool: equal where rows are of one image. None is a neighbour of
            another.
        rows: (N,), with `image`: which rows of the pool the queries are; None: all of them.

    Returns:
        int64 (N, k) places in the pool, nearest first, and float32 (N, k) cosines.

    Raises:
        UserError: k is more than there are, or FAISS is missing.
    """
    faiss = _import_faiss()
    places = np.flatnonzero(readable)
    # of the image that is listed most often
    own_rows = 0 if image is None else int(np.unique(image[places], return_counts=True)[1].max(initial=0))
    limit = len(places) - own_rows
    if not 1 <= k <= limit:
        raise UserError(f"--neighbours is {k}; allowed: 1 to {limit} (readable images to choose from).")
    index = faiss.IndexFlatIP(pool.shape[1])
    index.add(np.ascontiguousarray(pool[places]))
    cosine, near = index.search(np.ascontiguousarray(queries), k + own_rows)
    near = places[near]
    if image is None:
        return near, cosine
    own = image[near] == (image if rows is None else image[rows])[:, None]
    others = np.argsort(own, axis=1, kind="stable")[:, :k]  # the nearest k of other images, in their order
    return np.take_along_axis(near, others, 1), np.take_along_axis(cosine, others, 1)


def knn_vote(labels: NDArray[np.int32], cosine: NDArray[np.float32], num_classes: int) -> NDArray[np.float32]:
    """Return the votes of neighbours, float32 (N, C), rows summing to 1, from their labels and cosines, (N, k) each."""
    weight = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / KNN_TEMPERATURE)
    votes = np.zeros((len(labels), num_classes), np.float32)
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weight)
    return votes / votes.sum(axis=1, keepdims=True)


def _write_neighbours(
    path: Path, files: "FileList", pool: "FileList", near: NDArray[np.int64], cosine: NDArray[np.float32]
) -> None:
    with atomic_write(path, "w") as file:
        writer = tables.writer(file)
        writer.writerow(["path", "label", "rank", "neighbour", "neighbour_label", "cosine"])
        for row in range(len(near)):
            for rank, (place, value) in enumerate(zip(near[row].tolist(), cosine[row].tolist(), strict=True), 1):
                query = (files.path(row), int(files.label[row]), rank)
                writer.writerow([*query, pool.path(place), int(pool.label[place]), f"{value:.6f}"])


def picture(
    path: Path,
    queries: "FileList",
    pool: "FileList",
    near: NDArray[np.int64],
    cosine: NDArray[np.float32],
    classes: Classes,
) -> None:
    """Draw a grid: queries picked evenly from the list, each beside its nearest images in `pool`, with classes.

    `near`, int64 (N, k), and `cosine`, float32 (N, k), are what `neighbours` gave.
    """
    from evaluation.report.figures import class_names
    from evaluation.report.pictures import SIDE
    from evaluation.report.tool_plots import neighbour_grid

    shown = np.unique(np.linspace(0, len(near) - 1, MAX_QUERIES).round().astype(int))
    near, cosine = near[shown, :MAX_NEIGHBOURS], cosine[shown, :MAX_NEIGHBOURS]
    own, others = queries.label[shown].tolist(), pool.label[near].tolist()
    names = class_names(classes, sorted({*own, *pool.label[near].ravel().tolist()}))
    rows = []
    for k, index in enumerate(shown.tolist()):
        line: list[Cell] = [(queries.thumbnail(index, SIDE), f"query\n{names[own[k]] if own[k] >= 0 else ''}", None)]
        for place, label, value in zip(near[k].tolist(), others[k], cosine[k].tolist(), strict=True):
            agrees = None if own[k] < 0 else own[k] == label
            line.append((pool.thumbnail(place, SIDE), f"{names[label]}\ncosine {value:.2f}", agrees))
        rows.append(line)
    neighbour_grid(path, rows)


if __name__ == "__main__":
    sys.exit(main())
