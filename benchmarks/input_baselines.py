"""Other people's input pipelines, as their users write them, for benchmarks.input.

Each takes (paths, labels, Work) and yields batches of images for ever, or for as many epochs as `Work` says. `full`
adds colour jitter of 0.4 to crop and flip.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.batch import to_float


class Work(NamedTuple):
    """What is asked of a pipeline: batches of `batch` squares of `scale` px, by `workers`; `full` with colour jitter."""

    paths: list[str]
    labels: list[int]
    scale: int
    batch: int
    workers: int
    full: bool
    epochs: int


ZOOM, JITTER = 0.8, 0.4
RATIO = (0.75, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def timm_loader(work: Work) -> Iterator[Any]:
    """The images of `timm_batches`."""
    return (images for images, _ in timm_batches(work))


def timm_batches(work: Work) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """timm's create_loader with its prefetcher: Pillow in worker processes, normalised in the main one; images and labels."""
    from timm.data import ImageDataset, create_loader

    class Listed:
        def __len__(self) -> int:
            return len(work.paths)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return open(work.paths[index], "rb"), work.labels[index]

    loader = create_loader(
        ImageDataset("", reader=Listed()),
        input_size=(3, work.scale, work.scale),
        batch_size=work.batch,
        is_training=True,
        scale=(ZOOM, 1.0),
        ratio=RATIO,
        hflip=0.5,
        color_jitter=JITTER if work.full else None,
        interpolation="bilinear",
        num_workers=work.workers,
        device=torch.device("cpu"),
    )
    for _ in range(work.epochs):
        yield from loader


class _Decoded(torch.utils.data.Dataset):
    def __init__(self, work: Work) -> None:
        from torchvision.transforms import v2

        self.work = work
        steps: list[Any] = [
            v2.RandomResizedCrop(work.scale, (ZOOM, 1.0), RATIO, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        self.transform = v2.Compose([*steps, v2.ColorJitter(JITTER, JITTER, JITTER)] if work.full else steps)

    def __len__(self) -> int:
        return len(self.work.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        return self.transform(decode_jpeg(read_file(self.work.paths[index]), ImageReadMode.RGB)), self.work.labels[
            index
        ]


def torchvision_loader(work: Work) -> Iterator[Any]:
    """torchvision's decode_jpeg and v2 transforms on uint8, in DataLoader's worker processes."""
    loader = torch.utils.data.DataLoader(
        _Decoded(work), work.batch, shuffle=True, num_workers=work.workers, drop_last=True
    )
    for _ in range(work.epochs):
        for images, _ in loader:
            yield normalise(images)


def dali_loader(work: Work) -> Iterator[Any]:
    """NVIDIA DALI on the CPU, in threads: decoding with a random crop, resize, flip, normalise."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=work.batch, num_threads=work.workers, device_id=None)
    def pipeline() -> Any:
        data, label = fn.readers.file(files=work.paths, labels=work.labels, random_shuffle=True, name="files")
        area, aspect = [ZOOM, 1.0], list(RATIO)
        images = fn.decoders.image_random_crop(
            data, device="cpu", output_type=types.RGB, random_area=area, random_aspect_ratio=aspect
        )
        images = fn.resize(
            images, resize_x=work.scale, resize_y=work.scale, interp_type=types.INTERP_LINEAR, antialias=True
        )
        if work.full:
            draws = [fn.random.uniform(range=[1 - JITTER, 1 + JITTER]) for _ in range(3)]
            images = fn.color_twist(images, brightness=draws[0], contrast=draws[1], saturation=draws[2])
        mirror = fn.random.coin_flip()
        mean, std = [255 * value for value in MEAN], [255 * value for value in STD]
        return fn.crop_mirror_normalize(images, mirror=mirror, mean=mean, std=std, output_layout="CHW"), label

    pipe = pipeline()
    pipe.build()
    for _ in range(work.epochs * (len(work.paths) // work.batch)):
        images, _ = pipe.run()
        yield images.as_tensor()


def spdl_loader(work: Work) -> Iterator[Any]:
    """SPDL: decoding, crop, resize and flip by FFmpeg's filters, in threads."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    rng = np.random.default_rng(0)

    def batches() -> Iterator[list[str]]:
        for _ in range(work.epochs):
            order = rng.permutation(len(work.paths))
            for first in range(0, len(order) - work.batch + 1, work.batch):
                yield [work.paths[index] for index in order[first : first + work.batch]]

    def crop() -> str:
        side = float(np.sqrt(rng.uniform(ZOOM, 1.0)))
        flip = ",hflip" if rng.random() < 0.5 else ""
        light, stretch, vivid = rng.uniform(-JITTER, JITTER), *rng.uniform(1 - JITTER, 1 + JITTER, 2)
        jitter = f",eq=brightness={light:.3f}:contrast={stretch:.3f}:saturation={vivid:.3f}" if work.full else ""
        place = f"x=(iw-ow)*{rng.random():.4f}:y=(ih-oh)*{rng.random():.4f}"
        return f"crop=w=iw*{side:.4f}:h=ih*{side:.4f}:{place},scale={work.scale}:{work.scale}:flags=bilinear{flip}{jitter},format=rgb24"

    def decode(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        return spdl.io.decode_packets(packets, filter_desc=crop())

    def collate(frames: list[Any]) -> torch.Tensor:
        return spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(0, 3, 1, 2)

    builder = PipelineBuilder().add_source(batches()).disaggregate().pipe(decode, concurrency=work.workers)
    pipe = builder.aggregate(work.batch, drop_last=True).pipe(collate).add_sink(3).build(num_threads=work.workers)
    with pipe.auto_stop():
        for images in pipe:
            yield normalise(images)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, S, S) -> float32, as a network on the CPU would be given it."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    if images.is_contiguous(memory_format=torch.channels_last):
        return to_float(images, 1 / (255 * std), -mean / std)
    return images.float().sub_(255 * mean.view(1, 3, 1, 1)).div_(255 * std.view(1, 3, 1, 1))


RIVALS = {"timm": timm_loader, "torchvision v2": torchvision_loader, "DALI (CPU)": dali_loader, "SPDL": spdl_loader}
NEEDS = {"timm": "timm", "torchvision v2": "torchvision", "DALI (CPU)": "nvidia.dali", "SPDL": "spdl.io"}
