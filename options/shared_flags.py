"""Flags that several scripts share: run, data, inference."""

import argparse

from options import choices
from options.parser import AddFlag, Parser, expanded

SWITCH = argparse.BooleanOptionalAction
MAX_PIXELS = 178_956_970  # as in dataloader.decode, which this package does not import
BOMB = "images with more pixels (width times height) are not decoded and count as unreadable (decompression bombs)"


FOLDERS = {
    "checkpoint": ("checkpoints", "weights go to <DIR>/<tag>"),
    "log": ("logs", "log.txt and TensorBoard files go to <DIR>/<tag>"),
    "result": ("results", "scores and predictions go to <DIR>/<tag>"),
}


def add_folders(add: AddFlag, *names: str) -> None:
    """Add a --<name>_dir for each name of FOLDERS."""
    for name in names:
        default, what = FOLDERS[name]
        add(f"--{name}_dir", type=expanded, default=default, metavar="DIR", help=what)


def force(add: AddFlag, flag: str) -> None:
    """Add --force for the output that `flag` names."""
    add(
        "--force",
        action="store_true",
        help=f"let {flag} replace a file of another kind; an input of the command is never replaced",
    )


def run(parser: Parser, *folders: str) -> None:
    """Add the tag, the device and the workers, and a flag for each of `folders`."""
    add = parser.group("run")
    add("--tag", default="cache", help="name of the experiment and of its folders")
    add(
        "--config",
        type=expanded,
        metavar="FILE",
        help="YAML file with lines of `option: value`; the command line overrides it",
    )
    add(
        "--gpu",
        type=int,
        low=-1,
        metavar="N",
        help="number of the GPU; -1: CPU; default: GPU 0, or the CPU if there is no GPU",
    )
    add("--seed", type=int, default=42, low=0, high=2**63 - 1, help="seed of all randomness")
    add(
        "--deterministic",
        action="store_true",
        help="use only algorithms with bit-exact results, and no TF32 (slower on a GPU)",
    )
    add(
        "-w",
        "--workers",
        type=int,
        low=0,
        help="threads or processes that load images; 0: between the steps; default: 2 on the CPU, up to 16 with a GPU",
    )
    add(
        "--loader",
        choices=("auto", "thread", "process"),
        default="auto",
        help="what loads images. auto: processes for a GPU, threads for the CPU; the batches are the same. Your own "
        "augmentation in pure Python needs process",
    )
    add(
        "--worker_timeout",
        type=int,
        default=300,
        low=0,
        metavar="S",
        help="seconds without a batch until a worker counts as stuck; 0: never",
    )
    add("--debug", action="store_true", help="use only the first few batches of each epoch")
    add_folders(add, *folders)


def data(parser: Parser, lists: tuple[str, ...]) -> None:
    """Add lists, batch size, image size and cache. The scripts that do not train take defaults of the checkpoint."""
    training = "train" in lists
    add = parser.group("data")
    _lists(add, lists)
    low = 2 if training else 1  # batch norm needs two images
    add(
        "-b",
        "--batch_size",
        type=int,
        default=24,
        low=low,
        word=choices.AUTO_BATCH if training else "",
        metavar="N",
        derived=training,
        help="images per batch of all processes" + ("; auto: the largest that the GPU holds" if training else ""),
    )
    if training:
        _input_of_training(add)
    else:
        _input_of_checkpoint(add)
    _files(add, training)
    _cache(add)


def _lists(add: AddFlag, lists: tuple[str, ...]) -> None:
    """Add the folder of the lists, and a --<name>_list for each of `lists`."""
    training = "train" in lists
    where = "folder of the lists" if training else "folder of the lists; default: the folder of the checkpoint's list"
    add("--data_root", type=expanded, default="datasets", metavar="DIR", help=where)
    for name in lists:
        what = "one image path per line" if name == "test" else "one image path, a space and a label per line"
        usual = f"{name}.txt in --data_root" if training else f"the checkpoint's list, or {name}.txt in --data_root"
        add(f"--{name}_list", type=expanded, metavar="FILE", help=f"{what}; default: {usual}")


