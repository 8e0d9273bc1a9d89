"""Flags of the network: its weights, its classifier, what is frozen."""

import argparse

from options import choices
from options.parser import AddFlag, Parser, expanded

SWITCH = argparse.BooleanOptionalAction


def model(parser: Parser) -> None:
    """Add the network, its initial weights and its classifier."""
    add = parser.group("model")
    _weights(add)
    _classifier(add)


def _weights(add: AddFlag) -> None:
    """Add the network, and the source of its weights."""
    add("--model", default="ResNeSt50", help=f"{', '.join(choices.MODELS)}, or timm:<name> for any model of timm")
    add("--pretrained", action=SWITCH, default=True, help="start from ImageNet weights; with a PATH: as --load PATH")
    add(
        "--weights_dir",
        type=expanded,
        default="pretrained",
        metavar="DIR",
        help="folder that is searched first for ImageNet weight files",
    )
    add(
        "--load",
        type=expanded,
        metavar="CKPT",
        help="start from these weights: a checkpoint, or a file, folder or hf-hub: repository of another program",
    )
    add(
        "--probe_init",
        type=expanded,
        metavar="FILE",
        help="start from a backbone and the linear classifier fitted to it: a probe_<model>.pt of tools.probe; "
        "batch norm keeps its statistics",
    )
    add(
        "--fit_head",
        action=SWITCH,
        default=False,
        derived=True,
        help="fit the classifier to features of the frozen network before training; batch norm keeps its statistics",
    )
    add(
        "--resume",
        action="store_true",
        help="continue a run: restore optimizer and epoch too; without --load from the tag's last.pt",
    )
    add(
        "--overwrite",
        action="store_true",
        help="delete the checkpoints and tables of an earlier run of this tag; without it, training refuses to start",
    )


def _classifier(add: AddFlag) -> None:
    """Add what follows the backbone: head, pooling, dropout."""
    add(
        "--head",
        choices=choices.HEADS,
        default="linear",
        help="classifier: linear, by angle (cosine), with a margin (arcface), with 3 centres per class (subcenter)",
    )
    add("--head_scale", type=float, default=30.0, low=0.1, help="factor that multiplies the cosines")
    add(
        "--head_margin",
        type=float,
        default=0.3,
        low=0,
        high=1.5,
        help="arcface, subcenter: radians added to the angle of the target class",
    )
    add(
        "--pool",
        choices=choices.POOLS,
        default="avg",
        help="global pooling: average, or generalised mean with a learnt exponent (gem)",
    )
    add("--drop", "--dropout", type=float, default=0.0, low=0, high=0.95, help="dropout before the classifier")
    add(
        "--drop_path",
        type=float,
        default=0.0,
        low=0,
        high=0.95,
        help="stochastic depth, for the networks of timm that support it",
    )


def finetuning(parser: Parser) -> None:
    """Add freezing, adapters, and the learning rate per layer."""
    add = parser.group("fine-tuning")
    add(
        "--lora",
        type=int,
        low=1,
        high=1024,
        metavar="R",
        help="train adapters of this rank (try 8) and the classifier, not the network itself; needs the package peft",
    )
    add(
        "--freeze",
        type=int,
        low=-1,
        metavar="N",
        help="freeze the stem and the first N stages; -1 freezes all but the classifier",
    )
    add(
        "--freeze_bn",
        action=SWITCH,
        default=False,
        help="batch norm keeps the statistics of the trained weights; few images give worse ones",
    )
    add(
        "--head_lr",
        "--head_lr_mult",
        type=float,
        default=1.0,
        low=0,
        metavar="F",
        help="learning rate of the classifier, as a multiple of --lr",
    )
    add(
        "--layer_decay",
        type=float,
        default=1.0,
        low=0.01,
        high=1,
        metavar="D",
        help="learning rate of each layer, as a multiple of the next layer's",
    )
