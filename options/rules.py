"""Rules across options, most of them of train.py. Each returns a list of problems, so that all are reported at once."""

import argparse
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from options.choices import TASK_LOSSES, TASK_METRICS
from options.values import flag_text

Rule = Callable[[argparse.Namespace], list[str]]
LISTS = ("train_list", "val_list", "test_list")
MAX_TAG_BYTES = 200  # file systems allow 255, and a temporary folder has a longer name than its tag


def tag(opt: argparse.Namespace, max_bytes: int = MAX_TAG_BYTES) -> list[str]:
    """Require a tag that is one safe file name."""
    tag = opt.tag
    if tag is None:
        return ["--tag is needed: which experiment? (the name of a folder in checkpoints/ or logs/)"]
    if (
        re.fullmatch(r"[^\s/\\.:*?\"<>|\x00-\x1f-][^\s/\\:*?\"<>|\x00-\x1f]{0,99}", tag)
        and len(tag.encode(errors="surrogatepass")) <= max_bytes
    ):
        return []
    allowed = (
        "one file name of 1 to 100 letters, digits, _ - . + (no separator or space, no leading dot or dash), "
        f"{max_bytes} bytes at most"
    )
    return [f"--tag is {tag!r}; allowed: {allowed}"]


# The value that switches a flag off. It is the default of the flag in each command that has it; a test compares them.
OFF: dict[str, Any] = {
    "smooth": 0,
    "logit_adjust": 0,
    "class_weight": "none",
    "balance": "none",
    "head": "linear",
    "teacher": None,
    "probe_init": None,
    "fit_head": False,
    "mixup": 0,
    "cutmix": 0,
    "calibrate": False,
    "temperature": "none",
    "threshold": None,
    "fit_thresholds": None,
    "probabilities": False,
    "pseudo_label": None,
    "save_probs": False,
    "top_k": 1,
}


def is_on(opt: argparse.Namespace, name: str) -> bool:
    """Return whether the flag `name` of OFF is switched on; it is off in a command that does not have it."""
    return bool(vars(opt).get(name, OFF[name]) != OFF[name])


NOT_WITH_TASK = {
    "single": (),
    "multilabel": ("smooth", "logit_adjust", "balance", "head", "teacher", "probe_init", "fit_head"),
    "regression": (
        "smooth",
        "logit_adjust",
        "class_weight",
        "balance",
        "head",
        "teacher",
        "probe_init",
        "fit_head",
        "cutmix",
    ),
    "ordinal": ("head", "teacher", "probe_init", "fit_head", "cutmix"),
}
NOT_WITH_ORDER = ("smooth", "logit_adjust", "class_weight", "mixup")  # its losses have no softmax over the classes


def task(opt: argparse.Namespace) -> list[str]:
    """Require a loss and a metric of the task, and nothing that its targets do not allow."""
    problems = []
    for name, known in (("loss", TASK_LOSSES), ("metric", TASK_METRICS)):
        value, allowed = getattr(opt, name), known[opt.task]
        elsewhere = any(value in names for names in known.values())  # an unknown loss may be the user's own
        if value not in allowed and (elsewhere or opt.task != "single"):
            problems.append(f"--{name} {value} and --task {opt.task} contradict; allowed: {', '.join(allowed)}")
    uses_order = opt.task == "ordinal" and opt.loss in TASK_LOSSES["ordinal"][1:]
    unfit = NOT_WITH_TASK[opt.task] + (NOT_WITH_ORDER if uses_order else ())
    what = f"--task {opt.task}" + (f" --loss {opt.loss}" if uses_order else "")
    problems += [
        f"{flag_text(name, getattr(opt, name))} and {what} contradict: its targets do not allow it; leave one out"
        for name in unfit
        if is_on(opt, name)
    ]
    return problems


def task_defaults(opt: argparse.Namespace) -> dict[str, Any]:
    """Return the loss and the metric that follow from --task, where they are not given."""
    known = {"loss": TASK_LOSSES[opt.task][0], "metric": TASK_METRICS[opt.task][0]}
    return {name: value for name, value in known.items() if name not in opt.given}


def resume(opt: argparse.Namespace) -> list[str]:
    """Allow one source of the initial weights."""
    problems = []
    if opt.resume and "pretrained" in opt.given and opt.pretrained:
        problems.append(
            "--resume and --pretrained contradict: a resumed run takes its weights from the checkpoint; leave one out"
        )
    if opt.load and "pretrained" in opt.given and opt.pretrained:
        problems.append("--load and --pretrained contradict: both set the initial weights; leave one out")
    return problems + _probe_init(opt) + _fit_head(opt)


