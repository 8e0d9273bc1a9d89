"""AutoGluon's `MultiModalPredictor(label).fit(images)`, with its preset for mobile networks, "medium_quality".

The preset's MobileNetV3 is replaced by the network that all train, from a folder as AutoGluon reads its own; its
learning rate of 4e-4, batch of 128 and other defaults stay. It keeps a part of the training images to choose among
its checkpoints, as it does by default.
"""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.accuracy.rivals.common import Task, run


def train(task: Task) -> list[float]:
    """Return the top-1 accuracy after the last epoch."""
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    frames = {split: pd.DataFrame(_rows(task, split), columns=["image", "label"]) for split in ("train", "val")}
    predictor: Any = MultiModalPredictor(
        label="label", problem_type="multiclass", path=str(Path(task.out) / "predictor"), eval_metric="accuracy"
    )
    predictor.fit(
        frames["train"],
        presets="medium_quality",
        seed=task.seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": _network_folder(task),
            "model.timm_image.image_size": task.size,
            "optim.max_epochs": task.epochs,
            "env.num_workers": task.workers,
            "env.num_workers_inference": task.workers,
            "env.num_gpus": 0 if task.device == "cpu" else 1,
        },
    )
    predicted = predictor.predict(frames["val"][["image"]])
    return [float((predicted.to_numpy() == frames["val"]["label"].to_numpy()).mean())]


def _rows(task: Task, split: str) -> list[tuple[str, int]]:
    """Return (path, label) of each image of a split."""
    folders = enumerate(Path(task.images) / split / name for name in task.class_folders())
    return [(str(path), label) for label, folder in folders for path in sorted(folder.iterdir())]


def _network_folder(task: Task) -> str:
    """Write the network as AutoGluon saves one, weights without a head and a config.json; return its folder."""
    import timm
    import torch

    folder = Path(task.out) / "network"
    folder.mkdir()
    net: Any = timm.create_model(task.arch, num_classes=0)
    weights = torch.load(task.weights, weights_only=True)
    torch.save({name: weights[name] for name in net.state_dict()}, folder / "pytorch_model.bin")
    config = {**net.pretrained_cfg, "input_size": [3, task.size, task.size]}
    config = {key: value for key, value in config.items() if isinstance(value, str | int | float | list | tuple)}
    about = {"architecture": task.arch, "num_classes": 0, "num_features": net.num_features, "pretrained_cfg": config}
    (folder / "config.json").write_text(json.dumps(about))
    return str(folder)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    run(train, ("autogluon.multimodal", "torch", "timm", "lightning"))
