"""Flags that several scripts share: the run, its data, inference."""

import argparse
from collections.abc import Callable

from options import choices
from options.parser import Parser, expanded

SWITCH = argparse.BooleanOptionalAction
MAX_PIXELS = 178_956_970  # dataloader.decode's, which this package does not import
BOMB = "an image with more (width times height) is not decoded, and counts as unreadable: a decompression bomb?"


FOLDERS = {
    "checkpoint": ("checkpoints", "weights go to <DIR>/<tag>"),
    "log": ("logs", "log.txt and TensorBoard files go to <DIR>/<tag>"),
    "result": ("results", "scores and predictions go to <DIR>/<tag>"),
}


def add_folders(group: Callable[..., None], *names: str) -> None:
    """One --<name>_dir each."""
    for name in names:
        default, what = FOLDERS[name]
        group(f"--{name}_dir", type=expanded, default=default, metavar="DIR", help=what)


def force(group: Callable[..., None], flag: str) -> None:
    """--force, for what `flag` names."""
    group(
        "--force",
        action="store_true",
        help=f"let {flag} replace a file of another kind; what the command reads is never replaced",
    )


def run(parser: Parser, *folders: str) -> None:
    """The tag, the device, the workers."""
    group = parser.group("run")
    group("--tag", default="cache", help="name of the experiment, and of its folders")
    group("--config", type=expanded, metavar="FILE", help="YAML file of `option: value`; flags on the command line win")
    group(
        "--gpu",
        type=int,
        low=-1,
        metavar="N",
        help="which GPU; -1 is the CPU; by default GPU 0, or the CPU where there is none",
    )
    group("--seed", type=int, default=42, low=0, high=2**63 - 1, help="the one source of all randomness")
    group(
        "--deterministic",
        action="store_true",
        help="only algorithms that give the same bits each time, and no TF32 (slower on CUDA)",
    )
    group(
        "-w",
        "--workers",
        type=int,
        low=0,
        help="threads or processes that load images; 0 loads between the steps; by default 2 on the CPU, on a GPU up to 16, by the cores",
    )
    group(
        "--loader",
        choices=("thread", "process"),
        default="thread",
        help="process: for augmentation of your own in plain Python",
    )
    group(
        "--worker_timeout",
        type=int,
        default=300,
        low=0,
        metavar="S",
        help="seconds without a batch before a worker counts as stuck; 0: never",
    )
    group("--debug", action="store_true", help="only the first few batches of each epoch")
    add_folders(group, *folders)


def data(parser: Parser, lists: tuple[str, ...]) -> None:
    """Lists, batch, squares, cache."""
    group = parser.group("data")
    training = "train" in lists
    where = (
        "the folder of the lists" if training else "the folder of the lists; by default that of the checkpoint's list"
    )
    group("--data_root", type=expanded, default="datasets", metavar="DIR", help=where)
    for name in lists:
        what = "an image's path a line" if name == "test" else "a line: image path, space, label"
        usual = f"{name}.txt in --data_root" if training else f"the checkpoint's, or {name}.txt in --data_root"
        group(f"--{name}_list", type=expanded, metavar="FILE", help=f"{what}; by default {usual}")
    low = 2 if training else 1  # batch normalisation has nothing to normalise in a batch of one
    group("-b", "--batch_size", type=int, default=24, low=low, metavar="N", help="images a batch")
    if not training:
        group(
            "--scale",
            "--img_size",
            type=int,
            low=8,
            high=4096,
            metavar="PX",
            help="side of the square given to the network; by default the checkpoint's",
        )
        group(
            "--fit",
            "--resize_mode",
            choices=choices.FITS,
            help="how an image becomes a square; by default the checkpoint's",
        )
        default, missing = "skip", "skip: it is named and counted apart, and gets a row all the same"
    else:
        group(
            "--scale",
            "--img_size",
            type=int,
            default=224,
            low=8,
            high=4096,
            metavar="PX",
            help="side of the square given to the network",
        )
        group(
            "--fit",
            "--resize_mode",
            choices=choices.FITS,
            default="squash",
            help="evaluation: squash the image, crop its centre, or pad it",
        )
        group(
            "--num_classes",
            type=int,
            low=1,
            metavar="N",
            help="by default the lines of classes.txt, or the largest label + 1; on --resume the checkpoint's",
        )
        default, missing = "error", "skip: leave it out"
    group(
        "--on_bad_image",
        choices=("error", "skip"),
        default=default,
        help=f"a missing image, found before the start: stop, or {missing}",
    )
    group("--check_files", action=SWITCH, default=True, help="look for each file of the lists before the start")
    group("--max_pixels", type=int, default=MAX_PIXELS, low=1, high=2 * MAX_PIXELS, metavar="N", help=BOMB)
    group(
        "--cache",
        type=place,
        default="none",
        metavar="WHERE",
        help="none, ram, or disk:DIR: keep each image small, once, for all epochs and runs",
    )
    group(
        "--cache_size",
        type=int,
        low=8,
        high=4096,
        metavar="PX",
        help="short side of a cached image; by default what --scale and --zoom need",
    )
    group(
        "--cache_format", choices=("jpeg", "raw"), default="jpeg", help="raw: no decoding, about eight times the space"
    )
    group("--cache_quality", type=int, default=95, low=1, high=100, help="of cached JPEGs")


def place(text: str) -> str:
    """Return the value of --cache, with `~` in disk:DIR as the home folder."""
    return f"disk:{expanded(text[5:])}" if text.startswith("disk:") else text


def temperature(text: str) -> str:
    """The value of --temperature: none, ckpt, or a number above 0, as text. Raises ArgumentTypeError otherwise."""
    if text not in ("none", "ckpt"):
        try:
            good = 0 < float(text) < float("inf")
        except ValueError:
            good = False
        if not good:
            raise argparse.ArgumentTypeError(f"{text!r} is neither none, nor ckpt, nor a number above 0")
    return text


def inference(parser: Parser) -> None:
    """Checkpoints to predict with, and how."""
    group = parser.group("inference")
    group(
        "--load",
        type=expanded,
        nargs="+",
        metavar="CKPT",
        help="one checkpoint, or several to blend, of any families; also probs.npz of --save_probs",
    )
    group(
        "--ensemble",
        type=expanded,
        metavar="FILE",
        help="in place of --load: members, weights and views from the ensemble.yaml of eval.py --blend",
    )
    group("--model", help="checked against the checkpoint; needed for a plain state dict only")
    group("--weights", nargs="+", type=float, low=0, metavar="W", help="a weight for each --load; equal by default")
    group(
        "--blend",
        choices=choices.BLENDS,
        default="mean",
        help="of probabilities, of logits (views too), geometric, by 1/rank; greedy, optimal (eval): a mean whose weights are fitted",
    )
    group(
        "--tta",
        choices=choices.TTAS,
        default="none",
        help="average over views: mirrored, all 8 flips and transposes, 5 crops, 3 sizes",
    )
    group(
        "--precision",
        choices=(*choices.PRECISIONS, "fast"),
        default="auto",
        help="auto: as the checkpoint was trained; fast: on the CPU the quicker of fp32 and bf16, by timing",
    )
    group(
        "--fold",
        "--fuse_bn",
        action=SWITCH,
        default=True,
        help="fold batch norm into convolutions: faster, equal but for rounding; not where --precision auto comes to bf16 or fp16",
    )
    group(
        "--temperature",
        type=temperature,
        default="none",
        metavar="T",
        help="divide the logits: none, a number, or ckpt, what eval.py --calibrate stored",
    )
    group("--save_probs", action="store_true", help="also write probs.npz: file names, classes, probabilities")
