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


def value(words, targets):
    loss = get_loss(parse_train(words))
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
    log_p = log_softmax(LOGITS)
    wanted = -(smoothed(targets, smooth) * (1 - np.exp(log_p)) ** gamma * log_p).sum(axis=1).mean()
    assert value(["--loss", "focal", "--focal_gamma", str(gamma), "--smooth", str(smooth)], targets) == pytest.approx(wanted, rel=1e-5)


def test_losses_are_in_fp32_whatever_the_logits():
    loss = get_loss(parse_train([]))
    assert loss(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


def test_registry_and_unknown_name():
    assert set(losses) == set(choices.LOSSES)
    with pytest.raises(UserError, match="Did you mean focal"):
        get_loss(parse_train(["--loss", "vocal"]))


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
