"""Start from a linear classifier that tools.probe fitted to a frozen backbone (LP-FT; Kumar et al., 2022)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.classes import Classes, describe_difference, match_names
from utils.errors import UserError
from utils.logger import log

PARTS = {"probe", "model", "opt", "data"}  # The keys of a checkpoint of tools.probe.


def check_probe(content: dict[str, Any], source: str, wanted: Mapping[str, Any], classes: Classes) -> None:
    """Check that the first step starts at the logits of the fitted classifier; a difference in size is a warning.

    Classes may have another order, if both sides name them: network.loading carries the rows over by name.

    Args:
        content: the checkpoint of --probe_init.
        source: its path.
        wanted: the options of the run, by name.
        classes: the run's classes.

    Raises:
        UserError: the file is of another model or other classes, or its classifier was not fitted by tools.probe.
    """
    if not content.keys() >= PARTS or "preprocess" not in content["data"]:
        raise UserError(
            f"--probe_init: {source} holds no classifier that tools.probe fitted. "
            f"Give a probe_<model>.pt of that tool, or start from these weights: --load {source}"
        )
    if content["model"] != wanted["model"]:
        raise UserError(
            f"--probe_init: {source} holds {content['model']}, --model is {wanted['model']}. "
            f"Try: --model {content['model']}"
        )
    pool = content["opt"].get("pool", wanted["pool"])
    if wanted["pool"] != pool:
        raise UserError(
            f"--probe_init: {source} was fitted with --pool {pool}, not {wanted['pool']}. Try: --pool {pool}"
        )
    _check_classes(Classes.from_dict(content["data"]), source, classes)
    shown = content["data"]["preprocess"]
    for name in ("scale", "fit"):
        if wanted[name] != shown[name]:
            log.warning(
                f"{source} was fitted with --{name} {shown[name]}, this run has {wanted[name]}: "
                "the classifier starts with other logits than the probe's."
            )
    log.info(f"Starting from {source}: a backbone, and the linear classifier that tools.probe fitted to it.")


def batch_norms(net: nn.Module) -> list[nn.Module]:
    """Return the batch norms of `net`, to be kept in eval mode in training: their weights learn, their statistics stay.

    The classifier was fitted to features in eval mode. With the statistics of batches it would meet other features from
    the first step on, and training would begin by unlearning it.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [module for module in net.modules() if isinstance(module, kinds)]


def is_untrained(net: nn.Module) -> bool:
    """Return whether `net` has batch norms and none has seen a batch: all statistics are those of the start."""
    tracked = [
        (module.running_mean, module.running_var)
        for module in batch_norms(net)
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    ]
    if not tracked:
        return False
    means, variances = (torch.cat([part.flatten() for part in parts]) for parts in zip(*tracked, strict=True))
    return bool((means == 0).all() and (variances == 1).all())


def _check_classes(known: Classes, source: str, classes: Classes) -> None:
    """Raise UserError unless every class of the run has one row of the classifier, and the other way round."""
    advice = "Run tools.probe on this training list."
    if known.count != classes.count:
        raise UserError(
            f"--probe_init: the classifier of {source} has {known.count} classes, "
            f"the training list {classes.count}. {advice}"
        )
    if known.names and classes.names and (match_names(classes.names, known.names) < 0).any():
        what = describe_difference(known.names, classes.names, "the list's classes.txt")
        raise UserError(f"--probe_init: the classifier of {source} has other classes: {what}. {advice}")
    if bool(known.names) != bool(classes.names):
        unnamed = "The training list" if known.names else source
        log.warning(f"{unnamed} does not name its classes, so they are matched by number.")
