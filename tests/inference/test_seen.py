"""eval.py warns where it fits something to images that a member, or a file of its probabilities, has learned from."""

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataloader.file_list import read_list
from dataloader.list_checks import warn_changed
from inference import open_inference, saved_probs
from inference.seen import warn_of_seen_images
from made import make
from options import parse_eval
from utils.classes import Classes
from utils.seen_lists import entry


@pytest.fixture
def files(photo_set):
    """The validation list of the photos."""
    return read_list(photo_set / "val.txt")


def warnings_of(caplog, files, seen, **flags):
    caplog.clear()
    opt = Namespace(**{"blend": "mean", "calibrate": False, "fit_thresholds": None} | flags)
    loaded = SimpleNamespace(paths=tuple(f"{k}.pt" for k in range(len(seen))), seen=tuple(seen))
    warn_of_seen_images(SimpleNamespace(opt=opt, loaded=loaded, files=files))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"blend": "greedy"}, "--blend greedy"),
        ({"blend": "optimal", "calibrate": True}, "--blend optimal and --calibrate"),
        ({"fit_thresholds": "one"}, "--fit_thresholds"),
    ],
)
def test_fit_to_images_of_a_member_warns_of_that_member(files, photo_set, caplog, flags, named):
    train = read_list(photo_set / "train.txt")
    own, other = [entry(files.source, files.fingerprint())], [entry(train.source, train.fingerprint())]
    (said,) = warnings_of(caplog, files, [other, own], **flags)
    count = len(files)
    assert said.startswith(f"1.pt was trained on {count} of the {count} images of {files.source}. ") and named in said
    assert warnings_of(caplog, files, [other, other], **flags) == []


def test_score_on_images_of_a_member_is_warned_of(files, photo_set, caplog):
    train = read_list(photo_set / "train.txt")
    own, other = [entry(files.source, files.fingerprint())], [entry(train.source, train.fingerprint())]
    (said,) = warnings_of(caplog, files, [other, own])
    assert said.startswith(f"1.pt was trained on {len(files)} of the {len(files)} images of {files.source}. It knows ")
    assert "its score says little about other images" in said
    assert warnings_of(caplog, files, [other, [entry(None, None)]]) == [], "what cannot be told is said of fits alone"


def test_fit_says_where_it_cannot_be_checked_and_without_a_fit_nothing(files, caplog):
    unknown = [entry(None, None)]
    (said,) = warnings_of(caplog, files, [unknown], calibrate=True)
    assert "so it cannot be checked whether it has seen images of" in said
    assert warnings_of(caplog, files, [unknown], fit_thresholds="half") == []


def test_file_of_probabilities_keeps_what_its_networks_have_seen(files, tmp_path):
    values, readable = np.zeros((len(files), 2), np.float16), np.ones(len(files), bool)
    seen, path = [entry(tmp_path / "\udcff.txt", "0" * 64)], tmp_path / "p.npz"
    saved_probs.write(path, values, readable, files, Classes(2), seen=seen)
    assert saved_probs.read(str(path)).seen == seen
    saved_probs.write(path, values, readable, files, Classes(2))
    assert saved_probs.read(str(path)).seen == [entry(None, None)]
    saved_probs.write(path, values, readable, files, Classes(2), {"fold": np.ones(len(files))})  # oof.npz of before
    assert saved_probs.read(str(path)).seen == []


def test_file_of_probabilities_alone_is_scored_without_the_flags_of_networks(photo_set, script, tmp_path):
    """They change nothing, and metrics.json, as report.html and provenance.json, said that they were applied."""
    files = read_list(photo_set / "val.txt")
    values = np.log(np.full((len(files), 3), 1 / 3)).astype(np.float16)
    saved_probs.write(tmp_path / "p.npz", values, np.ones(len(files), bool), files, Classes(3))
    words = ["--load", "p.npz", "--val_list", photo_set / "val.txt", "--gpu", -1, "-w", 0, "--no-report"]
    result = script("eval.py", *words, "--tta", "flip", "--scale", 64, "--resamples", 100)
    assert result.code == 0, result.err
    assert "--tta, --scale: no effect, as all of --load are saved predictions" in result.out + result.err
    (path,) = Path("results").rglob("metrics.json")
    options = json.loads(path.read_text())["options"]
    assert (options["tta"], options["scale"], options["resamples"]) == ("none", None, 100)
    assert "no effect" not in script("eval.py", *words).out


def test_list_that_was_made_again_since_training_is_warned_of(photo_set, tmp_path, caplog):
    """The log says "as a.pt recorded", and the scores are of other images."""
    listed = tmp_path / "val.txt"
    listed.write_text((photo_set / "val.txt").read_text())  # its paths are absolute
    data = {"lists": {"val": str(listed)}, "val_list": read_list(listed).fingerprint()}
    path = make(tmp_path / "a.pt", photo_set, data=data)
    load = ["--load", path, "--gpu", "-1", "-w", "0"]
    open_inference(parse_eval(load), "val")
    assert "has changed" not in caplog.text
    listed.write_text(listed.read_text().split("\n", 1)[1])
    open_inference(parse_eval([*load, "--val_list", str(photo_set / "val.txt")]), "val")
    assert "has changed" not in caplog.text
    for words in ([], ["--data_root", str(tmp_path)]):
        caplog.clear()
        open_inference(parse_eval([*load, *words]), "val")
        assert f"{listed} has changed since {path} got its scores: other images, labels or another order" in caplog.text
    caplog.clear()
    warn_changed(read_list(listed), "train", {"a.pt": {"lists": {"train": str(listed)}, "train_list": "0"}, "b.pt": {}})
    assert f"{listed} has changed since a.pt learned from it" in caplog.text


def test_eval_that_fits_to_the_training_list_warns_of_a_network_and_of_its_file(script, colours, task_checkpoint):
    network, listed = task_checkpoint("multilabel"), colours / "multilabel/train.txt"
    words = ["--gpu", -1, "-w", 0, "--resamples", 0, "--no-report", "--val_list", listed, "--save_probs"]
    for tag, flag in (("net", ["--calibrate"]), ("file", ["--fit_thresholds", "one"])):
        member = network if tag == "net" else next(Path("results/net").glob("*/probs.npz"))
        result = script("eval.py", "--tag", tag, "--load", member, *words, *flag)
        assert result.code == 0, result.err
        assert f"{member} was trained on 18 of the 18 images of {listed}. It knows" in result.out + result.err
