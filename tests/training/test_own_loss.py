"""A model whose update() computes a loss of its own is named in the first step, since --loss does nothing then."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from options import parse_train
from tests.tiny import FLAGS, Tiny
from training import losses as losses_module
from training.setup import build_engine
from utils.batch import Batch
from utils.errors import UserError


class OwnLoss(Tiny):
    """A model as docs/extending.md has it."""

    def update(self, images, targets, step):
        logits = self(images)
        loss = F.cross_entropy(logits.float(), targets)
        step(loss)
        return loss.detach(), logits.detach()


class BrokenNet(OwnLoss):
    def forward(self, images):
        raise ValueError("a fault of the network")


def engine_for(kind, *words, outputs=3):
    opt = parse_train([*FLAGS, "--model", "timm:test_resnet", *words]).replace(num_classes=outputs)
    model = kind(opt, "timm:test_resnet")
    model.to_device(torch.device("cpu"))
    model.set_precision("fp32")
    return build_engine(opt, model, 100)


def batch(step=0, targets=None):
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    return Batch(images, torch.arange(6) % 3 if targets is None else targets, torch.arange(6), 1, step, ())


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("words", [(), ("--sam", "0.05")])
def test_own_loss_is_named_once(words, caplog):
    engine = engine_for(OwnLoss, "--loss", "focal", *words)
    for step in range(3):
        engine.train_step(batch(step))
    [warning] = warnings(caplog)
    assert f"{OwnLoss.__module__}: update() does not call self.criterion" in warning
    assert "--loss focal, --smooth, --class_weight and the other flags of the loss have no effect." in warning
    assert "--task" not in warning


def test_own_loss_of_another_task_says_what_predictions_take_its_logits_for(caplog):
    engine = engine_for(OwnLoss, "--task", "regression", outputs=1)
    engine.train_step(batch(targets=torch.rand(6, 1)))
    [warning] = warnings(caplog)
    assert f"for those of --task regression --loss {engine.model.opt.loss}" in warning


@pytest.mark.parametrize("kind", ["function", "module"])
def test_chosen_loss_raises_no_warning_and_is_restored(kind, caplog, monkeypatch):
    if kind == "module":
        monkeypatch.setitem(losses_module.losses, "ce", lambda settings: nn.CrossEntropyLoss())
    engine = engine_for(Tiny, "--loss", "ce")
    chosen = engine.model.criterion
    for step in range(2):
        engine.train_step(batch(step))
    assert engine.model.criterion is chosen
    assert not engine.model._forward_hooks
    assert not warnings(caplog)


def test_own_loss_that_fails_on_the_targets_is_one_message():
    engine = engine_for(OwnLoss, "--task", "ordinal", "--loss", "corn")
    with pytest.raises(
        UserError, match=r"the targets of --task ordinal --loss corn, in line \d+: IndexError"
    ) as caught:
        engine.train_step(batch())
    assert "Try there: loss = self.criterion(logits, targets)" in str(caught.value)


def test_fault_before_the_loss_keeps_its_traceback():
    engine = engine_for(BrokenNet, "--task", "ordinal", "--loss", "corn")
    with pytest.raises(ValueError, match="a fault of the network"):
        engine.train_step(batch())
