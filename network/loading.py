"""Loads checkpoints into models: to fine-tune, to resume, and to predict."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from network import get_model
from network.backbones import POOL_NAMES, adapt_to, classifier_layers, head_names, load_foreign, load_matching
from network.base_model import BaseModel
from network.layouts.reshape import same_numbers
from options.choices import SAME_HEADS
from options.values import flag_text
from utils.classes import Classes, counted, match_names, names_agree, noun
from utils.errors import UserError
from utils.foreign_weights import prefix_hint
from utils.logger import log
from utils.task import CORN, LINEAR, POSITION, SIGMOID, SOFTMAX, activation_of, logits_of

INFER_CLASSES = 2  # of the network that a plain state dict is compared with, to find its number of classes
NO_HEAD_FLAGS = {"head": "linear", "pool": "avg"}  # of checkpoints before these flags
OTHER_UNIT_FACTOR = 10  # deviations that differ more, or means more deviations apart, are of another unit or range


def load_weights(
    model: BaseModel, content: dict[str, Any], source: str, resume: bool = False, names: Sequence[str] | None = None
) -> None:
    """Load the weights of a checkpoint (as utils.checkpoint.load gives it) into `model`.

    Args:
        source: the file of the checkpoint, for messages.
        resume: take the raw weights, and raise an error where the classifier has another size. Else take the weights
            that the checkpoint shows, and leave such a classifier out, with a warning that names the tensors.
        names: the classes of `model`. Where the checkpoint's differ, or have another order, the classifier's rows are
            carried over by name, and new names start at random; this is logged. A classifier without a row per class
            is left out, as one of another size is; so is one whose rows mean something else, such as that of a
            regression where labels are learned, or of numbers in other units (see `known_units`).

    Raises:
        UserError: the checkpoint is of another model, or does not fit.
    """
    check_name(content, model.name, source)
    weights = content["weights"] if resume else _shown_weights(content)
    data = content.get("data") or {}
    known, task = data.get("class_names"), data.get("task", "single")
    has_rows = model.settings.activation not in (CORN, POSITION)  # whose rows are no classes, and have no names
    if not resume and has_rows and known and names and not names_agree(known, names):
        weights = carry_by_name(model, weights, known, names, source, task)
    recounted = data.get("num_classes", model.opt.num_classes) != model.opt.num_classes
    moved = not has_rows and (recounted or (known and names and not names_agree(known, names)))
    if not resume and (moved or not _rows_mean_the_same(model, content, names)):
        layers = _classifier_of(model, source, task)
        weights = {name: value for name, value in weights.items() if name not in layers}
    held = content["weights"].keys()
    left_out = _load(model, content, weights, source)
    if left_out and resume:
        raise UserError(
            f"{source} has a classifier of another size than {counted(model.num_classes, task)} "
            f"({', '.join(left_out)}); --resume keeps the {noun(task)}.\n"
            "Give the lists of its training, or fine-tune its backbone: --load without --resume."
        )
    # of another head or pooling: there is nothing to leave out
    new = [name for name in left_out if name.startswith(POOL_NAMES) or ("format" in content and name not in held)]
    left_out = [name for name in left_out if name not in new]
    if left_out:
        log.warning(
            f"{source}: its classifier has other {noun(task)} or another size, so the new one starts at random; "
            f"left out: {', '.join(left_out)}."
        )
    if not resume:
        _warn_of_other_head(model, content, source, new, is_kept=not left_out)


def _warn_of_other_head(
    model: BaseModel, content: dict[str, Any], source: str, new: Sequence[str], is_kept: bool
) -> None:
    """Warn where --head, --head_scale or --pool let the loaded network begin with other predictions than its own.

    Args:
        new: tensors that the checkpoint does not hold. is_kept: whether its classifier is loaded.
    """
    trained, own = content.get("opt") or {}, model.settings
    head = trained.get("head", "linear")
    now = {"pool": own.pool} | ({"head": own.head, "head_scale": own.head_scale} if is_kept else {})
    then = {name: trained.get(name, NO_HEAD_FLAGS.get(name, value)) for name, value in now.items()}
    if {head, own.head} <= SAME_HEADS:
        then["head"] = now.get("head")
    elif "linear" in (head, own.head):
        now.pop("head_scale", None)
    differing = [name for name in now if now[name] != then[name]]
    if not differing:
        return
    before, after = (" ".join(flag_text(name, values[name]) for name in differing) for values in (then, now))
    start = f" New in it: {', '.join(new)}." if new else ""
    log.warning(
        f"{source} was trained with {before}, and this run has {after}: it begins with other predictions than that "
        f"network's.{start} To keep them, try: {before}"
    )


def _rows_mean_the_same(model: BaseModel, content: dict[str, Any], names: Sequence[str] | None) -> bool:
    """Return whether a logit of the checkpoint tells the network `model` what its own logit is to tell.

    Evidence for a class, and for one of several labels, is the same. A number is the same in the same units alone.
    """
    data, trained, own = content.get("data") or {}, content.get("opt") or {}, model.settings.activation
    if "loss" not in trained:  # weights alone: what their rows mean is unknown
        return True
    theirs = activation_of(data.get("task", "single"), trained["loss"])
    if own != LINEAR or theirs != LINEAR:
        return own == theirs or {own, theirs} <= {SOFTMAX, SIGMOID}
    if model.target_units is None or "target_mean" not in data:
        return True
    place = _place_in(data, names, model.num_classes)
    pairs = zip(model.target_units, (data["target_mean"], data["target_std"]), strict=True)
    return all(torch.equal(units.cpu()[place >= 0], torch.tensor(values)[place[place >= 0]]) for units, values in pairs)


def known_units(classes: Classes, content: dict[str, Any], source: str) -> Classes:
    """Return the numbers of a list in the units in which the network of a checkpoint has learned them; this is logged.

    With the units of the list, the last layer would predict other numbers than before. Numbers that the network does
    not know have those of the list. If a number seems to be in another unit than the network's, or of a far smaller or
    larger range, all of them have: then `load_weights` leaves the last layer out.

    Args:
        classes: of the list; of other tasks than a regression they are returned as they are.
        content: as utils.checkpoint.load gives it. source: its file, for messages.
    """
    data = content.get("data") or {}
    if classes.mean is None or classes.std is None or "target_mean" not in data:
        return classes
    place = _place_in(data, classes.names, classes.count)
    mean, std = list(classes.mean), list(classes.std)
    for number in np.flatnonzero(place >= 0).tolist():
        old_mean, old_std = data["target_mean"][place[number]], data["target_std"][place[number]]
        larger, smaller = max(std[number], old_std), min(std[number], old_std)
        if max(larger / smaller, abs(mean[number] - old_mean) / larger) > OTHER_UNIT_FACTOR:
            log.warning(
                f"{source} has learned number {classes.name(number)} with the mean {old_mean:g} and the standard "
                f"deviation {old_std:g}; in the training list they are {mean[number]:g} and {std[number]:g}, as of "
                "another unit or range. To keep what its last layer knows, give the numbers in its unit, of its range."
            )
            return classes
        mean[number], std[number] = old_mean, old_std
    if (mean, std) != (classes.mean, classes.std):
        log.info(
            f"The numbers are learned in the units of {source}, in which its last layer predicts them: those of its "
            "training list, whose mean and standard deviation differ from this list's."
        )
    return replace(classes, mean=mean, std=std)


def _place_in(data: dict[str, Any], names: Sequence[str] | None, count: int) -> NDArray[np.int64]:
    """Return the place of each of `count` numbers among those of a checkpoint's `data`, int64; -1: it has none such."""
    known: list[str] | None = data.get("class_names")
    if known and names and not names_agree(known, names):
        return match_names(names, known)
    return np.arange(count) if data["num_classes"] == count else np.full(count, -1)


