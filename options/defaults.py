"""Defaults that need no tuning: they follow from the network, the images and the length of the run, with a reason each.

A flag that the user gives is never changed, and what is derived follows it. `--preset original` keeps the defaults of
the parser, which are the template's. dev/LOG.md has the measurements, and says which constants are rules of thumb.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from options import rules
from options.choices import COLOUR_FLAGS, DECOUPLED, TRANSFORM_FLAGS, default_weight_decay
from options.values import Options, flag_text
from options.wording import count_of

BATCH_SIZES = ((1_000, 16), (20_000, 32), (math.inf, 64))  # (training images below this, batch size)
MIN_STEPS = 150  # a run with fewer takes smaller batches
# Epochs: as many as make this number of optimizer steps, within bounds.
FINE_TUNING = 3_000, (10, 30)
SCRATCH = 30_000, (30, 100)
# Learning rates at a batch of 32, by (pretrained, has batch norm).
ADAMW_LR = {(True, True): 1.4e-3, (True, False): 1e-4, (False, True): 2e-3, (False, False): 5e-4}
SGD_LR = {(True, True): 0.02, (True, False): 0.005, (False, True): 0.05, (False, False): 0.02}
TIMES_ADAMW = {"lion": 0.3, "lamb": 3.0}  # learning rates of these optimizers, as multiples of AdamW's
# The classifier is fitted before training to images that are few: in all, and per class with images; and where
# images x features x classes are so few that the fit takes seconds.
MAX_FITTED_IMAGES, MIN_FITTED_PER_CLASS, MAX_FITTED_PER_CLASS = 10_000, 2, 200
MAX_FITTED_VALUES = 1_000_000_000
FITTED_LR_FACTOR = 0.3  # A run whose classifier is fitted already multiplies its learning rate by this.
WARMUP, MAX_WARMUP_EPOCHS = 0.1, 5.0
MIN_AUGMENTED_EPOCHS, FULLY_AUGMENTED_EPOCHS = 3, 20  # below the first no augmentation, from the second on all of it
CHAIN = {  # derived flags of --transform resize: (value at no strength, value at full strength)
    "zoom": (1.0, 0.5),
    "crop_ratio": (1.0, 0.75),
    "hflip": (0.5, 0.5),
    "vflip": (0.0, 0.0),
    "transpose": (0.0, 0.0),
    "jitter": (0.0, 0.8),
    "blur": (0.0, 0.0),
    "cutout": (0.0, 0.5),
}
# Probabilities without which these flags would change nothing.
ACTS_THROUGH = {**dict.fromkeys(COLOUR_FLAGS, "jitter"), "cutout_size": "cutout"}
MIN_SMOOTHED_EPOCHS, SMOOTHING = 5, 0.1
MIN_MIXED_EPOCHS, CUTMIX = 50, 1.0
MIX_OFF = 0.1
# With --hours: the number of epochs that the augmentation suits, and the optimizer steps of the warm-up.
TIMED_EPOCHS, TIMED_WARMUP_STEPS = 10, 100


@dataclass(frozen=True)
class Facts:
    """What the defaults follow from, besides the flags.

    Attributes:
        images: number of training images.
        pretrained: the network starts from trained weights.
        batch_norm: it has batch norms, as most convolutional networks; a transformer has none.
        features: what its last layer is given per image; 0 where that is not one linear layer.
        classes: those that have images; 0: unknown.
        scheduled_epochs: the number that --scheduler sets, such as 24 for 2x, or None.
    """

    images: int
    pretrained: bool
    batch_norm: bool
    features: int = 0
    classes: int = 0
    scheduled_epochs: int | None = None


Values = dict[str, int | float | str]
Default = Callable[[Options, Facts], tuple[Values, str]]  # the flags' values, and the reason


def fill_defaults(opt: Options, facts: Facts) -> tuple[Options, list[str]]:
    """Return `opt` with a value that suits `facts` for each flag that was not given, and one line per default.

    With --preset original nothing changes.
    """
    reasons: list[str] = []
    if opt.preset == "original":
        return opt, reasons
    opt = opt.replace(epochs=TIMED_EPOCHS) if opt.hours is not None else opt
    for default in DEFAULTS:
        values, reason = default(opt, facts)
        values = {name: value for name, value in values.items() if name not in opt.given}
        if values:
            opt = opt.replace(**values)
            reasons.append(f"{' '.join(flag_text(name, value) for name, value in values.items())}  ({reason})")
    return opt, reasons


# ------------------------------------------------------------------------------------------------ defaults, in order


def _batch_size(opt: Options, facts: Facts) -> tuple[Values, str]:
    size = next(size for images, size in BATCH_SIZES if facts.images < images)
    epochs = opt.epochs if "epochs" in opt.given else facts.scheduled_epochs
    why = f"{facts.images:,} training images"
    while epochs is not None and size > BATCH_SIZES[0][1] and epochs * facts.images < MIN_STEPS * size:
        size //= 2
        why = f"{facts.images:,} training images, {count_of(epochs, 'epoch')}: few steps"
    if size % opt.repeat_aug:
        size = -(-size // opt.repeat_aug) * opt.repeat_aug
        why += f"; a multiple of --repeat_aug {opt.repeat_aug}"
    return {"batch_size": size}, why


def _epochs(opt: Options, facts: Facts) -> tuple[Values, str]:
    if opt.hours is not None:
        return {}, ""
    if facts.scheduled_epochs is not None:
        return {"epochs": facts.scheduled_epochs}, f"--scheduler {opt.scheduler} sets it"
    steps, (low, high) = FINE_TUNING if facts.pretrained else SCRATCH
    epochs = min(high, max(low, round(steps * opt.batch_size * opt.accumulate / facts.images)))
    return {"epochs": epochs}, f"about {steps:,} steps, {low} to {high} epochs: {_start(facts)}"


def _fit_head(opt: Options, facts: Facts) -> tuple[Values, str]:
    fresh = facts.pretrained and not (opt.load or opt.probe_init)
    plain = opt.task == "single" and opt.loss == "ce" and opt.head == "linear"
    weighted = opt.logit_adjust or opt.class_weight != "none" or opt.balance != "none"
    unsuited = "lr" in opt.given or ("freeze_bn" in opt.given and not opt.freeze_bn)  # a rate for random weights
    each = facts.images / max(1, facts.classes)
    few = facts.images <= MAX_FITTED_IMAGES and MIN_FITTED_PER_CLASS <= each <= MAX_FITTED_PER_CLASS
    quick = 0 < facts.images * facts.features * facts.classes <= MAX_FITTED_VALUES
    if not (fresh and plain and few and quick) or weighted or unsuited:
        return {}, ""
    return {"fit_head": True}, f"{each:.0f} images per class: few for a classifier that begins with random weights"


def _optimizer(opt: Options, facts: Facts) -> tuple[Values, str]:
    return {"optimizer": "adamw"}, "as in the template"


def _lr(opt: Options, facts: Facts) -> tuple[Values, str]:
    batch = opt.batch_size * opt.accumulate
    key = facts.pretrained, facts.batch_norm
    if opt.optimizer == "sgd":
        lr, growth = SGD_LR[key], batch / 32
    else:
        lr, growth = ADAMW_LR[key] * TIMES_ADAMW.get(opt.optimizer, 1.0), math.sqrt(batch / 32)
    norm = "batch norm" if facts.batch_norm else "no batch norm"
    why = f"{opt.optimizer}, {_start(facts)}, {norm}, batch {batch}"
    if opt.probe_init or opt.fit_head:
        return {"lr": _rounded(FITTED_LR_FACTOR * lr * growth)}, f"{why}; the classifier is fitted already"
    return {"lr": _rounded(lr * growth)}, why


def _weight_decay(opt: Options, facts: Facts) -> tuple[Values, str]:
    way = "weights directly" if opt.optimizer in DECOUPLED else "through the gradient"
    return {"weight_decay": default_weight_decay(opt.optimizer)}, f"{opt.optimizer} decays {way}"


def _warmup(opt: Options, facts: Facts) -> tuple[Values, str]:
    if opt.scheduler == "onecycle" or facts.scheduled_epochs is not None:
        return {"warmup": 0.0}, f"--scheduler {opt.scheduler} is complete by itself"
    if opt.hours is not None:
        steps_per_epoch = max(1, facts.images // (opt.batch_size * opt.accumulate))
        return {"warmup": _rounded(min(1.0, TIMED_WARMUP_STEPS / steps_per_epoch))}, "100 steps, at most an epoch"
    return {"warmup": _rounded(min(MAX_WARMUP_EPOCHS, WARMUP * opt.epochs))}, "a tenth of the run, at most 5 epochs"


def _augmentation(opt: Options, facts: Facts) -> tuple[Values, str]:
    if "transform" in opt.given:
        return {}, ""
    beyond = (opt.epochs - MIN_AUGMENTED_EPOCHS) / (FULLY_AUGMENTED_EPOCHS - MIN_AUGMENTED_EPOCHS)
    strength = min(1.0, max(0.0, beyond))
    times = "once" if opt.epochs == 1 else f"{opt.epochs} times"
    seen = f"each image is seen {times}" + (", if --hours allows it" if opt.hours is not None else "")
    if opt.epochs < MIN_AUGMENTED_EPOCHS and not set(TRANSFORM_FLAGS["resize"]) & set(opt.given):
        return {"transform": "none"}, f"{seen}: too few to learn from distorted ones"
    chain: Values = {name: round(none + strength * (full - none), 3) for name, (none, full) in CHAIN.items()}
    why = f"{seen}: {strength:.0%} of the full strength; no upside-down flips"
    for name, through in ACTS_THROUGH.items():
        if name in opt.given and not chain[through]:
            chain[through] = CHAIN[through][1]
            why += f"; --{through} for --{name}"
    return {"transform": "resize", **chain}, why


def _smoothing(opt: Options, facts: Facts) -> tuple[Values, str]:
    if opt.task not in ("single", "ordinal"):
        return {"smooth": 0.0}, f"--task {opt.task}"
    if opt.epochs < MIN_SMOOTHED_EPOCHS or opt.loss != "ce":
        return {"smooth": 0.0}, f"--loss {opt.loss}, {count_of(opt.epochs, 'epoch')}"
    return {"smooth": SMOOTHING}, f"{opt.epochs} epochs would make the network too sure of itself"


def _mixing(opt: Options, facts: Facts) -> tuple[Values, str]:
    one_target = opt.loss == "ohem" or rules.has_margin(opt)
    if opt.task != "single" or facts.pretrained or opt.epochs < MIN_MIXED_EPOCHS or one_target or opt.mixup:
        return {}, ""
    return {"cutmix": CUTMIX}, f"{opt.epochs} epochs {_start(facts)}"


def _mix_off(opt: Options, facts: Facts) -> tuple[Values, str]:
    if not (opt.mixup or opt.cutmix):
        return {}, ""
    return {"mix_off": MIX_OFF}, "whole images at the end, as evaluation shows them"


DEFAULTS: tuple[Default, ...] = (
    _batch_size,
    _epochs,
    _fit_head,
    _optimizer,
    _lr,
    _weight_decay,
    _warmup,
    _augmentation,
    _smoothing,
    _mixing,
    _mix_off,
)


def _start(facts: Facts) -> str:
    return "from trained weights" if facts.pretrained else "from scratch"


def _rounded(number: float) -> float:
    """Return `number` with two significant digits, as a person would type it."""
    return float(f"{number:.2g}")
