"""Flags that several scripts share: run, data, inference."""

import argparse
from collections.abc import Callable

from options import choices
from options.parser import Parser, expanded

SWITCH = argparse.BooleanOptionalAction
MAX_PIXELS = 178_956_970  # as in dataloader.decode, which this package does not import
BOMB = "images with more pixels (width times height) are not decoded and count as unreadable (decompression bombs)"


FOLDERS = {
    "checkpoint": ("checkpoints", "weights go to <DIR>/<tag>"),
    "log": ("logs", "log.txt and TensorBoard files go to <DIR>/<tag>"),
    "result": ("results", "scores and predictions go to <DIR>/<tag>"),
}


def add_folders(group: Callable[..., None], *names: str) -> None:
    """Add a --<name>_dir for each name of FOLDERS."""
    for name in names:
        default, what = FOLDERS[name]
        group(f"--{name}_dir", type=expanded, default=default, metavar="DIR", help=what)


def force(group: Callable[..., None], flag: str) -> None:
    """Add --force for the output that `flag` names."""
    group(
        "--force",
        action="store_true",
        help=f"let {flag} replace a file of another kind; an input of the command is never replaced",
    )


def run(parser: Parser, *folders: str) -> None:
    """Add the tag, the device and the workers, and a flag for each of `folders`."""
    group = parser.group("run")
    group("--tag", default="cache", help="name of the experiment and of its folders")
    group(
        "--config",
        type=expanded,
        metavar="FILE",
        help="YAML file with lines of `option: value`; the command line overrides it",
    )
    group(
        "--gpu",
        type=int,
        low=-1,
        metavar="N",
        help="number of the GPU; -1: CPU; default: GPU 0, or the CPU if there is no GPU",
    )
    group("--seed", type=int, default=42, low=0, high=2**63 - 1, help="seed of all randomness")
    group(
        "--deterministic",
        action="store_true",
        help="use only algorithms with bit-exact results, and no TF32 (slower on a GPU)",
    )
    group(
        "-w",
        "--workers",
        type=int,
        low=0,
        help="threads or processes that load images; 0: between the steps; default: 2 on the CPU, up to 16 with a GPU",
    )
    group(
        "--loader",
        choices=("thread", "process"),
        default="thread",
        help="thread, or process: for your own augmentation in pure Python",
    )
    group(
        "--worker_timeout",
        type=int,
        default=300,
        low=0,
        metavar="S",
        help="seconds without a batch until a worker counts as stuck; 0: never",
    )
    group("--debug", action="store_true", help="use only the first few batches of each epoch")
    add_folders(group, *folders)


def data(parser: Parser, lists: tuple[str, ...]) -> None:
    """Add lists, batch size, image size and cache."""
    group = parser.group("data")
    training = "train" in lists
    where = "folder of the lists" if training else "folder of the lists; default: the folder of the checkpoint's list"
    group("--data_root", type=expanded, default="datasets", metavar="DIR", help=where)
    for name in lists:
        what = "one image path per line" if name == "test" else "one image path, a space and a label per line"
        usual = f"{name}.txt in --data_root" if training else f"the checkpoint's list, or {name}.txt in --data_root"
        group(f"--{name}_list", type=expanded, metavar="FILE", help=f"{what}; default: {usual}")
    low = 2 if training else 1  # batch norm needs two images
    group("-b", "--batch_size", type=int, default=24, low=low, metavar="N", help="images per batch")
    if not training:
        group(
            "--scale",
            "--img_size",
            type=int,
            low=8,
            high=4096,
            metavar="PX",
            help="side of the square network input; default: the checkpoint's",
        )
        group(
            "--fit",
            "--resize_mode",
            choices=choices.FITS,
            help="how an image becomes a square; default: the checkpoint's way",
        )
        default, missing = "skip", "skip: log and count it, and still write its row"
    else:
        group(
            "--scale",
            "--img_size",
            type=int,
            default=224,
            low=8,
            high=4096,
            metavar="PX",
            help="side of the square network input",
        )
        group(
            "--fit",
            "--resize_mode",
            choices=choices.FITS,
            default="squash",
            help="evaluation: resize both sides (squash), crop the centre, or pad",
        )
        group(
            "--num_classes",
            type=int,
            low=1,
            metavar="N",
            help="default: the lines of classes.txt, or the largest label + 1; with --resume the checkpoint's",
        )
        default, missing = "error", "skip: leave it out of the list"
    group(
        "--on_bad_image",
        choices=("error", "skip"),
        default=default,
        help=f"image file missing before the start: error: stop; {missing}",
    )
    group("--check_files", action=SWITCH, default=True, help="check before the start that every listed file exists")
    group("--max_pixels", type=int, default=MAX_PIXELS, low=1, high=2 * MAX_PIXELS, metavar="N", help=BOMB)
    group(
        "--cache",
        type=place,
        default="none",
        metavar="WHERE",
        help="none, ram or disk:DIR: store each image once, reduced, for all epochs and runs",
    )
    group(
        "--cache_size",
        type=int,
        low=8,
        high=4096,
        metavar="PX",
        help="short side of a cached image; default: what --scale and --zoom need",
    )
    group(
        "--cache_format", choices=("jpeg", "raw"), default="jpeg", help="raw: no decoding, about eight times the space"
    )
    group("--cache_quality", type=int, default=95, low=1, high=100, help="quality of cached JPEGs")


def place(text: str) -> str:
    """Return the value of --cache, with `~` in disk:DIR as the home folder."""
    return f"disk:{expanded(text[5:])}" if text.startswith("disk:") else text


def temperature(text: str) -> str:
    """Return the value of --temperature, none, ckpt, or a number above 0. Raises ArgumentTypeError for others."""
    if text not in ("none", "ckpt"):
        try:
            good = 0 < float(text) < float("inf")
        except ValueError:
            good = False
        if not good:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: none, ckpt, or a number above 0")
    return text


def inference(parser: Parser) -> None:
    """Add the checkpoints to predict with and the ways to predict."""
    group = parser.group("inference")
    group(
        "--load",
        type=expanded,
        nargs="+",
        metavar="CKPT",
        help="one checkpoint, or several to blend, of any networks; also probs.npz files of --save_probs",
    )
    group(
        "--ensemble",
        type=expanded,
        metavar="FILE",
        help="instead of --load: take members, weights and views from the ensemble.yaml of eval.py --blend",
    )
    group("--model", help="checked against the checkpoint; required only for a plain state dict")
    group("--weights", nargs="+", type=float, low=0, metavar="W", help="one weight per --load; default: equal weights")
    group(
        "--blend",
        choices=choices.BLENDS,
        default="mean",
        help="average of probabilities, of logits (views too), geometric, or of 1/rank; "
        "greedy, optimal (eval): fit the weights",
    )
    group(
        "--tta",
        choices=choices.TTAS,
        default="none",
        help="average over views: mirror image, all 8 flips and transposes, 5 crops, 3 sizes",
    )
    group(
        "--precision",
        choices=(*choices.PRECISIONS, "fast"),
        default="auto",
        help="auto: as in training; fast: on the CPU, time fp32 and bf16 and use the faster",
    )
    group(
        "--fold",
        "--fuse_bn",
        action=SWITCH,
        default=True,
        help="fuse batch norm into convolutions: faster, same result but for rounding; "
        "not used if --precision auto chooses bf16 or fp16",
    )
    group(
        "--temperature",
        type=temperature,
        default="none",
        metavar="T",
        help="divide the logits by it: none, a number, or ckpt (as stored by eval.py --calibrate)",
    )
    group("--save_probs", action="store_true", help="also write probs.npz: file names, class names, probabilities")
