"""Flags of sampling and augmentation."""

from options import choices
from options.parser import AddFlag, Parser


def augmentation(parser: Parser) -> None:
    """Add sampling and transforms."""
    add = parser.group("augmentation")
    _sampling(add)
    _geometry(add)
    _colour(add)
    _boxes(add)


def _sampling(add: AddFlag) -> None:
    """Add the choice of images, their size, and the chain of transforms."""
    add(
        "--balance",
        choices=("none", "sqrt", "class"),
        default="none",
        help="sample the classes evenly (class), or by the square root of their size (sqrt)",
    )
    add(
        "--repeat_aug",
        type=int,
        default=1,
        low=1,
        high=16,
        metavar="K",
        help="use each image K times per batch, each time with another augmentation; the batch is a multiple of K",
    )
    add("--scale_schedule", metavar="E:PX,…", help="training image sizes by first epoch, such as 1:128,11:192,16:224")
    add(
        "--transform",
        default="resize",
        derived=True,
        help=f"{', '.join(choices.TRANSFORMS)}; resize uses all options from --zoom to --cutout_size, "
        "by default with the original values if it is given",
    )


def _geometry(add: AddFlag) -> None:
    """Add crops, flips and rotation."""
    add(
        "--zoom",
        type=float,
        default=0.5,
        low=0.01,
        high=1,
        derived=True,
        help="smallest area of a random crop, as a fraction of the image",
    )
    add(
        "--crop_ratio",
        type=float,
        default=0.75,
        low=0.1,
        high=1,
        derived=True,
        help="aspect ratio of a random crop, between this and its inverse",
    )
    add("--hflip", type=float, default=0.5, low=0, high=1, derived=True, help="probability of a left-right flip")
    add("--vflip", type=float, default=0.5, low=0, high=1, derived=True, help="probability of an upside-down flip")
    add(
        "--transpose",
        type=float,
        default=0.5,
        low=0,
        high=1,
        derived=True,
        help="probability of swapping rows and columns",
    )
    add(
        "--rotate",
        type=float,
        default=0.0,
        low=0,
        high=180,
        metavar="DEG",
        help="largest random rotation, in degrees",
    )


def _colour(add: AddFlag) -> None:
    """Add changes of colour, and blur."""
    add("--brightness", type=float, default=0.2, low=0, high=1, help="largest change of brightness, as a fraction")
    add("--contrast", type=float, default=0.2, low=0, high=1, help="largest change of contrast, as a fraction")
    add("--saturation", type=float, default=0.3, low=0, high=1, help="largest change of saturation, as a fraction")
    add(
        "--hue",
        type=float,
        default=0.03,
        low=0,
        high=0.5,
        help="largest change of hue, as a fraction of the colour circle",
    )
    add(
        "--jitter",
        type=float,
        default=0.8,
        low=0,
        high=1,
        derived=True,
        help="probability of the four colour changes, applied together",
    )
    add("--blur", type=float, default=0.1, low=0, high=1, derived=True, help="probability of a slight blur")


def _boxes(add: AddFlag) -> None:
    """Add cutout, the numbers of randaugment, and random erasing."""
    add("--cutout", type=float, default=0.5, low=0, high=1, derived=True, help="probability of blanking a box")
    add(
        "--cutout_size",
        type=float,
        default=0.3,
        low=0.01,
        high=1,
        help="longest side of the box, as a fraction of the image's side",
    )
    add("--ra_ops", type=int, default=2, low=1, high=14, metavar="N", help="randaugment: operations per image")
    add(
        "--ra_magnitude",
        type=int,
        default=9,
        low=0,
        high=30,
        metavar="M",
        help="randaugment: strength of each operation",
    )
    add(
        "--erase",
        type=float,
        default=0.0,
        low=0,
        high=1,
        help="probability of filling a box with noise (random erasing), after any --transform",
    )
    add(
        "--erase_area",
        type=float,
        default=0.33,
        low=0.02,
        high=1,
        help="largest area of the box, as a fraction of the image",
    )
