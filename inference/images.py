"""Predict from Python: `from inference import load; predictor = load("best.pt"); predictor(["a.jpg", array])`.

Nothing outside this project is changed: no logging, no threads, no signal handlers. But on a GPU, `load` makes it
torch's current device and lets torch multiply fp32 matrices in TF32, as eval.py does.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from dataloader.dataset import EvalDataset
from dataloader.decode import MAX_PIXELS, Image, ScaleFn, decode, from_pillow, full_size, read_image
from dataloader.file_list import FileList
from dataloader.pillow import load_plugins
from dataloader.prefetch import BatchLoader, WorkerConfig
from dataloader.sampler import EvalSampler
from evaluation.multilabel import likeliest_labels, thresholds_of
from inference.blend import warn_of_ranks
from inference.loading import load_predictor
from inference.predictor import Predictor
from options import build_parser, given_words
from options.choices import BLENDS, FITTED_BLENDS
from utils.classes import Classes
from utils.errors import ImageError, UserError
from utils.run import get_device

ImageLike = str | os.PathLike[str] | bytes | NDArray[np.uint8] | PIL.Image.Image
KINDS = (str, os.PathLike, bytes, np.ndarray, PIL.Image.Image)
MAX_NAMES = 10  # A message names this many unreadable images.


def load(
    checkpoints: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    weights: Sequence[float] | None = None,
    tta: str = "none",
    blend: str = "mean",
    temperature: float | str = "none",
    threshold: float | Sequence[float] | None = None,
    scale: int | None = None,
    fit: str | None = None,
    precision: str = "auto",
    batch_size: int = 24,
    workers: int = 0,
    gpu: int | None = None,
) -> "ImagePredictor":
    """Return a predictor of one checkpoint, or of the blend of several.

    The arguments mean what the flags of eval.py of the same names mean.

    Args:
        workers: threads that decode images; 0: the calling thread.

    Raises:
        UserError: a checkpoint is missing or damaged, they do not fit together, or an argument has a wrong value. Or a
            file holds saved predictions, which are of one list.
    """
    if blend in FITTED_BLENDS:
        allowed = ", ".join(one for one in BLENDS if one not in FITTED_BLENDS)
        raise UserError(
            f"blend is {blend!r}, which fits the weights to labels, and images have none here; allowed: {allowed}. "
            f"Try: eval.py --blend {blend}, and the weights that it logs as `weights`"
        )
    paths = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
    values: dict[str, Any] = {"load": [os.fspath(path) for path in paths], "weights": weights}
    values |= {"temperature": temperature, "threshold": threshold, "scale": scale, "fit": fit, "precision": precision}
    values |= {"tta": tta, "blend": blend, "batch_size": batch_size, "workers": workers, "gpu": gpu}
    parser = build_parser("eval")
    parser.error = _refuse  # type: ignore[method-assign]  # a command's parser would end the program
    opt = parser.parse(given_words(values))
    device = get_device(opt.gpu)
    gpus = [device] if device.type == "cuda" else []  # the others are left alone: to ask them would start CUDA there
    with torch.random.fork_rng(devices=gpus):  # a network draws the initial weights that the checkpoint replaces
        loaded = load_predictor(opt, device)
    if loaded.saved:  # they are found by an image's place in their list
        raise UserError(
            f"{loaded.saved[0].path} holds the predictions of one list, so it can predict no other images. "
            "Try: checkpoints alone"
        )
    warn_of_ranks(opt.blend)
    return ImagePredictor(loaded.predictor, loaded.classes, opt.batch_size, opt.workers)


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


class Answers(NamedTuple):
    """What a predictor of classes gives for N images: the name of each one's likeliest class, and all probabilities.

    Attributes:
        names: one for each image.
        probabilities: float32 (N, C), in the order of `ImagePredictor.classes`; each row sums to 1.
    """

    names: list[str]
    probabilities: NDArray[np.float32]


class LabelAnswers(NamedTuple):
    """What a predictor of several labels per image gives for N images.

    Attributes:
        names: of each image's labels from their thresholds on, the likeliest first.
        probabilities: float32 (N, K), of each label, in the order of `ImagePredictor.classes`.
    """

    names: list[list[str]]
    probabilities: NDArray[np.float32]


class NumberAnswers(NamedTuple):
    """What a predictor of numbers gives for N images.

    Attributes:
        names: what each number is, (T,), as `ImagePredictor.classes`.
        values: float32 (N, T), in the units of the training list.
    """

    names: list[str]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class ImagePredictor:
    """Predicts images: `names, probabilities = predictor(["a.jpg", array])`.

    Attributes:
        predictor: the networks.
        known: their classes; of several labels per image with the thresholds.
        batch_size: images per batch. An image's probabilities may differ in the last bit between batches of different
            sizes; with the images and the batch size of eval.py they are the same to the bit.
        workers: threads that decode images; 0: the calling thread.
    """

    predictor: Predictor
    known: Classes
    batch_size: int = 24
    workers: int = 0

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes, labels or numbers; their places as text if they have no names."""
        return [self.known.name(label) for label in range(self.known.count)]

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Answers | LabelAnswers | NumberAnswers:
        """Return the answers for one image, or for several in their order: those of the task of the checkpoints.

        Args:
            images: each is a path, the bytes of a file, a PIL image, or an array: uint8 RGB (H, W, 3) or grey (H, W).

        Raises:
            ImageError: an image cannot be read; the message names it.
            UserError: an array is of another shape or type.
            NotFinite: a network gives NaN or infinite logits.
        """
        several = [images] if isinstance(images, KINDS) else list(images)
        found = self._predict(several) if several else torch.zeros(0, self.known.count)
        if self.known.task == "regression":
            return NumberAnswers(self.classes, found.numpy())
        if self.known.task == "multilabel":
            threshold = thresholds_of(self.known)
            labels = [likeliest_labels(row, threshold).tolist() for row in found.numpy()]
            return LabelAnswers([[self.known.name(label) for label in row] for row in labels], found.numpy())
        first = found.argmax(dim=1).tolist()  # of equal ones the first, as eval.py chooses
        return Answers([self.known.name(label) for label in first], found.numpy())

    def _predict(self, several: Sequence[ImageLike]) -> torch.Tensor:
        """Return the predictions of images, float32 (N, C), on the CPU. Raises what __call__ raises."""
        reader = _Reader([_checked(image, place) for place, image in enumerate(several)])
        dataset = EvalDataset(reader.files, reader, self.predictor.preprocesses)
        sampler = EvalSampler(len(several), self.batch_size, alone=True)
        loader = BatchLoader(dataset, sampler, self.batch_size, WorkerConfig(count=self.workers))
        rows, bad = list[torch.Tensor](), list[str]()
        for batch, each in self.predictor.run(loader, "predicting"):
            bad += [reason for _, reason in batch.bad]
            rows.append(self.predictor.combine(each))
        if bad:
            raise ImageError("\n".join([f"{len(bad)} of {len(several)} images cannot be read:", *bad[:MAX_NAMES]]))
        return torch.cat(rows).cpu()


