"""--lora: which layers get adapters, what learns, merged weights in every checkpoint, an exact resume."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from network import get_model
from network.backbones import head_names
from network.base_model import BaseModel, Step
from options import parse_train
from training.averages import Averages
from training.checkpoint_writer import snapshot
from training.engine import Engine
from training.lora import adapted_layers, add_adapters, is_target, target_names
from training.setup import build_engine
from utils import checkpoint
from utils.batch import Batch
from utils.errors import UserError

WORDS = "--num_classes 5 --no-pretrained --gpu -1 --precision fp32 --lr 0.01 --optimizer adamw --epochs 2".split()
OURS = ("ResNet18", "ResNeXt50", "ResNeSt50", "Res2Net50", "iResNet50", "EfficientNet-Lite0")
OF_TIMM = (
    "timm:test_vit",
    "timm:convnext_atto",
    "timm:test_nfnet",
    "timm:regnetx_002",
    "timm:swin_tiny_patch4_window7_224",
)


def batch(step: int, size: int = 4, scale: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (size, 3, scale, scale), dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, torch.randint(0, 5, (size,), generator=generator), torch.arange(size), 1, step, ())


def model_for(name: str, *words: str) -> BaseModel:
    sizes = {"timm:test_vit": "160", "timm:swin_tiny_patch4_window7_224": "224"}
    opt = parse_train([*WORDS, "--model", name, "--scale", sizes.get(name, "32"), *words])
    torch.manual_seed(1)
    model = get_model(name)(opt)
    with torch.no_grad():
        for key, parameter in model.net.named_parameters():
            if not key.endswith("bias") and not parameter.any():
                parameter.fill_(0.5)  # a gain of 0 closes a residual branch, and LoRA would leave it so
    model.to_device(torch.device("cpu"))
    model.set_precision(opt.precision)
    return model


def engine_for(name: str, *words: str, weights: dict[str, torch.Tensor] | None = None) -> Engine:
    model = model_for(name, *words)
    if weights is not None:
        model.net.load_state_dict(weights)
    return build_engine(model.opt, model, 6)


def through_a_file(engine: Engine, path) -> dict:
    """The engine's state as train.py would load it from a checkpoint."""
    checkpoint.save(path, {**snapshot(engine.state_dict()), **rest(engine)})
    return checkpoint.load(path)


def rest(engine: Engine) -> dict:
    model = engine.model
    data = {"num_classes": 5, "class_names": None, "class_images": None, "preprocess": model.preprocess().as_dict()}
    options = {name: value for name, value in vars(model.opt).items() if name not in ("given", "config")}
    within = {"epoch": 1, "done": 2, "counted": 2, "images": 8, "waited": 0.0, "lr": 0.1, "spent": 1.0, "ended": False}
    within |= {"totals": [torch.zeros(5)]}
    return {"model": model.name, "opt": options, "data": data, "epoch": 0, "history": [], "within": within}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


# ------------------------------------------------------------------------ which layers


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        (nn.Linear(64, 64), True),
        (nn.Linear(64, 8), True),
        (nn.Linear(8, 8), False),  # A and B would hold 64 numbers, as W does
        (nn.Conv2d(16, 32, 3), True),
        (nn.Conv2d(16, 32, 1, stride=2, bias=False), True),
        (nn.Conv2d(64, 64, 3, groups=64), False),
        (nn.Conv2d(64, 64, 3, groups=2), False),
        (nn.Conv2d(64, 64, 3, dilation=2), False),
        (nn.Conv2d(64, 64, 3, padding_mode="reflect", padding=1), False),
        (nn.BatchNorm2d(64), False),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(64, 64), False),
    ],
)
def test_is_target_takes_plain_linear_layers_and_convolutions(layer, wanted):
    assert is_target(layer, 4) == wanted


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.read = nn.Linear(32, 32)  # its weight is read, as timm's BEiT and Swin v2 do with `qkv`
        self.hidden = nn.Linear(32, 32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.fc(self.hidden(F.linear(x, self.read.weight).tanh()).mean(1))


class Own(BaseModel):
    def build(self, arch: str) -> nn.Module:
        return Mixed()

    def update(self, images: torch.Tensor, targets: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self(images)
        loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()


def test_target_names_leave_out_layers_that_are_read_and_not_called():
    model = Own(parse_train([*WORDS, "--scale", "32"]), "X")
    assert target_names(model, 2) == ["stem", "hidden"]
    model.net.stem.weight.requires_grad_(False)
    assert target_names(model, 2) == ["hidden"]
    with pytest.raises(UserError, match=r"--lora 30: no layer of X .* Try: a smaller one"):
        target_names(model, 30)


@pytest.mark.parametrize("name", OURS + OF_TIMM)
def test_adapters_of_any_family_learn_and_merge(name):
    """Outputs stay until the first step; then each adapter has a gradient, and the merged network gives the same."""
    model = model_for(name)
    plain, scale = dict(model.net.state_dict()), model.settings.scale
    images = torch.randn(2, 3, scale, scale)
    with torch.no_grad():
        before = model.net.eval()(images)
    adapters = add_adapters(model, 4, seed=3)
    layers = dict(adapted_layers(model.net))
    assert len(layers) > 3 and {layer.scaling["default"] for layer in layers.values()} == {2.0}  # W + 2 B A in the docs
    with torch.no_grad():
        assert torch.equal(model.net.eval()(images), before)
        for layer in layers.values():
            nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    learning = {key for key, parameter in model.net.named_parameters() if parameter.requires_grad}
    assert {key for key in learning if ".lora_" not in key} == head_names(model.net) & learning != set()
    model.net(images).square().sum().backward()
    assert [key for key, p in model.net.named_parameters() if key in learning and not p.grad.abs().sum() > 0] == []
    merged = adapters.merged(model.net)
    assert list(merged.state_dict()) == list(plain)
    changed = differ(dict(merged.state_dict()), plain)
    assert changed == [key for key in plain if key.removesuffix(".weight") in layers]
    assert all(value.stride() == plain[key].stride() for key, value in merged.state_dict().items())
    with torch.no_grad():
        ours, theirs = model.net(images), merged(images)
    assert not torch.allclose(ours, before, rtol=1e-3)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))
    assert [key for key, _ in adapted_layers(merged)] == [] and len(dict(adapted_layers(model.net))) == len(layers)


