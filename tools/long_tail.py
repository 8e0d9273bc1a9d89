"""Adjust the classifier of a network to classes of unequal size, without training.

    python -m tools.long_tail --load checkpoints/lite0/best.pt --list datasets/fashion-mnist/val.txt

Two methods are tried. Each has a strength tau, chosen from a grid on the list for the best mean class accuracy:
"norm" divides the weights of each class by their length to the power tau (Kang et al., 2020, section 4.3; no bias);
"prior" subtracts tau times the log of the class's share of the training images from its logit (Menon et al., 2021,
section 4). Scores are cross-fitted: each fifth of the images is scored with the tau of the other four. If a method
helps, the checkpoint with the changed layer is written beside the old one, as <name>.norm.pt or <name>.prior.pt.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from options import command
from options.parser import ToolParser, expanded
from tools.predicting import add_flags, open_checkpoint, require_classes
from utils import run_lock
from utils.errors import UserError
from utils.logger import log, progress
from utils.outputs import Output, check, inputs
from utils.run import run_tool
from utils.task import SOFTMAX

if TYPE_CHECKING:
    from dataloader.file_list import FileList

TAUS = np.round(np.arange(0, 2.01, 0.1), 1)
METHODS = ("norm", "prior")

Layer = tuple[torch.Tensor, torch.Tensor]  # (C,) factors of the weights' rows, and the (C,) bias that replaces the old


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser("-m tools.long_tail", __doc__)
    parser.add_argument("--load", type=expanded, required=True, metavar="CKPT")
    parser.add_argument("--list", type=expanded, required=True, help="a validation list: path, space, label")
    add_flags(parser, batch_size=64)
    parser.add_argument("--seed", type=int, default=42, help="of the folds")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that this tool has not written")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and fit; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), run)


def run(opt: argparse.Namespace) -> None:
    """Fit both methods, print what they gain, write the checkpoint of the better one.

    Raises:
        UserError: the checkpoint does not hold how many training images a class had, or no last layer with weight and
            bias; or it or the list is unusable.
    """
    from dataloader.file_list import read_list
    from dataloader.list_checks import warn_repeated
    from evaluation.seen_images import warn_seen
    from utils import checkpoint
    from utils.seen_lists import seen_lists

    content = checkpoint.load(opt.load)
    images = content.get("data", {}).get("class_images")
    if not images:
        raise UserError(f"{opt.load} does not say how many training images a class had. Give a checkpoint of train.py.")
    require_classes(content, opt.load, "tools.long_tail")
    files = read_list(opt.list)
    warn_repeated(files)
    paths = {method: Path(opt.load).with_suffix(f".{method}.pt") for method in METHODS}
    _reserve(paths, content, opt, files)
    effect = "Its scores on them say nothing, and nor does the best tau."
    warn_seen(f"--load {opt.load}", seen_lists(content), files, effect)
    logits, label, image, names = logits_of_list(opt, files)
    active = content.get("showing", "raw")
    weights = dict(content.get(active) or content["weights"])
    weight, bias = (weights.get(name) for name in names)
    if weight is None or bias is None:
        raise UserError(f"{opt.load} holds no {names[0]} with {names[1]}; allowed: a last layer with weight and bias.")

    before = class_mean(logits.argmax(axis=1) == label, label)
    log.info(f"\n{'':22s} {'tau':>5s} {'top1':>9s} {'mean class accuracy':>20s}")
    log.info(f"{'unchanged':22s} {0.0:5.1f} {top1(logits, label):9.6f} {before:20.6f}")
    layers = {method: layer(method, weight.float(), bias.float(), images) for method in METHODS}
    found: dict[str, tuple[float, float]] = {}  # method: cross-fitted mean class accuracy, tau
    for method in METHODS:
        changed = [layers[method](float(tau)) for tau in TAUS]
        hits = [adjusted(logits, bias, one).argmax(axis=1) == label for one in progress(changed, f"tau of {method}")]
        best, accuracy, balanced = cross_fit(np.stack(hits), label, image, opt.seed)
        found[method] = (balanced, float(TAUS[best]))
        log.info(f"{method + ', cross-fitted':22s} {TAUS[best]:5.1f} {accuracy:9.6f} {balanced:20.6f}")
    method = max(METHODS, key=lambda name: found[name][0])
    balanced, tau = found[method]
    if balanced <= before:
        log.info("\nNeither method improves the mean class accuracy; nothing was written.")
        _report_old(paths.values())
        return

    scale, shift = layers[method](tau)
    weights[names[0]], weights[names[1]] = weight * scale[:, None], torch.zeros_like(bias) + shift
    kept: dict[str, object] = {name: content[name] for name in ("model", "epoch", "opt", "data") if name in content}
    made_by = {"mean": method, "tau": tau, "list": opt.list}
    path = paths[method]
    if path.exists():
        log.info(f"{path} is replaced.")
    checkpoint.save(path, {**kept, "weights": weights, "showing": "raw", "long_tail": made_by})
    values = {"load": [str(path)], "val_list": opt.list, "gpu": opt.gpu, "workers": opt.workers}
    _report_old(other for other in paths.values() if other != path)
    log.info(f"\nWritten: {path}. To score it:\n{command('eval', values | {'batch_size': opt.batch_size})}")


def _reserve(paths: dict[str, Path], content: dict[str, Any], opt: argparse.Namespace, files: "FileList") -> None:
    """Lock what may be written, and refuse to replace a checkpoint that is not this tool's, before the work."""
    folder = Path(opt.load).resolve().parent
    if folder.name == content.get("opt", {}).get("tag"):  # its run may be going on, or be moved by clear.py
        run_lock.acquire(folder, shared=True)
    for path in paths.values():
        run_lock.acquire(path)
    outputs = [Output(path, "a checkpoint of tools.long_tail", _is_ours) for path in paths.values()]
    check(outputs, inputs(opt, files), [files], opt.force)


