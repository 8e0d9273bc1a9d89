"""What every prediction begins with: the members, their classes, and the images of one list."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

import dataloader
from dataloader.file_list import FileList
from dataloader.prefetch import BatchLoader
from inference.ensemble_file import apply_ensemble_file
from inference.loading import LoadedPredictor, load_predictor
from inference.predictor import Predictor
from inference.saved_probs import check_size
from inference.task_flags import CLASS_TASKS
from options import build_parser, changed
from options.unused import unused_flags
from utils import distributed
from utils.agreement import check_alike
from utils.batch import EvalBatch
from utils.classes import Classes, noun
from utils.errors import UserError
from utils.logger import log
from utils.run import get_device

NETWORK_FLAGS = ("model", "tta", "scale", "fit", "precision", "fold")  # how the networks of --load predict


@dataclass(frozen=True)
class Inference:
    """The members that --load names, and the images to predict, checked against each other."""

    opt: argparse.Namespace  # the flags, with what --ensemble says
    loaded: LoadedPredictor
    classes: Classes
    files: FileList

    @property
    def predictor(self) -> Predictor:
        """Return the predictor that blends all members."""
        return self.loaded.predictor

    def batches(self, predictor: Predictor | None = None) -> BatchLoader[EvalBatch]:
        """Return a loader of all images in order, prepared for `predictor`, by default that of all members."""
        return dataloader.eval_loader(self.opt, self.files, (predictor or self.predictor).preprocesses)

    def can_submit(self) -> bool:
        """Return whether submit.py could predict with the same members: they are networks, and there is a test list."""
        return self.has_test_list() and not self.loaded.saved

    def has_test_list(self) -> bool:
        """Return whether there is the test list that submit.py would read without --test_list."""
        opt = changed(self.opt, test_list=None)
        try:
            path = dataloader.known_list(opt, "test", self.loaded.lists)[0] or dataloader.list_path(opt, "test")
        except UserError:  # the members were trained with different ones
            return False
        return path.is_file()


def open_inference(
    opt: argparse.Namespace,
    images: Literal["val", "test"] | FileList,
    match_classes: bool = True,
    tasks: Sequence[str] = CLASS_TASKS,
    shared: bool = False,
) -> Inference:
    """Load the members of --load or --ensemble, open the list, and check that they fit each other.

    With `shared`, the processes that torchrun started join a group here, and share the batches from here on. All of
    them call it, and an error of one is an error of all.

    Args:
        opt: flags of eval.py or submit.py.
        images: "val" or "test", the list that the flags or else the checkpoints name; or a list that is open already.
        match_classes: whether labels are renumbered to the checkpoint's classes. False: they are kept as they are.
        tasks: those that the caller can predict, by default those with one class per image.
        shared: whether the caller can run in several processes.

    Raises:
        UserError: a member is missing, damaged, or does not fit the others; the list is unusable, or has other classes;
            saved probabilities are of another list; or --save_probs would hold too much. Or torchrun started several
            processes, which cannot share the work, or whose flags, members or lists differ.
    """
    device = get_device(opt.gpu)
    if not shared or distributed.world_size() == 1:
        return _open(opt, device, images, match_classes, tasks)
    distributed.init(device, distributed.PREDICTION_TIMEOUT)
    with distributed.share_errors():
        distributed.per_process_batch(opt.batch_size)
        run = _open(opt, device, images, match_classes, tasks)
    more = {f"member {k} of --load": identity[:12] for k, identity in enumerate(run.loaded.identities)}
    more |= {f"precision of member {k}": precision for k, precision in enumerate(run.opt.precision_used)}
    more["thresholds of the labels"] = str(run.loaded.thresholds)
    with distributed.share_errors():
        check_alike(vars(changed(run.opt, precision_used=None)), {**more, "the list": run.files.fingerprint()[:12]})
    log.info(f"{distributed.world_size()} processes share the batches.")
    return run


def _open(
    opt: argparse.Namespace,
    device: torch.device,
    images: Literal["val", "test"] | FileList,
    match_classes: bool,
    tasks: Sequence[str],
) -> Inference:
    """Do what `open_inference` says, in this process."""
    for line in unused_flags(opt):
        log.warning(line)
    opt, ensemble = apply_ensemble_file(opt)
    if all(path.endswith(".npz") for path in opt.load):
        opt = _without_network_flags(opt)
    loaded = load_predictor(opt, device, ensemble)
    classes = loaded.classes
    if classes.task not in tasks:
        raise UserError(f"{loaded.paths[0]} is of --task {classes.task}; allowed here: {', '.join(tasks)}.")
    if images == "test":
        files = dataloader.open_list(opt, "test", known=loaded.lists)
        opt = changed(opt, labels=_labels(opt, classes))
        as_numbers = opt.labels == "number" and classes.task != "regression"
        as_numbers = as_numbers and opt.like is None  # the sample says so later
        makes_list = opt.pseudo_label is not None
        dataloader.check_numbering(files.source.parent, classes, pseudo=makes_list, numbers=as_numbers)
    else:
        task = classes.task
        files = dataloader.open_list(opt, "val", known=loaded.lists, task=task) if images == "val" else images
        files = dataloader.align_labels(files, classes, "the checkpoint") if match_classes else files
        if images == "val":
            dataloader.warn_changed(files, "val", loaded.datas)
            _note_cache(opt, loaded)
    loaded.check_list(files)
    files = loaded.with_groups(files)
    if opt.save_probs:
        check_size(len(files), classes.count, "--save_probs", classes.task)
    # for records: with --precision auto, timing may have chosen them
    used = [member.model.precision for member in loaded.predictor.members]
    return Inference(changed(opt, precision_used=used), loaded, classes, files)


def _note_cache(opt: argparse.Namespace, loaded: LoadedPredictor) -> None:
    """Log where the training saw other pixels than this evaluation, so that its score may be another."""
    for path, cache in loaded.caches.items():
        if cache != "none" and opt.cache == "none":
            log.info(
                f"{path} was trained and validated with --cache {cache}, whose images are smaller and saved again. "
                "This evaluation reads the files, so a few predictions may differ. For the same pixels: --cache ram"
            )


def _without_network_flags(opt: argparse.Namespace) -> argparse.Namespace:
    """Return `opt` without what says how networks predict, for records, as there is none; warn of such a given flag."""
    get_default = build_parser("eval").get_default
    given = [name for name in NETWORK_FLAGS if name in opt.given and getattr(opt, name) != get_default(name)]
    if given:
        log.warning(
            f"{', '.join(f'--{name}' for name in given)}: no effect, as all of --load are saved predictions, which are "
            "taken as they are. Try: leave it out, or the checkpoints in --load"
        )
    return changed(opt, **{name: get_default(name) for name in NETWORK_FLAGS})


def _labels(opt: argparse.Namespace, classes: Classes) -> str:
    """Return how a submission writes classes: --labels, or names where a table named them by other numbers.

    A table's labels 5, 7, 9 are classes 0, 1, 2, which nobody who reads the submission could tell from its labels.

    Raises:
        UserError: --labels name, and the checkpoint has no names.
    """
    if classes.task == "regression":  # the columns have the names of the numbers, whatever --labels says
        return str(opt.labels)
    if opt.labels == "name" and classes.names is None:
        raise UserError(
            f"--labels name, but the checkpoint has no names of its {noun(classes.task)}: there was no classes.txt "
            "beside its training list. Try: --labels number, or train again with a classes.txt there"
        )
    other = classes.named_otherwise()
    if opt.like or "labels" in opt.given or other is None:
        return str(opt.labels)
    log.info(
        f"The {noun(classes.task)} are named by other numbers than their own ({noun(classes.task, 1)} {other} is "
        f"{classes.name(other)}): the submission has the names. --labels number writes their own."
    )
    return "name"
