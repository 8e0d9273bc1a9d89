"""Training also learns from a trained network: --teacher."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from network.base_model import BaseModel
from network.loading import build_from_checkpoint
from network.sizes import check_size, own_size
from training.losses import Loss, SoftmaxConfig, softmax_loss
from utils import checkpoint
from utils.classes import describe_difference, names_agree
from utils.errors import NotFinite, UserError
from utils.logger import log
from utils.seen_lists import Seen, seen_lists


class DistilledTargets(NamedTuple):
    """The targets of a batch: `labels`, int64 (B,) or probabilities (B, C); `soft`, the teacher's, float32 (B, C)."""

    labels: Tensor
    soft: Tensor


class Teacher:
    """A network whose probabilities, softened, are targets besides the labels (Hinton et al., 2015, section 2).

    It sees the student's very images, after augmentation and mixing, normalised its own way.

    Attributes:
        seen: the lists that it has learned from.
        identity: utils.checkpoint.identity of its file.
    """

    def __init__(
        self,
        model: BaseModel,
        path: str,
        temperature: float,
        student: BaseModel,
        seen: Seen | None = None,
        identity: str = "",
    ) -> None:
        """Take `model`, read from the checkpoint `path`, as the teacher of `student`.

        Raises:
            UserError: the two have different numbers of classes.
        """
        if model.num_classes != student.num_classes:
            raise UserError(
                f"--teacher {path} knows {model.num_classes} classes, this run has {student.num_classes}; "
                "they must be the same."
            )
        self.path, self.model, self.temperature = path, model.eval(), temperature
        self.seen, self.identity = seen or [], identity
        of_student, of_teacher = (
            [torch.tensor(values, device=student.device).view(1, 3, 1, 1) for values in (one.mean, one.std)]
            for one in (student, model)
        )
        self.scale = of_student[1] / of_teacher[1]
        self.shift = (of_student[0] - of_teacher[0]) / of_teacher[1]
        self.alike = bool((self.scale == 1).all() and (self.shift == 0).all())  # here: a step does not wait for it

    def distilled(self, images: Tensor, labels: Tensor) -> DistilledTargets:
        """Return the labels, and the teacher's targets for `images`, float (B, 3, S, S), normalised for the student."""
        return DistilledTargets(labels, self.targets(images).clone())  # a clone of an inference tensor can be saved

    @torch.inference_mode()
    def targets(self, images: Tensor) -> Tensor:
        """Return softened probabilities, float32 (B, C), for images (B, 3, S, S), normalised for the student."""
        own = images if self.alike else images * self.scale + self.shift
        with self.model.autocast():
            return (self.model.net(own).float() / self.temperature).softmax(dim=1)

    def check(self, images: Tensor) -> None:
        """Raise NotFinite if the teacher's outputs for `images` are not finite; `images` are as for `targets`."""
        broken = int((~self.targets(images).isfinite().all(dim=1)).sum())
        if broken:
            raise NotFinite(
                f"--teacher {self.path} gives NaN or infinite logits for {broken} of {len(images)} images.\n"
                "Its weights are broken, or half precision overflows: give another checkpoint, or add --precision fp32."
            )


def distilled_loss(plain: Loss, alpha: float, temperature: float) -> Loss:
    """Return (1 - alpha) * `plain` on the labels + alpha * T^2 * the divergence from the teacher's probabilities.

    The loss takes logits (B, C) and DistilledTargets.
    """
    each = softmax_loss(SoftmaxConfig(temperature=temperature))

    def loss(logits: Tensor, targets: DistilledTargets) -> Tensor:
        soft = targets.soft
        entropy = -(soft * soft.clamp(min=1e-12).log()).sum(dim=1)
        divergence = (each(logits, soft) - entropy).mean() * temperature**2
        return (1 - alpha) * plain(logits, targets.labels) + alpha * divergence

    return loss  # type: ignore[return-value]  # it is handed what Teacher.distilled makes


def load_teacher(
    path: str,
    temperature: float,
    student: BaseModel,
    sizes: Mapping[int, str],
    class_names: list[str] | None = None,
) -> Teacher:
    """Load the network of --teacher, on the student's device and in its precision.

    It is warned of where the student's images have another size than those that the teacher was trained for.

    Args:
        sizes: {side of the images that the student trains on, in pixels: the flag that asks for it}.
        class_names: those of the run; the teacher's must be the same.

    Raises:
        UserError: it has other classes, or does not take images of one of `sizes`.
        NotFinite: its outputs for noise are not finite.
    """
    content = checkpoint.load(path)
    identity = checkpoint.identity(content)
    model, data = build_from_checkpoint(content, path)
    model.to_device(student.device)
    model.dtype = student.dtype
    model.requires_grad_(False)
    if data.get("task", "single") != "single":
        raise UserError(f"--teacher {path} is of --task {data['task']}; allowed: single, as this run.")
    check_same_names(data["class_names"], class_names, path)
    teacher = Teacher(model, path, temperature, student, seen_lists(content), identity)
    trained = int(data["preprocess"]["scale"]) if "preprocess" in data else 0  # a plain state dict does not say it
    own = trained or own_size(model.net)
    generator = torch.Generator().manual_seed(0)
    for side in sorted(sizes):
        advice = f"give --scale {own}, its own size" if own else "give another teacher, or another size"
        check_size(model.net, side, f"--teacher {path}", sizes[side], advice)
        noise = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
        teacher.check(student.normalise(noise))
    _warn_of_other_size(path, trained, sizes)
    return teacher


def _warn_of_other_size(path: str, trained: int, sizes: Mapping[int, str]) -> None:
    """Warn where the teacher sees images of another size than `trained`; 0: its file does not say for which it is."""
    others = sizes.keys() - {trained}
    if trained and others:
        farthest = max(others, key=lambda side: (abs(side - trained), side))
        log.warning(
            f"--teacher {path} was trained for images of {trained} px, and sees those of this run, of "
            f"{farthest} px ({sizes[farthest]}). It may predict far worse there, and teach it. To use its size, try: "
            f"--scale {trained}"
        )


def check_same_names(teacher: list[str] | None, own: list[str] | None, path: str) -> None:
    """Raise UserError if both name their classes, and the names or their order differ: class k must be the same."""
    if not teacher or not own or names_agree(teacher, own):
        return
    hint = "In another order they are another numbering: number the lists as the teacher's."
    if sorted(teacher) != sorted(own):
        hint = "Give a teacher that was trained on these classes."
    what = describe_difference(teacher, own, "classes.txt")
    raise UserError(
        f"--teacher {path} has other classes than this run: {what}. They must be the same, in the same order.\n{hint}"
    )