def _input_of_training(add: AddFlag) -> None:
    """Add the size of the network's input, and the number of classes."""
    add(
        "--scale",
        "--img_size",
        type=int,
        default=224,
        low=8,
        high=4096,
        metavar="PX",
        help="side of the square network input",
    )
    add(
        "--fit",
        "--resize_mode",
        choices=choices.FITS,
        default="squash",
        help="evaluation: resize both sides (squash), crop the centre, or pad",
    )
    add(
        "--num_classes",
        type=int,
        low=1,
        metavar="N",
        help="default: the lines of classes.txt, or the largest label + 1; with --resume the checkpoint's",
    )


def _input_of_checkpoint(add: AddFlag) -> None:
    """Add the size of the network's input, whose default the checkpoint knows."""
    add(
        "--scale",
        "--img_size",
        type=int,
        low=8,
        high=4096,
        metavar="PX",
        help="side of the square network input; default: the checkpoint's",
    )
    add(
        "--fit",
        "--resize_mode",
        choices=choices.FITS,
        help="how an image becomes a square; default: the checkpoint's way",
    )


def _files(add: AddFlag, training: bool) -> None:
    """Add what happens to image files that are missing or too large."""
    missing = "skip: leave it out of the list" if training else "skip: log and count it, and still write its row"
    add(
        "--on_bad_image",
        choices=("error", "skip"),
        default="error" if training else "skip",
        help=f"image file missing before the start: error: stop; {missing}",
    )
    add("--check_files", action=SWITCH, default=True, help="check before the start that every listed file exists")
    add("--max_pixels", type=int, default=MAX_PIXELS, low=1, high=2 * MAX_PIXELS, metavar="N", help=BOMB)


def _cache(add: AddFlag) -> None:
    """Add the cache of decoded images."""
    add(
        "--cache",
        type=expanded_cache,
        default="none",
        metavar="WHERE",
        help="none, ram or disk:DIR: store each image once, reduced, for all epochs and runs",
    )
    add(
        "--cache_size",
        type=int,
        low=8,
        high=4096,
        metavar="PX",
        help="short side of a cached image; default: what --scale and --zoom need",
    )
    add("--cache_format", choices=("jpeg", "raw"), default="jpeg", help="raw: no decoding, about eight times the space")
    add("--cache_quality", type=int, default=95, low=1, high=100, help="quality of cached JPEGs")


def expanded_cache(text: str) -> str:
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
    add = parser.group("inference")
    add(
        "--load",
        type=expanded,
        nargs="+",
        metavar="CKPT",
        help="one checkpoint, or several to blend, of any networks; also probs.npz files of --save_probs",
    )
    add(
        "--ensemble",
        type=expanded,
        metavar="FILE",
        help="instead of --load: take members, weights and views from the ensemble.yaml of eval.py --blend",
    )
    add("--model", help="checked against the checkpoint; required only for a plain state dict")
    add("--weights", nargs="+", type=float, low=0, metavar="W", help="one weight per --load; default: equal weights")
    add(
        "--blend",
        choices=choices.BLENDS,
        default="mean",
        help="average of probabilities, of logits (views too), geometric, or of 1/rank; "
        "greedy, optimal (eval): fit the weights",
    )
    add(
        "--tta",
        choices=choices.TTAS,
        default="none",
        help="average over views: mirror image, all 8 flips and transposes, 5 crops, 3 sizes",
    )
    add(
        "--precision",
        choices=(*choices.PRECISIONS, "fast"),
        default="auto",
        help="auto: as in training; fast: on the CPU, time fp32 and bf16 and use the faster",
    )
    add(
        "--fold",
        "--fuse_bn",
        action=SWITCH,
        default=True,
        help="fuse batch norm into convolutions: faster, same result but for rounding; "
        "not used if --precision auto chooses bf16 or fp16",
    )
    add(
        "--temperature",
        type=temperature,
        default="none",
        metavar="T",
        help="divide the logits by it: none, a number, or ckpt (as stored by eval.py --calibrate)",
    )
    add(
        "--threshold",
        type=float,
        nargs="+",
        low=0,
        high=1,
        metavar="P",
        help="several labels per image: a label counts as predicted from this probability on; one number, or one per "
        "label; default: those stored in the checkpoint (by eval.py --fit_thresholds), in probs.npz or in "
        "ensemble.yaml, or 0.5",
    )
    add("--save_probs", action="store_true", help="also write probs.npz: file names, class names, probabilities")
