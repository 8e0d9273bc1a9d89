"""torchvision's references/classification/train.py, which pip does not bring: the same calls, its defaults.

As it comes: SGD with momentum 0.9, learning rate 0.1, batches of 32, weight decay 1e-4, a tenth of the rate every 30
epochs, random resized crops and flips, no smoothing, fp32; validation resizes to 256/224 of the crop. torchvision has
no EfficientNet-Lite, so the network and its weights are timm's.

Tuned: PyTorch's tutorial "Transfer Learning for Computer Vision", which fine-tunes with the same transforms, SGD with
momentum 0.9, learning rate 0.001 for batches of 4, and a tenth of it every 7 epochs. The script's batch of 32 stays,
so the rate is 8 times that, by the linear rule of the script's README.
"""

from pathlib import Path
from typing import Any

from benchmarks.accuracy.rivals.common import Task, run

BATCH = 32


def train(task: Task) -> list[float]:
    """Return the top-1 accuracy after each epoch."""
    import timm
    import torch

    torch.manual_seed(task.seed)
    device = torch.device(task.device)
    train_loader, val_loader = _loaders(task)
    model: Any = timm.create_model(
        task.arch, pretrained=True, pretrained_cfg_overlay={"file": task.weights}, num_classes=task.classes
    )
    model.to(device)
    loss_function = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.008 if task.tuned else 0.1, momentum=0.9, weight_decay=0.0 if task.tuned else 1e-4
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7 if task.tuned else 30, gamma=0.1)
    found = []
    for epoch in range(task.epochs):
        model.train()
        for images, targets in train_loader:
            images, targets = images.to(device), targets.to(device)
            loss = loss_function(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        found.append(_score(model, val_loader, device))
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, Path(task.out) / f"model_{epoch}.pth")
        torch.save(state, Path(task.out) / "checkpoint.pth")
    return found


def _loaders(task: Task) -> tuple[Any, Any]:
    """Return the loaders of training and validation, as the script and its presets make them."""
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    end = [
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    chains = {
        "train": [transforms.RandomResizedCrop(task.size), transforms.RandomHorizontalFlip(), *end],
        "val": [transforms.Resize(round(task.size * 256 / 224)), transforms.CenterCrop(task.size), *end],
    }
    loaders = {}
    for split, chain in chains.items():
        dataset = ImageFolder(str(Path(task.images) / split), transforms.Compose(chain), allow_empty=True)
        loaders[split] = torch.utils.data.DataLoader(
            dataset, BATCH, shuffle=split == "train", num_workers=task.workers, pin_memory=task.device != "cpu"
        )
    return loaders["train"], loaders["val"]


def _score(model: Any, loader: Any, device: Any) -> float:
    """Return the share of images that `model` gets right."""
    import torch

    model.eval()
    right = count = 0
    with torch.inference_mode():
        for images, targets in loader:
            right += int((model(images.to(device)).argmax(1) == targets.to(device)).sum())
            count += len(targets)
    return right / count


if __name__ == "__main__":
    run(train, ("torchvision", "torch", "timm"))
