"""The flags of training: model, optimizer, loss, augmentation, records."""

import argparse

from options import choices
from options.parser import Parser, expanded

SWITCH = argparse.BooleanOptionalAction


def model(parser: Parser) -> None:
    """Add the network and its initial weights."""
    group = parser.group("model")
    group("--model", default="ResNeSt50", help=f"{', '.join(choices.MODELS)}, or timm:<name> for any model of timm")
    group("--pretrained", action=SWITCH, default=True, help="start from ImageNet weights")
    group(
        "--weights_dir",
        type=expanded,
        default="pretrained",
        metavar="DIR",
        help="folder that is searched first for ImageNet weight files",
    )
    group(
        "--load", type=expanded, metavar="CKPT", help="start from these weights (a checkpoint, or a plain state dict)"
    )
    group(
        "--resume",
        action="store_true",
        help="continue a run: restore optimizer and epoch too; without --load from the tag's last.pt",
    )
    group(
        "--overwrite",
        action="store_true",
        help="delete the checkpoints and tables of an earlier run of this tag; without it, training refuses to start",
    )
    group(
        "--head",
        choices=choices.HEADS,
        default="linear",
        help="classifier: linear, by angle (cosine), with a margin (arcface), with 3 centres per class (subcenter)",
    )
    group("--head_scale", type=float, default=30.0, low=0.1, help="factor that multiplies the cosines")
    group(
        "--head_margin",
        type=float,
        default=0.3,
        low=0,
        high=1.5,
        help="arcface, subcenter: radians added to the angle of the target class",
    )
    group(
        "--pool",
        choices=choices.POOLS,
        default="avg",
        help="global pooling: average, or generalised mean with a learnt exponent (gem)",
    )
    group("--drop", "--dropout", type=float, default=0.0, low=0, high=0.95, help="dropout before the classifier")
    group(
        "--drop_path",
        type=float,
        default=0.0,
        low=0,
        high=0.95,
        help="stochastic depth, for the networks of timm that support it",
    )


def training(parser: Parser) -> None:
    """Add epochs, optimizer, schedule and precision."""
    group = parser.group("training")
    group(
        "--epochs",
        type=int,
        default=20,
        low=1,
        metavar="N",
        help="number of epochs; a schedule such as 2x sets its own",
    )
    group("--optimizer", default="adamw", help=", ".join(choices.OPTIMIZERS))
    group("--lr", type=float, default=5e-4, low=0, high=100, help="peak learning rate")
    group(
        "--weight_decay",
        type=float,
        low=0,
        help="not applied to norms and biases; default 0.05 for adamw, lion and muon, 1e-4 for the others",
    )
    group("--momentum", type=float, default=0.9, low=0, high=1, help="momentum of sgd")
    group("--scheduler", default="cos", help=f"{', '.join(choices.SCHEDULERS)}, or Nx for any N")
    group(
        "--warmup",
        type=float,
        default=0.0,
        low=0,
        metavar="EPOCHS",
        help="epochs of linear warmup of the learning rate",
    )
    group("--min_lr", type=float, default=0.0, low=0, help="final learning rate of cos, poly and onecycle")
    group(
        "--step_size",
        type=int,
        default=10,
        low=1,
        metavar="EPOCHS",
        help="--scheduler step: multiply the learning rate by 0.1 every N epochs",
    )
    group(
        "--precision",
        choices=choices.PRECISIONS,
        default="auto",
        help="auto: bf16 or fp16 on a GPU; on the CPU the faster of fp32 and bf16",
    )
    group("--compile", action="store_true", help="compile the network with torch.compile: slow start, faster steps")
    group(
        "--sync_bn",
        action="store_true",
        help="several processes: batch norm over the whole batch instead of each process's part",
    )
    group(
        "--clip_grad",
        type=float,
        low=0,
        metavar="VALUE",
        help="clip the gradient to this value, in the way of --clip_mode",
    )
    group(
        "--clip_mode",
        choices=("norm", "value", "agc"),
        default="norm",
        help="--clip_grad bounds the norm of the whole gradient, each element, "
        "or the norm per unit relative to its weights (agc; try 0.01)",
    )
    group(
        "--accumulate", "--grad_accum_steps", type=int, default=1, low=1, metavar="K", help="batches per optimizer step"
    )
    group(
        "--ema",
        type=float,
        default=0.0,
        low=0,
        high=0.999999,
        metavar="DECAY",
        help="keep an exponential moving average of the weights, validate both, use the better",
    )
    group(
        "--swa",
        type=int,
        low=1,
        metavar="EPOCH",
        help="from this epoch on, also average the weights at the end of each epoch",
    )
    group(
        "--sam",
        type=float,
        default=0.0,
        low=0,
        metavar="RHO",
        help="sharpness-aware minimization with this radius (try 0.05); doubles the time per step",
    )


def finetuning(parser: Parser) -> None:
    """Add freezing and the learning rate per layer."""
    group = parser.group("fine-tuning")
    group(
        "--freeze",
        type=int,
        low=-1,
        metavar="N",
        help="freeze the stem and the first N stages; -1 freezes all but the classifier",
    )
    group(
        "--head_lr",
        "--head_lr_mult",
        type=float,
        default=1.0,
        low=0,
        metavar="F",
        help="learning rate of the classifier, as a multiple of --lr",
    )
    group(
        "--layer_decay",
        type=float,
        default=1.0,
        low=0.01,
        high=1,
        metavar="D",
        help="learning rate of each layer, as a multiple of the next layer's",
    )


