"""Input pipelines of other projects, as their users write them, for benchmarks.input.

Each takes a PipelineTask and yields batches of normalised images on its device, for as many epochs as the task says.
"""

from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from utils.batch import to_float


class PipelineTask(NamedTuple):
    """What a pipeline has to make: batches of `batch` squares of `scale` px, by `workers`.

    Images are cropped and flipped; `full` adds colour jitter of 0.4.
    """

    paths: list[str]
    labels: list[int]
    scale: int
    batch: int
    workers: int
    full: bool
    epochs: int
    device: torch.device


ZOOM, JITTER = 0.8, 0.4
RATIO = (0.75, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def timm_loader(task: PipelineTask) -> Iterator[torch.Tensor]:
    """Yield the images of `timm_batches`."""
    return (images for images, _ in timm_batches(task))


def timm_batches(task: PipelineTask) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield images and labels of timm's create_loader: Pillow in worker processes, normalised by its prefetcher."""
    from timm.data import ImageDataset, create_loader

    class Listed:
        def __len__(self) -> int:
            return len(task.paths)

        def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
            return open(task.paths[index], "rb"), task.labels[index]

    loader = create_loader(
        ImageDataset("", reader=Listed()),
        input_size=(3, task.scale, task.scale),
        batch_size=task.batch,
        is_training=True,
        scale=(ZOOM, 1.0),
        ratio=RATIO,
        hflip=0.5,
        color_jitter=JITTER if task.full else None,
        interpolation="bilinear",
        num_workers=task.workers,
        device=task.device,
        pin_memory=task.device.type == "cuda",
    )
    for _ in range(task.epochs):
        yield from loader


class _Decoded(torch.utils.data.Dataset):
    def __init__(self, task: PipelineTask) -> None:
        from torchvision.transforms import v2

        self.task = task
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(task.scale, (ZOOM, 1.0), RATIO, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        self.transform = v2.Compose([*steps, v2.ColorJitter(JITTER, JITTER, JITTER)] if task.full else steps)

    def __len__(self) -> int:
        return len(self.task.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        image = decode_jpeg(read_file(self.task.paths[index]), ImageReadMode.RGB)
        return self.transform(image), self.task.labels[index]


def torchvision_loader(task: PipelineTask) -> Iterator[torch.Tensor]:
    """Yield images of torchvision's decode_jpeg and v2 transforms on uint8, in DataLoader's worker processes."""
    loader = torch.utils.data.DataLoader(
        _Decoded(task), task.batch, shuffle=True, num_workers=task.workers, drop_last=True
    )
    for _ in range(task.epochs):
        for images, _ in loader:
            yield normalise(images, task.device)


def dali_loader(task: PipelineTask) -> Iterator[torch.Tensor]:
    """Yield images of NVIDIA DALI on the CPU, in threads: decoding with a random crop, resize, flip, normalise."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=task.batch, num_threads=task.workers, device_id=None)
    def pipeline() -> Any:
        data, label = fn.readers.file(files=task.paths, labels=task.labels, random_shuffle=True, name="files")
        area, aspect = [ZOOM, 1.0], list(RATIO)
        images = fn.decoders.image_random_crop(
            data, device="cpu", output_type=types.RGB, random_area=area, random_aspect_ratio=aspect
        )
        images = fn.resize(
            images, resize_x=task.scale, resize_y=task.scale, interp_type=types.INTERP_LINEAR, antialias=True
        )
        if task.full:
            draws = [fn.random.uniform(range=[1 - JITTER, 1 + JITTER]) for _ in range(3)]
            images = fn.color_twist(images, brightness=draws[0], contrast=draws[1], saturation=draws[2])
        mirror = fn.random.coin_flip()
        mean, std = [255 * value for value in MEAN], [255 * value for value in STD]
        return fn.crop_mirror_normalize(images, mirror=mirror, mean=mean, std=std, output_layout="CHW"), label

    pipe = pipeline()
    pipe.build()
    for _ in range(task.epochs * (len(task.paths) // task.batch)):
        images, _ = pipe.run()
        tensor = images.as_tensor()
        yield tensor if task.device.type == "cpu" else torch.from_dlpack(tensor).to(task.device)


def spdl_loader(task: PipelineTask) -> Iterator[torch.Tensor]:
    """Yield images of SPDL: decoding, crop, resize and flip by FFmpeg's filters, in threads."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    rng = np.random.default_rng(0)

    def batches() -> Iterator[list[str]]:
        for _ in range(task.epochs):
            order = rng.permutation(len(task.paths))
            for first in range(0, len(order) - task.batch + 1, task.batch):
                yield [task.paths[index] for index in order[first : first + task.batch]]

    def crop() -> str:
        side = float(np.sqrt(rng.uniform(ZOOM, 1.0)))
        flip = ",hflip" if rng.random() < 0.5 else ""
        light, stretch, vivid = rng.uniform(-JITTER, JITTER), *rng.uniform(1 - JITTER, 1 + JITTER, 2)
        jitter = f",eq=brightness={light:.3f}:contrast={stretch:.3f}:saturation={vivid:.3f}" if task.full else ""
        place = f"x=(iw-ow)*{rng.random():.4f}:y=(ih-oh)*{rng.random():.4f}"
        scale = f"scale={task.scale}:{task.scale}:flags=bilinear"
        return f"crop=w=iw*{side:.4f}:h=ih*{side:.4f}:{place},{scale}{flip}{jitter},format=rgb24"

    def decode(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        return spdl.io.decode_packets(packets, filter_desc=crop())

    def collate(frames: list[Any]) -> torch.Tensor:
        return spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(0, 3, 1, 2)

    builder = PipelineBuilder().add_source(batches()).disaggregate().pipe(decode, concurrency=task.workers)
    pipe = builder.aggregate(task.batch, drop_last=True).pipe(collate).add_sink(3).build(num_threads=task.workers)
    with pipe.auto_stop():
        for images in pipe:
            yield normalise(images, task.device)


def normalise(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return images (B, 3, S, S), uint8, as float32 on `device`, normalised there, as a network is given them."""
    images = images.to(device, non_blocking=True)
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    if images.is_contiguous(memory_format=torch.channels_last):
        return to_float(images, 1 / (255 * std), -mean / std)
    return images.float().sub_(255 * mean.view(1, 3, 1, 1)).div_(255 * std.view(1, 3, 1, 1))


BASELINES: dict[str, Callable[[PipelineTask], Iterator[torch.Tensor]]] = {
    "timm": timm_loader,
    "torchvision v2": torchvision_loader,
    "DALI (CPU)": dali_loader,
    "SPDL": spdl_loader,
}
NEEDS = {"timm": "timm", "torchvision v2": "torchvision", "DALI (CPU)": "nvidia.dali", "SPDL": "spdl.io"}