def _probe_init(opt: argparse.Namespace) -> list[str]:
    """Let a fitted classifier start a run alone: it comes with its backbone, and is one linear layer."""
    if not opt.probe_init:
        return []
    problems = []
    if opt.resume:
        problems.append(
            "--resume and --probe_init contradict: a resumed run takes its classifier from the checkpoint; "
            "leave one out"
        )
    if opt.load:
        problems.append("--load and --probe_init contradict: both set the initial weights; leave one out")
    if "pretrained" in opt.given and opt.pretrained:
        problems.append(
            "--pretrained and --probe_init contradict: the file of --probe_init holds the backbone; leave one out"
        )
    if opt.head != "linear":
        problems.append(
            f"--head {opt.head} and --probe_init contradict: the fitted classifier is linear; leave one out"
        )
    return problems


def _fit_head(opt: argparse.Namespace) -> list[str]:
    """Let a linear classifier be fitted to features of trained weights, and once."""
    if not opt.fit_head:
        return []
    problems = []
    if opt.probe_init:
        problems.append("--fit_head and --probe_init contradict: its classifier is fitted already; leave one out")
    if not (opt.pretrained or opt.load or opt.probe_init or opt.resume):
        problems.append("--fit_head and --no-pretrained contradict: random weights give no features; leave one out")
    if opt.head != "linear":
        problems.append(
            f"--head {opt.head} and --fit_head contradict: the fitted classifier is linear. Try: --no-fit_head"
        )
    return problems


def mixing(opt: argparse.Namespace) -> list[str]:
    """Refuse losses, mixing and learning rates that do not work together."""
    problems = []
    if opt.loss == "ohem" and (opt.mixup or opt.cutmix):
        problems.append("--loss ohem and --mixup/--cutmix contradict: a blended sample is always hard; leave one out")
    margin = has_margin(opt)
    if margin and (opt.mixup or opt.cutmix):
        problems.append(
            f"--head {opt.head} and --mixup/--cutmix contradict: a margin needs one target per sample; "
            "leave one out, or give --head_margin 0"
        )
    if opt.loss == "bce" and (margin or opt.logit_adjust):
        problems.append("--loss bce has no softmax, which --logit_adjust and the margin of --head need; leave one out")
    if opt.loss == "ohem" and opt.class_weight != "none":
        problems.append("--loss ohem and --class_weight contradict: both weight the samples; leave one out")
    if opt.warmup > opt.epochs and "epochs" in opt.given:
        problems.append(f"--warmup {opt.warmup:g} is longer than --epochs {opt.epochs}; allowed: at most --epochs")
    if opt.min_lr > opt.lr and ("lr" in opt.given or (opt.preset == "original" and not opt.resume)):
        problems.append(f"--min_lr {opt.min_lr:g} is above --lr {opt.lr:g}; allowed: at most --lr")
    return problems


def has_margin(opt: argparse.Namespace) -> bool:
    """Return whether the head adds a margin to the one target of an image."""
    return opt.head in ("arcface", "subcenter") and opt.head_margin > 0


def patience(opt: argparse.Namespace) -> list[str]:
    """Let --patience end a run only where there are validations, and nothing waits for the last epochs."""
    problems = []
    if opt.patience and not opt.val_freq:
        problems.append("--patience counts validations, and --val_freq 0 has none; leave one out")
    if opt.patience and opt.swa:
        problems.append(
            "--patience and --swa contradict: --swa averages up to the last epoch, which --patience may leave out; "
            "leave one out"
        )
    return problems


def hours(opt: argparse.Namespace) -> list[str]:
    """Let one flag say how long to train, and let nothing need the number of epochs beside --hours."""
    problems = []
    if opt.hours is not None and "epochs" in opt.given:
        problems.append("--epochs and --hours contradict: both say how long to train; leave one out")
    if opt.hours is not None and opt.swa:
        problems.append(
            "--hours and --swa contradict: --swa averages from a given epoch to the last, and --hours decides how many "
            "epochs there are; leave one out, or try --ema 0.999"
        )
    return problems


def stepping(opt: argparse.Namespace) -> list[str]:
    """Refuse ways of stepping that do not work together."""
    problems = []
    if opt.sam and opt.accumulate > 1:
        problems.append(
            "--sam and --accumulate contradict: both steps of SAM use the gradient of one batch; leave one out"
        )
    if opt.sam and opt.precision == "fp16":
        problems.append(
            "--sam and --precision fp16 contradict: SAM would ascend along scaled gradients; allowed: bf16, fp32"
        )
    return problems


def mix_off(opt: argparse.Namespace) -> list[str]:
    """Require a mixing that --mix_off can leave out; --cutmix may be chosen for the run, as long as it is not given."""
    nothing = opt.mix_off and not (opt.mixup or opt.cutmix)
    return ["--mix_off has nothing to leave out: give --mixup or --cutmix with it"] if nothing else []


