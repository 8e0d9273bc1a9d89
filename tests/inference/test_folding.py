"""Folding changes speed and nothing else: over the families the logits stay, and what cannot be folded is left."""

import copy

import pytest
import torch
from torch import nn

from inference.folding import fold_batchnorm, optimize_for_inference
from network import get_model, models
from network.precision import cast_weights
from options import parse_eval, parse_train

FAMILIES = {
    "ResNet18": 20,
    "EfficientNet-Lite0": 49,
    "iResNet50": 41,  # the other twelve follow a sum, not a convolution
    "Airbench": 3,  # the other three follow a pooling
    "Res2Net50": 87,
    "ResNeSt50": 71,
    "timm:regnety_002": 44,
    "timm:convnext_atto": 0,
    "timm:nf_regnet_b0": 0,
}


def awake(name):
    """A network whose batch norms have statistics and weights of their own, and floats to show it."""
    torch.manual_seed(0)
    model = get_model(name)(parse_train(["--num_classes", "5", "--no-pretrained", "--scale", "64"])).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model, torch.randn(3, 3, 64, 64)


def test_fold_families_cover_the_registry():
    tried = {models[name] for name in FAMILIES if name in models}
    assert {family.__name__ + family.__module__ for family in models.values()} - {
        f.__name__ + f.__module__ for f in tried
    } <= {
        "Modelnetwork.ResNeXt.model"  # timm's ResNet, as ResNet18 is
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_fold_batchnorm_keeps_logits(name):
    model, images = awake(name)
    before = copy.deepcopy(model.net.state_dict())
    folded, count = fold_batchnorm(model.net, images[:2])
    assert count == FAMILIES[name]
    with torch.inference_mode():
        wanted, got = model.net(images), folded(images)
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    left = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert left == sum(isinstance(module, nn.BatchNorm2d) for module in model.net.modules()) - count
    # the given one is left alone
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())


class Shared(nn.Module):
    """A convolution that two read, one called twice, a norm called twice, and a plain pair under a branch on values."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.after = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.first, self.second, self.both = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        x = y + self.norm(y)
        x = self.after(self.twice(self.twice(x)))
        return self.both(self.second(self.both(self.first(x)))).mean(dim=(2, 3))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.part(x if x.sum() > 0 else -x).mean(dim=(2, 3))


def test_fold_batchnorm_shared_or_untraceable_is_left():
    images = torch.randn(2, 3, 8, 8)
    net = Shared().eval()
    assert fold_batchnorm(net, images) == (net, 0)
    assert fold_batchnorm(Branching().eval(), images)[1] == 1


def test_fold_batchnorm_that_changes_logits_is_not_used(monkeypatch):
    model, images = awake("ResNet18")
    monkeypatch.setattr("inference.folding.fuse_conv_bn_weights", lambda weight, bias, mean, *rest: (weight, mean))
    assert fold_batchnorm(model.net, images) == (model.net, 0)


def test_cast_weights_equals_autocast():
    model, images = awake("EfficientNet-Lite0")
    folded = fold_batchnorm(model.net, images)[0]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(folded(images), cast_weights(copy.deepcopy(folded), torch.bfloat16)(images))


def test_precision_fast_of_several_processes_times_nothing(monkeypatch):
    """Each would choose by its own timing."""
    model, _ = awake("ResNet18")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("network.precision.pick_fastest", lambda *_: ("bf16", "timed"))
    opt = parse_eval(["--load", "x", "--gpu", "-1", "-b", "4"])
    said = optimize_for_inference(model, model.preprocess(), opt, "fast", torch.device("cpu"))
    assert said == "fp32 (several processes time nothing), 20 batch norms folded"


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
def test_precision_fast_takes_the_quicker(monkeypatch, chosen):
    model, _ = awake("ResNet18")
    monkeypatch.setattr("network.precision.MAX_STEP_SECONDS", 1000)  # a busy machine would time fewer images
    monkeypatch.setattr(
        "network.precision.pick_fastest",
        lambda step, names=("fp32", "bf16"): ([step(name) for name in names] and chosen, "timed"),
    )
    opt = parse_eval(["--load", "x", "--gpu", "-1", "-b", "3"])
    said = optimize_for_inference(model, model.preprocess(), opt, "fast", torch.device("cpu"))
    assert said == f"{chosen} (timed of 3 images), 20 batch norms folded"
    assert model.dtype == {"fp32": None, "bf16": torch.bfloat16}[chosen]


def test_no_fold_leaves_network_unfolded():
    model, _ = awake("ResNet18")
    net = model.net
    opt = parse_eval(["--load", "x", "--no-fold"])
    assert optimize_for_inference(model, model.preprocess(), opt, "fp32", torch.device("cpu")) == "fp32"
    assert model.net is net


def test_fold_in_bf16_happens_only_on_request():
    """A checkpoint's own bf16 must give the score that training printed."""
    cpu = torch.device("cpu")
    for words, folded in (([], False), (["--precision", "bf16"], True)):
        model, _ = awake("ResNet18")
        opt = parse_eval(["--load", "x", *words])
        assert ("folded" in optimize_for_inference(model, model.preprocess(), opt, "bf16", cpu)) is folded


def test_gradcam_of_folded_bf16_network_is_near_fp32():
    from inference import Member, Predictor, gradcam_maps
    from utils.batch import EvalBatch

    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = EvalBatch(
        (images,), torch.zeros(2, dtype=torch.int64), torch.arange(2), torch.ones(2, dtype=torch.bool), ()
    )
    maps = []
    for precision in ("fp32", "bf16"):
        model, _ = awake("ResNet18")
        opt = parse_eval(["--load", "x", "--precision", precision])
        optimize_for_inference(model, model.preprocess(), opt, precision, torch.device("cpu"))
        maps.append(gradcam_maps(Predictor([Member(model, model.preprocess())]), [batch]))
    assert all(abs(maps[0][k][1] - maps[1][k][1]).mean() < 0.05 for k in range(2))