def load_backbone(model: BaseModel, content: dict[str, Any], source: str) -> None:
    """Load the weights that a checkpoint shows into `model`, for a caller that replaces the classifier.

    As `load_weights`, without a warning where the classifier has another size.

    Raises:
        UserError: the checkpoint is of another model, or does not fit.
    """
    check_name(content, model.name, source)
    _load(model, content, _shown_weights(content), source)


def _shown_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = content.get(content.get("showing", "ema")) or content["weights"]
    return weights


def _load(model: BaseModel, content: dict[str, Any], weights: dict[str, Tensor], source: str) -> list[str]:
    """Load `weights`, with the normalisation that belongs to them; return the classifier's tensors left out."""
    if "format" in content:
        _check_types(model, weights, source)
        left_out = load_matching(model.net, weights, source)
    else:
        left_out = load_foreign(model.net, content, source)
    _take_normalisation(model, content, source)
    return left_out


def _take_normalisation(model: BaseModel, content: dict[str, Any], source: str) -> None:
    """Normalise the images of `model` as the file's network does: by a checkpoint's data, or by its folder's files."""
    parts = (content.get("data") or {}).get("preprocess"), (content.get("about") or {}).get("normalisation")
    shown = parts[0] or parts[1]
    if not shown:
        return
    theirs, own = (tuple(shown["mean"]), tuple(shown["std"])), (model.mean, model.std)
    if theirs != own:
        model.set_normalisation(*theirs)
        log.info(
            f"{source} says how its images are normalised: mean {theirs[0]}, standard deviation {theirs[1]}. "
            f"These replace those of {model.name}: {own[0]}, {own[1]}."
        )


