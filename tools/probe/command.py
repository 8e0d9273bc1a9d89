"""Probe frozen backbones before any is trained: which suits the images, how fast it is, and where training could start.

    python -m tools.probe --data_root datasets/fashion-mnist --scale 64
    python -m tools.probe --models EfficientNet-Lite0 EfficientNet-Lite2 --load checkpoints/lite0/best.pt --views 4

Computes the features of each backbone once, and keeps them in results/<tag>/features/. A linear probe (logistic
regression, or a linear discriminant where that would take hours) and the nearest neighbours are scored by stratified
cross-validation of the training list. By default the backbones are those whose ImageNet weights are on this machine.
Writes probe.json, probe.csv, probe.png, and for each backbone probe_<model>.pt, the network with the linear head fitted
to all images, from which `train.py --probe_init` starts (LP-FT; Kumar et al., 2022). If it is killed, run the same
command again to continue. The intervals cover the choice of images to predict, not the choice of images to learn from.
"""

import ctypes
import gc
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from options import Options, command, parse_train, rules, shared_flags
from options.parser import Parser, expanded
from utils.errors import UserError
from utils.logger import log
from utils.run import DEBUG_BATCHES, run_tool

if TYPE_CHECKING:
    from torch import Tensor

    from dataloader.file_list import FileList
    from tools.probe.backbone import Backbone, Source
    from tools.probe.features import Features
    from tools.probe.report import Row
    from utils.classes import Classes

