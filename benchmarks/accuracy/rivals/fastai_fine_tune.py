"""fastai's `vision_learner(...).fine_tune(epochs)`, as its vision tutorial begins: ImageDataLoaders, Resize, defaults.

`fine_tune` trains the head for one epoch first, with the body frozen; that epoch is not counted among `epochs`.
"""

import os
from pathlib import Path
from typing import Any

from benchmarks.accuracy.rivals.common import Task, run


def train(task: Task) -> list[float]:
    """Return the top-1 accuracy after each epoch, without that of the frozen body."""
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, set_seed, vision_learner

    set_seed(task.seed)
    loaders = ImageDataLoaders.from_folder(
        Path(task.images),
        train="train",
        valid="val",
        vocab=task.class_folders(),
        item_tfms=Resize(task.size),
        num_workers=task.workers,
        device=task.device,
    )
    learner: Any = vision_learner(
        loaders, task.arch, metrics=accuracy, path=task.out, pretrained_cfg_overlay={"file": task.weights}
    )
    with learner.no_bar():
        learner.fine_tune(task.epochs)
    return [float(values[-1]) for values in learner.recorder.values]


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    run(train, ("fastai", "torch", "torchvision", "timm"))
