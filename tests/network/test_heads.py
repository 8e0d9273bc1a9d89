"""Heads, pooling and teachers: against formulas, in every family, through checkpoints."""

import re

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from made import RESNET, make
from network import get_model, heads
from network.backbones import head_names
from network.heads import CosineHead, GeM
from network.loading import load_weights
from options import choices, parse_train
from utils import checkpoint
from utils.errors import UserError

FAMILIES = [
    "ResNet18",
    "ResNeXt50",
    "ResNeSt50",
    "Res2Net50",
    "iResNet50",
    "EfficientNet-Lite0",
    "Airbench",
    "timm:convnext_atto",
]


def built(*words):
    opt = parse_train(["--num_classes", "5", "--no-pretrained", "--gpu", "-1", "--precision", "fp32", *map(str, words)])
    torch.manual_seed(0)
    return get_model(opt.model)(opt)


@pytest.mark.parametrize("centres", [1, 3])
def test_cosine_head_logits_equal_numpy(centres):
    head = CosineHead(6, 4, 20.0, centres)
    x, w = np.random.default_rng(0).normal(size=(3, 6)), head.weight.detach().numpy().astype(float)
    cosine = np.array([[f @ v / np.linalg.norm(f) / np.linalg.norm(v) for v in w] for f in x])
    wanted = 20 * cosine.reshape(3, 4, centres).max(axis=2)
    assert np.allclose(head(torch.tensor(x, dtype=torch.float32)).detach(), wanted, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.tensor(x, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("p", [1.0, 3.0, 7.5])
def test_gem_pool_equals_its_formula(p):
    maps = np.random.default_rng(0).uniform(0, 4, (2, 3, 5, 4))
    pool = GeM()
    pool.p.data.fill_(p)
    assert np.allclose(
        pool(torch.tensor(maps, dtype=torch.float32)).detach(), (maps**p).mean((2, 3)) ** (1 / p), rtol=1e-4
    )
    last = GeM(channels_last=True)
    last.p.data.fill_(p)
    got = last(torch.tensor(maps.transpose(0, 2, 3, 1), dtype=torch.float32))
    assert np.allclose(got.detach(), (maps**p).mean((2, 3)) ** (1 / p), rtol=1e-4)
    assert pool(torch.zeros(1, 2, 3, 3)).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_model_of_any_family_takes_every_head_and_pool(name):
    for head in choices.HEADS:
        model = built("--model", name, "--head", head, "--pool", "gem").eval()
        logits = model(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
        assert logits.shape == (2, 5)
        if head != "linear":
            assert float(logits.detach().abs().max()) <= 30.01
        names = head_names(model.net)
        assert any("pool" in each and each.endswith(".p") for each in names)
        parameters = dict(model.net.named_parameters())
        assert sum(parameters[each].ndim == 2 for each in names if each in parameters) == 1


def test_head_or_pool_without_support_is_refused():
    with pytest.raises(UserError, match=r"--pool gem .* timm:test_vit does not"):
        built("--model", "timm:test_vit", "--pool", "gem")
    with pytest.raises(UserError, match=r"--head arcface .* one linear classifier"):
        built("--model", "timm:deit_tiny_distilled_patch16_224", "--head", "arcface")


OF_TIMM = [  # small ones of each kind: how they pool, and where their classifier lies, differs
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "mobilenetv4_conv_small_035",
    "resnest14d", "densenet121", "tf_efficientnetv2_b0", "convnextv2_atto", "maxvit_pico_rw_256", "dla46_c",
    "lowformer_b0", "crossvit_tiny_240",
]  # fmt: skip


@pytest.mark.parametrize("name", OF_TIMM)
def test_timm_model_with_head_learns_or_is_refused(name):
    """Forward and backward, at 64 px where the network takes them; each parameter has a finite gradient."""
    worked = []
    for words in (["--head", "subcenter"], ["--pool", "gem"]):
        scale = 64
        while True:
            try:
                model = built("--model", f"timm:{name}", "--scale", scale, *words)
            except UserError as error:
                said = str(error)
                if scale == 64 and "--scale 64" in said:  # the network has a size of its own, and says it
                    scale = int(re.search(r"give --scale (\d+), its own size", said)[1])
                    continue
                assert "needs a network" in said and f"timm:{name}" in said and "Leave --" in said
                break
            logits = model.train()(torch.rand(2, 3, scale, scale))
            assert logits.shape == (2, 5)
            logits.square().sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.net.parameters())
            worked.append(words[0])
            break
    refused = {"vit_tiny_patch16_224": ["--head"], "dla46_c": ["--pool"], "crossvit_tiny_240": []}
    assert worked == refused.get(name, ["--head", "--pool"])


def test_pool_that_breaks_forward_is_refused_at_build(monkeypatch):
    monkeypatch.setattr(heads.GeM, "forward", lambda self, maps: maps.mean(dim=1))
    with pytest.raises(UserError, match=r"timm:test_resnet does not work with .*--pool gem"):
        built("--model", "timm:test_resnet", "--pool", "gem", "--scale", 64)


def test_load_weights_linear_into_new_head_keeps_backbone(tmp_path):
    old = built("--model", "timm:test_resnet")
    new = built("--model", "timm:test_resnet", "--head", "subcenter", "--pool", "gem")
    load_weights(new, {"weights": old.net.state_dict(), "model": old.name}, "old.pt")
    for name, value in old.net.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(new.net.state_dict()[name], value)


@pytest.mark.parametrize("loss", ["mse", "corn"])
@pytest.mark.parametrize(
    ("known", "names"),
    [("abcde", "abcde"), ("abcde", "edcba"), ("abcde", "vwxyz"), ("abc", "abcde"), (None, "abcde"), ("", None)],
)
def test_load_weights_of_ordered_classes_that_differ_starts_a_new_last_layer(loss, known, names):
    """The output of one order is the opposite in the reversed one, and fits in size: a qwk of 0 without a word."""
    words = ("--model", "timm:test_resnet", "--task", "ordinal", "--loss", loss)
    old, new = built(*words), built(*words)
    state = {name: value + 1 for name, value in old.net.state_dict().items()}
    data = {"class_names": list(known) if known else None, "task": "ordinal", "num_classes": 5}
    if known == "":  # nothing is named, and the checkpoint has another number of classes
        data["num_classes"] = 4
    content = {"format": 1, "weights": state, "model": old.name, "data": data}
    load_weights(new, content, "old.pt", names=list(names) if names else None)
    taken = {name for name, value in new.net.state_dict().items() if torch.equal(value, state[name])}
    kept = known == names or known is None
    assert set(state) - taken == (set() if kept else {"fc.weight", "fc.bias"})


def test_train_arcface_then_eval_then_distil_succeeds(script, photo_set, tmp_path):
    """ArcFace with GeM, evaluated from its checkpoint; then a student of another family learns from it."""
    common = ["--no-pretrained", "--scale", 32, "-b", 12, "-w", 0, "--gpu", -1, "--precision", "fp32", "--epochs", 1]
    words = "--model timm:test_resnet --head arcface --pool gem --logit_adjust 1 --class_weight effective".split()
    assert script("train.py", "--tag", "t", *common, *words, "--data_root", photo_set).code == 0
    result = script("eval.py", "--load", "checkpoints/t/last.pt", "--data_root", photo_set, "--gpu", -1, "-w", 0)
    assert result.code == 0, result.err
    student = ["--model", "timm:test_efficientnet", "--teacher", "checkpoints/t/last.pt", "--mixup", 0.2]
    result = script("train.py", "--tag", "s", *common, *student, "--data_root", photo_set)
    assert result.code == 0, result.err
    assert not any("teacher" in name for name in checkpoint.load("checkpoints/s/last.pt")["weights"])
    names = (photo_set / "classes.txt").read_text().split()
    for changed, said in ((names[::-1], "In another order"), (["cat", *names[1:]], "Give a teacher that was trained")):
        (tmp_path / "lists").mkdir(exist_ok=True)
        for name in ("train.txt", "val.txt"):
            (tmp_path / "lists" / name).write_text((photo_set / name).read_text())
        (tmp_path / "lists/classes.txt").write_text("\n".join(changed))
        result = script("train.py", "--tag", "s3", *common, *student, "--data_root", tmp_path / "lists")
        assert result.code == 2
        assert f"class 0 is {names[0]!r} there and {changed[0]!r} in classes.txt" in result.err and said in result.err
    result = script("train.py", "--tag", "s2", *common, *student, "--data_root", photo_set, "--num_classes", 4)
    assert result.code == 2
    assert "knows 3 classes, this run has" in result.err or "names 3 classes" in result.err


class Reads(TorchDispatchMode):
    """Counts what is read back from a device, for which each step would wait."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "item", "is_nonzero")
        return func(*args, **(kwargs or {}))


def test_distilled_loss_equals_hintons_formula(tmp_path):
    """A teacher with another normalisation, temperature 3, alpha 0.4; NumPy in float64."""
    from training.distill import Teacher, distilled_loss
    from training.losses import get_loss
    from training.setup import loss_settings
    from utils.batch import Batch

    teacher = built("--model", "timm:test_vit", "--scale", 160).eval()
    teacher.mean, teacher.std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    student = built("--model", "timm:test_resnet", "--distill_alpha", 0.4, "--distill_temp", 3)
    image = torch.randint(0, 256, (4, 3, 160, 160), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([0, 1, 2, 3])
    guide = Teacher(teacher, "t.pt", student.opt.distill_temp, student)
    loss = distilled_loss(get_loss(loss_settings(student.opt)), student.opt.distill_alpha, student.opt.distill_temp)
    images = student.normalise(Batch(image, labels, labels, 1, 0, ()).image)
    logits = torch.randn(4, 5, requires_grad=True)
    with Reads() as reads:
        got = loss(logits, guide.distilled(images, labels))
    assert reads.count == 0
    got.backward()

    def softmax(x):
        e = np.exp(x - x.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    own = (image.double() / 255 - torch.tensor(teacher.mean).double().view(1, 3, 1, 1)) / torch.tensor(
        teacher.std
    ).double().view(1, 3, 1, 1)
    soft = softmax(teacher.net(own.float()).detach().double().numpy() / 3)
    x = logits.detach().double().numpy()
    apart = (soft * (np.log(soft) - np.log(softmax(x / 3)))).sum(axis=1).mean() * 9
    plain = -np.log(softmax(x))[np.arange(4), labels].mean()
    assert got.item() == pytest.approx(0.6 * plain + 0.4 * apart, rel=1e-3)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({"head": "cosine", "head_scale": 8.0}, "", "--head cosine, and this run has --head linear: it begins"),
        ({}, "--head arcface", "--head linear, and this run has --head arcface: it begins"),
        ({"head": "cosine", "head_scale": 8.0}, "--head arcface", "--head_scale 8, and this run has --head_scale 30"),
        ({"pool": "gem"}, "", "--pool gem, and this run has --pool avg: it begins"),
        ({}, "--pool gem", "--pool avg, and this run has --pool gem: it begins with other predictions than that"),
        ({"head": "cosine", "head_scale": 30.0}, "--head arcface", ""),
        ({"head": "subcenter", "pool": "gem"}, "--head subcenter --pool gem", ""),
    ],
)
def test_load_into_another_head_or_pool_says_that_it_begins_with_other_predictions(then, now, said, tmp_path, caplog):
    """Some were loaded without a word, and of others it was said that the classifier starts at random."""
    path = make(tmp_path / "a.pt", tmp_path, options=then)
    words = ["--model", RESNET, "--no-pretrained", "--scale", "32", "--num_classes", "3", *now.split()]
    load_weights(get_model(RESNET)(parse_train(words)), checkpoint.load(path), path)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(said) and all(f"{path} was trained with {said}" in line for line in warnings)
    assert ("New in it: global_pool.p." in caplog.text) == (now == "--pool gem")
