"""The losses of several labels, numbers and ordered classes, held against their formulas written out."""

import pytest
import torch
import torch.nn.functional as F

from options import parse_train
from training.losses import effective_weight
from training.setup import loss_settings
from training.task_losses import get_task_loss
from utils.task import CORN, predictions_of


def loss_of(words: str, units=None, counts=None):
    opt = parse_train(words.split())
    return get_task_loss(opt.task, loss_settings(opt, counts), units)


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 5, generator=generator)
    return logits, (torch.rand(6, 5, generator=generator) < 0.4).to(torch.uint8)


def test_multilabel_bce_equals_torch_and_is_the_default():
    logits, labels = logits_and_labels()
    wanted = F.binary_cross_entropy_with_logits(logits, labels.float())
    assert loss_of("--task multilabel")(logits, labels).item() == pytest.approx(wanted.item())


def test_multilabel_bce_effective_weight_weights_labels():
    logits, labels = logits_and_labels()
    each = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=0)
    counts = [1, 10, 100, 1000, 10000]
    weight = (1 - 0.999) / (1 - 0.999 ** torch.tensor(counts, dtype=torch.float64))
    wanted = (each * weight / weight.mean()).mean().item()
    found = loss_of("--task multilabel --class_weight effective", counts=counts)(logits, labels)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_multilabel_effective_weight_of_a_label_without_images_is_one():
    """It took nearly all the weight, and left a two-hundredth to each label that has images."""
    assert effective_weight(torch.tensor([1000.0, 1000.0, 0.0]), 0.999).tolist() == pytest.approx([1, 1, 1])
    logits, labels = logits_and_labels()
    counts = [0, 10, 100, 0, 10000]
    weight = [1.0, *effective_weight(torch.tensor([10.0, 100.0, 10000.0]), 0.999).tolist()]
    weight.insert(3, 1.0)
    each = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=0)
    found = loss_of("--task multilabel --class_weight effective", counts=counts)(logits, labels)
    assert found.item() == pytest.approx((each * torch.tensor(weight)).mean().item(), rel=1e-5)


def test_multilabel_focal_equals_its_formula():
    logits, labels = logits_and_labels()
    p = torch.where(labels.bool(), logits.sigmoid(), 1 - logits.sigmoid()).double()
    wanted = (-((1 - p) ** 2) * p.log()).mean().item()
    assert loss_of("--task multilabel --loss focal")(logits, labels).item() == pytest.approx(wanted, rel=1e-5)


def test_multilabel_asl_equals_its_formula():
    """Ridnik et al., 2021, eq. 7, with gamma- 4, gamma+ 0 and m 0.05."""
    logits, labels = logits_and_labels()
    p = logits.sigmoid().double()
    moved = (p - 0.05).clamp(min=0)
    wanted = -torch.where(labels.bool(), p.log(), moved**4 * (1 - moved).log()).mean().item()
    assert loss_of("--task multilabel --loss asl")(logits, labels).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("l1", lambda gap: gap.abs()),
        ("mse", lambda gap: gap**2),
        ("huber", lambda gap: torch.where(gap.abs() < 1, gap**2 / 2, gap.abs() - 0.5)),
    ],
)
def test_regression_losses_are_in_units_of_the_deviation(name, formula):
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    targets = torch.tensor([[10.0, 3.0], [30.0, 5.0]])
    mean, std = torch.tensor([20.0, 4.0]), torch.tensor([10.0, 2.0])
    wanted = formula(logits - (targets - mean) / std).mean().item()
    assert loss_of(f"--task regression --loss {name}", (mean, std))(logits, targets).item() == pytest.approx(wanted)


def test_corn_loss_equals_its_conditional_tasks():
    """Task k is trained on the images of class k or more, and asks whether they are above k."""
    logits, _ = logits_and_labels()
    targets = torch.tensor([0, 1, 2, 3, 5, 5])
    total, count = 0.0, 0
    for k in range(5):
        inside = targets >= k
        above = (targets[inside] > k).float()
        total += F.binary_cross_entropy_with_logits(logits[inside, k], above, reduction="sum").item()
        count += int(inside.sum())
    assert loss_of("--task ordinal --loss corn")(logits, targets).item() == pytest.approx(total / count, rel=1e-5)


def test_corn_predictions_are_the_chain_of_conditional_probabilities():
    logits, _ = logits_and_labels()
    p = predictions_of(CORN, logits)
    assert p.shape == (6, 6) and torch.allclose(p.sum(dim=1), torch.ones(6)) and (p >= 0).all()
    above = logits.sigmoid()
    assert torch.allclose(p[:, 0], 1 - above[:, 0])
    assert torch.allclose(p[:, 2], above[:, 0] * above[:, 1] * (1 - above[:, 2]))
    assert torch.allclose(p[:, 5], above.prod(dim=1))


@pytest.mark.parametrize(
    "words",
    [
        "--task multilabel",
        "--task multilabel --loss asl",
        "--task multilabel --loss focal",
        "--task multilabel --loss focal --focal_gamma 0.5",
    ],
)
def test_label_losses_of_extreme_logits_and_half_precision_are_finite(words):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.tensor([[90.0, -90.0], [-90.0, 90.0]], dtype=dtype, requires_grad=True)
        loss = loss_of(words)(logits, torch.tensor([[1, 0], [1, 0]], dtype=torch.uint8))
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()
