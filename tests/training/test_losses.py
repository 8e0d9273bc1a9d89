"""Losses and mixing against values computed independently, in NumPy."""

import logging
import warnings

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import training.losses
from options import parse_train
from training.losses import get_loss
from training.mix import get_mix
from training.setup import loss_settings
from utils.errors import UserError
from utils.rng import seed_batch

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(10, 7)) * 3
LABELS = RNG.integers(0, 7, 10)
SOFT = RNG.dirichlet(np.ones(7), 10)


@pytest.fixture(autouse=True, params=[None, 0], ids=["torch's", "ours"])
def small(request, monkeypatch):
    """Few logits go to torch's cross entropy: with 0, none do."""
    if request.param is not None:
        monkeypatch.setattr(training.losses, "MAX_TORCH_LOGITS", request.param)


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def smoothed(targets, smooth):
    hot = np.eye(7)[targets] if targets.ndim == 1 else targets
    return hot * (1 - smooth) + smooth / 7


def value(words, targets, counts=None):
    loss = get_loss(loss_settings(parse_train(words), counts))
    wanted = torch.tensor(targets) if targets.ndim == 1 else torch.tensor(targets, dtype=torch.float32)
    return loss(torch.tensor(LOGITS, dtype=torch.float32), wanted).item()


@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_cross_entropy_equals_numpy(smooth, targets):
    wanted = -(smoothed(targets, smooth) * log_softmax(LOGITS)).sum(axis=1).mean()
    assert value(["--smooth", str(smooth)], targets) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 10), (0.7, 7), (0.3, 3), (0.01, 1)])
def test_ohem_averages_the_hardest(ratio, count):
    each = -log_softmax(LOGITS)[np.arange(10), LABELS]
    wanted = np.sort(each)[::-1][:count].mean()
    assert value(["--loss", "ohem", "--ohem_ratio", str(ratio)], LABELS) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_focal_loss_equals_numpy(gamma, smooth, targets):
    entropy = -(smoothed(targets, smooth) * log_softmax(LOGITS)).sum(axis=1)
    wanted = ((1 - np.exp(-entropy)) ** gamma * entropy).mean()
    assert value(["--loss", "focal", "--focal_gamma", str(gamma), "--smooth", str(smooth)], targets) == pytest.approx(
        wanted, rel=1e-5
    )


@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_bce_loss_equals_numpy(smooth, targets):
    p = 1 / (1 + np.exp(-LOGITS))
    wanted = smoothed(targets, smooth)
    wanted = -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).mean()
    assert value(["--loss", "bce", "--smooth", str(smooth)], targets) == pytest.approx(wanted, rel=1e-5)


COUNTS = [100, 3, 0, 50, 7, 1, 20]


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_logit_adjust_equals_numpy(targets):
    prior = np.maximum(COUNTS, 1) / np.maximum(COUNTS, 1).sum()
    wanted = -(smoothed(targets, 0) * log_softmax(LOGITS + 1.5 * np.log(prior))).sum(axis=1).mean()
    assert value(["--logit_adjust", "1.5"], targets, COUNTS) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_class_weight_effective_equals_numpy(targets, beta):
    present = np.array(COUNTS) > 0
    weight = np.array([(1 - beta) / (1 - beta ** max(1, count)) for count in COUNTS])
    share = smoothed(targets, 0) @ np.where(present, weight / weight[present].mean(), 1)
    entropy = -(smoothed(targets, 0) * log_softmax(LOGITS)).sum(axis=1)
    wanted = (share * entropy).sum() / share.sum()
    assert value(["--class_weight", "effective", "--cb_beta", str(beta)], targets, COUNTS) == pytest.approx(
        wanted, rel=1e-5
    )


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.2])
def test_arcface_margin_equals_angles(margin):
    """Angles by arccos, which the code avoids; one target is so wide that the margin would turn it back."""
    cosine = np.clip(np.random.default_rng(1).normal(size=(8, 7)) * 0.4, -0.99, 0.99)
    labels = np.arange(8) % 7
    cosine[0, 0], cosine[1, 1] = -0.97, 0.99
    angle = np.arccos(cosine[np.arange(8), labels])
    moved = np.where(
        angle + margin < np.pi, np.cos(angle + margin), cosine[np.arange(8), labels] - margin * np.sin(margin)
    )
    logits = 16 * cosine
    logits[np.arange(8), labels] = 16 * moved
    wanted = -log_softmax(logits)[np.arange(8), labels].mean()
    loss = get_loss(
        loss_settings(parse_train(["--head", "arcface", "--head_scale", "16", "--head_margin", str(margin)]))
    )
    assert loss(torch.tensor(16 * cosine, dtype=torch.float32), torch.tensor(labels)).item() == pytest.approx(
        wanted, rel=1e-4
    )


