"""The flags of training: model, optimizer, loss, augmentation, records."""

import argparse

from options import choices
from options.parser import Parser, expanded

SWITCH = argparse.BooleanOptionalAction


def model(parser: Parser) -> None:
    """The network, its first weights."""
    group = parser.group("model")
    group("--model", default="ResNeSt50", help=f"{', '.join(choices.MODELS)}, or timm:<name> for any model of timm")
    group("--pretrained", action=SWITCH, default=True, help="start from ImageNet weights")
    group(
        "--weights_dir",
        type=expanded,
        default="pretrained",
        metavar="DIR",
        help="where ImageNet weight files are looked for first",
    )
    group(
        "--load", type=expanded, metavar="CKPT", help="start from these weights (a checkpoint, or a plain state dict)"
    )
    group(
        "--resume",
        action="store_true",
        help="go on: optimizer and epoch too; from last.pt of the tag where --load is not given",
    )
    group(
        "--overwrite",
        action="store_true",
        help="delete the checkpoints and tables of an earlier run of this tag; else it is kept",
    )
    group(
        "--head",
        choices=choices.HEADS,
        default="linear",
        help="classifier: by angle (cosine), with a margin (arcface), with 3 centres a class",
    )
    group("--head_scale", type=float, default=30.0, low=0.1, help="what cosines are multiplied by")
    group(
        "--head_margin",
        type=float,
        default=0.3,
        low=0,
        high=1.5,
        help="arcface, subcenter: added to the target's angle, in radians",
    )
    group("--pool", choices=choices.POOLS, default="avg", help="gem: a generalised mean, whose power is learnt")
    group("--drop", "--dropout", type=float, default=0.0, low=0, high=0.95, help="dropout before the classifier")
    group(
        "--drop_path",
        type=float,
        default=0.0,
        low=0,
        high=0.95,
        help="stochastic depth, in the networks of timm that have it",
    )


def training(parser: Parser) -> None:
    """Epochs, optimizer, schedule, precision."""
    group = parser.group("training")
    group("--epochs", type=int, default=20, low=1, metavar="N", help="how many epochs; a table like 2x sets its own")
    group("--optimizer", default="adamw", help=", ".join(choices.OPTIMIZERS))
    group("--lr", type=float, default=5e-4, low=0, high=100, help="highest learning rate")
    group(
        "--weight_decay",
        type=float,
        low=0,
        help="not on norms and biases; by default 0.05 for adamw, lion and muon, 1e-4 else",
    )
    group("--momentum", type=float, default=0.9, low=0, high=1, help="of sgd")
    group("--scheduler", default="cos", help=f"{', '.join(choices.SCHEDULERS)}, or Nx for any N")
    group("--warmup", type=float, default=0.0, low=0, metavar="EPOCHS", help="the rate rises linearly at first")
    group("--min_lr", type=float, default=0.0, low=0, help="where cos, poly and onecycle end")
    group(
        "--step_size",
        type=int,
        default=10,
        low=1,
        metavar="EPOCHS",
        help="--scheduler step: a drop to a tenth each so many epochs",
    )
    group(
        "--precision",
        choices=choices.PRECISIONS,
        default="auto",
        help="auto: bf16 or fp16 on CUDA, the faster of fp32 and bf16 on the CPU",
    )
    group("--compile", action="store_true", help="compile the network (torch.compile): slow to begin, faster steps")
    group(
        "--sync_bn",
        action="store_true",
        help="several processes: batch norm over the whole batch, not over each one's part",
    )
    group("--clip_grad", type=float, low=0, metavar="VALUE", help="clip the gradient, as --clip_mode says")
    group(
        "--clip_mode",
        choices=("norm", "value", "agc"),
        default="norm",
        help="--clip_grad bounds the whole gradient's norm, each entry, or each unit's norm as a share of its weights' (agc; 0.01)",
    )
    group(
        "--accumulate", "--grad_accum_steps", type=int, default=1, low=1, metavar="K", help="batches an optimizer step"
    )
    group(
        "--ema",
        type=float,
        default=0.0,
        low=0,
        high=0.999999,
        metavar="DECAY",
        help="keep a running average of the weights, validate both, keep the better",
    )
    group(
        "--swa",
        type=int,
        low=1,
        metavar="EPOCH",
        help="also average the weights at each epoch's end, from this epoch on",
    )
    group(
        "--sam",
        type=float,
        default=0.0,
        low=0,
        metavar="RHO",
        help="sharpness-aware steps of this radius (0.05); twice the time",
    )


def finetuning(parser: Parser) -> None:
    """Which layers learn, and how fast."""
    group = parser.group("fine-tuning")
    group(
        "--freeze",
        type=int,
        low=-1,
        metavar="N",
        help="the stem and the first N stages stand still; -1: all but the classifier",
    )
    group(
        "--head_lr",
        "--head_lr_mult",
        type=float,
        default=1.0,
        low=0,
        metavar="F",
        help="the classifier learns at F times --lr",
    )
    group(
        "--layer_decay",
        type=float,
        default=1.0,
        low=0.01,
        high=1,
        metavar="D",
        help="each layer learns at D times the next one's rate",
    )


