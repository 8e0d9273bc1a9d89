"""Which sizes a network takes: each command asks before it begins, in place of a traceback in the middle."""

import pytest
import torch
from torch import nn

import inference
from inference.members import build_member
from made import RESNET, VIT, make
from network import get_model
from network.loading import build_from_checkpoint
from network.sizes import check_size, output_shape, takes_size
from options import parse_eval, parse_train
from tools import best_scale
from tools.probe.backbone import Source, build
from training.distill import load_teacher
from training.setup import build_engine, training_sizes
from utils import checkpoint
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory, photo_set):
    """Return the path of a network with patches of 16 px, trained at 32."""
    return make(tmp_path_factory.mktemp("vit") / "vit.pt", photo_set, model=VIT, options={"scale": 32})


def student(*words):
    opt = parse_train(["--num_classes", "3", "--no-pretrained", "--gpu", "-1", "--precision", "fp32", *words])
    return opt, get_model(opt.model)(opt)


def test_takes_size_tries_it_and_leaves_the_network_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 2, 5), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten())
    net[1].eval()  # as --freeze_bn
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert output_shape(net, 6) == (1, 8) and takes_size(net, 5) and not takes_size(net, 4)
    assert [part.training for part in net] == [True, False, True, True] and net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(
        UserError, match=r"^a.pt does not work with images of 4 px \(--scale 4\): .*Kernel size.*; give more\.$"
    ):
        check_size(net, 4, "a.pt", "--scale 4", "give more")


def test_out_of_memory_is_no_refused_size(monkeypatch):
    net = nn.Conv2d(3, 2, 1)

    def full(images):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(net, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        takes_size(net, 4)


def test_scale_schedule_with_a_size_that_the_network_does_not_take_is_refused():
    """It ended in a traceback at the first batch of that size, which may be hours away."""
    opt, model = student("--model", VIT, "--scale", "32", "--scale_schedule", "1:32,2:24,3:32", "--epochs", "3")
    with pytest.raises(
        UserError, match=r"timm:test_vit does not work with images of 24 px \(--scale_schedule 1:32,2:24,3:32\): "
    ):
        build_engine(opt, model, 4)
    opt = opt.replace(scale_schedule="1:16,2:32")
    assert training_sizes(opt).keys() == {16, 32} and build_engine(opt, model, 4)


def test_teacher_that_does_not_take_the_size_of_the_run_is_refused(vit):
    opt, model = student("--model", RESNET, "--scale", "24")
    with pytest.raises(
        UserError,
        match=r"--teacher .*vit.pt does not work with images of 24 px \(--scale 24\): .*; give --scale 32, its own",
    ):
        load_teacher(vit, 1.0, model, training_sizes(opt))
    opt = opt.replace(scale_schedule="1:32,2:24")
    with pytest.raises(
        UserError, match=r"--teacher .*vit.pt does not work with images of 24 px \(--scale_schedule 1:32,2:24\): "
    ):
        build_engine(opt.replace(teacher=vit), model, 4)
    opt = opt.replace(scale_schedule="1:16,2:32")  # the teacher never sees --scale 24
    assert load_teacher(vit, 1.0, model, training_sizes(opt)).path == vit


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--scale 16", "sees those of this run, of 16 px (--scale 16)"),
        ("--scale 32 --scale_schedule 1:16,2:32", "of 16 px (--scale_schedule 1:16,2:32)"),
        ("--scale 32", ""),
        ("--scale 16 --scale_schedule 1:32", ""),
    ],
)
def test_teacher_of_another_size_than_the_run_is_warned_of(vit, words, said, caplog, monkeypatch):
    """It was asked at the student's size without a word, where it may predict far worse."""
    monkeypatch.setattr("utils.logger.log.propagate", True)
    opt, model = student("--model", RESNET, *words.split())
    load_teacher(vit, 1.0, model, training_sizes(opt))
    assert (f"--teacher {vit} was trained for images of 32 px" in caplog.text) == bool(said) and said in caplog.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--scale 40", "does not work with images of 40 px (--scale 40): Input height (40) should"),
        ("--tta multiscale", "does not work with images of 36 px (--tta multiscale): "),
        ("--scale 48 --tta fivecrop", ""),
        ("--tta x8", ""),
    ],
)
def test_prediction_at_a_size_that_the_network_does_not_take_is_refused(vit, words, said):
    opt, content = parse_eval(["--load", vit, *words.split()]), checkpoint.load(vit)
    if not said:
        assert build_member(content, vit, opt, CPU)[0].preprocess.scale == (opt.scale or 32)
        return
    with pytest.raises(UserError) as error:
        build_member(content, vit, opt, CPU)
    assert f"{vit} {said}" in str(error.value)
    with pytest.raises(UserError, match="does not work with"):
        inference.load(vit, **{name: value for name, value in vars(opt).items() if name in ("tta", "scale") and value})


def test_plain_weights_at_a_default_size_that_the_network_does_not_take_are_refused(tmp_path):
    """Their file does not say at what size they were trained, so the default is tried."""
    net = student("--model", "timm:vit_tiny_patch16_224", "--scale", "224")[1].net
    torch.save(net.state_dict(), path := tmp_path / "plain.pth")
    words = ["--load", str(path), "--model", "timm:vit_tiny_patch16_224", "--scale"]
    assert build_member(checkpoint.load(path), str(path), parse_eval([*words, "224"]), CPU)[0].preprocess.scale == 224
    with pytest.raises(
        UserError, match=r"does not work with images of 192 px \(--scale 192\): .*; give --scale 224, its own size"
    ):
        build_member(checkpoint.load(path), str(path), parse_eval([*words, "192"]), CPU)


def test_best_scale_proposes_sizes_that_the_network_takes(vit, photo_set):
    """Its default sizes were multiples of 8 px, which no network with patches of 16 px takes."""
    net = build_from_checkpoint(checkpoint.load(vit), vit)[0].net
    assert best_scale._near(net, vit, 32) == {32, 48}
    assert best_scale._near(net, vit, 160) == {128, 144, 160, 176, 192, 240}
    with pytest.raises(UserError, match=r"vit.pt does not work with images of 40 px \(--scales\): "):
        best_scale._checked(net, vit, [32, 40])


def test_best_scale_of_a_network_of_one_size_is_refused(monkeypatch, vit):
    monkeypatch.setattr("network.sizes.takes_size", lambda net, side: side == 32)
    with pytest.raises(UserError, match="takes no images of a size near 32 px but its own"):
        best_scale._near(build_from_checkpoint(checkpoint.load(vit), vit)[0].net, vit, 32)


def test_probe_of_a_checkpoint_at_a_size_that_it_does_not_take_is_refused(vit):
    opt = parse_train(["--scale", "40", "--gpu", "-1"])
    with pytest.raises(UserError, match=r"timm:test_vit does not work with images of 40 px \(--scale 40\): "):
        build(Source(vit, True), opt, 3, CPU)
