"""The names in the registries, as plain text, so that help and errors do not import torch.

MODELS is the registry of models: `network.models` is made from it. A test compares every other tuple with its
registry; the registry decides. An optimizer or schedule that you add there works at once. If you add its name here too,
`--help` shows it.
"""

from math import inf
from typing import NamedTuple


class Metric(NamedTuple):
    """A score, as the pages show it and as a search compares it.

    Attributes:
        title: what the pages call it.
        bounds: the lowest and the highest value that it can have; its interval ends there.
        in_percent: whether pages show it in per cent; for shares of the images or the classes.
        lower_is_better: whether a search minimises it.
    """

    title: str
    bounds: tuple[float, float]
    in_percent: bool = False
    lower_is_better: bool = False


# The models: name -> the folder of its family in network/, and the backbone that the family's `build` gets.
MODELS: dict[str, tuple[str, str]] = {
    "ResNet18": ("ResNet", "resnet18"),
    "ResNet50": ("ResNet", "resnet50"),
    "ResNet101": ("ResNet", "resnet101"),
    "ResNeXt50": ("ResNeXt", "resnext50_32x4d"),
    "ResNeXt101": ("ResNeXt", "resnext101_32x8d"),
    "ResNeSt50": ("ResNeSt", "resnest50d"),
    "ResNeSt101": ("ResNeSt", "resnest101e"),
    "ResNeSt200": ("ResNeSt", "resnest200e"),
    "Res2Net50": ("Res2Net", "res2net50d"),
    "Res2Net101": ("Res2Net", "res2net101d"),
    "iResNet50": ("iResNet", "iresnet50"),
    "iResNet101": ("iResNet", "iresnet101"),
    "iResNet152": ("iResNet", "iresnet152"),
    "iResNet200": ("iResNet", "iresnet200"),
    "iResNet1001": ("iResNet", "iresnet1001"),
    "EfficientNet-B0": ("EfficientNet", "tf_efficientnet_b0"),
    "EfficientNet-B1": ("EfficientNet", "tf_efficientnet_b1"),
    "EfficientNet-B2": ("EfficientNet", "tf_efficientnet_b2"),
    "EfficientNet-B3": ("EfficientNet", "tf_efficientnet_b3"),
    "EfficientNet-B4": ("EfficientNet", "tf_efficientnet_b4"),
    "EfficientNet-B5": ("EfficientNet", "tf_efficientnet_b5"),
    "EfficientNet-B6": ("EfficientNet", "tf_efficientnet_b6"),
    "EfficientNet-B7": ("EfficientNet", "tf_efficientnet_b7"),
    "EfficientNet-Lite0": ("EfficientNet", "tf_efficientnet_lite0"),
    "EfficientNet-Lite1": ("EfficientNet", "tf_efficientnet_lite1"),
    "EfficientNet-Lite2": ("EfficientNet", "tf_efficientnet_lite2"),
    "Airbench": ("Airbench", "airbench"),
}
OPTIMIZERS = ("sgd", "adam", "adamw", "radam", "lookahead", "ranger", "lamb", "lion", "muon")
# Here weight decay acts on the weights, not through the gradient, so it needs larger values.
DECOUPLED = ("adamw", "lion", "muon")
DECOUPLED_WEIGHT_DECAY, COUPLED_WEIGHT_DECAY = 0.05, 1e-4
SCHEDULERS = ("cos", "none", "step", "poly", "onecycle", "20e", "100e", "1x", "2x")
CROP_FLAGS = ("zoom", "crop_ratio", "hflip")
COLOUR_FLAGS = ("brightness", "contrast", "saturation", "hue")  # --jitter is the probability of all four
CHAIN_FLAGS = (*CROP_FLAGS, "vflip", "transpose", *COLOUR_FLAGS, "jitter", "blur", "cutout", "cutout_size")
# --transform -> the flags that it reads; a test compares them with the builders.
TRANSFORM_FLAGS: dict[str, tuple[str, ...]] = {
    "resize": (*CHAIN_FLAGS, "rotate"),
    "light": CROP_FLAGS,
    "none": (),
    "albumentations": CHAIN_FLAGS,
    "randaugment": (*CROP_FLAGS, "ra_ops", "ra_magnitude"),
    "trivialaugment": CROP_FLAGS,
    "augmix": CROP_FLAGS,
}
TRANSFORMS = tuple(TRANSFORM_FLAGS)
LOSSES = ("ce", "ohem", "focal", "bce")
HEADS = ("linear", "cosine", "arcface", "subcenter")
SAME_HEADS = frozenset(("cosine", "arcface"))  # of one state: the margin of arcface belongs to the loss
POOLS = ("avg", "gem")
FITS = ("squash", "crop", "pad")
TTAS = ("none", "flip", "x8", "fivecrop", "multiscale")
TASKS = ("single", "multilabel", "regression", "ordinal")
# Of each task the default comes first. LOSSES and SINGLE_METRICS are those of "single".
TASK_LOSSES = {
    "single": LOSSES,
    "multilabel": ("bce", "asl", "focal"),
    "regression": ("huber", "l1", "mse"),
    "ordinal": ("ce", "corn", "huber", "l1", "mse"),
}
SINGLE_METRICS = ("top1", "top5", "mean_class_accuracy", "macro_f1", "weighted_f1", "log_loss")
ORDER_METRICS = ("qwk", "mae")
TASK_METRICS = {
    "single": SINGLE_METRICS,
    "multilabel": ("mAP", "micro_f1", "macro_f1", "log_loss"),
    "regression": ("mae", "rmse", "r2", "spearman"),
    "ordinal": (*ORDER_METRICS, *SINGLE_METRICS),
}
# --metric -> what every room has to know of it. A test compares the names with TASK_METRICS and with the scores.
METRICS = {
    "top1": Metric("Top-1", (0, 1), in_percent=True),
    "top5": Metric("Top-5", (0, 1), in_percent=True),
    "mean_class_accuracy": Metric("Mean class accuracy", (0, 1), in_percent=True),
    "macro_f1": Metric("Macro F1", (0, 1), in_percent=True),
    "weighted_f1": Metric("Weighted F1", (0, 1), in_percent=True),
    "log_loss": Metric("Log loss", (0, inf), lower_is_better=True),
    "mAP": Metric("Mean average precision", (0, 1), in_percent=True),
    "micro_f1": Metric("Micro F1", (0, 1), in_percent=True),
    "mae": Metric("Mean absolute error", (0, inf), lower_is_better=True),
    "rmse": Metric("Root mean squared error", (0, inf), lower_is_better=True),
    "r2": Metric("R²", (-inf, 1)),
    "spearman": Metric("Spearman's correlation", (-1, 1)),
    "qwk": Metric("Quadratic weighted kappa", (-1, 1)),
}
BLENDS = ("mean", "logits", "geometric", "rank", "greedy", "optimal")
TASK_BLENDS = {
    "single": BLENDS,
    "multilabel": ("mean", "logits", "geometric", "greedy", "optimal"),
    "regression": ("mean", "greedy", "optimal"),
    "ordinal": BLENDS,
}
FITTED_BLENDS = ("greedy", "optimal")  # those whose weights are fitted to a validation list
THRESHOLDS = ("half", "one", "per_label")  # of --fit_thresholds
AUTO_BATCH = "auto"  # -b: what the GPU holds
NEWEST = "newest"  # --restore without a time
PRESETS = ("auto", "original")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def losses_of_tasks() -> str:
    """Return the losses of each task but "single", as text for the help."""
    return "; ".join(f"{task}: {', '.join(losses)}" for task, losses in TASK_LOSSES.items() if task != "single")


def metrics_of_tasks() -> str:
    """Return the default metric of each task but "single", as text for the help."""
    return "; ".join(f"{task}: {metrics[0]}" for task, metrics in TASK_METRICS.items() if task != "single")


def default_weight_decay(optimizer: str) -> float:
    """Return the weight decay of an optimizer without --weight_decay."""
    return DECOUPLED_WEIGHT_DECAY if optimizer in DECOUPLED else COUPLED_WEIGHT_DECAY
