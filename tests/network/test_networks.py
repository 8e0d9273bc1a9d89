"""Every registered model: builds, learns, has a gradient everywhere, survives a checkpoint."""

import argparse
import ast
import copy
import importlib
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import network
from dataloader.dataset import as_images
from dataloader.geometry import EvalGeometry, crop_resize
from network import get_model, models
from network.loading import load_weights
from options import Options, choices, parse_train
from training.engine import Engine
from training.setup import build_engine
from utils import checkpoint
from utils.batch import Batch
from utils.errors import UserError
from utils.preprocess import Preprocess

SMALLEST = "ResNet18 ResNeXt50 ResNeSt50 Res2Net50 iResNet50 EfficientNet-B0 EfficientNet-Lite0 Airbench".split()
SMALLEST += ["timm:resnet10t"]


def options(*words: str) -> Options:
    return parse_train(
        ["--num_classes", "5", "--no-pretrained", "--scale", "64", "--gpu", "-1", "--precision", "fp32", *words]
    )


def batch(size: int = 4, scale: int = 64, step: int = 0) -> Batch:
    images = torch.randint(
        0, 256, (size, 3, scale, scale), dtype=torch.uint8, generator=torch.Generator().manual_seed(step)
    )
    images = images.to(memory_format=torch.channels_last)
    return Batch(images, torch.arange(size) % 5, torch.arange(size), epoch=1, number=step, bad=())


def engine_for(name: str, opt: argparse.Namespace, batches_per_epoch: int) -> Engine:
    """The engine of a new network, on the CPU."""
    model = get_model(name)(opt)
    model.to_device(torch.device("cpu"))
    model.set_precision(opt.precision)
    return build_engine(opt, model, batches_per_epoch)