MAX_ROWS = 100_000  # of features that a head is fitted to: 0.8 GB of 2,048 numbers each
MAX_VIEWS, MAX_FOLDS = 64, 20
OUTPUTS = ("probe.json", "probe.csv", "probe.png")
# Options that the next command takes over.
SAME_DATA = ("data_root", "train_list", "scale", "fit", "num_classes", "on_bad_image", "max_pixels")
SAME_MACHINE = ("seed", "workers", "gpu", "cache", "cache_size", "cache_format", "cache_quality")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and probe; return the exit code."""
    again, write_flags = "run the same command again to continue", "--features DIR, --result_dir DIR"
    return run_tool(lambda: option_parser().parse(argv), run, again, write_flags)


def option_parser() -> Parser:
    """Return the parser of this tool: the flags of runs and data of train.py, and its own."""
    parser = Parser("-m tools.probe", __doc__)
    shared_flags.run(parser, "result")
    shared_flags.data(parser, lists=("train",))
    parser.set_defaults(tag="probe")
    add = parser.group("probe")
    add(
        "--models",
        nargs="+",
        metavar="NAME",
        help="as --model of train.py; default: those with weights on this machine",
    )
    add("--load", nargs="+", type=expanded, metavar="CKPT", help="also the backbones of these checkpoints of train.py")
    add("--weights_dir", type=expanded, default="pretrained", metavar="DIR", help="as in train.py")
    add("--pretrained", action=shared_flags.SWITCH, default=True, help="ImageNet weights; without: random ones")
    add(
        "--views",
        type=int,
        default=1,
        low=1,
        high=MAX_VIEWS,
        metavar="N",
        help="views per image: plain, then augmented",
    )
    add("--folds", type=int, default=5, low=2, high=MAX_FOLDS, metavar="K", help="parts of the cross-validation")
    add("--neighbours", type=int, default=10, low=1, high=1000, metavar="K", help="nearest images that vote")
    add("--weight_decays", nargs="+", type=float, low=1e-12, high=1e6, metavar="W", help="to choose from, per backbone")
    add("--images", type=int, low=2, metavar="N", help=f"a sample of the list; default: at most {MAX_ROWS} / --views")
    add("--features", type=expanded, metavar="DIR", help="where features are kept; default: results/<tag>/features")
    add("--resamples", type=int, default=1000, low=100, high=100_000, metavar="N", help="for the intervals")
    parser.rules += [rules.tag, rules.cache]
    return parser


def run(opt: Options) -> None:
    """Probe each backbone, print the table and the next command, and write the files.

    Raises:
        UserError: a backbone, the list or a flag cannot be used.
    """
    import dataloader
    from dataloader.list_checks import path_hashes
    from tools.probe import backbone, features, report
    from utils import distributed, run_lock, seen_lists
    from utils.outputs import check_folder
    from utils.run import get_device, seed_everything

    distributed.require_single_process("Probes")
    device = get_device(opt.gpu)
    seed_everything(opt.seed, opt.deterministic)
    folder = Path(opt.result_dir) / opt.tag
    kept = Path(opt.features) if opt.features else folder / "features"
    run_lock.acquire(folder)
    run_lock.acquire(kept)
    sources = backbone.sources(opt)
    files = dataloader.open_list(opt, "train", drop_missing=True)
    listed = seen_lists.entry(files.source, files.fingerprint())
    classes = dataloader.find_classes(files, opt.num_classes)
    files = sample(files, opt)
    # All are built first, so that a mistyped name is found before hours of work.
    names = file_names([backbone.build(source, opt, classes.count, device).model.name for source in sources])
    check_folder(folder, (*OUTPUTS, *names), opt, files)
    training = training_options(opt)
    key = features.image_key(files)
    seen = {source: seen_by(source, files) for source in sources}
    rows = []
    for source, name in zip(sources, names, strict=True):
        free_memory()
        frozen = backbone.build(source, opt, classes.count, device)
        frozen.seen = seen_lists.joined(frozen.seen, [listed])  # its head is fitted to the list
        views = [features.compute(frozen, files, training, view, kept, key) for view in range(opt.views)]
        row = probe_one(opt, frozen, files, classes, views, folder / name)
        rows.append(replace(row, seen=seen[source]))
        log.info(f"{frozen.title}: linear top1 {rows[-1].scores['top1']:.4f}, kNN top1 {rows[-1].knn_top1:.4f}")
    found = report.verdict(rows, opt.seed, opt.resamples, path_hashes(files))
    rows = report.ranked(rows)
    then = train_command(opt, found.best)
    about = {name: getattr(opt, name) for name in ("scale", "fit", "views", "folds", "neighbours", "seed")}
    about |= {"list": str(files.source), "images": len(rows[0].hit), "classes": classes.count, "next": then}
    report.write(folder, rows, found, about)
    report.print_table(rows)
    log.info(f"\n{report.verdict_text(found, len(rows[0].hit))}\nWritten: {folder}/probe.json, probe.csv, probe.png")
    log.info(f"To train from the fitted head:\n{then}")


def seen_by(source: "Source", files: "FileList") -> int:
    """Return how many of the images a checkpoint was trained on, as far as it records that; 0 for ImageNet weights."""
    from evaluation.seen_images import count_seen
    from utils import checkpoint
    from utils.seen_lists import seen_lists

    if not source.is_checkpoint:
        return 0
    return count_seen(f"--load {source.name}", seen_lists(checkpoint.load(source.name)), files)


def probe_one(
    opt: Options, frozen: "Backbone", files: "FileList", classes: "Classes", views: list["Features"], path: Path
) -> "Row":
    """Cross-validate the heads of one backbone, write the network with the one fitted to all images; return its row."""
    from dataloader.list_checks import path_hashes
    from evaluation.bootstrap import intervals
    from evaluation.metrics import score
    from tools.probe import heads, report
    from training import linear_head
    from utils.classes import Classes

    readable = np.logical_and.reduce([view.readable for view in views])
    places = np.flatnonzero(readable)
    label = files.label[places]
    rows = [view.rows if len(places) == len(files) else view.rows[places] for view in views]
    kind = linear_head.method(len(places) * len(views), frozen.dim, len(np.unique(label)))
    strengths = linear_head.strengths_of(kind)
    if kind == "logistic" and opt.weight_decays:
        strengths = tuple(sorted(opt.weight_decays, reverse=True))
    if kind == "discriminant":
        log.info(
            f"{frozen.title}: {len(places)} images, {frozen.dim} features and {classes.count} classes are too many for "
            "logistic regression; a linear discriminant is fitted instead."
        )
    image = path_hashes(files)[places]
    _, first = np.unique(image, return_index=True)
    if len(first) < len(places):
        log.warning(f"{len(places) - len(first)} image(s) are listed again; all lines of an image are in one fold.")
    fold = heads.fold_numbers(label, count_folds(label[first], opt.folds), opt.seed, image)
    linear = heads.cross_validate(rows, label, fold, strengths, kind)
    near = heads.nearest_vote(rows, label, fold, opt.neighbours)
    strength = linear.strengths[linear.best]
    scores = score(linear.predictions, classes.count)
    plain = Classes(classes.count)  # no scores of classes with few training images
    bounds = intervals(linear.predictions, plain, opt.seed, opt.resamples, image)
    near_bounds = intervals(near, plain, opt.seed, opt.resamples, image)
    head = linear_head.whole_layer(
        linear_head.fit_best(rows, label, linear.strengths, linear.best, kind), classes.count
    )
    about = {"method": kind, "strength": strength, "images": len(places), "views": len(views), "top1": scores["top1"]}
    save(path, frozen, head, classes, about)
    seconds = sum(view.seconds for view in views)
    return report.Row(
        title=frozen.title,
        model=frozen.model.name,
        parameters=frozen.parameters,
        dim=frozen.dim,
        images_per_second=len(files) * len(views) / max(seconds, 1e-9),
        peak_bytes=max(view.peak_bytes for view in views),
        kind=kind,
        strength=strength,
        tried=dict(zip(linear.strengths, linear.top1.tolist(), strict=True)),
        scores=scores,
        intervals=bounds,
        knn_top1=score(near, classes.count)["top1"],
        knn_interval=near_bounds.get("top1"),
        file=str(path),
        network={name: getattr(frozen.opt, name) for name in ("pool", "drop", "drop_path")},
        places=places,
        hit=linear.predictions.top[:, 0] == linear.predictions.label,
    )


def save(
    path: Path, frozen: "Backbone", head: tuple["Tensor", "Tensor"], classes: "Classes", about: dict[str, Any]
) -> None:
    """Write a checkpoint of the backbone with `head`, weight (C, D) and bias (C,), for eval.py and --probe_init."""
    from utils import checkpoint

    left_out = ("given", "config", "overwrite", "rebuilt")
    options = {name: value for name, value in vars(frozen.opt).items() if name not in left_out}
    options |= {"load": None, "resume": False, "probe_init": None, "num_classes": classes.count}
    weights = {**frozen.weights(), f"{frozen.head}.weight": head[0], f"{frozen.head}.bias": head[1]}
    data = {**classes.as_dict(), "preprocess": frozen.preprocess().as_dict(), "seen": frozen.seen}
    content = {
        "model": frozen.model.name,
        "epoch": 0,
        "opt": options,
        "data": data,
        "weights": weights,
        "showing": "raw",
    }
    checkpoint.save(path, {**content, "probe": about})


# ------------------------------------------------------------------------------------------------ images


def sample(files: "FileList", opt: Options) -> "FileList":
    """Return the list, or a part of it with the same share of each class, of at most as many images as are probed."""
    limit = opt.images or MAX_ROWS // opt.views
    limit = min(limit, DEBUG_BATCHES * opt.batch_size) if opt.debug else limit
    if len(files) <= limit:
        return files
    log.info(f"A sample of {limit} of {len(files)} images is probed, with the same share of each class (--images N).")
    return files.sample(limit, opt.seed)


def count_folds(label: NDArray[np.int32], folds: int) -> int:
    """Return the number of folds, at most the images of the largest class; rare classes are named in a warning.

    `label` is the class of each image, int32 (N,).

    Raises:
        UserError: there is one class, or no class has two images.
    """
    counts = np.bincount(label)
    counts = counts[counts > 0]
    if len(counts) < 2 or counts.max() < 2:
        raise UserError(
            f"{len(label)} readable images of {len(counts)} classes cannot be cross-validated. "
            "Give two classes or more, one of them with two images or more."
        )
    rare = int((counts < min(folds, counts.max())).sum())
    if rare:
        log.warning(
            f"{rare} of {len(counts)} classes have fewer images than there are folds. "
            "An image whose class is in no other fold counts as wrong, for every backbone."
        )
    return int(min(folds, counts.max()))


# ------------------------------------------------------------------------------------------------ options and names


def training_options(opt: Options) -> Options:
    """Return the options of train.py with those that this tool shares with it, and the light augmentation."""
    known = vars(parse_train([]))
    shared = {name: value for name, value in vars(opt).items() if name in known and name != "load"}
    return Options(**{**known, **shared, "transform": "light", "erase": 0.0, "debug": False}).make_read_only()


def train_command(opt: Options, best: "Row") -> str:
    """Return the command that trains `best` from its fitted head, on the same list at the same size."""
    same = {name: getattr(opt, name) for name in (*SAME_DATA, *SAME_MACHINE)}
    own = {"tag": f"{opt.tag}-{_safe(best.model)}", "model": best.model, "probe_init": best.file, "given": opt.given}
    values = {**same, **best.network, **own}
    return command("train", values)


def _safe(model: str) -> str:
    from training.checkpoint_writer import safe_model_name

    return safe_model_name(model)


def file_names(models: Sequence[str]) -> list[str]:
    """Return probe_<model>.pt for each model; the second of a name is probe_<model>-2.pt."""
    found: list[str] = []
    for k, model in enumerate(models):
        again = models[:k].count(model) + 1
        found.append(f"probe_{_safe(model)}{f'-{again}' if again > 1 else ''}.pt")
    return found


def free_memory() -> None:
    """Return what the last backbone held to the system, so that the next one's peak is its own."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
