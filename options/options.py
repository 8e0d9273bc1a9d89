"""Every flag, in groups; one parser a script. Nothing is parsed, read or written on import.

from options import parse_train
opt = parse_train(["--tag", "x", "--model", "ResNet50", "-b", "32"])
"""

import argparse
from collections.abc import Callable, Sequence

from options import choices, rules
from options.parser import Parser

SWITCH = argparse.BooleanOptionalAction


def parse_train(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of train.py. Raises SystemExit(2), after one message, where they are wrong."""
    return build_parser("train").parse(argv)


def parse_eval(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of eval.py. Raises SystemExit(2), after one message, where they are wrong."""
    return build_parser("eval").parse(argv)


def parse_submit(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of submit.py. Raises SystemExit(2), after one message, where they are wrong."""
    return build_parser("submit").parse(argv)


def parse_clear(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of clear.py. Raises SystemExit(2), after one message, where they are wrong."""
    return build_parser("clear").parse(argv)


def build_parser(script: str) -> Parser:
    """The parser of "train", "eval", "submit" or "clear"; the README's tables are made from it."""
    return {"train": _train, "eval": _eval, "submit": _submit, "clear": _clear}[script]()


# ------------------------------------------------------------------------------------------------ the four parsers


def _train() -> Parser:
    parser = Parser("train.py", "Train a classifier on the images of a list.")
    _run(parser, "checkpoint", "log")
    _data(parser, lists=("train", "val"))
    _model(parser)
    _training(parser)
    _loss(parser)
    _augmentation(parser)
    _saving(parser)
    parser.rules += [rules.tag, rules.resume, rules.mixing, rules.cache]
    return parser


def _eval() -> Parser:
    parser = Parser("eval.py", "Score one checkpoint, or several together, on the validation list.")
    _run(parser, "result")
    _data(parser, lists=("val",))
    _inference(parser)
    parser.rules += [rules.tag, rules.load, rules.weights, rules.cache]
    return parser


def _submit() -> Parser:
    parser = Parser("submit.py", "Predict the class of each image of the test list, and write a CSV.")
    _run(parser, "result")
    _data(parser, lists=("test",))
    _inference(parser)
    group = parser.group("submission")
    group("--out", metavar="FILE", help="where the CSV goes; by default results/<tag>/submission.csv")
    parser.rules += [rules.tag, rules.load, rules.weights, rules.cache]
    return parser


def _clear() -> Parser:
    parser = Parser("clear.py", "Put one experiment's checkpoints, logs, results and run_log lines into .trash/.")
    group = parser.group("clear")
    group("--tag", help="the experiment; exactly this one")
    group("--restore", action="store_true", help="bring the tag back from the trash (the newest, if there are several)")
    group("--rm", action="store_true", help="delete for good, the tag's entries in the trash too")
    _folders(group, "checkpoint", "log", "result")
    parser.rules += [rules.tag, rules.clear]
    return parser


# ------------------------------------------------------------------------------------------------ groups of flags


FOLDERS = {
    "checkpoint": ("checkpoints", "weights go to <DIR>/<tag>"),
    "log": ("logs", "log.txt and TensorBoard files go to <DIR>/<tag>"),
    "result": ("results", "scores and predictions go to <DIR>/<tag>"),
}


def _folders(group: Callable[..., None], *names: str) -> None:
    for name in names:
        default, what = FOLDERS[name]
        group(f"--{name}_dir", default=default, metavar="DIR", help=what)


def _run(parser: Parser, *folders: str) -> None:
    group = parser.group("run")
    group("--tag", default="cache", help="name of the experiment, and of its folders")
    group("--config", metavar="FILE", help="YAML file of `option: value`; flags on the command line win")
    group("--gpu", type=int, default=0, low=-1, metavar="N", help="which card; -1 is the CPU")
    group("--seed", type=int, default=42, low=0, high=2**63 - 1, help="the one source of all randomness")
    group("--deterministic", action="store_true", help="only algorithms that give the same bits each time (slower on CUDA)")
    group("-w", "--workers", type=int, default=2, low=0, help="threads or processes that load images; 0 loads between the steps")
    group("--loader", choices=("thread", "process"), default="thread", help="process: for augmentation of your own in plain Python")
    group(
        "--worker_timeout",
        type=int,
        default=300,
        low=0,
        metavar="S",
        help="seconds without a batch before a worker counts as stuck; 0: never",
    )
    group("--debug", action="store_true", help="only the first few batches of each epoch")
    _folders(group, *folders)


def _data(parser: Parser, lists: tuple[str, ...]) -> None:
    group = parser.group("data")
    group("--data_root", default="datasets", metavar="DIR", help="the folder of the lists")
    for name in lists:
        what = "an image's path a line" if name == "test" else "a line: image path, space, label"
        group(f"--{name}_list", metavar="FILE", help=f"{what}; by default {name}.txt in --data_root")
    training = "train" in lists
    low = 2 if training else 1  # batch normalisation has nothing to normalise in a batch of one
    group("-b", "--batch_size", type=int, default=24, low=low, metavar="N", help="images a batch")
    if not training:
        group(
            "--scale", type=int, low=8, high=4096, metavar="PX", help="side of the square given to the network; by default the checkpoint's"
        )
        group("--fit", choices=choices.FITS, help="how an image becomes a square; by default the checkpoint's")
        default, missing = "skip", "skip: it is named and counted apart, and gets a row all the same"
    else:
        group("--scale", type=int, default=224, low=8, high=4096, metavar="PX", help="side of the square given to the network")
        group("--fit", choices=choices.FITS, default="squash", help="evaluation: squash the image, crop its centre, or pad it")
        group(
            "--num_classes",
            type=int,
            low=1,
            metavar="N",
            help="by default the lines of classes.txt, or the largest label + 1; on --resume the checkpoint's",
        )
        default, missing = "error", "skip: leave it out"
    group("--on_bad_image", choices=("error", "skip"), default=default, help=f"a missing image, found before the start: stop, or {missing}")
    group("--check_files", action=SWITCH, default=True, help="look for each file of the lists before the start")
    group("--cache", default="none", metavar="WHERE", help="none, ram, or disk:DIR: keep each image small, once, for all epochs and runs")
    group(
        "--cache_size",
        type=int,
        low=8,
        high=4096,
        metavar="PX",
        help="short side of a cached image; by default what --scale and --zoom need",
    )
    group("--cache_format", choices=("jpeg", "raw"), default="jpeg", help="raw: no decoding, about eight times the space")
    group("--cache_quality", type=int, default=95, low=1, high=100, help="of cached JPEGs")


def _model(parser: Parser) -> None:
    group = parser.group("model")
    group("--model", default="ResNeSt50", help=f"{', '.join(choices.MODELS)}, or timm:<name> for any model of timm")
    group("--pretrained", action=SWITCH, default=True, help="start from ImageNet weights")
    group("--weights_dir", default="pretrained", metavar="DIR", help="where ImageNet weight files are looked for first")
    group("--load", metavar="CKPT", help="start from these weights (a checkpoint, or a plain state dict)")
    group("--resume", action="store_true", help="go on: optimizer and epoch too; from last.pt of the tag where --load is not given")
    group("--drop", type=float, default=0.0, low=0, high=0.95, help="dropout before the classifier")
    group("--drop_path", type=float, default=0.0, low=0, high=0.95, help="stochastic depth, in the networks of timm that have it")


def _training(parser: Parser) -> None:
    group = parser.group("training")
    group("--epochs", type=int, default=20, low=1, metavar="N", help="how many epochs; a table like 2x sets its own")
    group("--optimizer", default="adamw", help=", ".join(choices.OPTIMIZERS))
    group("--lr", type=float, default=5e-4, low=0, help="highest learning rate")
    group("--weight_decay", type=float, low=0, help="not on norms and biases; by default 0.05 for adamw and lion, 1e-4 else")
    group("--momentum", type=float, default=0.9, low=0, high=1, help="of sgd")
    group("--scheduler", default="cos", help=f"{', '.join(choices.SCHEDULERS)}, or Nx for any N")
    group("--warmup", type=float, default=0.0, low=0, metavar="EPOCHS", help="the rate rises linearly at first")
    group("--min_lr", type=float, default=0.0, low=0, help="where cos, poly and onecycle end")
    group("--step_size", type=int, default=10, low=1, metavar="EPOCHS", help="--scheduler step: a drop to a tenth each so many epochs")
    group("--precision", choices=choices.PRECISIONS, default="auto", help="auto: bf16 or fp16 on CUDA, fp32 on the CPU")
    group("--clip_grad", type=float, low=0, metavar="NORM", help="clip the gradient to this norm")
    group("--accumulate", type=int, default=1, low=1, metavar="K", help="batches an optimizer step")
    group("--ema", type=float, default=0.0, low=0, high=0.999999, metavar="DECAY", help="keep an average of the weights, and evaluate that")


def _loss(parser: Parser) -> None:
    group = parser.group("loss")
    group("--loss", default="ce", help=", ".join(choices.LOSSES))
    group("--smooth", type=float, default=0.0, low=0, high=0.99, help="label smoothing")
    group("--ohem_ratio", type=float, default=0.7, low=0.01, high=1, help="ohem: the share of hardest samples that count")
    group("--focal_gamma", type=float, default=2.0, low=0, help="focal: how much easy samples are played down")
    group("--mixup", type=float, default=0.0, low=0, metavar="ALPHA", help="blend pairs of images and labels")
    group("--cutmix", type=float, default=0.0, low=0, metavar="ALPHA", help="paste a box of one image into another")


def _augmentation(parser: Parser) -> None:
    group = parser.group("augmentation")
    group("--balance", choices=("none", "sqrt", "class"), default="none", help="draw classes evenly, or by the square root of their size")
    group("--repeat_aug", type=int, default=1, low=1, high=16, metavar="K", help="each image K times in a batch, each time augmented anew")
    group("--scale_schedule", metavar="E:PX,…", help="training sizes from given epochs on, such as 1:128,11:192,16:224")
    group("--transform", default="resize", help=f"{', '.join(choices.TRANSFORMS)}; resize has all from --zoom to --cutout_size")
    group("--zoom", type=float, default=0.5, low=0.01, high=1, help="a random crop holds at least this share of the image")
    group("--crop_ratio", type=float, default=0.75, low=0.1, high=1, help="and its sides differ by at most this ratio, or its inverse")
    group("--hflip", type=float, default=0.5, low=0, high=1, help="probability of a left-right flip")
    group("--vflip", type=float, default=0.5, low=0, high=1, help="probability of an upside-down flip")
    group("--transpose", type=float, default=0.5, low=0, high=1, help="probability of swapping rows and columns")
    group("--rotate", type=float, default=0.0, low=0, high=180, metavar="DEG", help="random rotation up to so many degrees")
    group("--brightness", type=float, default=0.2, low=0, high=1, help="up to so much brighter or darker")
    group("--contrast", type=float, default=0.2, low=0, high=1, help="up to so much more or less contrast")
    group("--saturation", type=float, default=0.3, low=0, high=1, help="up to so much more or less colour")
    group("--hue", type=float, default=0.03, low=0, high=0.5, help="up to so much of a turn of the colour circle")
    group("--jitter", type=float, default=0.8, low=0, high=1, help="probability of the four colour changes together")
    group("--blur", type=float, default=0.1, low=0, high=1, help="probability of a slight blur")
    group("--cutout", type=float, default=0.5, low=0, high=1, help="probability of blanking a box")
    group("--cutout_size", type=float, default=0.3, low=0.01, high=1, help="the box's longest side, as a share of the image's")
    group("--ra_ops", type=int, default=2, low=1, high=14, metavar="N", help="randaugment: operations an image")
    group("--ra_magnitude", type=int, default=9, low=0, high=30, metavar="M", help="randaugment: how strong each is")
    group("--erase", type=float, default=0.0, low=0, high=1, help="probability of random noise in a box, after any --transform")
    group("--erase_area", type=float, default=0.33, low=0.02, high=1, help="the box's largest area, as a share of the image's")


def _saving(parser: Parser) -> None:
    group = parser.group("records")
    group("--val_freq", type=int, default=1, low=1, metavar="N", help="validate every N epochs, and after the last")
    group(
        "--save_freq",
        type=int,
        default=10,
        low=1,
        metavar="N",
        help="keep a checkpoint every N epochs, and after the last; last.pt and best.pt come besides",
    )
    group("--max_bad", type=float, default=0.01, low=0, high=1, help="stop when more than this share of an epoch's images cannot be read")


def _inference(parser: Parser) -> None:
    group = parser.group("inference")
    group("--load", nargs="+", metavar="CKPT", help="one checkpoint, or several to average, of any families")
    group("--model", help="checked against the checkpoint; needed for a plain state dict only")
    group("--weights", nargs="+", type=float, low=0, metavar="W", help="a weight for each --load; equal by default")
    group("--tta", choices=choices.TTAS, default="none", help="average over views: mirrored, all 8 flips and transposes, 5 crops, 3 sizes")
    group("--precision", choices=choices.PRECISIONS, default="auto", help="auto: as the checkpoint was trained")
    group("--save_probs", action="store_true", help="also write probs.npz: file names, classes, probabilities")
