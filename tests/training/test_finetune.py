"""Fine-tuning: frozen layers, learning rates per layer, how a step is taken, what is averaged; all of it resumed."""

import argparse
import io

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.nn import functional as F

from network import get_model
from network.backbones import head_names
from network.base_model import BaseModel, Step
from optimizer import OptimizerSettings, get_optimizer, parameter_groups
from optimizer.sam import SAM
from options import parse_train
from training.engine import Engine
from training.finetune import freeze, layer_ids, lr_scales
from training.setup import build_engine
from utils.batch import Batch
from utils.errors import UserError

SMALL_OF_FAMILY = ["ResNet18", "ResNeXt50", "ResNeSt50", "Res2Net50", "iResNet50", "EfficientNet-Lite0", "Airbench"]
OTHERS = [
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "timm:densenet121",
    "timm:regnetx_002",
    "timm:mobilenetv3_small_050",
]


def options(*words: str) -> argparse.Namespace:
    return parse_train(["--num_classes", "5", "--no-pretrained", "--gpu", "-1", "--precision", "fp32", *words])


def batch(size: int = 4, step: int = 0, epoch: int = 1, scale: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(1000 * epoch + step)
    images = torch.randint(0, 256, (size, 3, scale, scale), dtype=torch.uint8, generator=generator)
    images = images.to(memory_format=torch.channels_last)
    return Batch(images, torch.randint(0, 5, (size,), generator=generator), torch.arange(size), epoch, step, ())


class Net(nn.Module):
    """A stem, three stages and a classifier; with batch norm and dropout, or with neither."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        widths = (3, 8, 8, 12, 12)
        self.norm = norm
        for k, name in enumerate(("stem", "stage1", "stage2", "stage3")):
            conv = nn.Conv2d(widths[k], widths[k + 1], 3, 2 if k < 2 else 1, padding=1, bias=not norm)
            rest = [nn.BatchNorm2d(widths[k + 1]), nn.ReLU(), nn.Dropout(0.2)] if norm else [nn.Tanh()]
            setattr(self, name, nn.Sequential(conv, *rest))
        self.fc = nn.Linear(12, 5)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^stem", "blocks": r"^stage(\d+)"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stage3(self.stage2(self.stage1(self.stem(x)))).mean((2, 3)))


class Model(BaseModel):
    norm = True

    def build(self, arch: str) -> nn.Module:
        torch.manual_seed(3)
        net = Net(self.norm)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics that a reset would not give back
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(7)
        return net

    def update(self, images: torch.Tensor, targets: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        with self.autocast():
            logits = self.net(images)
            loss = self.criterion(logits, targets)
        step(loss)
        return loss.detach(), logits.detach()


class Plain(Model):
    norm = False


class Loader:
    """As dataloader.TrainLoader, of three batches an epoch; counts how often it was asked."""

    asked = 0

    def batches(self, epoch: int):
        self.asked += 1
        return (batch(step=step, epoch=epoch) for step in range(3))


def start(kind: type[BaseModel], *words: str, batches: int = 3) -> Engine:
    """`words` may hold --freeze_bn, which the parser allows with trained weights alone; these are not trained."""
    rest = [word for word in words if word != "--freeze_bn"]
    opt = options("--lr", "0.05", "--optimizer", "sgd", "--epochs", "4", *rest)
    opt = opt.replace(freeze_bn=len(rest) < len(words))
    model = kind(opt, "X")
    model.to_device(torch.device("cpu"))
    model.set_precision("fp32")
    return build_engine(opt, model, batches)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


# ------------------------------------------------------------------------ freezing


@pytest.mark.parametrize("name", SMALL_OF_FAMILY + OTHERS)
def test_freeze_each_stage_in_order_and_refuse_beyond(name):
    with torch.device("meta"):
        net = get_model(name)(options()).net
    at = layer_ids(net, coarse=True)
    head = head_names(net)
    assert head
    assert head <= at.keys()
    stages = min(at[key] for key in head) - 1
    seen = set()
    for count in range(stages + 1):
        freeze(net, count)
        still = {key for key, parameter in net.named_parameters() if not parameter.requires_grad}
        assert still == {key for key in at if at[key] <= count}
        assert seen < still
        assert not still & head
        seen = still
    with pytest.raises(UserError, match=rf"has {stages} stages. Allowed: 0 .* to {stages}, or -1"):
        freeze(net, stages + 1)
    freeze(net, -1)
    assert {key for key, parameter in net.named_parameters() if parameter.requires_grad} == head & at.keys()


@pytest.mark.parametrize(
    ("name", "stages"),
    [("ResNet18", 4), ("iResNet50", 4), ("EfficientNet-Lite0", 7), ("timm:vit_tiny_patch16_224", 12)],
)
def test_freeze_too_many_names_the_stage_count(name, stages):
    with torch.device("meta"), pytest.raises(UserError, match=f"has {stages} stages"):
        freeze(get_model(name)(options()).net, 99)


def test_freeze_without_group_matcher_is_refused():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match="--freeze -1"):
        freeze(net, 1)
    with pytest.raises(UserError, match="no classifier"):
        freeze(net, -1)
    with pytest.raises(UserError, match="--layer_decay"):
        lr_scales(net, 1, 0.9)
    assert lr_scales(net, 2, 1) == {"0.weight": 1, "0.bias": 1}


@pytest.mark.parametrize("frozen", ["0", "2", "-1"])
def test_freeze_keeps_frozen_state_bit_for_bit(frozen):
    """Weights, batch-norm statistics and counters, dropout, gradients, optimizer state, weight decay, the averages."""
    engine = start(Model, "--freeze", frozen, "--weight_decay", "0.5", "--ema", "0.9", "--swa", "1", "--epochs", "1")
    model = engine.model
    names = ["stem", "stage1", "stage2", "stage3"][: 4 if frozen == "-1" else int(frozen) + 1]
    before = weights(model.net)
    for step in range(3):
        engine.train_step(batch(step=step))
        with model.evaluating():
            pass
    engine.end_epoch(1, Loader())
    raw, ema, swa = weights(model.net), weights(engine.averages.ema.module), weights(engine.averages.swa.module)
    for key, value in before.items():
        still = key.split(".")[0] in names
        for other in (raw, ema, swa):
            assert torch.equal(value, other[key]) == still, key
    for name, module in model.net.named_modules():
        if name:
            assert module.training == (name.split(".")[0] not in names)
    learning = [p for group in engine.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in learning} == {
        id(p) for key, p in model.net.named_parameters() if key.split(".")[0] not in names
    }
    assert len(engine.optimizer.state) == len(learning)
    assert all(parameter.grad is None for parameter in model.net.stem.parameters())


@pytest.mark.parametrize("words", ["", "--freeze_bn", "--freeze_bn --freeze 0"])
def test_freeze_bn_keeps_statistics_and_trains_the_rest(words):
    engine = start(Model, "--ema", "0.9", "--swa", "1", "--epochs", "1", *words.split())
    before = weights(engine.model.net)
    for step in range(3):
        engine.train_step(batch(step=step))
    engine.end_epoch(1, Loader())
    raw, ema, swa = (weights(net) for net in (engine.model.net, engine.averages.ema.module, engine.averages.swa.module))
    for key, value in before.items():
        statistics = key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        still = (statistics and bool(words)) or (key.startswith("stem") and "--freeze 0" in words)
        assert [torch.equal(value, found[key]) for found in (raw, ema, swa)] == [still] * 3, key


# ------------------------------------------------------------------------ rates


def test_lr_scales_fall_with_depth_and_head_has_its_own():
    net = Net(norm=True)
    scales = lr_scales(net, head_lr=3, layer_decay=0.5)
    wanted = {"stem": 1 / 16, "stage1": 1 / 8, "stage2": 1 / 4, "stage3": 1 / 2, "fc": 3}
    assert scales == {name: wanted[name.split(".")[0]] for name, _ in net.named_parameters()}


def test_lr_scales_of_resnet18_fall_by_block():
    with torch.device("meta"):
        net = get_model("ResNet18")(options()).net
    scales = lr_scales(net, 1, 0.5)
    assert scales["fc.weight"] == 1
    assert scales["layer4.1.conv1.weight"] == 0.5
    assert scales["layer4.0.conv1.weight"] == scales["layer4.0.downsample.0.weight"] == 0.25
    assert scales["conv1.weight"] == 0.5**9


def test_layer_decay_step_is_scaled_by_layer():
    """Plain SGD without momentum: a step is learning rate times gradient, so a layer's step scales by its factor."""
    flags = ["--momentum", "0", "--weight_decay", "0", "--scheduler", "step", "--step_size", "1"]
    moved = []
    for extra in ([], ["--layer_decay", "0.5", "--head_lr", "3"]):
        engine = start(Plain, *flags, *extra, batches=1)
        net = engine.model.net
        before = weights(net)
        engine.train_step(batch())
        moved.append({key: value - before[key] for key, value in weights(net).items()})
        assert {group["lr"] for group in engine.optimizer.param_groups} == {
            0.05 * g["lr_scale"] for g in engine.optimizer.param_groups
        }
        engine.train_step(batch(epoch=2))
        for group in engine.optimizer.param_groups:
            assert group["lr"] == pytest.approx(0.005 * group["lr_scale"])  # the second epoch's, by the schedule
    scales = lr_scales(net, 3, 0.5)
    for key, scale in scales.items():
        assert torch.allclose(moved[1][key], moved[0][key] * scale, rtol=1e-3, atol=1e-7), key


def test_parameter_groups_of_vit_do_not_decay_embeddings():
    with torch.device("meta"):
        net = get_model("timm:vit_tiny_patch16_224")(options()).net
    decay = {id(p): group["weight_decay"] for group in parameter_groups(net, 0.1) for p in group["params"]}
    free = {name for name, p in net.named_parameters() if decay[id(p)] == 0}
    assert {"pos_embed", "cls_token"} <= free
    assert all(
        name in ("pos_embed", "cls_token") or ".norm" in name or name.endswith("bias") or name.startswith("norm")
        for name in free
    )
    assert len(decay) == len(list(net.parameters()))


def test_muon_groups_hold_matrices_and_kernels():
    with torch.device("meta"):
        net = get_model("EfficientNet-Lite0")(options()).net
    groups = get_optimizer(net, OptimizerSettings("muon", 0.001), head=head_names(net)).param_groups
    names = {id(p): name for name, p in net.named_parameters()}
    taken = {names[id(p)] for group in groups if group["use_muon"] for p in group["params"]}
    assert {"conv_stem.weight", "conv_head.weight", "blocks.1.0.conv_pw.weight"} <= taken
    assert not {"classifier.weight", "blocks.1.0.conv_dw.weight", "bn2.weight"} & taken
    assert sum(len(group["params"]) for group in groups) == len(names)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch's Muon came with 2.9")
def test_mix_off_leaves_last_part_of_the_run_unmixed():
    opt = options("--mixup", "0.4", "--mix_off", "0.25", "--epochs", "2")
    model = Plain(options(), "X")
    engine = build_engine(opt, model, batches_per_epoch=4)
    mixed = [
        engine.prepare(batch(step=step, epoch=epoch))[1].ndim == 2 for epoch in (1, 2) for step in range(4)
    ]  # probabilities (B, C) of mixed samples, else class numbers (B,)
    assert mixed == [True] * 6 + [False] * 2


@pytest.mark.parametrize(
    ("words", "warned"),
    [("--load x.pt", True), ("--pretrained", True), ("--no-pretrained", False), ("--load x.pt --resume", False)],
)
def test_muon_on_pretrained_weights_is_warned_of(caplog, words, warned):
    opt = options("--optimizer", "muon", *words.split())
    model = Plain(options("--no-pretrained"), "X")
    build_engine(opt.replace(epochs=1, num_classes=model.num_classes), model, batches_per_epoch=2)
    assert ("--optimizer muon starts from weights that were trained before" in caplog.text) is warned


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
def test_muon_path_equals_torch():
    torch.manual_seed(0)
    one, other = nn.Linear(16, 24, bias=False), nn.Linear(16, 24, bias=False)
    other.load_state_dict(one.state_dict())
    ours = get_optimizer(one, OptimizerSettings("muon", 0.01, weight_decay=0.1))
    torchs = torch.optim.Muon(other.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for net, optimizer in ((one, ours), (other, torchs)):
            optimizer.zero_grad()
            net(torch.eye(16)).sin().sum().backward()
            optimizer.step()
    assert torch.allclose(one.weight, other.weight, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lookahead"])
def test_fused_step_with_other_strides_equals_contiguous(name):
    """torch's fused kernels walk memory: a channels_last weight with a contiguous gradient was off by a whole step."""
    torch.manual_seed(0)
    value, gradient = torch.randn(2, 4, 3, 3, 3)
    ends = []
    for layout in (torch.channels_last, torch.contiguous_format):
        net = nn.Conv2d(3, 4, 3, bias=False)
        net.weight = nn.Parameter(value.clone(memory_format=layout))
        optimizer = get_optimizer(net, OptimizerSettings(name, 0.1))
        for _ in range(2):
            net.weight.grad = gradient.clone()
            optimizer.step()
        ends.append(net.weight.detach())
    assert torch.allclose(*ends, atol=1e-7)


# ------------------------------------------------------------------------ steps


@pytest.mark.parametrize(
    "clip",
    [
        [],
        ["--clip_grad", "0.01"],
        ["--clip_grad", "0.001", "--clip_mode", "value"],
        ["--clip_grad", "0.01", "--clip_mode", "agc"],
    ],
)
@pytest.mark.parametrize(
    "optimizer", [["--lr", "0.05"], ["--optimizer", "adamw", "--lr", "0.001"]], ids=lambda words: words[-2]
)
def test_grad_accum_equals_one_large_batch(clip, optimizer):
    """Five batches of 4 by twos against 8, 8 and 4 images at once: the last group is ragged. Without batch norm."""
    parts = [batch(4, step) for step in range(5)]
    small = start(Plain, "--accumulate", "2", *optimizer, *clip, batches=5)
    for part in parts:
        small.train_step(part)
    large = start(Plain, *optimizer, *clip, batches=3)
    for step, group in enumerate((parts[:2], parts[2:4], parts[4:])):
        image, label = (torch.cat([getattr(part, name) for part in group]) for name in ("image", "label"))
        large.train_step(Batch(image, label, torch.arange(len(label)), 1, step, ()))
    assert small.step_count == large.step_count == 3
    assert furthest(weights(small.model.net), weights(large.model.net)) < 1e-6
    assert furthest(weights(small.model.net), weights(Plain(small.model.opt, "X").net)) > 1e-5


def test_clip_grad_of_each_kind_equals_numpy():
    """One SGD step without momentum at rate 1: the weights move by minus the clipped gradient, computed in NumPy."""

    def moved(*flags: str) -> dict[str, np.ndarray]:
        engine = start(
            Plain, "--lr", "1", "--momentum", "0", "--weight_decay", "0", "--scheduler", "none", *flags, batches=1
        )
        before = weights(engine.model.net)
        engine.train_step(batch())
        return {key: (before[key] - value).double().numpy() for key, value in weights(engine.model.net).items()}

    whole = moved()
    norm = np.sqrt(sum((g**2).sum() for g in whole.values()))
    assert norm > 0.02
    for key, got in moved("--clip_grad", "0.01").items():
        assert np.allclose(got, whole[key] * 0.01 / norm, atol=1e-6)
    for key, got in moved("--clip_grad", "0.01", "--clip_mode", "value").items():
        assert np.allclose(got, whole[key].clip(-0.01, 0.01), atol=1e-6)
    start_at = weights(Plain(options(), "X").net)
    clipped = 0
    for key, got in moved("--clip_grad", "0.01", "--clip_mode", "agc").items():
        wanted = whole[key].copy()
        if not key.startswith("fc"):  # Brock et al., 2021, equation 3, with eps 1e-3
            rows = [(slice(None),)] if wanted.ndim == 1 else [(k,) for k in range(len(wanted))]
            for row in rows:
                bound = 0.01 * max(np.linalg.norm(start_at[key].double().numpy()[row]), 1e-3)
                if np.linalg.norm(wanted[row]) > bound:
                    wanted[row] *= bound / np.linalg.norm(wanted[row])
                    clipped += 1
        assert np.allclose(got, wanted, atol=1e-6), key
    assert clipped > 3


def test_sam_path_equals_reference():
    """Against pytorch_optimizer's SAM around torch's SGD, over five steps; and the path is not that of SGD alone."""
    flags = ["--momentum", "0.9", "--weight_decay", "0", "--scheduler", "none"]
    engine, plain = start(Plain, "--sam", "0.1", *flags, batches=5), start(Plain, *flags, batches=5)
    other = Plain(options(), "X")
    other.to_device(torch.device("cpu"))
    sam = pytorch_optimizer.SAM(other.net.parameters(), torch.optim.SGD, rho=0.1, lr=0.05, momentum=0.9, nesterov=True)
    for step in range(5):
        part = batch(step=step)

        def close(part: Batch = part) -> torch.Tensor:
            sam.zero_grad()
            loss = F.cross_entropy(other(part.image), part.label)
            loss.backward()
            return loss

        wanted = close()
        sam.step(close)
        # the loss that is shown is that at the weights themselves
        assert engine.train_step(part).loss == pytest.approx(wanted.item(), abs=1e-6)
        plain.train_step(part)
    assert engine.step_count == 5
    assert furthest(weights(engine.model.net), weights(other.net)) < 1e-6
    assert furthest(weights(engine.model.net), weights(plain.model.net)) > 1e-5


def test_sam_second_pass_repeats_noise_without_batch_norm_update():
    engine, plain = start(Model, "--sam", "0.5", "--mixup", "0.4"), start(Model, "--mixup", "0.4")
    net = engine.model.net
    masks: list[torch.Tensor] = []
    net.stem[3].register_forward_hook(lambda module, given, out: masks.append((out == 0) & (given[0] != 0)))
    for one in (engine, plain):
        one.train_step(batch())
    buffers = dict(plain.model.net.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert int(net.stem[1].num_batches_tracked) == 8
    assert len(masks) == 2
    assert (
        masks[0] != masks[1]
    ).float().mean() < 0.1  # only where the ReLU before it switched; other noise would differ in 0.16


def test_sam_zero_gradient_keeps_weights():
    net = Net(norm=False)
    before = weights(net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sam = SAM(net, 0.1)
    sam.ascend()
    assert sam.perturbed
    assert furthest(before, weights(net)) == 0
    sam.restore()
    assert not sam.perturbed


# ------------------------------------------------------------------------ averages


def test_swa_equals_mean_of_epoch_ends():
    engine, loader = start(Model, "--swa", "2"), Loader()
    model = engine.model
    ends = []
    for epoch in range(1, 5):
        for part in Loader().batches(epoch):
            engine.train_step(part)
        engine.end_epoch(epoch, loader)
        ends.append(weights(model.net))
        assert engine.available_weights() == (["raw", "swa"] if epoch == 4 else ["raw"])
    assert loader.asked == 1
    with model.evaluating(engine.net("swa")) as net:
        swa = weights(net)
        assert not net.training
    for name, _ in model.net.named_parameters():
        assert torch.allclose(swa[name], torch.stack([end[name] for end in ends[1:]]).mean(0), atol=1e-7)
    with torch.no_grad():
        averaged = Net(norm=True)
        averaged.load_state_dict(swa)
        seen = torch.stack(
            [averaged.stem[0](model.normalise(part.image)).mean((0, 2, 3)) for part in Loader().batches(4)]
        ).mean(0)
    assert torch.allclose(swa["stem.1.running_mean"], seen, atol=1e-5)
    assert not torch.allclose(swa["stem.1.running_mean"], ends[-1]["stem.1.running_mean"], atol=1e-3)
    assert model.net.stem[1].momentum == averaged.stem[1].momentum


def test_swa_after_last_epoch_or_sam_in_fp16_is_refused():
    with pytest.raises(UserError, match="begins after the last epoch, 4"):
        start(Model, "--swa", "5")
    opt = options("--sam", "0.1")
    model = Model(opt, "X")
    model.dtype = torch.float16
    with pytest.raises(UserError, match="--sam does not work with fp16"):
        build_engine(opt, model, 1)


def test_shown_average_that_is_gone_falls_back_to_raw():
    """A run of one epoch showed its SWA; made longer, or resumed without --swa, it shows the raw weights."""
    short = start(Model, "--swa", "1", "--epochs", "1")
    short.train_step(batch())
    short.end_epoch(1, Loader())
    short.active_weights = "swa"
    content = short.state_dict()
    longer, without = start(Model, "--swa", "1"), start(Model)
    for engine in (longer, without):
        engine.load_state_dict(content)
    assert longer.active_weights == "swa"
    longer.end_epoch(2, Loader())
    assert longer.available_weights() == ["raw"]
    assert longer.active_weights == without.active_weights == "raw"


def test_ema_decay_warms_up_as_timm():
    """timm's decay at step t: 0 at first, then 1 - t^(-2/3), at most --ema."""
    engine = start(Plain, "--ema", "0.6", batches=6)
    average = None
    for step in range(6):
        engine.train_step(batch(step=step))
        decay = 0 if step == 0 else min(0.6, 1 - (1 + step) ** (-2 / 3))
        now = engine.model.net.fc.weight.detach().clone()
        average = now if average is None else decay * average + (1 - decay) * now
        assert torch.allclose(engine.net("ema").fc.weight, average, atol=1e-6)


def test_validate_shows_the_best_weights():
    from train import validate

    engine = start(Model, "--ema", "0.9")
    rows = {"raw": {"top1": 0.5, "loss": 1.0}, "ema": {"top1": 0.5, "loss": 0.9}}
    asked = []

    def score(weights):
        asked.append(weights)
        return rows[weights]

    scores = validate(engine, score, "top1")
    assert asked == ["raw", "ema"]
    assert engine.active_weights == "ema"
    assert scores == {"val_top1": 0.5, "val_loss": 0.9, "val_raw_top1": 0.5, "val_ema_top1": 0.5}
    rows["raw"]["top1"] = 0.6
    assert validate(engine, score, "top1")["val_top1"] == 0.6
    assert engine.state_dict()["showing"] == "raw"
    with engine.model.evaluating() as net:
        assert net is engine.model.net
    assert validate(start(Model), lambda _: {"top1": 0.1, "loss": 2.0}, "top1") == {"val_top1": 0.1, "val_loss": 2.0}
    for weights, log_loss in (("raw", 0.3), ("ema", 0.4)):
        rows[weights]["log_loss"] = log_loss
    assert validate(engine, score, "log_loss")["val_raw_log_loss"] == 0.3
    assert engine.active_weights == "raw"


# ------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--sam 0.05 --accumulate 2", "--sam and --accumulate contradict"),
        ("--sam 0.05 --precision fp16", "--sam and --precision fp16 contradict"),
        ("--clip_mode agc", "--clip_mode agc has no effect without --clip_grad"),
        ("--freeze -2", "--freeze is -2"),
        ("--layer_decay 1.5", "--layer_decay is 1.5"),
        ("--freeze_bn", "--freeze_bn and --no-pretrained contradict"),
        ("--no-freeze_bn --lora 4", "--no-freeze_bn and --lora contradict"),
        ("--no-freeze_bn --pretrained --probe_init p.pt", "--no-freeze_bn and --probe_init contradict"),
    ],
)
def test_finetune_flags_that_contradict_are_refused(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        options(*words.split())
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


# ------------------------------------------------------------------------ resuming

WAYS = [
    "--freeze 1",
    "--freeze -1 --optimizer adamw",
    "--freeze_bn --swa 2 --ema 0.9",
    "--layer_decay 0.7 --head_lr 5 --optimizer adamw",
    "--swa 1",
    "--swa 2 --ema 0.9",
    "--sam 0.05",
    "--sam 0.05 --swa 2 --freeze 0 --layer_decay 0.5 --optimizer lookahead",
    "--optimizer muon",
    "--optimizer muon --layer_decay 0.7 --clip_grad 0.01 --clip_mode agc",
    "--accumulate 2 --clip_grad 0.1",
]


def tensors(content):
    """All of a state that is not a container, in order."""
    if isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from tensors(value)
    else:
        yield content


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", [1, 2])
def test_finetune_resumed_equals_uninterrupted(way, cut):
    """Cut after epoch 1 or 2 of 3, through a file that holds tensors and plain data alone."""

    def train(engine: Engine, first: int, last: int) -> None:
        for epoch in range(first, last + 1):
            for part in Loader().batches(epoch):
                engine.train_step(part)
            engine.end_epoch(epoch, Loader())

    def begin() -> Engine:
        return start(Model, "--warmup", "1", *way.split(), "--epochs", "3")

    whole = begin()
    train(whole, 1, 3)
    half = begin()
    train(half, 1, cut)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    other = begin()
    other.model.net.load_state_dict(content["weights"])
    other.load_state_dict(content)
    train(other, cut + 1, 3)
    ours, theirs = list(tensors(other.state_dict())), list(tensors(whole.state_dict()))
    assert len(ours) == len(theirs) > 20
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    assert furthest(weights(whole.model.net), weights(half.model.net)) > 0
