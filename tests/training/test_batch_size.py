"""-b auto: the search for the largest batch, with a memory that is only counted; what else it leaves alone."""

import functools

import pytest
import torch

from network.base_model import BaseModel
from options import parse_eval, parse_train
from training import setup
from training.batch_size import GRAIN, find_batch, largest_trial_batch
from training.resumed_options import restore_options
from training.setup import resolve_batch
from utils import checkpoint
from utils.classes import Classes

WORDS = "--model timm:test_resnet --no-pretrained --scale 32 --gpu -1 --precision fp32 --num_classes 3 -b auto".split()


class Memory:
    """Holds a limited number of images, and remembers which batches were tried."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.tried: list[int] = []

    def fits(self, size: int) -> bool:
        self.tried.append(size)
        return size <= self.images


@pytest.mark.parametrize("limit", [2, 3, 7, 8, 24, 100, 129, 1024])
def test_find_batch_is_largest_of_its_grain_for_any_memory(limit):
    for images in range(1, 1100, 1 if limit < 30 else 13):
        memory = Memory(images)
        found = find_batch(memory.fits, limit)
        assert len(memory.tried) <= 13 and max(memory.tried) <= limit
        if images < 2:
            assert found is None
            continue
        room = min(images, limit)
        assert found in (2, 4) or found % GRAIN == 0
        assert found <= room < (2 * found if found < GRAIN else found + max(GRAIN, found // 8))
        assert found in memory.tried


def test_find_batch_tries_powers_of_two_first():
    memory = Memory(100)
    assert find_batch(memory.fits, 1024) == 96
    assert memory.tried == [2, 4, 8, 16, 32, 64, 128, 96, 112, 104]


def test_parse_batch_is_a_number_or_auto_in_training_alone(capsys, tmp_path):
    assert parse_train(["-b", "auto"]).batch_size == parse_train(["--batch_size=auto"]).batch_size == "auto"
    assert parse_train(["-b", "7"]).batch_size == 7
    (tmp_path / "c.yaml").write_text("batch_size: auto\n")
    assert parse_train(["--config", str(tmp_path / "c.yaml")]).batch_size == "auto"
    for parse, words in ((parse_train, ["-b", "big"]), (parse_eval, ["--load", "x.pt", "-b", "auto"])):
        with pytest.raises(SystemExit):
            parse(words)
        assert f"'{words[-1]}' is no whole number (images per batch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_train(["-b", "1"])
    assert "-b is 1; allowed: 2 or more" in capsys.readouterr().err.replace("--batch_size", "-b")


def test_resolve_batch_on_cpu_is_the_default_and_logged(caplog):
    caplog.set_level("INFO")
    opt = parse_train(WORDS)
    assert resolve_batch(opt, torch.device("cpu"), 100, Classes(3)) == parse_train([]).batch_size == 24
    assert "-b auto: there is no GPU" in caplog.text and "-b is 24" in caplog.text
    assert resolve_batch(parse_train([*WORDS, "-b", "5"]), torch.device("cpu"), 100, Classes(3)) == 5


def test_resolve_batch_on_gpu_takes_what_the_trial_found_and_leaves_the_rate(monkeypatch, caplog):
    caplog.set_level("INFO")
    limits = []

    def found(start, device, limit):
        limits.append(limit)
        return 96 if limit > 50 else None

    monkeypatch.setattr(setup, "largest_trial_batch", found)
    opt = parse_train([*WORDS, "--lr", "0.003"])
    gpu = torch.device("cuda")
    assert [resolve_batch(opt, gpu, images, Classes(3)) for images in (100, 50, 9999)] == [96, 2, 96]
    assert limits == [100, 50, 1024]
    assert "-b is 96" in caplog.text and "10%" in caplog.text and "--lr stays 0.003" in caplog.text


@pytest.mark.parametrize(
    "words",
    [(), ("--ema", "0.9", "--sam", "0.05"), ("--scale_schedule", "1:32,2:64"), ("--scheduler", "2x", "--swa", "22")],
    ids=str,
)
def test_largest_trial_batch_finds_batch_by_steps_at_the_largest_size_and_leaves_no_trace(words, monkeypatch):
    """A network that has room for 44 images of 64 px stands for a GPU."""
    update, seen = BaseModel.forward, []

    def small(self, images):
        seen.append(tuple(images.shape))
        if self.training and len(images) * images.shape[-1] ** 2 > 44 * 64**2:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")  # torch.OutOfMemoryError is not the only one
        return update(self, images)

    monkeypatch.setattr(BaseModel, "forward", small)
    opt = parse_train([*WORDS, "--scale_schedule", "1:64", *words, "--dropout", "0.1"])
    before = torch.random.get_rng_state()
    start = functools.partial(setup._trial_engine, opt, torch.device("cpu"), Classes(3, train_counts=[9, 9, 9]))
    assert largest_trial_batch(start, torch.device("cpu"), 1024) == 40
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {shape[-1] for shape in seen} == {64}


def test_resume_with_auto_keeps_the_batch_of_the_checkpoint(caplog):
    caplog.set_level("INFO")
    saved = {name: value for name, value in vars(parse_train([*WORDS, "-b", "96"])).items() if name != "given"}
    start = {"opt": saved, "epoch": 3, "within": {"epoch": 4, "done": 2}}
    opt = restore_options(parse_train([*WORDS, "--resume"]), start, "last.pt")
    assert opt.batch_size == 96 and start["within"] is not None
    assert "-b auto: a resumed run keeps its batch, so -b is 96." in caplog.text and "->" not in caplog.text


def test_train_with_auto_saves_a_number(photo_set, script, small):
    done = script("train.py", "--tag", "a", "--data_root", photo_set, *small, "-b", "auto", "--epochs", 1, "--ema", 0.9)
    assert done.code == 0, done.err
    assert checkpoint.load("checkpoints/a/last.pt")["opt"]["batch_size"] == 24
    again = script("train.py", "--tag", "a", "--resume", "--epochs", 2, "-b", "auto", "--gpu", -1)
    assert again.code == 0 and "so -b is 24" in again.out, again.err