def test_add_adapters_depends_on_its_seed_alone():
    def first(seed: int, draws: int) -> torch.Tensor:
        model = model_for("timm:test_resnet")
        torch.rand(draws)
        add_adapters(model, 4, seed)
        return next(layer for _, layer in adapted_layers(model.net)).lora_A["default"].weight

    assert torch.equal(first(1, 1), first(1, 7)) and not torch.equal(first(1, 1), first(2, 1))


# ------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    "words",
    [
        "--ema 0.9",
        "--freeze 1 --layer_decay 0.5 --head_lr 3",
        "--precision bf16 --accumulate 2",
        "--sam 0.05 --optimizer sgd",
        "--checkpoint_grad --drop_path 0.2 --optimizer ranger",
        "--head arcface --pool gem --optimizer lion --clip_grad 0.1 --clip_mode agc",
    ],
)
def test_lora_resumed_equals_straight_run_to_the_bit(words, tmp_path):
    words = ("--lora", "4", *words.split())
    straight, first = engine_for("ResNet18", *words), engine_for("ResNet18", *words)
    untouched = dict(snapshot(straight.model.net.state_dict()))
    losses = [straight.train_step(batch(step)).loss for step in range(6)]
    for step in range(4):
        first.train_step(batch(step))
    content = through_a_file(first, tmp_path / "last.pt")
    again = engine_for("ResNet18", *words, weights=content["weights"])
    again.load_state_dict(content)
    assert [again.train_step(batch(step)).loss for step in (4, 5)] == losses[4:]
    one, other = straight.state_dict(), again.state_dict()
    assert differ(one["weights"], other["weights"]) == []
    assert differ(one["training"]["lora"]["weights"], other["training"]["lora"]["weights"]) == []
    assert (one["ema"] is None) == ("--ema" not in words)
    if one["ema"] is not None:
        assert differ(one["ema"], other["ema"]) == [] != differ(one["ema"], one["weights"])
    moved = differ(dict(straight.model.net.state_dict()), untouched)
    assert [key for key in moved if not (".lora_" in key or key in head_names(straight.model.net))] == []
    frozen = [key for key in moved if key.startswith(("conv1", "bn1", "layer1"))]
    assert (frozen == []) == ("--freeze" in words)
    scales = {group["lr_scale"] for group in straight.optimizer.param_groups}
    assert (len(scales) > 3) == ("--layer_decay" in words)


def test_lora_net_is_merged_and_shares_the_rest():
    engine = engine_for("ResNet18", "--lora", "4", "--ema", "0.5")
    for step in range(3):
        engine.train_step(batch(step))
    for weights in ("raw", "ema"):
        net = engine.net(weights)
        live = engine.model.net if weights == "raw" else engine.averages.ema.module
        assert net.fc.weight is live.fc.weight and net.bn1.running_mean is live.bn1.running_mean
        assert net.layer1[0].conv1.weight is not live.layer1[0].conv1.base_layer.weight
    assert engine.model.net.layer1[0].conv1.lora_B["default"].weight.abs().sum() > 0


def test_lora_load_weights_goes_back_to_the_bit(tmp_path):
    """As after a divergence."""
    engine = engine_for("ResNet18", "--lora", "4")
    engine.train_step(batch(0))
    content = through_a_file(engine, tmp_path / "last.pt")
    there = snapshot(engine.model.net.state_dict())
    engine.train_step(batch(1))
    assert differ(dict(engine.model.net.state_dict()), there)
    engine.load_weights(content)
    assert differ(dict(engine.model.net.state_dict()), there) == []