def _report_old(paths: Iterable[Path]) -> None:
    """Warn of checkpoints of an earlier call, which may be made of a checkpoint that --load no longer is."""
    for path in paths:
        if path.exists():
            log.warning(
                f"{path} is of an earlier call, and may be made of another state of --load. Delete it, or rename it."
            )


def _is_ours(path: Path) -> bool:
    """Return whether the file is a checkpoint that this tool has written."""
    from utils import checkpoint

    try:
        return "long_tail" in checkpoint.load(path)
    except UserError:
        return False


def top1(logits: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    """Return the share of the rows of `logits`, (N, C), whose largest is that of `label`, int64 (N,)."""
    return float((logits.argmax(axis=1) == label).mean())


def layer(method: str, weight: torch.Tensor, bias: torch.Tensor, images: list[int]) -> Callable[[float], Layer]:
    """Return a function from tau to the changed layer, for a layer of `weight` (C, D) and `bias` (C,).

    Args:
        images: training images per class, (C,); a class without images counts as half of one.
    """
    length = weight.norm(dim=1).clamp_min(1e-12)
    share = torch.tensor(images, dtype=torch.float32).clamp_min(0.5) / max(1, sum(images))

    def norm(tau: float) -> Layer:
        return length.pow(-tau), torch.zeros_like(bias) if tau else bias

    def prior(tau: float) -> Layer:
        return torch.ones_like(bias), bias - tau * share.log()

    return {"norm": norm, "prior": prior}[method]


def adjusted(logits: NDArray[np.float32], bias: torch.Tensor, changed: Layer) -> NDArray[np.float32]:
    """Return the logits (N, C) of the changed layer, from the `logits` (N, C) of the old layer with `bias` (C,)."""
    scale, shift = (one.numpy() for one in changed)
    return (logits - bias.float().numpy()) * scale + shift


def class_mean(hit: NDArray[np.bool_], label: NDArray[np.int64]) -> float:
    """Return the mean, over the classes that occur, of the share of their images in `hit` (bool, (N,))."""
    total, right = np.bincount(label), np.bincount(label, weights=hit)
    return float((right[total > 0] / total[total > 0]).mean())


def cross_fit(
    hits: NDArray[np.bool_], label: NDArray[np.int64], image: NDArray[np.integer], seed: int
) -> tuple[int, float, float]:
    """Choose one of T settings by its `hits` (bool, (T, N)), and score the choice on images that it has not seen.

    Args:
        image: (N,), what evaluation.cross_fit.draw_parts needs of the images.

    Returns:
        The setting with the best mean class accuracy on all images (the first of equal ones). Then top-1 and mean class
        accuracy where each of FOLDS parts is scored with the setting that is best on the other parts.
    """
    from evaluation.cross_fit import FOLDS, draw_parts

    best = int(np.argmax([class_mean(hit, label) for hit in hits]))
    part = draw_parts(image, seed, 7)
    held_out = np.zeros(len(label), bool)
    for k in range(FOLDS):
        inside = part == k
        if inside.any() and not inside.all():
            chosen = int(np.argmax([class_mean(hit[~inside], label[~inside]) for hit in hits]))
            held_out[inside] = hits[chosen][inside]
    return best, float(held_out.mean()), class_mean(held_out, label)


def logits_of_list(
    opt: argparse.Namespace, files: "FileList"
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint64], tuple[str, str]]:
    """Return logits float32 (N, C) of the readable images, their labels, their `image_keys`, and two names.

    The names are those of the last weight and bias.

    Raises:
        UserError: too many logits to hold, or the last layer is not one Linear.
    """
    from dataloader import check_readable
    from evaluation.cross_fit import image_keys
    from inference.saved_probs import check_size
    from network.heads import HasClassifier

    run = open_checkpoint(opt, files)
    check_size(2 * len(run.files), run.classes.count, "logits")
    model = run.predictor.members[0].model
    if model.settings.activation != SOFTMAX:
        raise UserError(
            f"{opt.load} has no logit per class (--loss {model.opt.loss}). Allowed: a softmax over the classes."
        )
    net = model.net
    head = net.get_classifier() if isinstance(net, HasClassifier) else None
    name = next((name for name, module in net.named_modules() if module is head), "")
    if not isinstance(head, torch.nn.Linear) or not name:
        raise UserError(
            f"{opt.load}: its classifier is a {type(head).__name__}; allowed: a network whose last layer is one Linear."
        )
    outputs: list[torch.Tensor] = []
    logits, labels, readable = [], [], []
    hook = head.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.float().cpu()))
    for batch, _ in run.predictor.run(run.batches(), "logits"):
        logits.append(torch.cat(outputs)[batch.readable])
        labels.append(batch.label[batch.readable])
        readable.append(batch.readable)
        for _, reason in batch.bad:
            log.warning(f"Unreadable, so in no score: {reason}")
        outputs.clear()
    hook.remove()
    known = torch.cat(readable).numpy()
    check_readable(run.files, np.arange(len(run.files)), known)
    image = image_keys(run.files)[known]
    return torch.cat(logits).numpy(), torch.cat(labels).numpy(), image, (f"{name}.weight", f"{name}.bias")


if __name__ == "__main__":
    sys.exit(main())
