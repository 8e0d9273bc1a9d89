"""A classifier for classes of unequal size, without training anew: the same network with another last layer.

    python -m tools.long_tail --load checkpoints/lite0/best.pt --list datasets/fashion-mnist/val.txt

Tries two means, each with its strength from a grid, chosen on the list for the mean class accuracy:
"norm" divides each class's weights by their length to the power tau (Kang et al., 2020, section 4.3; without bias);
"prior" takes tau times the log of the class's share of the training images from its logit (Menon et al., 2021, section 4).
Scores are cross-fitted: each fifth of the images with the tau of the others. Where a mean helps, it writes the
checkpoint with the changed layer beside the old one, <name>.norm.pt or <name>.prior.pt, for eval.py and submit.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from options import command, given_words, parse_eval
from options.parser import ToolParser, expanded
from utils.errors import UserError
from utils.logger import log, progress
from utils.run import run_tool

TAUS = np.round(np.arange(0, 2.01, 0.1), 1)
FOLDS = 5
MEANS = ("norm", "prior")


def option_parser() -> argparse.ArgumentParser:
    """The flags of this tool."""
    parser = ToolParser("-m tools.long_tail", __doc__)
    parser.add_argument("--load", type=expanded, required=True, metavar="CKPT")
    parser.add_argument("--list", type=expanded, required=True, help="a validation list: path, space, label")
    parser.add_argument("-b", "--batch_size", type=int, default=64)
    parser.add_argument("-w", "--workers", type=int)
    parser.add_argument("--gpu", type=int)
    parser.add_argument("--seed", type=int, default=42, help="of the folds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and fit; returns the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), run)


def run(opt: argparse.Namespace) -> None:
    """Fit both means, print what they gain, write the checkpoint of the better one."""
    from utils import checkpoint

    content = checkpoint.load(opt.load)
    images = content.get("data", {}).get("class_images")
    if not images:
        raise UserError(f"{opt.load} does not say how many training images a class had. Give a checkpoint of train.py.")
    logits, label, names = shown_logits(opt)
    shown = content.get("showing", "raw")
    weights = dict(content.get(shown) or content["weights"])
    weight, bias = (weights.get(name) for name in names)
    if weight is None or bias is None:
        raise UserError(f"{opt.load} holds no {names[0]} with {names[1]}; allowed: a last layer with weight and bias.")
    layers = {mean: layer(mean, weight.float(), bias.float(), images) for mean in MEANS}
    scored = {}
    log.info(f"\n{'':22s} {'tau':>5s} {'top1':>9s} {'mean class accuracy':>20s}")
    for mean in MEANS:
        change = [layers[mean](tau) for tau in TAUS]
        hits = [(logits_of(logits, bias, one).argmax(axis=1) == label) for one in progress(change, f"tau of {mean}")]
        best, top1, balanced = cross_fit(np.stack(hits), label, opt.seed)
        scored[mean] = (balanced, float(TAUS[best]))
        if mean == MEANS[0]:
            log.info(
                f"{'as it is':22s} {0.0:5.1f} {hits_top1(logits, label):9.6f} {class_mean(logits.argmax(axis=1) == label, label):20.6f}"
            )
        log.info(f"{mean + ', other images':22s} {TAUS[best]:5.1f} {top1:9.6f} {balanced:20.6f}")
    mean = max(MEANS, key=lambda name: scored[name][0])
    if scored[mean][0] <= class_mean(logits.argmax(axis=1) == label, label):
        log.info("\nNeither helps the mean class accuracy; nothing was written.")
        return
    tau = scored[mean][1]
    scale, shift = layers[mean](tau)
    weights[names[0]], weights[names[1]] = weight * scale[:, None], torch.zeros_like(bias) + shift
    kept: dict[str, Any] = {name: content[name] for name in ("model", "epoch", "opt", "data") if name in content}
    path = Path(opt.load).with_suffix(f".{mean}.pt")
    checkpoint.save(
        path, {**kept, "weights": weights, "showing": "raw", "long_tail": {"mean": mean, "tau": tau, "list": opt.list}}
    )
    score_it = command("eval", {"load": [str(path)], "val_list": opt.list, "gpu": opt.gpu})
    log.info(f"\nWritten: {path}; score it: {score_it}")


def hits_top1(logits: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    """Share of the rows whose largest logit is the label's."""
    return float((logits.argmax(axis=1) == label).mean())