def test_lora_average_that_a_resumed_run_adds_is_resumed_to_the_bit(tmp_path):
    """The network of a resume holds merged weights when it is copied for --ema; its W must not stay in the average."""
    content = through_a_file(engine_for("ResNet18", "--lora", "4"), tmp_path / "last.pt")
    engine = engine_for("ResNet18", "--lora", "4", "--ema", "0.5")
    with torch.no_grad():
        for parameter in engine.averages.ema.module.parameters():
            parameter.fill_(0.1)
    engine.load_state_dict(content)
    assert differ(engine.averages.ema.module.state_dict(), engine.model.net.state_dict()) == []
    engine.train_step(batch(0))
    content = through_a_file(engine, tmp_path / "last.pt")
    again = engine_for("ResNet18", "--lora", "4", "--ema", "0.5")
    again.load_state_dict(content)
    assert differ(again.net("ema").state_dict(), content["ema"]) == []


def test_averages_that_a_checkpoint_does_not_hold_start_fresh():
    """As after a divergence before the first checkpoint of a resume that added them."""
    net = nn.Linear(2, 2)
    averages = Averages(net, 0.5, swa=True)
    averages.update_swa(net)
    with torch.no_grad():
        net.weight.fill_(3.0)
    averages.load_state_dict({}, net)
    assert averages.swa_state() == {"count": 0, "ready": False}
    assert torch.equal(averages.net("ema").weight, net.weight)


@pytest.mark.parametrize("saved", [[], ["--lora", "2"], ["--lora", "4", "--freeze", "2"]], ids=str)
def test_lora_resume_of_other_adapters_is_refused(saved, tmp_path):
    content = through_a_file(engine_for("ResNet18", *saved), tmp_path / "last.pt")
    what = "without adapters" if not saved else f"with adapters of rank {saved[1]} on other layers"
    with pytest.raises(UserError, match=f"trained {what}, so --lora 4 cannot.*\nStart a new run"):
        engine_for("ResNet18", "--lora", "4").load_state_dict(content)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--freeze -1", "--lora and --freeze -1 contradict"),
        ("--swa 1", "--lora and --swa contradict"),
        ("--optimizer muon", "--lora and --optimizer muon contradict"),
        ("--lora 0", "--lora is 0; allowed: from 1 to 1024"),
    ],
)
def test_lora_with_what_contradicts_it_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        parse_train(["--lora", "4", *words.split()])
    assert message in capsys.readouterr().err


def test_lora_without_peft_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="Try: python -m pip install peft"):
        engine_for("ResNet18", "--lora", "4")


def test_lora_on_random_weights_warns(caplog):
    engine_for("ResNet18", "--lora", "4")
    assert "--no-pretrained gives it random weights" in caplog.text


# ------------------------------------------------------------------------ whole runs


def test_lora_run_is_resumed_exactly_and_evaluated_without_peft(photo_set, script, small, monkeypatch):
    base = ["--data_root", photo_set, *small, "--optimizer", "adamw", "--scheduler", "none"]
    words = [*base, "--load", "checkpoints/base/last.pt", "--lora", 4, "--ema", 0.9]
    for tag, words_of_tag in {
        "base": [*base, "--epochs", 1],
        "straight": [*words, "--epochs", 2],
        "cut": [*words, "--epochs", 1],
    }.items():
        done = script("train.py", "--tag", tag, *words_of_tag)
        assert done.code == 0, done.err
    assert "adapters" in done.out
    refused = script("train.py", "--tag", "cut", "--resume", "--lora", 8)
    assert refused.code == 2 and "was trained with --lora 4" in refused.err
    done = script("train.py", "--tag", "cut", "--resume", "--epochs", 2)
    assert done.code == 0, done.err
    plain, straight, cut = (checkpoint.load(f"checkpoints/{tag}/last.pt") for tag in ("base", "straight", "cut"))
    assert list(straight["weights"]) == list(straight["ema"]) == list(plain["weights"])
    for one, other in ((straight, cut), (straight["training"]["lora"], cut["training"]["lora"])):
        assert differ(one["weights"], other["weights"]) == differ(one["ema"], other["ema"]) == []
    monkeypatch.setitem(sys.modules, "peft", None)
    shown = script(
        "eval.py",
        "--load",
        "checkpoints/straight/last.pt",
        "--gpu",
        -1,
        "--tag",
        "straight",
        "--no-fold",
        "--no-report",
    )
    assert shown.code == 0, shown.err
    found = json.loads(Path("results/straight/2/metrics.json").read_text())
    assert {name: found[name] for name in ("top1", "log_loss")} == {
        name: straight["history"][-1][f"val_{name}"] for name in ("top1", "log_loss")
    }
    tuned = script("train.py", "--tag", "full", *base, "--load", "checkpoints/straight/best.pt", "--epochs", 1)
    assert tuned.code == 0, tuned.err