def _check_types(model: BaseModel, weights: dict[str, Tensor], source: str) -> None:
    """Raise UserError where a checkpoint of train.py has a tensor of another dtype: it was rounded later."""
    own = model.net.state_dict()
    other = [name for name, value in weights.items() if name in own and value.dtype != own[name].dtype]
    if other:
        raise UserError(
            f"{source} is damaged, or was put together by hand: {other[0]} is {weights[other[0]].dtype}, "
            f"the network's is {own[other[0]].dtype} ({len(other)} tensor(s) differ like that)."
        )


def carry_by_name(
    model: BaseModel, weights: dict[str, Tensor], known: Sequence[str], names: Sequence[str], source: str, task: str
) -> dict[str, Tensor]:
    """Return `weights` with a classifier for `names`, whose rows are the checkpoint's where a name is in `known`.

    The other rows are those of `model`. A classifier that cannot be carried over (another --head, no name in common) is
    left out. A class may have several consecutive rows: the centres of --head subcenter.

    Args:
        task: the checkpoint's, for messages.

    Raises:
        UserError: it is unclear which layer of the network is its classifier.
    """
    numbers = torch.from_numpy(match_names(names, known))
    layers = _classifier_of(model, source, task)
    kept = numbers >= 0
    carried, layers_carried = dict(weights), 0
    for name, own in layers.items():
        old = carried.pop(name, None)
        rows = own.shape[0] // len(names)
        if old is None or not kept.any() or old.shape != (rows * len(known), *own.shape[1:]):
            continue
        new = own.detach().clone().unflatten(0, (len(names), rows))
        new[kept] = old.to(new).unflatten(0, (len(known), rows))[numbers[kept]]
        carried[name] = new.flatten(0, 1)
        layers_carried += 1
    if layers_carried:
        count = int(kept.sum())
        log.info(
            f"{source} has other {noun(task)}, or another order of them. The classifier keeps {count} of "
            f"{counted(len(names), task)}, by name; {len(names) - count} start at random, and "
            f"{len(known) - count} of the checkpoint's are left out."
        )
    return carried


def _classifier_of(model: BaseModel, source: str, task: str) -> dict[str, Tensor]:
    """Return the tensors of the classifier of `model`, which cannot stay those of the checkpoint `source`.

    Raises:
        UserError: it is unclear which layer is the classifier. `task` is the checkpoint's, for the message.
    """
    layers = classifier_layers(model.net, model.num_classes)
    if not layers:
        raise UserError(
            f"{source} has other {noun(task)} than this run, or another order of them, and it is unclear which "
            f"layer of {model.name} is the classifier.\n"
            "Call its last layer fc, classifier or head, or number the lists as the checkpoint does."
        )
    return layers


def check_name(content: dict[str, Any], name: str | None, source: str) -> None:
    """Raise UserError where the checkpoint names another model than `name`."""
    held = content.get("model")
    if held and name and held != name:
        raise UserError(f"{source} holds {held}, --model is {name}. Try: --model {held}, or another --load.")