def _checked(image: ImageLike, place: int) -> ImageLike:
    """Return the image, an array as RGB. Raises UserError for what is no image."""
    if not isinstance(image, np.ndarray):
        if not isinstance(image, KINDS):
            raise UserError(f"image {place} is of type {type(image).__name__}; allowed: path, bytes, array, PIL image")
        return image
    shape = image.shape
    if image.dtype != np.uint8 or not image.size or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        raise UserError(
            f"image {place} is an array of {image.dtype} {shape}; allowed: uint8 RGB (H, W, 3), or grey (H, W)"
        )
    return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image


class _Reader:
    """Reads images from memory and from files; a dataloader.reader.Reader."""

    def __init__(self, images: Sequence[ImageLike]) -> None:
        self.images = images
        names = [os.fspath(one) if isinstance(one, str | os.PathLike) else f"image {k}" for k, one in enumerate(images)]
        self.files = FileList.of_paths(names, "images")
        load_plugins()

    def read(self, index: int, scale_fn: ScaleFn = full_size) -> tuple[Image, tuple[int, int]]:
        """Return an image and its full size, as Reader says."""
        image = self.images[index]
        if isinstance(image, str | os.PathLike):
            return read_image(os.fspath(image), scale_fn, MAX_PIXELS)
        if isinstance(image, bytes):
            return decode(image, scale_fn, MAX_PIXELS)
        pixels = from_pillow(image) if isinstance(image, PIL.Image.Image) else image
        return pixels, pixels.shape[:2]
