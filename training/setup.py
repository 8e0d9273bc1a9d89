"""Builds what training consists of from the options: the engine and its parts, and the settings of a run."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dataloader
from dataloader.file_list import FileList
from dataloader.list_checks import path_hashes
from dataloader.transforms import build_stages, find_transform, last_stage, scale_stages
from network import get_model
from network.backbones import head_names
from network.base_model import BaseModel
from network.sizes import check_size
from optimizer import OptimizerSettings, find_optimizer, get_optimizer
from options import Options, build_parser, resume_command
from options.choices import AUTO_BATCH
from scheduler import Span, find_table, get_schedule
from training.averages import Averages
from training.batch_size import FREE_SHARE, MAX_IMAGES, largest_trial_batch
from training.distill import distilled_loss, load_teacher
from training.engine import Engine, Parts, StepSettings
from training.finetune import freeze, lr_scales
from training.fit_head import fit_head
from training.grad_checkpointing import enable_grad_checkpointing
from training.hours import TimedLength
from training.length import RunLength
from training.lora import add_adapters
from training.losses import Loss, LossSettings
from training.mix import get_mix
from training.probe_init import batch_norms
from training.run import RunSettings
from training.task_losses import check_loss, get_task_loss
from training.wrapping import convert_sync_batchnorm, wrap_for_training
from utils import distributed
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log

FIT_SAMPLE_IMAGES = 50_000  # --fit_head samples a longer list to this many.
TRIAL_STEPS = 1000  # Batches per epoch of a trial; its schedule needs a number, and any does.
NOT_SAVED = ("given", "config", "overwrite")  # These say how the run was started, not what it is.


def check_names(opt: argparse.Namespace) -> None:
    """Raise UserError for every name in the options that no registry has.

    Before a list is opened, so that a mistyped name is not found after lists, network and weights.
    """
    problems = []
    for look_up in (
        lambda: get_model(opt.model),
        lambda: find_optimizer(opt.optimizer),
        lambda: find_table(opt.scheduler),
        lambda: find_transform(opt.transform),
        lambda: check_loss(opt.task, opt.loss),
    ):
        try:
            look_up()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def build_engine(
    opt: argparse.Namespace,
    model: BaseModel,
    batches_per_epoch: int,
    class_counts: Sequence[int] | None = None,
    class_names: list[str] | None = None,
) -> Engine:
    """Return the engine that trains `model`, which is on its device and has its weights already.

    Args:
        batches_per_epoch: the optimizer steps once every opt.accumulate of them, and at the end.
        class_counts: training images per class, for the losses of long tails.
        class_names: those of a teacher must be the same.

    Raises:
        UserError: --freeze, --layer_decay, --lora, --checkpoint_grad, --sam, --swa, --scale_schedule or --teacher do
            not fit this network or this run.
    """
    _check(opt, model)
    sizes = training_sizes(opt)
    for side in sorted(sizes.keys() - {model.settings.scale}):  # that was tried when the network was built
        advice = "give sizes that it takes, or leave --scale_schedule out"
        check_size(model.net, side, model.name, sizes[side], advice)
    if opt.sync_bn:
        model.net = convert_sync_batchnorm(model.net, model.device)
    criterion: Loss = get_task_loss(opt.task, loss_settings(opt, class_counts, model.device), model.target_units)
    teacher = None
    if opt.teacher:
        teacher = load_teacher(opt.teacher, opt.distill_temp, model, sizes, class_names)
        criterion = distilled_loss(criterion, opt.distill_alpha, opt.distill_temp)
    head = head_names(model.net)
    model.frozen = frozen_modules(opt, model.net)
    adapters = add_adapters(model, opt.lora, opt.seed) if opt.lora else None
    settings = optimizer_settings(opt)
    optimizer = get_optimizer(model.net, settings, lr_scales(model.net, opt.head_lr, opt.layer_decay), head)
    learning = {name: parameter for name, parameter in model.net.named_parameters() if parameter.requires_grad}
    # AGC leaves the classifier alone (Brock et al., 2021, section 4.1)
    clip_params = [p for name, p in learning.items() if opt.clip_mode != "agc" or name not in head]
    averages = Averages(model.net, opt.ema, swa=bool(opt.swa))
    if opt.checkpoint_grad:  # the averages, copies of the network, are only evaluated
        enable_grad_checkpointing(model.net, model.name)
    parts = Parts(
        criterion=criterion,
        optimizer=optimizer,
        optimizer_settings=settings,
        length=get_length(opt, batches_per_epoch),
        averages=averages,
        clip_params=clip_params,
        mix=get_mix(opt.mixup, opt.cutmix, model.num_classes),
        teacher=teacher,
        train_net=wrap_for_training(model.net, opt.compile, model.device),
        recomputes=opt.checkpoint_grad,
        adapters=adapters,
    )
    return Engine(model, step_settings(opt, batches_per_epoch), parts)


def training_sizes(opt: argparse.Namespace) -> dict[int, str]:
    """Return {side of the images that a run trains on, in pixels: the flag that asks for it}."""
    if not opt.scale_schedule:
        return {opt.scale: f"--scale {opt.scale}"}
    return {side: f"--scale_schedule {opt.scale_schedule}" for _, side in scale_stages(opt.scale_schedule)}


def frozen_modules(opt: argparse.Namespace, net: nn.Module) -> list[nn.Module]:
    """Freeze the parameters that --freeze names, and return the modules that training keeps in eval mode.

    Those are the frozen ones; with --freeze_bn, --fit_head, --probe_init or --lora, the batch norms too.

    Raises:
        UserError: the network has fewer stages than --freeze, or no classifier.
    """
    return freeze(net, opt.freeze) + (batch_norms(net) if keeps_statistics(opt) else [])


def keeps_statistics(opt: argparse.Namespace) -> bool:
    """Return whether all batch norms stay in eval mode in a run."""
    return bool(opt.freeze_bn or opt.fit_head or opt.probe_init or opt.lora)


def fit_classifier(opt: Options, model: BaseModel, files: FileList) -> None:
    """Fit the classifier of `model` to `files`, the training list, or to a sample of it: see training.fit_head.

    Each image is read once, at its size in evaluation, so none is cached. All processes call it.

    Raises:
        UserError, NotFinite: as fit_head.
    """
    files = files.sample(FIT_SAMPLE_IMAGES, opt.seed)
    loader = dataloader.eval_loader(opt.replace(cache="none"), files, (model.preprocess(),), shared=False)
    fit_head(model, loader, files.label, path_hashes(files), opt.seed)


def resolve_batch(opt: Options, device: torch.device, images: int, classes: Classes) -> int:
    """Return -b as a number of images, that of all processes together.

    With `auto` on a GPU, steps are tried on another network of the same architecture. On the CPU no memory of a GPU
    limits the batch, so it is the template's.

    Args:
        opt: the options, with the number of classes. images: in the training list.
    """
    if opt.batch_size != AUTO_BATCH:
        return int(opt.batch_size)
    if device.type != "cuda":
        usual = int(build_parser("train").get_default("batch_size"))
        log.info(f"-b auto: there is no GPU whose memory would limit the batch, so -b is {usual}, as in the template.")
        return usual
    world = distributed.world_size()
    limit = min(MAX_IMAGES, images // world)
    found = largest_trial_batch(functools.partial(_trial_engine, opt, device, classes), device, limit)
    batch = world * distributed.all_reduce_min(found or 2)  # where not even 2 fit, the first step says what to do
    chosen = opt.preset == "auto" and "lr" not in opt.given
    rate = "--lr follows from it." if chosen else f"--lr stays {opt.lr:g}: check that it suits this batch."
    log.info(
        f"-b auto: -b is {batch}, the largest batch whose steps leave {FREE_SHARE:.0%} of the GPU's memory free "
        f"(at most {MAX_IMAGES} images per GPU). {rate}"
    )
    return batch


def _trial_engine(opt: Options, device: torch.device, classes: Classes) -> tuple[Engine, int]:
    """Return an engine like that of the run, and the largest side of the images that it will see."""
    opt = opt.replace(pretrained=False, compile=False, batch_size=2 * distributed.world_size())
    # how many epochs the run has is not known yet; its own engine checks --swa against them
    opt = opt.replace(epochs=max(opt.epochs, opt.swa or 0))
    model = get_model(opt.model)(opt)
    model.to_device(device)
    model.set_precision(opt.precision)
    side = max(pipeline.size for _, pipeline in build_stages(opt, model.preprocess()))
    engine = build_engine(opt, model, TRIAL_STEPS, classes.train_counts, classes.names)
    engine.watches_loss = False  # the run's own first step warns
    return engine, side


def step_settings(opt: argparse.Namespace, batches_per_epoch: int) -> StepSettings:
    """Return the numbers that the engine steps by."""
    return StepSettings(
        seed=opt.seed,
        lr=opt.lr,
        batches_per_epoch=batches_per_epoch,
        accumulate=opt.accumulate,
        clip_grad=opt.clip_grad,
        clip_mode=opt.clip_mode,
        sam_radius=opt.sam,
        max_nonfinite_steps=opt.max_nan,
        mix_off=opt.mix_off,
        swa_start=opt.swa,
        counts_right=opt.task == "single" or (opt.task == "ordinal" and opt.loss == "ce"),
        validated=bool(opt.val_freq),
    )


def get_length(opt: argparse.Namespace, batches_per_epoch: int) -> RunLength:
    """Return how long the run is, with its schedule: by --epochs, or by --hours."""
    span = schedule_span(opt, -(-batches_per_epoch // opt.accumulate))
    if opt.hours is not None:
        needed = last_stage(opt.scale_schedule)
        return TimedLength(opt.hours, batches_per_epoch, opt.scheduler, span, opt.val_freq, needed)
    return RunLength(opt.epochs, batches_per_epoch, get_schedule(opt.scheduler, span))


def schedule_span(opt: argparse.Namespace, per_epoch: int) -> Span:
    """Return what the schedule stretches over, for `per_epoch` optimizer steps per epoch."""
    floor = opt.min_lr / opt.lr if opt.lr else 0.0
    return Span(opt.epochs * per_epoch, per_epoch, round(opt.warmup * per_epoch), opt.step_size, floor)


def run_settings(opt: argparse.Namespace) -> RunSettings:
    """Return what a run takes from the options, which have its epochs and classes by now."""
    saved = {name: value for name, value in vars(opt).items() if name not in NOT_SAVED}
    if opt.hours is not None:
        saved["epochs"] = None  # a file for --config must not give both
    return RunSettings(
        checkpoints=Path(opt.checkpoint_dir) / opt.tag,
        logs=Path(opt.log_dir) / opt.tag,
        batch_size=opt.batch_size,
        val_freq=opt.val_freq,
        patience=opt.patience,
        last_stage=last_stage(opt.scale_schedule),
        save_minutes=opt.save_minutes,
        keep=opt.keep,
        save_freq=opt.save_freq,
        max_bad=opt.max_bad,
        overwrite=opt.overwrite,
        histograms=opt.histograms,
        options=saved,
        config=saved | _config_overrides(opt),
        described=(
            f"{opt.optimizer}, lr {opt.lr:g}, {opt.scheduler}, loss {opt.loss}, transform {opt.transform}, "
            f"seed {opt.seed}"
        ),
        resume_command=resume_command(opt, distributed.local_world_size(), distributed.world_size()),
    )


def _config_overrides(opt: argparse.Namespace) -> dict[str, Any]:
    """Return the options whose values differ between a checkpoint and a file for --config.

    Each line of such a file counts as given. So a flag that was left out has no value there, if it could contradict
    another one that is given.
    """
    overrides: dict[str, Any] = {"resume": False}  # who repeats the run begins it
    if opt.load or opt.probe_init:
        overrides["pretrained"] = None
    if not opt.freeze_bn and "freeze_bn" not in opt.given:
        overrides["freeze_bn"] = None
    return overrides


def optimizer_settings(opt: argparse.Namespace) -> OptimizerSettings:
    """Return what the optimizer is built from."""
    return OptimizerSettings(opt.optimizer, opt.lr, opt.momentum, opt.weight_decay)


def loss_settings(
    opt: argparse.Namespace, class_counts: Sequence[int] | None = None, device: torch.device | None = None
) -> LossSettings:
    """Return what the loss is built from; `class_counts`: training images per class.

    A warning is logged if more than one flag corrects for rare classes. The log also says where a step of several
    batches or processes is other than one of a large batch.
    """
    corrections = [f"--balance {opt.balance}"] if opt.balance != "none" else []
    corrections += [f"--class_weight {opt.class_weight}"] if opt.class_weight != "none" else []
    corrections += [f"--logit_adjust {opt.logit_adjust:g}"] if opt.logit_adjust else []
    if len(corrections) > 1:
        log.warning(
            f"{' and '.join(corrections)} each correct for rare classes: together they correct twice. Leave one out."
        )
    parts = opt.accumulate * distributed.world_size()
    if parts > 1 and (within_batch := _averaged_within_batch(opt)):
        log.info(
            f"{within_batch} averages within each of the {parts} parts of a step, so the step is not quite that of "
            "one large batch."
        )
    counts = None
    if class_counts is not None:
        counts = torch.tensor(class_counts, dtype=torch.float64, device=device)
    return LossSettings(
        loss=opt.loss,
        smooth=opt.smooth,
        ohem_ratio=opt.ohem_ratio,
        focal_gamma=opt.focal_gamma,
        logit_adjust=opt.logit_adjust,
        class_weight=opt.class_weight,
        cb_beta=opt.cb_beta,
        head=opt.head,
        head_scale=opt.head_scale,
        head_margin=opt.head_margin,
        class_counts=counts,
    )


def _averaged_within_batch(opt: argparse.Namespace) -> str:
    """Return the flag that makes the loss of a batch more than a plain mean over its images; "": there is none."""
    if opt.loss in ("ohem", "corn"):  # they average over the hardest images, and over those of each cut
        return f"--loss {opt.loss}"
    # The weights of labels are equal in all images; those of classes are not.
    weighted = opt.class_weight != "none" and opt.task != "multilabel"
    return f"--class_weight {opt.class_weight}" if weighted else ""


def _check(opt: argparse.Namespace, model: BaseModel) -> None:
    if opt.sam and model.dtype == torch.float16:
        raise UserError(
            "--sam does not work with fp16: it would ascend along scaled gradients. Give --precision bf16 or fp32."
        )
    if opt.sam and opt.accumulate > 1:  # earlier versions let a resumed run have both
        raise UserError(
            f"--sam does not work with --accumulate {opt.accumulate}: both of its steps use the gradient of one batch. "
            "Give --accumulate 1."
        )
    if opt.swa and opt.hours is not None:
        raise UserError(
            "--swa does not work with --hours: it averages from a given epoch to the last, and --hours decides "
            "how many epochs there are. Try: --ema 0.999"
        )
    if opt.swa and opt.swa > opt.epochs:
        raise UserError(f"--swa {opt.swa} begins after the last epoch, {opt.epochs}; allowed: 1 to {opt.epochs}.")
    if opt.lora and not (opt.resume or opt.pretrained or opt.load or opt.probe_init):
        log.warning(
            "--lora keeps the network as it is, and --no-pretrained gives it random weights: it can hardly learn. "
            "Leave --no-pretrained out, or --lora."
        )
    if opt.optimizer == "muon" and not opt.resume and (opt.pretrained or opt.load or opt.probe_init):
        log.warning(
            "--optimizer muon starts from weights that were trained before. Unless Muon trained them too, its updates "
            "tend to undo more of them than those of AdamW. Try: --optimizer adamw; Muon is for --no-pretrained."
        )
