"""A network that gives NaN or infinite logits: each command refuses it, names the member, and writes nothing."""

import importlib

import pytest
import torch

import network.loading
import tiny
from utils import checkpoint


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images, a good checkpoint good.pt, nan.pt (NaN for every image) and some.pt (infinite for some)."""
    monkeypatch.setitem(network.models, "Tiny", tiny.Tiny)
    tiny.write_images(tmp_path)
    good = checkpoint.load(tiny.unpack("sgd", tmp_path))
    checkpoint.save(tmp_path / "good.pt", good)
    changed(good, tmp_path / "nan.pt", lambda weights: weights["fc.bias"].__setitem__(0, torch.nan))
    largest = torch.finfo(torch.float32).max

    def some(weights):
        """Let the logit of class 0 overflow for the images whose features add up to more than the median."""
        model = network.get_model("Tiny")(network.loading.options_from_checkpoint(good, 3, "Tiny"))
        model.net.load_state_dict(weights)
        features = []
        model.net.fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        model.eval()(picture_batch(tmp_path))
        value = features[0].sum(dim=1)
        weights["fc.weight"][0] = 0.2 * largest
        weights["fc.bias"][0] = largest * (1 - 0.2 * float(value.detach().median()))

    changed(good, tmp_path / "some.pt", some)
    return tmp_path


def picture_batch(folder):
    import cv2

    names = [line.split()[0] for line in (folder / "val.txt").read_text().splitlines()]
    images = [torch.from_numpy(cv2.cvtColor(cv2.imread(str(folder / name)), cv2.COLOR_BGR2RGB)) for name in names]
    return torch.stack(images).permute(0, 3, 1, 2)


def changed(content, path, change):
    weights = {name: value.clone() for name, value in content["weights"].items()}
    change(weights)
    checkpoint.save(path, {**content, "weights": weights})


WORDS = ["--data_root", ".", "--gpu", "-1", "-w", "0"]
TOOL = ["--list", "val.txt", "--gpu", "-1", "-w", "0"]


@pytest.mark.parametrize(
    "words",
    [
        ["eval.py", "--load", "nan.pt", "--calibrate", *WORDS],
        ["eval.py", "--load", "nan.pt", "--tta", "flip", "--save_probs", "--precision", "bf16", *WORDS],
        ["eval.py", "--load", "good.pt", "nan.pt", "--blend", "rank", *WORDS],
        ["eval.py", "--load", "good.pt", "nan.pt", "--blend", "greedy", *WORDS],
        ["submit.py", "--load", "nan.pt", "--blend", "logits", "--out", "out.csv", *WORDS],
        ["tools.best_scale", "--load", "nan.pt", *TOOL],
        ["tools.long_tail", "--load", "nan.pt", *TOOL],
        ["tools.embed", "--load", "nan.pt", "--out", "embedded", *TOOL],
    ],
    ids=lambda words: " ".join(words[:6]),
)
def test_predicting_with_nan_network_is_refused(script, place, words, capfd, monkeypatch):
    before = {path: path.read_bytes() for path in place.iterdir()}
    if words[0].endswith(".py"):
        code, _, message = script(*words)
    else:
        monkeypatch.chdir(place)
        code, message = importlib.import_module(words[0]).main(words[1:]), capfd.readouterr().err
    assert code == 2, message
    count = 3 if words[0] == "submit.py" else 6
    assert f"nan.pt gives NaN or infinite logits for {count} of the first {count} images" in message
    assert "--precision fp32" in message if "bf16" in words else "another checkpoint" in message
    files = [
        path for path in place.rglob("*") if path.is_file() and "run_log" not in path.name and "lock" not in path.name
    ]
    assert {path: path.read_bytes() for path in files} == before


def test_eval_infinite_logits_are_counted_over_batches(script, place):
    result = script("eval.py", "--load", "some.pt", "-b", "5", *WORDS)
    assert result.code == 2
    count = int(result.err.split("logits for ")[1].split()[0])
    assert 0 < count < 6 and f"some.pt gives NaN or infinite logits for {count} of 6 images" in result.err


def test_train_with_nan_teacher_is_refused(script, place):
    words = ["train.py", "--tag", "t", *tiny.FLAGS, "--data_root", ".", "--epochs", "1"]
    result = script(*words, "--teacher", "nan.pt")
    assert result.code == 2 and "--teacher nan.pt gives NaN or infinite logits for 2 of 2 images" in result.err
    result = script(*words, "--teacher", "some.pt")
    assert result.code == 2 and "--teacher some.pt gives NaN or infinite logits for" in result.err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_train_epoch_without_a_step_ends_the_run(script, place, monkeypatch, precision):
    """Two batches an epoch are fewer than --max_nan bears: such a run used to go on to its end, and exit with 0."""
    real = tiny.Tiny.update

    def broken(self, images, targets, step):
        return real(self, images * torch.nan, targets, step)

    monkeypatch.setattr(tiny.Tiny, "update", broken)
    flags = [precision if word == "fp32" else word for word in tiny.FLAGS]
    result = script("train.py", "--tag", "t", *flags, "--data_root", ".", "--epochs", "3")
    assert result.code == 2, result.out
    assert "No step of epoch 1 was taken: no gradient of its 2 batches was finite" in result.err
    assert "--lr" in result.err
    assert not list(place.glob("checkpoints/t/*.pt"))


def test_train_nan_validation_ends_the_run(script, place, monkeypatch):
    real = tiny.Tiny.normalise
    monkeypatch.setattr(
        tiny.Tiny, "normalise", lambda self, images: real(self, images) * (1 if self.training else torch.nan)
    )
    result = script("train.py", "--tag", "t", *tiny.FLAGS, "--data_root", ".", "--epochs", "2")
    assert result.code == 2
    assert "infinite logits for 6 of the first 6 validation images after epoch 1" in result.err
    assert "--lr" in result.err
