"""The temperature and the thresholds that a command predicts with: a flag's, a file's, or what a checkpoint stores."""

import argparse
from typing import Any

import numpy as np

from evaluation.calibration import labels_at_temperature
from evaluation.multilabel import THRESHOLD, describe_thresholds
from inference import saved_probs
from inference.ensemble_file import EnsembleFile
from inference.members import LoadedNetwork
from options import command
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log


def temperature_of(opt: argparse.Namespace, networks: list[LoadedNetwork]) -> float:
    """Return the value of --temperature: none (1), a number, or what `eval.py --calibrate` stored in the checkpoint.

    Raises:
        UserError: --temperature ckpt, and there are several members, or the checkpoint holds no temperature.
    """
    if opt.temperature == "none":
        return 1.0
    if opt.temperature != "ckpt":
        return float(opt.temperature)
    if len(opt.load) > 1:
        raise UserError(
            "--temperature ckpt is of one network, not of a mean. `eval.py --calibrate` prints the mean's; "
            "give it as a number."
        )
    stored = networks[0].calibration if networks else None
    if stored is None:
        first = command("eval", {**vars(opt), "temperature": None, "save_probs": None, "calibrate": True})
        raise UserError(f"{opt.load[0]} holds no temperature. First run: {first}")
    _warn_of_other_settings("The temperature was", stored, opt, networks[0])
    return float(stored["temperature"])


def thresholds_of(
    opt: argparse.Namespace,
    ensemble: EnsembleFile | None,
    networks: list[LoadedNetwork],
    saved: list[saved_probs.SavedProbs],
    classes: Classes,
    temperature: float,
) -> list[float] | None:
    """Return the probability of each label from which it counts as predicted; None: 0.5, or classes of another task.

    --threshold comes first. Without it they are those of the file of --ensemble, or those that the only member holds: a
    checkpoint from `eval.py --fit_thresholds`, a file of probabilities from the command that wrote it.

    Args:
        temperature: that of the predictions; stored thresholds, which are for 1, are moved to it.

    Raises:
        UserError: the number of thresholds is not that of the labels, or the task has no thresholds.
    """
    if ensemble is not None and ensemble.thresholds and classes.task != "multilabel":
        raise UserError(
            f"--ensemble {ensemble.path} holds thresholds, and the task of its members is {classes.task}; "
            "allowed: multilabel. Remove `thresholds` from the file."
        )
    if classes.task != "multilabel" or vars(opt).get("fit_thresholds"):
        return None
    if opt.threshold is not None:
        if len(opt.threshold) not in (1, classes.count):
            raise UserError(
                f"--threshold has {len(opt.threshold)} numbers; allowed: one, or one for each of the "
                f"{classes.count} labels."
            )
        return list(opt.threshold) * (classes.count if len(opt.threshold) == 1 else 1)
    if ensemble is not None and ensemble.thresholds:
        return ensemble.thresholds_at(temperature, classes.count)
    held = {one.member.path: one.thresholds["values"] for one in networks if one.thresholds is not None}
    held |= {one.path: one.thresholds for one in saved if one.thresholds is not None}
    if not held:
        if saved:  # their checkpoint may hold some, with which it is scored
            names = ", ".join(one.path for one in saved)
            log.info(f"Labels count as predicted {describe_thresholds([THRESHOLD])}: {names} holds no thresholds")
        return None
    if len(opt.load) > 1:
        log.warning(
            f"{next(iter(held))} holds thresholds of its own probabilities, not of a mean; labels count from "
            f"{THRESHOLD} on. Try: --threshold"
        )
        return None
    if networks and (stored := networks[0].thresholds) is not None:
        _warn_of_other_settings("The thresholds were", stored, opt, networks[0])
    values = labels_at_temperature(np.array(held[opt.load[0]]), temperature).tolist()
    log.info(f"Labels count as predicted {describe_thresholds(values)}, as {opt.load[0]} says")
    return values


def _warn_of_other_settings(what: str, stored: dict[str, Any], opt: argparse.Namespace, network: LoadedNetwork) -> None:
    """Warn where what a checkpoint stores was fitted with other views, another size, or another fit than now.

    `what`: begins the sentence. Earlier versions did not store size and fit.
    """
    preprocess = network.member.preprocess
    for name, now in (("tta", opt.tta), ("scale", preprocess.scale), ("fit", preprocess.fit)):
        if stored.get(name, now) != now:
            log.warning(f"{what} fitted with --{name} {stored[name]}; now it is {now}.")