@pytest.mark.parametrize("name", SMALLEST)
def test_model_of_each_family_learns_and_reloads(name, tmp_path):
    """The smallest of each family; what another depth adds is below."""
    opt = options("--optimizer", "sgd", "--lr", "0.01")
    torch.manual_seed(0)
    engine = engine_for(name, opt, batches_per_epoch=1)
    model = engine.model
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    grads = {}
    for key, parameter in model.net.named_parameters():
        parameter.register_hook(lambda grad, key=key: grads.__setitem__(key, grad.abs().sum().item()))
    loss = engine.train_step(batch()).loss
    assert loss.ndim == 0
    assert not loss.requires_grad
    assert torch.isfinite(loss)
    missing = [key for key, _ in model.net.named_parameters() if key not in grads]
    assert not missing, f"no gradient for {missing}"
    after = model.net.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in after)

    model.eval()
    images = batch(2).image
    with torch.no_grad():
        wanted = model(images)
    assert wanted.shape == (2, 5)
    assert torch.isfinite(wanted).all()
    checkpoint.save(tmp_path / "x.pt", {"model": name, "weights": model.net.state_dict()})
    other = get_model(name)(opt)
    load_weights(other, checkpoint.load(tmp_path / "x.pt"), "x.pt")
    other.to_device(torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(other.eval()(images), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(models.keys() - {*SMALLEST, "iResNet1001"}))
def test_model_of_each_depth_has_gradient_everywhere(name):
    """By shapes alone: of the same blocks as the smallest, but as many and as wide as this one has."""
    with torch.device("meta"):
        model = get_model(name)(options()).train()
        logits = model(torch.empty(2, 3, 64, 64, dtype=torch.uint8))
        assert logits.shape == (2, 5)
        logits.sum().backward()
    missing = [key for key, parameter in model.net.named_parameters() if parameter.grad is None]
    assert not missing, f"no gradient for {missing}"


@pytest.mark.slow
def test_iresnet1001_logits_and_gradients_are_finite():
    torch.manual_seed(0)
    model = get_model("iResNet1001")(options()).train()
    loss = torch.nn.functional.cross_entropy(model(batch(2, 32).image), torch.arange(2))
    assert loss.isfinite()
    loss.backward()
    for key, parameter in model.net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


def test_models_registry_has_every_specified_name():
    asked = """
        ResNet18 ResNet50 ResNet101 ResNeXt50 ResNeXt101 ResNeSt50 ResNeSt101 ResNeSt200 Res2Net50 Res2Net101
        iResNet50 iResNet101 iResNet152 iResNet200 iResNet1001
        EfficientNet-B0 EfficientNet-B1 EfficientNet-B2 EfficientNet-B3 EfficientNet-B4 EfficientNet-B5 EfficientNet-B6
        EfficientNet-B7 EfficientNet-Lite0 EfficientNet-Lite1 EfficientNet-Lite2
    """
    assert set(asked.split()) <= set(models)
    assert set(choices.MODELS) <= set(models)


def test_get_model_unknown_name_suggests_near_ones():
    with pytest.raises(UserError, match=r"no model 'ResNest101'. Did you mean ResNeSt101"):
        get_model("ResNest101")
    with pytest.raises(UserError, match=r"Did you mean resnet18"):
        get_model("timm:resnet_18")(options())


@pytest.mark.parametrize("known", ["ResNeSt50", "iResNet50", "EfficientNet-B0"])
def test_get_model_without_archs_entry_is_refused(known, monkeypatch):
    """It used to build the first network of the family."""
    monkeypatch.setitem(models, "Larger", models[known])
    with pytest.raises(UserError, match=rf"which backbone Larger is.*{known} .*\n.*options/choices.py"):
        get_model("Larger")(options())


def test_get_model_copied_family_obeys_its_own_archs(monkeypatch):
    copied = type(
        "Model", (models["ResNeSt50"],), {"__module__": "network.Mine.model", "ARCHS": {"Mine18": "resnet18"}}
    )
    for name in ("Mine18", "Mine50"):
        monkeypatch.setitem(models, name, copied)
    assert get_model("Mine18")(options()).net.pretrained_cfg["architecture"] == "resnet18"
    with pytest.raises(
        UserError, match=r"which backbone Mine50 is. ARCHS in network.Mine.model has: Mine18 \(resnet18\)"
    ):
        get_model("Mine50")(options())


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Return a function: copy a family's folder to network/MyNet, change the texts of its files, return its Model."""
    monkeypatch.setattr(network, "__path__", [*network.__path__, str(tmp_path)])

    def copy_family(family: str, change=lambda text: text):
        shutil.copytree(Path(network.__file__).parent / family, tmp_path / "MyNet")
        for path in (tmp_path / "MyNet").glob("*.py"):
            path.write_text(change(path.read_text()))
        importlib.invalidate_caches()
        return importlib.import_module("network.MyNet.model").Model

    yield copy_family
    for name in [name for name in sys.modules if name.startswith("network.MyNet")]:
        del sys.modules[name]


@pytest.mark.parametrize("family", network.FAMILIES)
def test_copied_family_builds_a_network_of_the_family(family, copied, monkeypatch):
    model = copied(family)
    monkeypatch.setitem(models, "MyNet", model)
    original = next(name for name, entry in choices.MODELS.items() if entry == (family, model.ARCHS["MyNet"]))
    ours, theirs = (get_model(name)(options()).net.state_dict() for name in (original, "MyNet"))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("family", [*network.FAMILIES, "Timm"])
def test_copied_family_without_archs_is_refused(family, copied, monkeypatch):
    """It was "no timm model 'MyNet' among 1,371", or a KeyError."""
    without = copied(family, lambda text: re.sub(r"    ARCHS = .*\n", "", text))
    monkeypatch.setitem(models, "MyNet", without)
    with pytest.raises(UserError, match=r"which backbone MyNet is. Add .*ARCHS|There is no \w+ backbone 'MyNet'"):
        get_model("MyNet")(options())


@pytest.mark.parametrize(("family", "module"), [("iResNet", "iresnet"), ("Airbench", "airbench")])
def test_copied_family_runs_its_own_network_file(family, module, copied):
    """The copy imported the original's file: a change of its own had no effect."""
    assert getattr(sys.modules[copied(family).__module__], "IResNet" if family == "iResNet" else family).__module__ == (
        f"network.MyNet.{module}"
    )


def test_get_model_name_overrides_model_option():
    assert get_model("ResNet18")(options("--model", "ResNet101")).name == "ResNet18"


def test_normalise_uses_the_networks_own_mean():
    model = get_model("EfficientNet-Lite0")(options())
    assert model.mean == (0.5, 0.5, 0.5)
    images = batch(1).image
    assert torch.allclose(model.normalise(images), (images.float() / 255 - 0.5) / 0.5, atol=1e-6)
    assert model.normalise(images).is_contiguous(memory_format=torch.channels_last)
    assert get_model("ResNet18")(options()).mean == (0.485, 0.456, 0.406)


def test_pretrained_lite0_recognises_the_photos(photos):
    """ImageNet classes of centre crops: 698 palace, 985 daisy, 652 military uniform or 667/400 gowns."""
    model = get_model("EfficientNet-Lite0")(parse_train(["--model", "EfficientNet-Lite0", "--gpu", "-1"])).eval()
    fit = EvalGeometry(Preprocess(224, "crop", model.mean, model.std))
    squares = [
        np.ascontiguousarray(crop_resize(photo, photo.shape[:2], fit.choose_region(*photo.shape[:2])))
        for photo in photos
    ]
    with torch.no_grad():
        top = model(as_images(torch.from_numpy(np.stack(squares)))).argmax(dim=1).tolist()
    assert top[0] == 698
    assert top[1] == 985
    assert top[2] in (652, 667, 400)


def test_pretrained_weights_of_other_classes_keep_backbone():
    opt = parse_train(["--model", "EfficientNet-Lite0", "--num_classes", "7"])
    seven = get_model("EfficientNet-Lite0")(opt).net.state_dict()
    thousand = get_model("EfficientNet-Lite0")(opt.replace(num_classes=None)).net.state_dict()
    assert seven["classifier.weight"].shape == (7, 1280)
    assert all(torch.equal(seven[key], thousand[key]) for key in seven if not key.startswith("classifier"))


def test_new_head_initial_loss_is_near_uniform():
    """timm's EfficientNet would begin at a loss of about 4 for ten classes; log(10) is 2.3."""
    opt = options().replace(num_classes=10)
    torch.manual_seed(0)
    model = get_model("EfficientNet-B0")(opt).train()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(batch(8).image), torch.arange(8))
    assert abs(loss.item() - 2.3026) < 0.3


