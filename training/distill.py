"""Learning from a trained network: --teacher."""

import argparse

import torch
from torch import Tensor

from network.base_model import BaseModel
from network.loading import build_from_checkpoint
from training.losses import Loss, Shape, softmax_loss
from utils import checkpoint
from utils.classes import describe_difference, names_agree
from utils.errors import NotFinite, UserError


class Teacher:
    """A network whose probabilities, softened, are targets besides the labels (Hinton et al., 2015, section 2).

    It sees the student's very images, after augmentation and mixing, normalised its own way.
    """

    def __init__(self, model: BaseModel, opt: argparse.Namespace, student: BaseModel) -> None:
        if model.num_classes != student.num_classes:
            raise UserError(
                f"--teacher {opt.teacher} knows {model.num_classes} classes, this run has {student.num_classes}; they must be the same."
            )
        self.path, self.model, self.alpha, self.temperature = (
            opt.teacher,
            model.eval(),
            opt.distill_alpha,
            opt.distill_temp,
        )
        self.each = softmax_loss(Shape(temperature=opt.distill_temp))
        shape = (1, 3, 1, 1)
        mean, std = (torch.tensor(values, device=student.device).view(shape) for values in (student.mean, student.std))
        own_mean, own_std = (
            torch.tensor(values, device=student.device).view(shape) for values in (model.mean, model.std)
        )
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std
        self.alike = bool(
            (self.scale == 1).all() and (self.shift == 0).all()
        )  # here: each step would wait for the device

    @torch.inference_mode()
    def targets(self, images: Tensor) -> Tensor:
        """Softened probabilities, float32 (B, C), for images that are normalised for the student."""
        own = images if self.alike else images * self.scale + self.shift
        with self.model.autocast():
            return (self.model.net(own).float() / self.temperature).softmax(dim=1)

    def check(self, images: Tensor) -> None:
        """Raise NotFinite where the teacher's answers for `images`, normalised for the student, are no numbers."""
        broken = int((~self.targets(images).isfinite().all(dim=1)).sum())
        if broken:
            raise NotFinite(
                f"--teacher {self.path} gives NaN or infinite logits for {broken} of {len(images)} images.\n"
                "Its weights are broken, or half precision overflows: give another checkpoint, or add --precision fp32."
            )

    def loss(self, plain: Loss) -> "DistilledLoss":
        """`plain` and the teacher's, mixed."""
        return DistilledLoss(self, plain)


def load_teacher(opt: argparse.Namespace, student: BaseModel, class_names: list[str] | None = None) -> Teacher:
    """Load the network of --teacher, on the student's device and in its precision.

    Args:
        class_names: those of the run; the teacher's must be the same.

    Raises:
        UserError: it has other classes.
        NotFinite: its answers for noise are no numbers.
    """
    model, data = build_from_checkpoint(checkpoint.load(opt.teacher), opt.teacher)
    model.place(student.device)
    model.dtype = student.dtype
    model.requires_grad_(False)
    same_names(data["class_names"], class_names, opt.teacher)
    teacher = Teacher(model, opt, student)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, opt.scale, opt.scale), dtype=torch.uint8, generator=generator)
    teacher.check(student.normalise(noise))
    return teacher


def same_names(teacher: list[str] | None, own: list[str] | None, path: str) -> None:
    """Raise UserError where both know names of classes, and they differ, in their order too: class k must mean the same."""
    if not teacher or not own or names_agree(teacher, own):
        return
    hint = "In another order they are another numbering: number the lists as the teacher's."
    if sorted(teacher) != sorted(own):
        hint = "Give a teacher that was trained on these classes."
    what = describe_difference(teacher, own, "classes.txt")
    raise UserError(
        f"--teacher {path} has other classes than this run: {what}. They must be the same, in the same order.\n{hint}"
    )


class DistilledLoss:
    """(1 - alpha) * the loss on labels + alpha * T^2 * the divergence from the teacher's targets; `images` are set each step."""

    def __init__(self, teacher: Teacher, plain: Loss) -> None:
        self.teacher, self.plain = teacher, plain
        self.images: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        teacher = self.teacher
        assert self.images is not None
        soft = teacher.targets(self.images).clone()
        entropy = -(soft * soft.clamp(min=1e-12).log()).sum(dim=1)
        apart = (teacher.each(logits, soft) - entropy).mean() * teacher.temperature**2
        return (1 - teacher.alpha) * self.plain(logits, targets) + teacher.alpha * apart
