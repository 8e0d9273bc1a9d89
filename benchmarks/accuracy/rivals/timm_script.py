"""timm's train.py, which pip does not bring: the same calls of timm, with the defaults of that script.

As it comes: SGD with Nesterov momentum, learning rate 0.1 per 256 images, batches of 128, cosine decay per epoch after
5 epochs of warm-up from 1e-5, smoothing of 0.1, crops of 8 to 100 %, flips, colour jitter of 0.4, fp32.

Tuned: the one command of timm's "Scripts" page that fine-tunes: `--pretrained --batch-size 32 --epochs 30 --opt adamw
--lr 1e-4 --weight-decay 0.01`, without its --amp, which is for GPUs. The default warm-up of 5 of its 30 epochs stays a
sixth of the run, and --sched-on-updates, which timm's model cards add for fine-tuning, lets the learning rate fall
within an epoch: with the script's own schedule a short run would be all warm-up.
"""

from typing import Any

from benchmarks.accuracy.rivals.common import Task, run

TUNED_WARMUP_SHARE = 5 / 30


def train(task: Task) -> list[float]:
    """Return the top-1 accuracy after each epoch."""
    import timm
    import torch
    from timm.data import resolve_data_config
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import CheckpointSaver, random_seed

    random_seed(task.seed)
    device = torch.device(task.device)
    model: Any = timm.create_model(
        task.arch,
        pretrained=True,
        pretrained_cfg_overlay={"file": task.weights},
        num_classes=task.classes,
        drop_rate=0.0,
    )
    model.to(device)
    config = resolve_data_config({"input_size": (3, task.size, task.size)}, model=model)
    batch = 32 if task.tuned else 128
    if task.tuned:
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.01)
    else:
        optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1 * batch / 256, weight_decay=2e-5, momentum=0.9)
    train_loader, val_loader = _loaders(task, config, batch, device)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=task.epochs,
        warmup_epochs=round(task.epochs * TUNED_WARMUP_SHARE) if task.tuned else 5,
        warmup_lr=1e-5,
        step_on_epochs=not task.tuned,
        updates_per_epoch=len(train_loader),
    )
    loss_function = LabelSmoothingCrossEntropy(smoothing=0.1)
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=task.out, recovery_dir=task.out)
    found = []
    for epoch in range(epochs):
        model.train()
        for number, (images, targets) in enumerate(train_loader, epoch * len(train_loader) + 1):
            loss = loss_function(model(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step_update(num_updates=number)
        found.append(_score(model, val_loader))
        saver.save_checkpoint(epoch, metric=found[-1])
        scheduler.step(epoch + 1, found[-1])
    return found


def _loaders(task: Task, config: dict[str, Any], batch: int, device: Any) -> tuple[Any, Any]:
    """Return the loaders of training and validation, as the script makes them."""
    from timm.data import create_dataset, create_loader

    classes = {name: label for label, name in enumerate(task.class_folders())}
    shared: dict[str, Any] = {
        "input_size": config["input_size"],
        "batch_size": batch,
        "mean": config["mean"],
        "std": config["std"],
    }
    shared |= {"num_workers": task.workers, "device": device}
    loaders = []
    for split in ("train", "val"):
        dataset = create_dataset("", root=task.images, split=split, class_map=classes, is_training=split == "train")
        if split == "train":
            augmentation: dict[str, Any] = {
                "scale": (0.08, 1.0),
                "ratio": (3 / 4, 4 / 3),
                "hflip": 0.5,
                "color_jitter": 0.4,
            }
            loaders.append(
                create_loader(
                    dataset, is_training=True, interpolation="random", re_mode="pixel", **augmentation, **shared
                )
            )
        else:
            loaders.append(
                create_loader(dataset, interpolation=config["interpolation"], crop_pct=config["crop_pct"], **shared)
            )
    return loaders[0], loaders[1]


def _score(model: Any, loader: Any) -> float:
    """Return the share of images that `model` gets right."""
    import torch

    model.eval()
    right = count = 0
    with torch.inference_mode():
        for images, targets in loader:
            right += int((model(images).argmax(1) == targets).sum())
            count += len(targets)
    return right / count


if __name__ == "__main__":
    run(train, ("timm", "torch", "torchvision"))
