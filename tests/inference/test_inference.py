"""TTA and ensembles: each view is what it says, and the average is the average."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from inference import Member, Predictor
from inference.tta import TTA, get_views, warn_of_unknown_views
from network import get_model
from options import parse_train
from utils.batch import EvalBatch
from utils.errors import UserError
from utils.preprocess import Preprocess

WAY = Preprocess(64, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def ways_of(tta, image):
    """`image` (B, 3, S, S) as the loader would hand it over for each way of `tta`, resized by repetition."""
    predictor_ways = tuple(dict.fromkeys(view.preprocess for view in get_views(tta, WAY)))
    return tuple(
        torch.nn.functional.interpolate(image.float(), way.scale, mode="nearest").to(torch.uint8)
        for way in predictor_ways
    )


class Blind(nn.Module):
    """Sees the channels' means alone, so no flip, transpose or (of a plain image) crop can change its mind."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(x.mean(dim=(2, 3)))


class Corner(nn.Module):
    """Sees one corner's pixel: every view of an asymmetric image is another to it."""

    def forward(self, x):
        return x[:, 0, :2, :2].flatten(1) * 3


def predictor(net, tta, weights=(1.0,)):
    members = []
    for weight in weights:
        model = get_model("timm:resnet10t")(parse_train(["--num_classes", "4", "--no-pretrained", "--scale", "64"]))
        model.net = net if callable(net) and not isinstance(net, type) else net()
        members.append(Member(model.eval(), WAY, weight))
    return Predictor(members, tta)


@pytest.mark.parametrize("tta", ["flip", "x8"])
def test_tta_of_symmetric_network_changes_nothing(tta):
    image = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    net = Blind()
    plain = predictor(net, "none")((image,))
    assert torch.allclose(predictor(net, tta)((image,)), plain, atol=1e-6)
    assert torch.allclose(plain.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("tta", list(TTA))
def test_tta_of_plain_image_changes_nothing(tta):
    image = torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)
    net = Blind()
    assert torch.allclose(predictor(net, tta)(ways_of(tta, image)), predictor(net, "none")((image,)), atol=1e-6)


def test_x8_views_are_the_eight_symmetries():
    image = torch.arange(2 * 2, dtype=torch.uint8).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    seen = [view.transform(image)[0, 0].numpy() for view in get_views("x8", WAY)]
    square = np.arange(4).reshape(2, 2)
    wanted = [np.rot90(turned, k) for turned in (square, square.T) for k in range(4)]
    assert sorted(a.tolist() for a in seen) == sorted(a.tolist() for a in wanted)
    assert len({a.tobytes() for a in seen}) == 8


def test_x8_averages_probabilities():
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    views = [image.numpy(), image.numpy()[..., ::-1], image.numpy()[..., ::-1, :], image.numpy()[..., ::-1, ::-1]]
    views += [view.swapaxes(-1, -2) for view in views]
    x = np.stack([view[:, 0, :2, :2].reshape(2, 4) for view in views]).astype(np.float64)
    logits = (x / 255 - 0.485) / 0.229 * 3
    each = np.exp(logits - logits.max(axis=-1, keepdims=True))
    wanted = (each / each.sum(axis=-1, keepdims=True)).mean(axis=0)
    assert predictor(Corner(), "x8")((image,)).numpy() == pytest.approx(wanted, abs=1e-4)


UPRIGHT = {"hflip": 0.5, "vflip": 0.0, "transpose": 0.0, "rotate": 10.0}


@pytest.mark.parametrize(
    ("tta", "trained", "said"),
    [
        ("x8", {"transform": "light", **UPRIGHT, "vflip": 0.5}, "upside down"),  # light has no such flip
        ("x8", {"transform": "resize", **UPRIGHT}, "upside down"),
        ("x8", {"transform": "none"}, "upside down"),
        ("flip", {"transform": "resize", **UPRIGHT, "hflip": 0.0}, "--hflip 0"),
        ("x8", {"transform": "resize", **UPRIGHT, "vflip": 0.5, "hflip": 0.0}, "--hflip 0"),
        ("x8", {"transform": "resize", **UPRIGHT, "vflip": 0.5}, ""),
        ("x8", {"transform": "resize", **UPRIGHT, "transpose": 0.5}, ""),
        ("x8", {"transform": "resize", **UPRIGHT, "rotate": 180.0}, ""),
        ("flip", {"transform": "resize", **UPRIGHT}, ""),
        ("flip", {"transform": "none", "hflip": 0.5}, "--transform none"),
        ("x8", {"transform": "none", "hflip": 0.5}, "--tta none"),
        ("fivecrop", {"transform": "none", "hflip": 0.0}, ""),
        ("x8", {}, ""),  # a plain state dict
        ("x8", {"transform": "resize"}, ""),  # of a version that had no such flags
        ("flip", {"transform": "light"}, ""),
    ],
)
def test_views_that_training_never_showed_are_warned_of(caplog, tta, trained, said):
    warn_of_unknown_views(tta, trained, "a.pt")
    assert len(caplog.records) == bool(said) and said in caplog.text