def test_grad_accum_ragged_group_steps_at_full_weight():
    """Five batches by twos: three optimizer steps, the last of a single batch at full weight."""
    opt = options(*"--accumulate 2 --optimizer sgd --momentum 0 --lr 1 --weight_decay 0 --scheduler none".split())
    engine = engine_for("ResNet18", opt, batches_per_epoch=5)
    weight = engine.model.net.fc.bias
    values = []
    for step in range(5):
        engine.descend(batch(1, 8, step), (weight * torch.tensor([1.0, 2, 3, 4, 5])).sum() * (step + 1))
        values.append(weight.detach().clone())
    moved = [float(values[0][0]), *(float(values[k][0] - values[k - 1][0]) for k in range(1, 5))]
    assert moved == pytest.approx([0, -(1 + 2) / 2, 0, -(3 + 4) / 2, -5])
    assert engine.step_count == 3


FLAGS = ["--mixup 0.4", "--cutmix 1.0", "--ema 0.99", "--clip_grad 0.5", "--precision bf16", "--drop 0.5"]


@pytest.mark.parametrize("flag", FLAGS)
def test_train_step_ignores_earlier_random_state(flag):
    """(seed, epoch, step) alone decides: what torch's generator did before must not matter."""
    results = []
    for noise in (1, 2):
        opt = options(*flag.split())
        torch.manual_seed(0)
        engine = engine_for("timm:resnet10t" if "drop" not in flag else "ResNet18", opt, batches_per_epoch=2)
        torch.manual_seed(noise)
        losses = [engine.train_step(batch(step=step)).loss.item() for step in range(2)]
        results.append((losses, [p.sum().item() for p in engine.model.net.parameters()]))
    assert results[0] == results[1]


def test_ema_net_can_be_evaluated():
    opt = options("--ema", "0.999")
    engine = engine_for("timm:resnet10t", opt, batches_per_epoch=3)
    model = engine.model
    for step in range(3):
        engine.train_step(batch(step=step))
    with model.evaluating(engine.net("ema")) as net:
        assert net is engine.averages.ema.module
        assert not net.training
    assert any(
        not torch.equal(a, b)
        for a, b in zip(model.net.parameters(), engine.averages.ema.module.parameters(), strict=True)
    )


def test_ema_update_equals_timm_bit_for_bit(monkeypatch):
    """Bit for bit, with batch norm's statistics and counts, also where a module has replaced a buffer's tensor."""
    opt = options("--ema", "0.9")
    engine = engine_for("ResNet18", opt, batches_per_epoch=4)
    model, averages = engine.model, engine.averages
    timms = copy.deepcopy(averages.ema)
    for step in range(4):
        model.net.bn1.running_mean = model.net.bn1.running_mean + 1
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "state_dict", lambda *_, **__: pytest.fail("a state dict each step"))
            for parameter in model.net.parameters():
                parameter.data += 0.1
            model.net.bn1.num_batches_tracked += 1
            averages.update_ema(model.net, step + 1, {})
        timms.update(model.net, step=step + 1)
        ours = averages.ema.module.state_dict()
        assert all(torch.equal(tensor, ours[name]) for name, tensor in timms.module.state_dict().items())
        assert any(name.endswith("num_batches_tracked") for name in ours)


def test_families_share_no_statement_but_update():
    """Each family's model.py spells its update out; besides it no two have a statement in common but imports."""
    bodies = {}
    for path in sorted(Path(network.__file__).parent.glob("*/model.py")):
        tree = ast.parse(path.read_text())
        model = next(node for node in tree.body if isinstance(node, ast.ClassDef))
        names = [node.name for node in model.body if isinstance(node, ast.FunctionDef)]
        assert "update" in names, f"{path} does not spell out its update"
        rest = [
            ast.unparse(node)
            for node in tree.body
            if node is not model and not isinstance(node, ast.Import | ast.ImportFrom)
        ]
        rest += [ast.unparse(node) for node in model.body if isinstance(node, ast.Assign | ast.AnnAssign)]
        bodies[path.parent.name] = set(rest)
        assert len(path.read_text().splitlines()) <= 50
    families = list(bodies)
    assert len(families) >= 7
    for k, first in enumerate(families):
        for second in families[k + 1 :]:
            assert not bodies[first] & bodies[second]
