"""Flags that were given and that a run does not use: a table of what each of them depends on.

They are warned of, not refused: a search with a conditional flag, a command that is copied, and the options.yaml of an
earlier run carry such flags.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from options import choices
from options.defaults import ACTS_THROUGH
from options.options import build_parser
from options.values import flag_text

Test = Callable[[argparse.Namespace], bool]
# Their built-in values. What a value of the user's own reads is not known, so no flag counts as unused beside it.
KNOWN: dict[str, Sequence[str]] = {
    "loss": [name for names in choices.TASK_LOSSES.values() for name in names],
    "optimizer": choices.OPTIMIZERS,
    "scheduler": choices.SCHEDULERS,
    "transform": choices.TRANSFORMS,
    "head": choices.HEADS,
    "class_weight": ("none", "effective"),
}


@dataclass(frozen=True)
class Condition:
    """When a flag acts.

    Attributes:
        where: the state without an effect, in words, such as "with --loss ce".
        try_: what has one.
    """

    acts: Test
    where: Callable[[argparse.Namespace], str]
    try_: str


def _value(name: str, *values: str) -> Condition:
    """Return the condition that the option `name` has one of `values`, or one of the user's own."""
    return Condition(
        acts=lambda opt: getattr(opt, name) in values or not _is_known(name, getattr(opt, name)),
        where=lambda opt: f"with {flag_text(name, getattr(opt, name))}",
        try_=f"--{name} {values[0]}",
    )


def _is_known(name: str, value: str) -> bool:
    return value in KNOWN[name] or (name == "scheduler" and re.fullmatch(r"\d+x", value) is not None)


def _beside(name: str, example: str, acts: Test | None = None) -> Condition:
    """Return the condition that the option `name` is set, as in `example`."""
    return Condition(acts or (lambda opt: bool(getattr(opt, name))), lambda opt: f"without --{name}", example)


def _in_transform(flag: str) -> tuple[Condition, ...]:
    """Return when a flag of augmentation acts: a --transform reads it, and its probability is above 0."""
    read = _value("transform", *(name for name, flags in choices.TRANSFORM_FLAGS.items() if flag in flags))
    if flag not in ACTS_THROUGH:
        return (read,)
    through = ACTS_THROUGH[flag]
    return read, Condition(
        lambda opt: bool(getattr(opt, through)) or not _is_known("transform", opt.transform),
        lambda opt: f"with {flag_text(through, getattr(opt, through))}",
        f"--{through} 0.5",
    )


CACHE = _beside("cache", "--cache ram", lambda opt: opt.cache != "none")
CONDITIONS: dict[str, tuple[Condition, ...]] = {
    "ohem_ratio": (_value("loss", "ohem"),),
    "focal_gamma": (_value("loss", "focal"),),
    "cb_beta": (_value("class_weight", "effective"),),
    "distill_alpha": (_beside("teacher", "--teacher CKPT"),),
    "distill_temp": (_beside("teacher", "--teacher CKPT"),),
    "head_scale": (_value("head", "cosine", "arcface", "subcenter"),),
    "head_margin": (_value("head", "arcface", "subcenter"),),
    "momentum": (_value("optimizer", "sgd"),),
    "step_size": (_value("scheduler", "step"),),
    "min_lr": (_value("scheduler", "cos", "poly", "onecycle"),),
    "drop_path": (
        Condition(
            lambda opt: choices.MODELS.get(opt.model, ("",))[0] not in ("Airbench", "iResNet"),  # not of timm
            lambda opt: f"with --model {opt.model}",
            "--model ResNet50",
        ),
    ),
    **{flag: _in_transform(flag) for flags in choices.TRANSFORM_FLAGS.values() for flag in flags},
    "erase_area": (_beside("erase", "--erase 0.5"),),
    "on_bad_image": (_beside("check_files", "--check_files"),),
    "cache_size": (CACHE,),
    "cache_format": (CACHE,),
    "cache_quality": (
        CACHE,
        Condition(lambda opt: opt.cache_format == "jpeg", lambda opt: "with --cache_format raw", "--cache_format jpeg"),
    ),
    "weights_dir": (
        Condition(
            lambda opt: bool(opt.pretrained and not (opt.load or opt.probe_init or opt.resume)),
            lambda opt: "without ImageNet weights",
            "--pretrained",
        ),
    ),
}


def unused_flags(opt: argparse.Namespace, processes: int = 1) -> list[str]:
    """Return a line for each group of given flags that change nothing beside the other options, which are final.

    A file for --config may hold every flag of an earlier run. So beside one, a flag at its default is left out.

    Args:
        processes: that the run has.
    """
    default = build_parser("train").get_default
    groups: dict[tuple[str, str], list[str]] = {}
    for name, conditions in CONDITIONS.items():
        if name not in opt.given or (opt.config is not None and getattr(opt, name) == default(name)):
            continue
        for condition in conditions:
            if not condition.acts(opt):
                groups.setdefault((condition.where(opt), condition.try_), []).append(f"--{name}")
                break
    if vars(opt).get("sync_bn") and "sync_bn" in opt.given and processes == 1:
        groups["in one process", "torchrun with several"] = ["--sync_bn"]
    return [
        f"{', '.join(names)} {'have' if len(names) > 1 else 'has'} no effect {where}. "
        f"Try: leave {'them' if len(names) > 1 else 'it'} out, or {try_}"
        for (where, try_), names in groups.items()
    ]