def test_fivecrop_takes_corners_and_centre():
    views = get_views("fivecrop", WAY)
    side = views[0].preprocess.scale
    assert side == round(64 / 0.875)
    image = torch.arange(side * side).reshape(1, 1, side, side)
    starts = [int(view.transform(image)[0, 0, 0, 0]) for view in views]
    room = side - 64
    assert starts == [0, room, room * side, room * side + room, round(room / 2) * side + round(room / 2)]
    assert all(view.transform(image).shape[-2:] == (64, 64) for view in views)


def test_multiscale_needs_three_sizes():
    assert [view.preprocess.scale for view in get_views("multiscale", WAY)] == [64, 72, 80]
    assert len(predictor(Blind(), "multiscale").preprocesses) == 3


def test_multiscale_shows_three_sizes_of_any_image():
    """At 32 px it showed 40 px twice, at 8 px one size three times, at 10 px a smaller one."""
    for own in range(8, 1025):
        first, second, third = (view.side for view in get_views("multiscale", replace(WAY, scale=own)))
        assert first == own < second < third and abs(second / own - 1.15) < 0.12 and abs(third / own - 1.3) < 0.16
        eights = [round(own * factor / 8) * 8 for factor in (1.15, 1.3)]  # as it always was
        assert [second, third] == eights or not own < eights[0] < eights[1]
    sizes = {own: [view.side for view in get_views("multiscale", replace(WAY, scale=own))] for own in (32, 224, 384)}
    assert sizes == {32: [32, 36, 40], 224: [224, 256, 288], 384: [384, 440, 496]}


def test_ensemble_equals_weighted_mean():
    image = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    both = predictor(Blind, "none", weights=(3.0, 1.0))
    alone = [Predictor([member])((image,)) for member in both.members]
    assert torch.allclose(both((image,)), 0.75 * alone[0] + 0.25 * alone[1], atol=1e-6)
    assert not torch.allclose(alone[0], alone[1])


@pytest.mark.parametrize("tta", list(TTA))
def test_predictor_with_any_pass_size_gives_same(monkeypatch, tta):
    image = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    images = ways_of(tta, image)
    small = predictor(Blind, tta)
    small.members[0].model.net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.Flatten(2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )
    whole = small(images)
    sizes = []
    small.members[0].model.net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr("inference.predictor.CPU_PIXELS", 3 * 64 * 64)
    assert torch.allclose(small(images), whole, atol=1e-6)
    assert max(sizes) == 3
    assert sum(sizes) == 5 * len(small.views[0])


def test_predictor_setup_runs_once_for_all_batches(monkeypatch):
    """To call eval() on all modules, or to copy weights to the device, costs a GPU milliseconds each time."""
    counts, calls, told, made = {}, [], nn.Module.train, torch.tensor
    for batches in (1, 4):
        several = predictor(Blind(), "flip", (1.0, 2.0))
        for member in several.members:
            member.model.train()
        images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        loader = [EvalBatch((images,), torch.zeros(2), torch.arange(2), torch.ones(2, dtype=torch.bool), ())] * batches
        calls.clear()
        monkeypatch.setattr(nn.Module, "train", lambda self, mode=True: calls.append(self) or told(self, mode))
        monkeypatch.setattr(torch, "tensor", lambda *given, **more: calls.append(given) or made(*given, **more))
        answers = [several.combine(each) for _, each in several.run(loader, "")]
        counts[batches] = len(calls)
        monkeypatch.undo()
        assert len(answers) == batches and torch.equal(answers[0], several((images,)))
        assert all(module.training for member in several.members for module in member.model.modules())
        several.weights = [0.0, 1.0]  # as a fitted blend sets them
        assert torch.equal(several((images,)), predictor(several.members[1].model.net, "flip")((images,)))
    assert counts[1] == counts[4] > 0


def test_get_views_unknown_name_suggests_near_ones():
    with pytest.raises(UserError, match="Did you mean fivecrop"):
        get_views("five_crop", WAY)
