"""Losses and mixing against values computed independently, in NumPy."""

import numpy as np
import pytest
import torch

from network.losses import get_loss, losses
from network.mix import get_mix
from options import choices, parse_train
from utils.errors import UserError
from utils.rng import seed_step

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(10, 7)) * 3
LABELS = RNG.integers(0, 7, 10)
SOFT = RNG.dirichlet(np.ones(7), 10)


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def smoothed(targets, smooth):
    hot = np.eye(7)[targets] if targets.ndim == 1 else targets
    return hot * (1 - smooth) + smooth / 7


def value(words, targets, counts=None):
    loss = get_loss(parse_train(words), counts)
    wanted = torch.tensor(targets) if targets.ndim == 1 else torch.tensor(targets, dtype=torch.float32)
    return loss(torch.tensor(LOGITS, dtype=torch.float32), wanted).item()


@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_cross_entropy(smooth, targets):
    wanted = -(smoothed(targets, smooth) * log_softmax(LOGITS)).sum(axis=1).mean()
    assert value(["--smooth", str(smooth)], targets) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 10), (0.7, 7), (0.3, 3), (0.01, 1)])
def test_ohem_takes_the_hardest(ratio, count):
    each = -log_softmax(LOGITS)[np.arange(10), LABELS]
    wanted = np.sort(each)[::-1][:count].mean()
    assert value(["--loss", "ohem", "--ohem_ratio", str(ratio)], LABELS) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_focal(gamma, smooth, targets):
    entropy = -(smoothed(targets, smooth) * log_softmax(LOGITS)).sum(axis=1)
    wanted = ((1 - np.exp(-entropy)) ** gamma * entropy).mean()
    assert value(["--loss", "focal", "--focal_gamma", str(gamma), "--smooth", str(smooth)], targets) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_binary(smooth, targets):
    p = 1 / (1 + np.exp(-LOGITS))
    wanted = smoothed(targets, smooth)
    wanted = -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).mean()
    assert value(["--loss", "bce", "--smooth", str(smooth)], targets) == pytest.approx(wanted, rel=1e-5)


COUNTS = [100, 3, 0, 50, 7, 1, 20]


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_logit_adjustment(targets):
    prior = np.maximum(COUNTS, 1) / np.maximum(COUNTS, 1).sum()
    wanted = -(smoothed(targets, 0) * log_softmax(LOGITS + 1.5 * np.log(prior))).sum(axis=1).mean()
    assert value(["--logit_adjust", "1.5"], targets, COUNTS) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_effective_number(targets, beta):
    weight = np.array([(1 - beta) / (1 - beta ** max(1, count)) for count in COUNTS])
    share = smoothed(targets, 0) @ (weight / weight.mean())
    entropy = -(smoothed(targets, 0) * log_softmax(LOGITS)).sum(axis=1)
    wanted = (share * entropy).sum() / share.sum()
    assert value(["--class_weight", "effective", "--cb_beta", str(beta)], targets, COUNTS) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.2])
def test_arcface(margin):
    """Angles by arccos, which the code avoids; a target of every kind of angle, one so wide that the margin would turn it back."""
    cosine = np.clip(np.random.default_rng(1).normal(size=(8, 7)) * 0.4, -0.99, 0.99)
    labels = np.arange(8) % 7
    cosine[0, 0], cosine[1, 1] = -0.97, 0.99
    angle = np.arccos(cosine[np.arange(8), labels])
    moved = np.where(angle + margin < np.pi, np.cos(angle + margin), cosine[np.arange(8), labels] - margin * np.sin(margin))
    logits = 16 * cosine
    logits[np.arange(8), labels] = 16 * moved
    wanted = -log_softmax(logits)[np.arange(8), labels].mean()
    loss = get_loss(parse_train(["--head", "arcface", "--head_scale", "16", "--head_margin", str(margin)]))
    assert loss(torch.tensor(16 * cosine, dtype=torch.float32), torch.tensor(labels)).item() == pytest.approx(wanted, rel=1e-4)


EVERY = {
    "ce": [],
    "smooth": ["--smooth", "0.1"],
    "ohem": ["--loss", "ohem"],
    "focal": ["--loss", "focal"],
    "bce": ["--loss", "bce", "--smooth", "0.1"],
    "arcface": ["--head", "arcface", "--head_scale", "8"],
    "adjust": ["--logit_adjust", "1", "--class_weight", "effective"],
}


@pytest.mark.parametrize("words", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_gradients_are_those_of_the_loss(words, soft):
    """Central differences, in the direction of each logit."""
    loss = get_loss(parse_train(words), COUNTS)
    if soft and "arcface" in words:
        pytest.skip("a margin wants one target a sample")
    logits = torch.tensor(np.clip(LOGITS / 10, -0.9, 0.9) * 8, dtype=torch.float32, requires_grad=True)
    targets = torch.tensor(SOFT, dtype=torch.float32) if soft else torch.tensor(LABELS)
    loss(logits, targets).backward()
    plain, step = logits.detach(), 2e-2
    for row, column in [(0, 0), (3, int(LABELS[3])), (7, 6), (9, int(LABELS[9])), (5, 2)]:
        up, down = plain.clone(), plain.clone()
        up[row, column] += step
        down[row, column] -= step
        slope = (loss(up, targets).double() - loss(down, targets).double()).item() / (2 * step)
        assert logits.grad[row, column].item() == pytest.approx(slope, abs=3e-4)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1.02), (torch.bfloat16, 1.3)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("words", EVERY.values(), ids=EVERY)
def test_the_peak_beyond_the_logits_is_their_size(words, dtype, most):
    """Forward and backward of the loss alone, 64 x 50,030; every allocation is counted by torch's profiler."""
    loss = get_loss(parse_train(words), [5] * 50_030)
    logits = torch.randn(64, 50_030).clamp(-7, 7).to(dtype).requires_grad_()
    targets = torch.arange(64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss(logits, targets).backward()
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    size = logits.numel() * logits.element_size()
    assert peak > 0.9 * size
    assert peak <= most * size


def test_losses_are_in_fp32_whatever_the_logits():
    loss = get_loss(parse_train([]))
    assert loss(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


def test_registry_and_unknown_name():
    assert set(losses) == set(choices.LOSSES)
    with pytest.raises(UserError, match="Did you mean focal"):
        get_loss(parse_train(["--loss", "vocal"]))
    with pytest.raises(UserError, match="number of training images of each class"):
        get_loss(parse_train(["--logit_adjust", "1"]))


@pytest.mark.parametrize("words", [["--mixup", "0.4"], ["--cutmix", "1.0"], ["--mixup", "0.4", "--cutmix", "1.0"]])
def test_mixing_blends_images_and_labels_alike(words):
    """Image k is all k: the blended mean tells the share, which the soft label must state."""
    mix = get_mix(parse_train(words), 4)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    changed = 0
    for step in range(6):
        seed_step(1, 1, step)
        blended, soft = mix(images.clone(), torch.arange(4))
        assert soft.sum(dim=1) == pytest.approx(torch.ones(4))
        assert blended.mean(dim=(1, 2, 3)) == pytest.approx(soft @ torch.arange(4.0), abs=1e-4)
        changed += bool((soft.max(dim=1).values < 0.999).any())
    assert changed >= 3
    assert get_mix(parse_train([]), 4) is None