def loss(parser: Parser) -> None:
    """The loss and what blends targets."""
    group = parser.group("loss")
    group("--loss", default="ce", help=", ".join(choices.LOSSES))
    group("--smooth", "--label_smoothing", type=float, default=0.0, low=0, high=0.99, help="label smoothing")
    group(
        "--ohem_ratio", type=float, default=0.7, low=0.01, high=1, help="ohem: the share of hardest samples that count"
    )
    group("--focal_gamma", type=float, default=2.0, low=0, help="focal: how much easy samples are played down")
    group(
        "--logit_adjust",
        type=float,
        default=0.0,
        low=0,
        metavar="TAU",
        help="add tau * log share of the class to its logit, in training",
    )
    group(
        "--class_weight",
        choices=("none", "effective"),
        default="none",
        help="weigh classes by their effective number of images",
    )
    group(
        "--cb_beta",
        type=float,
        default=0.999,
        low=0,
        high=0.999999,
        help="--class_weight effective: nearer 1 is nearer one over the count",
    )
    group("--teacher", type=expanded, metavar="CKPT", help="learn from this checkpoint's probabilities too")
    group("--distill_alpha", type=float, default=0.5, low=0, high=1, help="--teacher: its share of the loss")
    group("--distill_temp", type=float, default=2.0, low=0.1, help="--teacher: how much its probabilities are softened")
    group("--mixup", type=float, default=0.0, low=0, metavar="ALPHA", help="blend pairs of images and labels")
    group("--cutmix", type=float, default=0.0, low=0, metavar="ALPHA", help="paste a box of one image into another")


def augmentation(parser: Parser) -> None:
    """Sampling and transforms."""
    group = parser.group("augmentation")
    group(
        "--balance",
        choices=("none", "sqrt", "class"),
        default="none",
        help="draw classes evenly, or by the square root of their size",
    )
    group(
        "--repeat_aug",
        type=int,
        default=1,
        low=1,
        high=16,
        metavar="K",
        help="each image K times in a batch, each time augmented anew",
    )
    group("--scale_schedule", metavar="E:PX,…", help="training sizes from given epochs on, such as 1:128,11:192,16:224")
    group(
        "--transform",
        default="resize",
        help=f"{', '.join(choices.TRANSFORMS)}; resize has all from --zoom to --cutout_size",
    )
    group(
        "--zoom", type=float, default=0.5, low=0.01, high=1, help="a random crop holds at least this share of the image"
    )
    group(
        "--crop_ratio",
        type=float,
        default=0.75,
        low=0.1,
        high=1,
        help="and its sides differ by at most this ratio, or its inverse",
    )
    group("--hflip", type=float, default=0.5, low=0, high=1, help="probability of a left-right flip")
    group("--vflip", type=float, default=0.5, low=0, high=1, help="probability of an upside-down flip")
    group("--transpose", type=float, default=0.5, low=0, high=1, help="probability of swapping rows and columns")
    group(
        "--rotate",
        type=float,
        default=0.0,
        low=0,
        high=180,
        metavar="DEG",
        help="random rotation up to so many degrees",
    )
    group("--brightness", type=float, default=0.2, low=0, high=1, help="up to so much brighter or darker")
    group("--contrast", type=float, default=0.2, low=0, high=1, help="up to so much more or less contrast")
    group("--saturation", type=float, default=0.3, low=0, high=1, help="up to so much more or less colour")
    group("--hue", type=float, default=0.03, low=0, high=0.5, help="up to so much of a turn of the colour circle")
    group("--jitter", type=float, default=0.8, low=0, high=1, help="probability of the four colour changes together")
    group("--blur", type=float, default=0.1, low=0, high=1, help="probability of a slight blur")
    group("--cutout", type=float, default=0.5, low=0, high=1, help="probability of blanking a box")
    group(
        "--cutout_size",
        type=float,
        default=0.3,
        low=0.01,
        high=1,
        help="the box's longest side, as a share of the image's",
    )
    group("--ra_ops", type=int, default=2, low=1, high=14, metavar="N", help="randaugment: operations an image")
    group("--ra_magnitude", type=int, default=9, low=0, high=30, metavar="M", help="randaugment: how strong each is")
    group(
        "--erase",
        type=float,
        default=0.0,
        low=0,
        high=1,
        help="probability of random noise in a box, after any --transform",
    )
    group(
        "--erase_area",
        type=float,
        default=0.33,
        low=0.02,
        high=1,
        help="the box's largest area, as a share of the image's",
    )


def saving(parser: Parser) -> None:
    """What is validated and kept, and when."""
    group = parser.group("records")
    group(
        "--val_freq",
        type=int,
        default=1,
        low=0,
        metavar="N",
        help="validate every N epochs and after the last; 0: never, without a list",
    )
    group(
        "--keep",
        "--keep_last",
        type=int,
        default=3,
        low=0,
        metavar="N",
        help="keep the checkpoints of the last N epochs; last.pt and best.pt besides",
    )
    group(
        "--save_freq", type=int, default=10, low=1, metavar="N", help="and those of every N-th epoch, and of the last"
    )
    group(
        "--histograms",
        action="store_true",
        help="send histograms of the weights and gradients to TensorBoard each epoch",
    )
    group(
        "--save_minutes",
        type=float,
        default=10,
        low=0,
        metavar="MIN",
        help="write last.pt within an epoch too, each so often",
    )
    group(
        "--max_bad",
        "--max_unreadable",
        type=float,
        default=0.01,
        low=0,
        high=1,
        help="stop when more than this share of an epoch's images cannot be read",
    )
    group(
        "--max_nan",
        "--max_nonfinite_steps",
        type=int,
        default=10,
        low=0,
        metavar="N",
        help="a step whose gradient is not finite is skipped; after N in a row go back to last.pt once, then stop; 0: do not look",
    )
