"""Checkpoints and resuming: whole files, plain data, and the run that would have been."""

import csv
import zipfile

import pytest
import torch

from utils import checkpoint
from utils.errors import UserError


def test_round_trip_and_links(tmp_path):
    content = {"model": "X", "weights": {"a": torch.arange(3.0)}, "opt": {"lr": 0.1, "load": None}, "history": [{"epoch": 1}]}
    checkpoint.save(tmp_path / "last.pt", content, also=[tmp_path / "1_X.pt", tmp_path / "best.pt"])
    for name in ("last.pt", "1_X.pt", "best.pt"):
        back = checkpoint.load(tmp_path / name)
        assert torch.equal(back["weights"]["a"], content["weights"]["a"])
        assert {key: back[key] for key in ("model", "opt", "history")} == {key: content[key] for key in ("model", "opt", "history")}
    checkpoint.save(tmp_path / "last.pt", {**content, "model": "Y"}, also=[tmp_path / "best.pt"])
    assert [checkpoint.load(tmp_path / name)["model"] for name in ("last.pt", "1_X.pt", "best.pt")] == ["Y", "X", "Y"]
    assert not list(tmp_path.glob(".*"))


def test_a_plain_state_dict_of_others_is_taken(tmp_path):
    weights = {"conv.weight": torch.ones(2)}
    parallel = {f"module.{key}": value for key, value in weights.items()}
    for k, content in enumerate([weights, {"state_dict": weights}, {"state_dict": parallel}]):
        torch.save(content, tmp_path / f"{k}.pth")
        assert torch.equal(checkpoint.load(tmp_path / f"{k}.pth")["weights"]["conv.weight"], torch.ones(2))


def test_every_cut_of_a_file_is_refused(tmp_path):
    checkpoint.save(tmp_path / "x.pt", {"weights": {"a": torch.arange(1000.0)}})
    whole = (tmp_path / "x.pt").read_bytes()
    for tenth in range(10):
        (tmp_path / "cut.pt").write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(UserError, match="damaged|refused"):
            checkpoint.load(tmp_path / "cut.pt")


def test_a_newer_format_is_refused(tmp_path):
    torch.save({"format": 99, "weights": {}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="format 99"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "1.pt"
    checkpoint.save(path, {"weights": {"a": torch.zeros(2)}})
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(checkpoint.SaveError, match="(?s)No space left.*--resume"):
        checkpoint.save(path, {"weights": {}})
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["1.pt"]


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state", "state_dict_ema"])
def test_others_wrapped_state_dicts_are_taken(tmp_path, key):
    torch.save({key: {"module.a": torch.ones(1)}, "epoch": 3}, tmp_path / "w.pt")
    assert checkpoint.load(tmp_path / "w.pt") == {"weights": {"a": torch.ones(1)}}


@pytest.mark.parametrize("content", [{}, [1], {"a": 1}, {"state_dict": {"a": "b"}}])
def test_what_holds_no_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="no state dict"):
        checkpoint.load(tmp_path / "w.pt")


def test_code_in_a_pickle_is_not_run_and_what_is_there_is_named(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"format": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="is refused"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="(?s)damaged or cut short.*evil.pt"):
        checkpoint.load(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="(?s)There is no checkpoint.*There are: .*evil.pt"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path / "x.pt")


def tensors(content):
    """All tensors in a checkpoint, in order, however deep."""
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from tensors(value)


def scores(content):
    """The history without what a clock measured."""
    return [{key: value for key, value in row.items() if key not in ("images_per_second", "data_wait")} for row in content["history"]]


EXTRAS = {
    "plain": [],
    "ranger-mixup-ema": ["--optimizer", "ranger", "--mixup", "0.3", "--ema", "0.9"],
    "swa-ema-freeze": ["--swa", "2", "--ema", "0.9", "--freeze", "2", "--layer_decay", "0.8", "--sam", "0.05", "--model", "timm:resnet10t"],
    "workers-accumulate": ["--transform", "resize", "--accumulate", "2", "-w", "2"],
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_resuming_after_an_epoch_gives_the_uninterrupted_run_bit_for_bit(script, photo_set, small, tmp_path, extra, monkeypatch):
    flags = [*small, *extra, "--data_root", photo_set, "--epochs", 3, "--save_freq", 1]
    assert script("train.py", "--tag", "whole", *flags).code == 0
    import utils.training_run

    real = utils.training_run.TrainingRun.end_epoch

    def cut(self, epoch, scores, model):
        real(self, epoch, scores, model)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(utils.training_run.TrainingRun, "end_epoch", cut)
        assert script("train.py", "--tag", "cut", *flags).code == 130
    assert script("train.py", "--tag", "cut", "--resume", "--gpu", -1).code == 0
    whole, resumed = (checkpoint.load(tmp_path / f"checkpoints/{tag}/last.pt") for tag in ("whole", "cut"))
    pairs = list(zip(tensors(whole), tensors(resumed), strict=True))
    assert len(pairs) > 150
    assert all(torch.equal(a, b) for a, b in pairs)
    assert scores(whole) == scores(resumed)
    with open(tmp_path / "logs/cut/metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_load_and_resume_in_another_tag_as_the_readme_says(script, photo_set, small, tmp_path):
    flags = [*small, "--data_root", photo_set]
    assert script("train.py", "--tag", "first", "--epochs", 1, *flags).code == 0
    result = script("train.py", "--tag", "second", "--epochs", 2, "--load", "checkpoints/first/1_ResNet18.pt", "--resume", "--gpu", -1)
    assert result.code == 0
    assert "--epochs 1 -> 2" in result.out
    assert checkpoint.load(tmp_path / "checkpoints/second/last.pt")["epoch"] == 2
    again = script("train.py", "--tag", "second", "--resume", "--gpu", -1)
    assert again.code == 0
    assert "is complete: epoch 2 of 2" in again.out