def companions(opt: argparse.Namespace) -> list[str]:
    """Require the flag without which another one does nothing."""
    problems = mix_off(opt) if opt.preset == "original" or "cutmix" in opt.given else []
    if opt.clip_mode != "norm" and opt.clip_grad is None:
        problems.append(f"--clip_mode {opt.clip_mode} has no effect without --clip_grad VALUE; give both, or neither")
    return problems


def batch_norm(opt: argparse.Namespace) -> list[str]:
    """Refuse to keep statistics that nothing has trained, and to give up those that a flag depends on."""
    if opt.freeze_bn and not (opt.pretrained or opt.load or opt.probe_init or opt.resume):
        return ["--freeze_bn and --no-pretrained contradict: only trained weights have statistics; leave one out"]
    if not opt.freeze_bn and "freeze_bn" in opt.given and (opt.probe_init or opt.fit_head or opt.lora):
        other = "--probe_init" if opt.probe_init else "--fit_head" if opt.fit_head else "--lora"
        return [f"--no-freeze_bn and {other} contradict: it needs the statistics of the trained weights; leave one out"]
    return []


def lora(opt: argparse.Namespace) -> list[str]:
    """Refuse what does not work with adapters."""
    if not opt.lora:
        return []
    problems = []
    if opt.freeze == -1:
        problems.append("--lora and --freeze -1 contradict: no layer is left to adapt; leave one out")
    if opt.swa:
        problems.append(
            "--lora and --swa contradict: the product of averaged factors is not the average of the weights; "
            "leave one out, or give --ema"
        )
    if opt.optimizer == "muon":
        problems.append(
            "--lora and --optimizer muon contradict: Muon orthogonalises whole matrices, not the factors of one. "
            "Try: --optimizer adamw"
        )
    return problems


def cache(opt: argparse.Namespace) -> list[str]:
    """Require one of the three forms of --cache."""
    if opt.cache in ("none", "ram") or (opt.cache.startswith("disk:") and len(opt.cache) > 5):
        return []
    return [f"--cache is {opt.cache!r}; allowed: none, ram, disk:DIR"]


def clear(opt: argparse.Namespace) -> list[str]:
    """Refuse to restore and delete at once."""
    return ["--restore and --rm contradict: leave one out"] if opt.restore and opt.rm else []


def lists_beside_root(
    opt: argparse.Namespace, given: Collection[str], earlier: Mapping[str, Any], source: str
) -> list[str]:
    """Refuse another --data_root that would leave the lists as `source` names them.

    Args:
        given: the options that replace those of the source.
        earlier: the options that it names. source: a file of --config or a checkpoint, in words.
    """
    root, validates = earlier.get("data_root"), vars(opt).get("val_freq") != 0
    read = [name for name in LISTS if name in vars(opt) and (validates or name != "val_list")]
    kept = [name for name in read if earlier.get(name) and name not in given]
    same = root is None or os.path.realpath(root) == os.path.realpath(opt.data_root)
    if "data_root" not in given or same or not kept:
        return []
    what, flags = " ".join(flag_text(name, earlier[name]) for name in kept), " and ".join(f"--{name}" for name in kept)
    return [
        f"--data_root {opt.data_root} does not replace the lists that {source} names: {what}. Try: give {flags} too "
        "(for class folders, make the lists first with datasets/prepare.py folder), or leave --data_root out"
    ]


# ------------------------------------------------------------------------------------------------ a resumed run

# They hold of flags that are given together, whatever a checkpoint adds.
AMONG_FLAGS: tuple[Rule, ...] = (resume, mixing, patience, hours, stepping, batch_norm, lora)
# They ask for a value that a resumed run may have from its checkpoint.
AMONG_ALL: tuple[Rule, ...] = (companions, task)


def training(opt: argparse.Namespace) -> list[str]:
    """Apply the rules between the flags of train.py, as far as they can be judged without a checkpoint."""
    return [line for rule in AMONG_FLAGS + (() if opt.resume else AMONG_ALL) for line in rule(opt)]


def resumed(opt: argparse.Namespace, earlier: argparse.Namespace) -> list[str]:
    """Return the problems between the options of a resumed run, apart from those that it had before.

    A run that began with a contradiction goes on, as a rule may be newer than the run.

    Args:
        opt: all options of the run, changed by the flags that are given now. earlier: those of its checkpoint.
    """
    known = _among_final(earlier, [])
    return [line for line in _among_final(opt, opt.given) if line not in known]


def _among_final(opt: argparse.Namespace, given: list[str]) -> list[str]:
    """Return the problems between options of which no later step chooses any."""
    decided = ["lr", "cutmix"] if opt.hours is not None else ["lr", "cutmix", "epochs"]
    final = argparse.Namespace(**{**vars(opt), "given": [*given, *decided]})
    return [line for rule in AMONG_FLAGS + AMONG_ALL for line in rule(final)]