def loss(parser: Parser) -> None:
    """Add the loss, and the options that blend targets."""
    group = parser.group("loss")
    group("--loss", default="ce", help=", ".join(choices.LOSSES))
    group("--smooth", "--label_smoothing", type=float, default=0.0, low=0, high=0.99, help="label smoothing")
    group(
        "--ohem_ratio",
        type=float,
        default=0.7,
        low=0.01,
        high=1,
        help="ohem: fraction of the batch, the hardest samples, that enters the loss",
    )
    group(
        "--focal_gamma", type=float, default=2.0, low=0, help="focal: exponent that reduces the weight of easy samples"
    )
    group(
        "--logit_adjust",
        type=float,
        default=0.0,
        low=0,
        metavar="TAU",
        help="in training, add tau * log(class frequency) to each logit",
    )
    group(
        "--class_weight",
        choices=("none", "effective"),
        default="none",
        help="weight the classes by their effective number of images",
    )
    group(
        "--cb_beta",
        type=float,
        default=0.999,
        low=0,
        high=0.999999,
        help="--class_weight effective: beta; near 1, the weight is 1 / count",
    )
    group(
        "--teacher",
        type=expanded,
        metavar="CKPT",
        help="also learn from the probabilities of this checkpoint (distillation)",
    )
    group("--distill_alpha", type=float, default=0.5, low=0, high=1, help="--teacher: its fraction of the loss")
    group(
        "--distill_temp", type=float, default=2.0, low=0.1, help="--teacher: temperature that softens its probabilities"
    )
    group("--mixup", type=float, default=0.0, low=0, metavar="ALPHA", help="mixup: blend pairs of images and labels")
    group(
        "--cutmix",
        type=float,
        default=0.0,
        low=0,
        metavar="ALPHA",
        help="CutMix: paste a box of one image into another",
    )


def augmentation(parser: Parser) -> None:
    """Add sampling and transforms."""
    group = parser.group("augmentation")
    group(
        "--balance",
        choices=("none", "sqrt", "class"),
        default="none",
        help="sample the classes evenly (class), or by the square root of their size (sqrt)",
    )
    group(
        "--repeat_aug",
        type=int,
        default=1,
        low=1,
        high=16,
        metavar="K",
        help="use each image K times per batch, each time with another augmentation",
    )
    group("--scale_schedule", metavar="E:PX,…", help="training image sizes by first epoch, such as 1:128,11:192,16:224")
    group(
        "--transform",
        default="resize",
        help=f"{', '.join(choices.TRANSFORMS)}; resize uses all options from --zoom to --cutout_size",
    )
    group(
        "--zoom",
        type=float,
        default=0.5,
        low=0.01,
        high=1,
        help="smallest area of a random crop, as a fraction of the image",
    )
    group(
        "--crop_ratio",
        type=float,
        default=0.75,
        low=0.1,
        high=1,
        help="aspect ratio of a random crop, between this and its inverse",
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
        help="largest random rotation, in degrees",
    )
    group("--brightness", type=float, default=0.2, low=0, high=1, help="largest change of brightness, as a fraction")
    group("--contrast", type=float, default=0.2, low=0, high=1, help="largest change of contrast, as a fraction")
    group("--saturation", type=float, default=0.3, low=0, high=1, help="largest change of saturation, as a fraction")
    group(
        "--hue",
        type=float,
        default=0.03,
        low=0,
        high=0.5,
        help="largest change of hue, as a fraction of the colour circle",
    )
    group(
        "--jitter",
        type=float,
        default=0.8,
        low=0,
        high=1,
        help="probability of the four colour changes, applied together",
    )
    group("--blur", type=float, default=0.1, low=0, high=1, help="probability of a slight blur")
    group("--cutout", type=float, default=0.5, low=0, high=1, help="probability of blanking a box")
    group(
        "--cutout_size",
        type=float,
        default=0.3,
        low=0.01,
        high=1,
        help="longest side of the box, as a fraction of the image's side",
    )
    group("--ra_ops", type=int, default=2, low=1, high=14, metavar="N", help="randaugment: operations per image")
    group(
        "--ra_magnitude",
        type=int,
        default=9,
        low=0,
        high=30,
        metavar="M",
        help="randaugment: strength of each operation",
    )
    group(
        "--erase",
        type=float,
        default=0.0,
        low=0,
        high=1,
        help="probability of filling a box with noise (random erasing), after any --transform",
    )
    group(
        "--erase_area",
        type=float,
        default=0.33,
        low=0.02,
        high=1,
        help="largest area of the box, as a fraction of the image",
    )


def saving(parser: Parser) -> None:
    """Add validation, checkpoints and limits on errors."""
    group = parser.group("records")
    group(
        "--val_freq",
        type=int,
        default=1,
        low=0,
        metavar="N",
        help="validate every N epochs and after the last; 0: never, no validation list needed",
    )
    group(
        "--keep",
        "--keep_last",
        type=int,
        default=3,
        low=0,
        metavar="N",
        help="keep the checkpoints of the last N epochs, besides last.pt and best.pt",
    )
    group(
        "--save_freq",
        type=int,
        default=10,
        low=1,
        metavar="N",
        help="also keep the checkpoint of every N-th epoch and of the last",
    )
    group(
        "--histograms",
        action="store_true",
        help="write histograms of weights and gradients to TensorBoard every epoch",
    )
    group(
        "--save_minutes",
        type=float,
        default=10,
        low=0,
        metavar="MIN",
        help="also write last.pt within an epoch, every this many minutes",
    )
    group(
        "--max_bad",
        "--max_unreadable",
        type=float,
        default=0.01,
        low=0,
        high=1,
        help="stop when more than this fraction of the images of an epoch cannot be read",
    )
    group(
        "--max_nan",
        "--max_nonfinite_steps",
        type=int,
        default=10,
        low=0,
        metavar="N",
        help="skip steps with a non-finite gradient; after N in a row restore last.pt once, then stop; 0: no check",
    )