def layer(mean: str, weight: torch.Tensor, bias: torch.Tensor, images: list[int]) -> Any:
    """A function of tau that gives the new layer: (C,) factors of the weights' rows, and the (C,) bias that replaces the old."""
    length = weight.norm(dim=1).clamp_min(1e-12)
    share = torch.tensor(images, dtype=torch.float32).clamp_min(0.5) / max(
        1, sum(images)
    )  # a class without images: half of one

    def norm(tau: float) -> tuple[torch.Tensor, torch.Tensor]:
        return length.pow(-float(tau)), torch.zeros_like(bias) if tau else bias

    def prior(tau: float) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(bias), bias - float(tau) * share.log()

    return {"norm": norm, "prior": prior}[mean]


def logits_of(
    logits: NDArray[np.float32], bias: torch.Tensor, changed: tuple[torch.Tensor, torch.Tensor]
) -> NDArray[np.float32]:
    """What the changed layer gives where the old one, with `bias`, gave `logits` (N, C)."""
    scale, shift = (one.numpy() for one in changed)
    return (logits - bias.float().numpy()) * scale + shift


def class_mean(hit: NDArray[np.bool_], label: NDArray[np.int64]) -> float:
    """Mean over the classes that occur of the share of their images that were hit."""
    total, right = np.bincount(label), np.bincount(label, weights=hit)
    return float((right[total > 0] / total[total > 0]).mean())


def cross_fit(hits: NDArray[np.bool_], label: NDArray[np.int64], seed: int) -> tuple[int, float, float]:
    """Of bool (T, N) hits of T settings: the setting that is best on all images, and top-1 and mean class accuracy with,
    for each of FOLDS, the setting that is best on the others. Equal ones: the first.
    """
    best = int(np.argmax([class_mean(hit, label) for hit in hits]))
    fold = np.random.default_rng([seed, 7]).permutation(len(label)) % FOLDS
    held = np.zeros(len(label), bool)
    for k in range(FOLDS):
        inside = fold == k
        if inside.any() and not inside.all():
            chosen = int(np.argmax([class_mean(hit[~inside], label[~inside]) for hit in hits]))
            held[inside] = hits[chosen][inside]
    return best, float(held.mean()), class_mean(held, label)


def shown_logits(opt: argparse.Namespace) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, str]]:
    """Logits float32 (N, C) of the readable images, their labels, and the names of the last layer's weight and bias.

    Raises:
        UserError: too many logits to hold, or the last layer is not one Linear.
    """
    from dataloader import Classes, eval_loader, number_as
    from dataloader.file_list import read_list
    from inference import load_predictor
    from inference.saved_probs import check_size
    from utils.run import get_device

    settings = parse_eval(["--load", opt.load, "-b", str(opt.batch_size), *given_words(opt, "workers", "gpu")])
    loaded = load_predictor(settings, get_device(opt.gpu))
    predictor = loaded.predictor
    files = number_as(read_list(opt.list), Classes.from_dict(loaded.data), "the checkpoint")
    check_size(2 * len(files), loaded.data["num_classes"], "logits")
    net: Any = predictor.members[0].model.net
    head = net.get_classifier() if hasattr(net, "get_classifier") else None
    name = next((name for name, module in net.named_modules() if module is head), "")
    if not isinstance(head, torch.nn.Linear) or not name:
        raise UserError(
            f"{opt.load}: its classifier is a {type(head).__name__}; allowed: a network whose last layer is one Linear."
        )
    seen: list[torch.Tensor] = []
    logits, labels, readable = [], [], []
    hook = head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.float().cpu()))
    loader = eval_loader(settings, files, predictor.preprocesses)
    for batch, _ in predictor.run(loader, "logits"):
        logits.append(torch.cat(seen)[batch.readable])
        labels.append(batch.label[batch.readable])
        readable.append(batch.readable)
        for _, reason in batch.bad:
            log.warning(f"unreadable, counts in no score: {reason}")
        seen.clear()
    hook.remove()
    files.check_readable(np.arange(len(files)), torch.cat(readable).numpy())
    return torch.cat(logits).numpy(), torch.cat(labels).numpy(), (f"{name}.weight", f"{name}.bias")


if __name__ == "__main__":
    sys.exit(main())