EVERY = {
    "ce": [],
    "smooth": ["--smooth", "0.1"],
    "ohem": ["--loss", "ohem"],
    "focal": ["--loss", "focal"],
    "bce": ["--loss", "bce", "--smooth", "0.1"],
    "arcface": ["--head", "arcface", "--head_scale", "8"],
    "adjust": ["--logit_adjust", "1", "--class_weight", "effective"],
}
CASES = [pytest.param(words, False, id=f"labels-{name}") for name, words in EVERY.items()]
# it needs one label per sample
CASES += [pytest.param(words, True, id=f"soft-{name}") for name, words in EVERY.items() if name != "arcface"]


@pytest.mark.parametrize(("words", "soft"), CASES)
def test_loss_gradient_equals_central_differences(words, soft):
    """Central differences, in the direction of each logit."""
    loss = get_loss(loss_settings(parse_train(words), COUNTS))
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


@pytest.mark.parametrize(("words", "soft"), CASES)
def test_loss_under_autocast_is_bit_equal(words, soft):
    """Autocast would take soft targets' products in bf16."""
    loss = get_loss(loss_settings(parse_train(words), COUNTS))
    targets = torch.tensor(SOFT, dtype=torch.float32) if soft else torch.tensor(LABELS)
    found = []
    for on in (False, True):
        logits = torch.tensor(LOGITS / 10, dtype=torch.float32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            value = loss(logits, targets)
        value.backward()
        found.append((value.detach(), logits.grad))
    assert all(torch.equal(plain, cast) for plain, cast in zip(*found, strict=True))


def test_loss_of_certain_sample_under_autocast_is_zero():
    logits = torch.full((4, 7), -60.0).index_fill_(1, torch.tensor([2]), 60.1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = get_loss(loss_settings(parse_train([])))(logits, torch.eye(7)[[2, 2, 2, 2]])
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_loss_gradient_in_fp16_keeps_small_probabilities(monkeypatch):
    """p = 2e-9 is 0 in fp16; times the scaler's 65536 it is not."""
    monkeypatch.setattr(training.losses, "MAX_TORCH_LOGITS", 0)
    logits = torch.tensor([[0.0, -20.0]] * 4, dtype=torch.float16, requires_grad=True)
    (get_loss(loss_settings(parse_train([])))(logits, torch.zeros(4, dtype=torch.long)) * 65536).backward()
    assert logits.grad[:, 1].tolist() == pytest.approx([65536 / 4 * np.exp(-20.0)] * 4, rel=0.05)
    logits = torch.zeros(4, 2, dtype=torch.float16, requires_grad=True)  # and a small factor stays exact
    (get_loss(loss_settings(parse_train([])))(logits, torch.zeros(4, dtype=torch.long)) * 0.02).backward()
    assert logits.grad[:, 1].tolist() == pytest.approx([0.0025] * 4, rel=2e-3)


def peak(act):
    """The most bytes that `act()` held at once; every allocation is counted by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    now = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("kind", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize(("words", "soft"), CASES)
@pytest.mark.parametrize("small", [None], indirect=True, ids=["by size"])
def test_loss_peak_memory_is_the_size_of_logits(words, soft, kind, small):
    """Forward and backward of the loss alone, 64 x 50,030."""
    loss = get_loss(loss_settings(parse_train(words), [5] * 50_030))
    logits = (
        torch.randn(64, 50_030).clamp(-7, 7).to(torch.float32 if kind == "fp32" else torch.bfloat16).requires_grad_()
    )
    targets = torch.rand(64, 50_030).softmax(dim=1) if soft else torch.arange(64)

    def act():
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            value = loss(logits, targets)
        value.backward()

    size, most = logits.numel() * logits.element_size(), peak(act)
    assert most > 0.9 * size
    few = soft or {"arcface", "--logit_adjust"} & set(words)  # a twentieth at a time
    assert most <= (1.3 if kind != "fp32" else 1.12 if few else 1.02) * size


def test_loss_of_bf16_logits_is_fp32():
    loss = get_loss(loss_settings(parse_train([])))
    assert loss(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


def test_get_loss_unknown_name_or_missing_counts_is_refused():
    with pytest.raises(UserError, match="Did you mean focal"):
        get_loss(loss_settings(parse_train(["--loss", "vocal"])))
    with pytest.raises(UserError, match="number of training images of each class"):
        get_loss(loss_settings(parse_train(["--logit_adjust", "1"])))


@pytest.mark.parametrize("words", [["--mixup", "0.4"], ["--cutmix", "1.0"], ["--mixup", "0.4", "--cutmix", "1.0"]])
def test_mix_blends_images_and_labels_by_one_share(words):
    """Image k is all k: the blended mean tells the share, which the soft label must state."""
    opt = parse_train(words)
    mix = get_mix(opt.mixup, opt.cutmix, 4)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    changed = 0
    for step in range(6):
        seed_batch(1, 1, step)
        blended, soft = mix(images.clone(), torch.arange(4))
        assert soft.sum(dim=1) == pytest.approx(torch.ones(4))
        assert blended.mean(dim=(1, 2, 3)) == pytest.approx(soft @ torch.arange(4.0), abs=1e-4)
        changed += bool((soft.max(dim=1).values < 0.999).any())
    assert changed >= 3
    assert get_mix(0.0, 0.0, 4) is None


# ------------------------------------------------------------------------ on a GPU, by fake tensors


class Kernels(TorchDispatchMode):
    """Counts the operations that a device would launch a kernel for."""

    FREE = set("device empty empty_like slice unsqueeze select expand view detach alias transpose".split())

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in self.FREE
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 crashes on fake CUDA tensors without CUDA")
@pytest.mark.parametrize(
    ("words", "most"),
    [([], 6), (["--smooth", "0.1"], 12), (["--head", "arcface"], 40), (["--loss", "bce"], 16)],
    ids=lambda x: str(x),
)
def test_loss_on_gpu_launches_few_kernels_until_logits_are_large(words, most, monkeypatch):
    """64 x 50,030 in bf16, forward; what goes backward is a tensor or two more."""
    monkeypatch.undo()  # of `small`: a GPU has a limit of its own
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autocast: there is no GPU here
        loss = get_loss(loss_settings(parse_train(words)))
        logits = torch.empty(64, 50_030, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        labels = torch.zeros(64, dtype=torch.int64, device="cuda")
        with Kernels() as kernels:
            assert loss(logits, labels).device.type == "cuda"
        assert kernels.count <= most
        monkeypatch.setattr(training.losses, "MAX_GPU_BYTES", 64 * 50_030 * 2 - 1)
        with Kernels() as by_parts:
            loss(logits, labels)
        assert by_parts.count > 200


def test_saves_memory_on_gpu_from_a_gigabyte_of_logits(monkeypatch):
    monkeypatch.undo()
    saves = training.losses.saves_memory
    found = [saves("cuda", torch.bfloat16, count) for count in (64 * 50_030, 1 << 29, (1 << 29) + 1)]
    assert found == [False, False, True]
    assert [saves("cuda", torch.float32, count) for count in (1 << 28, (1 << 28) + 1)] == [False, True]
    assert [saves("cpu", dtype, 1 << 19 | more) for dtype in (torch.float32, torch.bfloat16) for more in (0, 1)] == [
        False,
        True,
    ] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("words", [[], ["--smooth", "0.1", "--head", "arcface"], ["--loss", "bce"]], ids=str)
def test_fused_loss_whole_equals_its_parts(words, dtype, monkeypatch):
    found = []
    real = training.losses._FusedGradientLoss.apply
    monkeypatch.setattr(training.losses, "MAX_TORCH_LOGITS", 0)
    for whole in (False, True):
        monkeypatch.setattr(
            training.losses._FusedGradientLoss, "apply", lambda *given, whole=whole: real(*given[:3], whole)
        )
        logits = torch.randn(50, 11, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        (get_loss(loss_settings(parse_train(words)))(logits, torch.arange(50) % 11) * 100).backward()
        found.append(logits.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--balance class --class_weight effective", "--balance class and --class_weight effective"),
        ("--balance sqrt --logit_adjust 1", "--balance sqrt and --logit_adjust 1"),
        ("--balance class", ""),
        ("--class_weight effective", ""),
    ],
)
def test_get_loss_two_corrections_for_rare_classes_are_warned(words, named, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    get_loss(loss_settings(parse_train(words.split()), COUNTS))
    assert ("correct twice" in caplog.text) == bool(named) and named in caplog.text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--accumulate 2 --class_weight effective", "--class_weight effective averages within each of the 2"),
        ("--accumulate 2 --loss ohem", "--loss ohem averages"),
        ("--accumulate 2 --task ordinal --loss corn", "--loss corn averages"),
        ("--accumulate 2", ""),
        ("--class_weight effective", ""),
        ("--accumulate 2 --task multilabel --class_weight effective", ""),
    ],
)
def test_loss_of_several_batches_that_is_not_that_of_a_large_one_is_logged(words, named, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    caplog.set_level(logging.INFO, "classifier")
    loss_settings(parse_train(words.split()), COUNTS)
    assert ("averages within" in caplog.text) == bool(named) and named in caplog.text