def build_from_checkpoint(
    content: dict[str, Any], path: str, name: str | None = None
) -> tuple[BaseModel, dict[str, Any]]:
    """Build the network of a checkpoint, or of a plain state dict, with its weights, in eval mode.

    Args:
        content: as utils.checkpoint.load gives it. path: its file, for messages.
        name: of the model; a plain state dict needs it, a checkpoint must agree with it.

    Returns:
        The network, and the checkpoint's `data`: the classes, and where it holds them the preprocessing and the lists.

    Raises:
        UserError: the checkpoint is of another model, or does not name its model, or its classifier does not fit
            its classes.
    """
    check_name(content, name, path)
    name = content.get("model") or name
    if name is None:
        raise UserError(f"{path} is a plain state dict and does not say which network it is of. Add --model NAME.")
    data, foreign = content.get("data"), "format" not in content
    if data is None:
        net = get_model(name)(options_from_checkpoint(content, INFER_CLASSES, name)).net
        if foreign:
            adapted = adapt_to(net, content, path)
            log.info(adapted.table(path, ()))
            content = {**content, "weights": adapted.weights}
        count = infer_num_classes(content["weights"], net, path)
        data = {"num_classes": count, "class_names": None, "class_images": None}
    opt = options_from_checkpoint(content, data["num_classes"], name)
    rows = logits_of(activation_of(opt.task, opt.loss), data["num_classes"])
    if not any(value.ndim and value.shape[0] % max(1, rows) == 0 for value in content["weights"].values()):
        raise _unfit(path, data, f"no tensor has a row per {noun(opt.task, 1)}")  # before memory is taken for them
    model = get_model(name)(opt)
    own = model.net.state_dict()
    unfit = [
        key
        for key in sorted(head_names(model.net))
        if key not in content["weights"] or not same_numbers(content["weights"][key], own[key])
    ]
    if unfit and foreign:
        raise UserError(
            f"The classifier of {path} does not fit this network's ({', '.join(unfit)}), so it cannot predict.\n"
            "Its backbone can be trained on: train.py --load"
        )
    if unfit:  # load_weights would leave it at random values
        raise _unfit(path, data, ", ".join(unfit))
    if foreign:
        load_matching(model.net, content["weights"], path)
        _take_normalisation(model, content, path)
    else:
        load_weights(model, content, path)
    model.set_target_units(Classes.from_dict(data))
    return model.eval(), data


def warn_without_cut_points(model: BaseModel, path: str) -> None:
    """Warn where the network of the checkpoint `path` learned ordered classes as numbers, and has no fitted cut points.

    Those of an earlier step are not taken: they were fitted to the positions that other weights predict.
    """
    if model.ordered_classes is not None and model.ordered_classes.cut_points is None:
        log.warning(
            f"{path} holds no cut points between its classes, as no validation followed its last step. They are taken "
            "as halfway, which may be far worse than fitted ones; checkpoints of validated epochs hold those."
        )


def _unfit(path: str, data: dict[str, Any], what: str) -> UserError:
    return UserError(
        f"{path} says that it has {counted(data['num_classes'], data.get('task', 'single'))}, and its classifier does "
        f"not fit that ({what}).\n"
        "It is damaged, or was put together by hand: give another checkpoint."
    )


def options_from_checkpoint(content: dict[str, Any], num_classes: int, name: str) -> argparse.Namespace:
    """Return the options to build the network `name` of a checkpoint: those of its training, not `pretrained`."""
    from options import Options, parse_train  # the defaults, for what an older checkpoint or a plain state dict lacks

    defaults = vars(parse_train([]))
    known = {*defaults, "precision_used", "precision_why"} - {"given", "config"}
    saved = {key: value for key, value in content.get("opt", {}).items() if key in known}
    # rebuilt: no trial of the size in heads.py: the network was trained at it, or a plain state dict has none yet
    task = (content.get("data") or {}).get("task", "single")  # the one that its classes are of
    fixed = {"task": task, "model": name, "num_classes": num_classes, "pretrained": False, "rebuilt": True}
    return Options(**{**defaults, **saved, **fixed}).make_read_only()


def infer_num_classes(weights: dict[str, Tensor], net: torch.nn.Module, path: str) -> int:
    """Return the number of classes of a plain state dict for `net`, from its classifier's bias or weight.

    Raises:
        UserError: it has no classifier of this network.
    """
    head = head_names(net)
    rows = classifier_layers(net, INFER_CLASSES) or head
    found = {name: weights[name] for name in sorted(weights.keys() & rows) if weights[name].ndim}
    counts = {value.shape[0] for value in found.values()}
    if len(counts) == 1 and all(value.numel() for value in found.values()):
        return int(counts.pop())
    if found:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.items())
        raise UserError(f"{path} is damaged: the tensors of its classifier do not agree on the classes: {shapes}.")
    hint = (
        prefix_hint(weights, net.state_dict(), path)
        or "\nA backbone alone can be trained on (train.py --load), not evaluated."
    )
    raise UserError(
        f"None of the {len(weights)} tensors of {path} is this network's classifier ({', '.join(sorted(head))}).{hint}"
    )
