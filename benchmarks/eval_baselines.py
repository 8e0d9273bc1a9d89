"""Evaluate with timm as its users do, for benchmarks.eval: its model, its loader, the loop of its documentation."""

from collections.abc import Callable
from typing import IO, Any

import torch

from dataloader.file_list import FileList
from utils import checkpoint


def timm_pass(task: dict[str, Any], files: FileList, device: torch.device) -> Callable[[], int]:
    """Return a function that predicts every image of `files` once and returns their number.

    `task` is as benchmarks.eval writes it. Its row "timm best" adds channels_last and bf16 autocast. The network, its
    weights and the squares are ours.
    """
    import timm
    from timm.data import ImageDataset, create_loader

    from options.choices import MODELS

    content = checkpoint.load(task["load"])
    data, best = content["data"], task["row"] == "timm best"
    model: Any = timm.create_model(MODELS[content["model"]][1], num_classes=data["num_classes"])
    model.load_state_dict(content["weights"])
    model = model.eval().to(device)
    preprocess = data["preprocess"]
    if best:
        model = model.to(memory_format=torch.channels_last)

    class Listed:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
            return open(files.path(index), "rb"), int(files.label[index])

    loader = create_loader(
        ImageDataset("", reader=Listed()),
        input_size=(3, preprocess["scale"], preprocess["scale"]),
        batch_size=task["batch"],
        is_training=False,
        interpolation="bilinear",
        mean=preprocess["mean"],
        std=preprocess["std"],
        crop_pct=1.0,
        crop_mode="squash",
        num_workers=task["workers"],
        device=device,
        pin_memory=device.type == "cuda",
    )

    @torch.inference_mode()
    def predict(images: torch.Tensor) -> torch.Tensor:
        if best:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=best):
            logits = model(images)
        return logits.float().softmax(dim=1).topk(min(5, data["num_classes"])).indices

    def run() -> int:
        return sum(len(predict(images)) for images, _ in loader)

    for _ in range(2):
        predict(torch.rand(task["batch"], 3, preprocess["scale"], preprocess["scale"], device=device))
    return run
