"""Flags of the loss and of the targets."""

from options import choices
from options.parser import AddFlag, Parser, expanded


def loss(parser: Parser) -> None:
    """Add the loss, and the options that change targets and weights."""
    add = parser.group("loss")
    _criterion(add)
    _class_balance(add)
    _teacher(add)
    _mixing(add)


def _criterion(add: AddFlag) -> None:
    """Add the loss and its own numbers."""
    add(
        "--task",
        choices=choices.TASKS,
        default="single",
        help="what a line of the lists holds: one class, several labels (3,17), numbers to predict, or a class "
        "among ordered ones",
    )
    add(
        "--loss",
        default="ce",
        help=f"{', '.join(choices.LOSSES)}; {choices.losses_of_tasks()}; the first of a task is its default",
    )
    add(
        "--smooth", "--label_smoothing", type=float, default=0.0, low=0, high=0.99, derived=True, help="label smoothing"
    )
    add(
        "--ohem_ratio",
        type=float,
        default=0.7,
        low=0.01,
        high=1,
        help="ohem: fraction of the batch, the hardest samples, that enters the loss",
    )
    add("--focal_gamma", type=float, default=2.0, low=0, help="focal: exponent that reduces the weight of easy samples")


def _class_balance(add: AddFlag) -> None:
    """Add corrections for classes of unequal size."""
    add(
        "--logit_adjust",
        type=float,
        default=0.0,
        low=0,
        metavar="TAU",
        help="in training, add tau * log(class frequency) to each logit",
    )
    add(
        "--class_weight",
        choices=("none", "effective"),
        default="none",
        help="weight the classes by their effective number of images",
    )
    add(
        "--cb_beta",
        type=float,
        default=0.999,
        low=0,
        high=0.999999,
        help="--class_weight effective: beta; near 1, the weight is 1 / count",
    )


def _teacher(add: AddFlag) -> None:
    """Add distillation."""
    add(
        "--teacher",
        type=expanded,
        metavar="CKPT",
        help="also learn from the probabilities of this checkpoint (distillation)",
    )
    add("--distill_alpha", type=float, default=0.5, low=0, high=1, help="--teacher: its fraction of the loss")
    add(
        "--distill_temp", type=float, default=2.0, low=0.1, help="--teacher: temperature that softens its probabilities"
    )


def _mixing(add: AddFlag) -> None:
    """Add the blending of pairs of images."""
    add("--mixup", type=float, default=0.0, low=0, metavar="ALPHA", help="mixup: blend pairs of images and labels")
    add(
        "--cutmix",
        type=float,
        default=0.0,
        low=0,
        metavar="ALPHA",
        derived=True,
        help="CutMix: paste a box of one image into another",
    )
    add(
        "--mix_off",
        type=float,
        default=0.0,
        low=0,
        high=1,
        metavar="SHARE",
        derived=True,
        help="leave --mixup and --cutmix out of the last part of the run, such as 0.1: the last tenth",
    )
