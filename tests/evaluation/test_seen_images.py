"""What a network has learned from passes on to every network that is made of it, so that no guard lets one through."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch

from dataloader.file_list import read_list
from evaluation.seen_images import count_seen, find_seen
from made import make
from options import parse_train
from tools.average import command as average
from tools.folds import command as folds
from tools.folds.seen import check_network
from tools.probe import command as probe
from tools.publish import command as publish
from training.run_lists import RunLists
from utils import checkpoint
from utils.classes import Classes
from utils.errors import UserError
from utils.seen_lists import entry, seen_lists

ON_CPU = ("-w", "0", "--gpu", "-1")


@pytest.fixture
def lists(photo_set, tmp_path):
    """Three lists, each of a third of the images of every class."""
    found = []
    for k in range(3):
        lines = (photo_set / "train.txt").read_text().splitlines(keepends=True)[k::3]
        (tmp_path / f"list{k}.txt").write_text("".join(lines))
        found.append(read_list(tmp_path / f"list{k}.txt"))
    return found


def seen(path, lists):
    """Return how many images of each list the checkpoint has seen, and why that may not be all."""
    content = checkpoint.load(path)
    found = [find_seen(seen_lists(content), files) for files in lists]
    return [count for count, _ in found], {doubt for _, doubts in found for doubt in doubts}


def test_seen_lists_of_train_are_those_of_its_starts_its_teacher_and_its_own(script, lists, photo_set, small):
    def train(tag, number, *more):
        words = ["--tag", tag, *small, "--data_root", photo_set, "--train_list", lists[number].source, "--val_freq", 0]
        result = script("train.py", *words, *more)
        assert result.code == 0, result.err
        return f"checkpoints/{tag}/last.pt"

    first = train("first", 0, "--epochs", 1)
    assert seen(first, lists) == ([12, 0, 0], set())
    validated = ["--val_freq", 1, "--val_list", lists[0].source]
    assert seen(train("tuned", 1, "--load", first, "--epochs", 1, *validated), lists) == ([12, 12, 0], set())
    said = f"{first} was trained on 12 of the 12 images of {lists[0].source}. It knows their answers"
    assert said in Path("logs/tuned/log.txt").read_text()
    assert seen(train("taught", 2, "--teacher", "checkpoints/tuned/last.pt", "--epochs", 1), lists) == ([12] * 3, set())
    assert seen(train("taught", 2, "--resume", "--epochs", 2), lists) == ([12] * 3, set())
    assert len(checkpoint.load("checkpoints/taught/last.pt")["data"]["seen"]) == 3
    assert seen(train("first", 1, "--resume", "--epochs", 2), lists) == ([12, 12, 0], set())
    assert train("headed", 1, "--epochs", 1) and seen("checkpoints/headed/last.pt", lists)[0] == [0, 12, 0]
    words = ["--load", "checkpoints/headed/last.pt", "--data_root", photo_set, "--train_list", lists[2].source]
    assert probe.main(["--scale", "32", "--resamples", "100", *ON_CPU, *map(str, words)]) == 0
    headed = "results/probe/probe_timm-test_resnet.pt"
    assert seen(headed, lists) == ([0, 12, 12], set())
    assert seen(train("more", 0, "--probe_init", headed, "--epochs", 1), lists) == ([12] * 3, set())


def test_validation_images_that_a_start_was_trained_on_are_warned_of(lists, caplog):
    known = [[entry(one.source, one.fingerprint())] for one in lists]
    own = RunLists(lists[1], lists[0], Classes(3), lists[1].fingerprint(), lists[0].fingerprint(), {})
    for seen_before, warns in ((known[0], True), (known[2], False), (known[1], False), ([entry(None, None)], False)):
        caplog.clear()
        own.warn_seen("a.pt", seen_before)
        assert ("a.pt was trained on 12 of the 12 images of" in caplog.text) == warns
    caplog.clear()
    replace(own, val=None).warn_seen("a.pt", known[0])
    assert caplog.text == ""


def test_start_whose_list_was_made_again_or_is_not_known_is_warned_of(lists, tmp_path, caplog):
    """prepare.py with another --seed writes other lists to the same paths."""
    own = RunLists(lists[1], lists[0], Classes(3), lists[1].fingerprint(), lists[0].fingerprint(), {})
    doubt = f"so it cannot be checked whether it has seen images of {lists[0].source}"
    for seen_before, reason in (
        ([entry(lists[1].source, "0" * 64)], "which has changed since"),
        ([entry(tmp_path / "gone.txt", "0" * 64)], "which cannot be read now"),
        ([entry(None, "0" * 64)], "does not record where its training list is"),
        ([entry(tmp_path / "moved.txt", lists[1].fingerprint())], ""),
        ([entry(None, lists[1].fingerprint())], ""),
    ):
        caplog.clear()
        own.warn_seen("a.pt", seen_before)
        assert (reason in caplog.text and doubt in caplog.text) if reason else caplog.text == "", seen_before


def test_changed_list_that_still_shares_images_is_counted_and_doubted(lists, tmp_path, caplog):
    """It was another list when the network learned from it, so the count may be too small."""
    lines = [one.source.read_text().splitlines(keepends=True) for one in lists]
    (tmp_path / "changed.txt").write_text("".join([*lines[0][:3], *lines[1]]))
    known = [entry(tmp_path / "changed.txt", "0" * 64)]
    assert count_seen("a.pt", known, lists[0]) == 3
    assert "so it cannot be checked whether it has seen other images than these 3 of" in caplog.text
    caplog.clear()
    assert count_seen("a.pt", known, lists[1]) == 12 and caplog.text == ""


def test_list_of_which_images_are_missing_has_not_changed(lists, tmp_path):
    """train.py leaves missing images out, and records the fingerprint of the others."""
    with lists[0].source.open("a") as file:
        file.write("images/gone.jpg 0\n")
    with_missing = read_list(lists[0].source)
    assert find_seen([entry(lists[0].source, lists[0].fingerprint())], lists[1]) == (0, [])
    assert find_seen([entry(lists[0].source, with_missing.fingerprint())], lists[1]) == (0, [])
    assert find_seen([entry(lists[0].source, "0" * 64)], lists[1])[1]


def test_seen_lists_of_an_average_are_those_of_all_that_it_is_made_of(lists, photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    paths = []
    for k in range(3):
        known = {"train": str(lists[k].source), "val": str(photo_set / "val.txt")}
        data = {"train_list": lists[k].fingerprint(), "lists": known, "class_images": [k, k, k]}
        paths.append(make(tmp_path / f"{k}.pt", photo_set, k / 100, data=data))
    words = [*ON_CPU, "--precision", "fp32", "-b", "6", "--how", "uniform", "--bn_images", "0"]
    assert average.main([*words, "--load", *paths[:2], "--out", "soup.pt"]) == 0
    assert seen("soup.pt", lists) == ([12, 12, 0], set())
    data = checkpoint.load("soup.pt")["data"]
    assert data["class_images"] is None and "train_list" not in data
    assert data["lists"] == {"val": str(photo_set / "val.txt")}
    start = ["--tag", "x", "--model", "timm:test_resnet", "--no-pretrained", "--scale", "32", *ON_CPU]
    start += ["--data_root", str(photo_set), "--load", "soup.pt"]
    for k in (0, 1):
        capfd.readouterr()
        assert folds.main(["--folds", "2", "--", *start, "--train_list", str(lists[k].source)]) == 2
        assert f"soup.pt was trained on 12 of the 12 images of {lists[k].source}" in capfd.readouterr().err
    words = [*words[:-1], "12", "--train_list", str(lists[2].source)]
    assert average.main([*words, "--load", *paths[:2], "--out", "refreshed.pt"]) == 0
    assert seen("refreshed.pt", lists) == ([12] * 3, set()), "batch norm was recomputed with images of the third"


def test_greedy_average_warns_of_the_networks_that_know_the_list(lists, photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    load = []
    for k in (0, 2):
        known = [entry(lists[k].source, lists[k].fingerprint())]
        load.append(make(tmp_path / f"{k}.pt", photo_set, k / 100, data={"seen": known}))
    words = [*ON_CPU, "--precision", "fp32", "-b", "6", "--bn_images", "0", "--val_list", str(lists[0].source)]
    for how, warns in (("greedy", True), ("uniform", False)):
        capfd.readouterr()
        assert average.main([*words, "--how", how, "--load", *load, "--out", f"{how}.pt"]) == 0
        shown = "".join(capfd.readouterr())
        assert (f"{load[0]} was trained on 12 of the 12 images of {lists[0].source}" in shown) == warns
        assert ("nor does the choice of --how greedy" in shown) == warns and f"{load[1]} was trained" not in shown


def test_seen_lists_of_a_greedy_average_are_those_of_the_networks_in_it(lists, photo_set):
    parts = [
        {"data": {"train_list": one.fingerprint(), "lists": {"train": str(one.source)}, "class_images": None}}
        for one in lists[:2]
    ]
    data = average.data_of(parts[1:], photo_set / "val.txt", [])
    assert data["train_list"] == lists[1].fingerprint()
    assert [find_seen(seen_lists({"data": data}), files)[0] for files in lists] == [0, 12, 0]


def test_seen_lists_of_a_published_folder_have_no_paths(lists, photo_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = [{"path": str(one.source), "fingerprint": one.fingerprint(), "task": "single"} for one in lists[:2]]
    path = make(tmp_path / "a.pt", photo_set, data={"seen": known})
    assert publish.main(["--load", path, "--out", "out"]) == 0
    counts, doubts = seen("out", lists)
    assert counts == [12, 12, 0] and len(doubts) == 1
    for file in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    "made_by",
    [{"opt": {"load": "x.pt"}}, {"opt": {"teacher": "x.pt"}}, {"probe": {"top1": 1.0}}, {"average": {"a": 1}}],
)
def test_seen_lists_of_an_earlier_version_say_that_there_may_be_more(made_by, lists):
    data = {"train_list": lists[0].fingerprint(), "lists": {"train": str(lists[0].source)}}
    assert find_seen(seen_lists({"data": data}), lists[1]) == (0, [])
    count, (doubt,) = find_seen(seen_lists({"data": data, **made_by}), lists[1])
    assert count == 0 and "or that of a network that it was made from" in doubt


def test_seen_lists_that_overlap_count_an_image_once(lists):
    known = [{"path": str(lists[0].source), "fingerprint": "0", "task": "single"}] * 2
    content = {"data": {"seen": [*known, {"path": None, "fingerprint": lists[1].fingerprint()}]}}
    both = read_list(lists[0].source).select(torch.arange(12).numpy() < 5)
    assert find_seen(seen_lists(content), both)[0] == 5 and find_seen(seen_lists(content), lists[1]) == (12, [])


@pytest.fixture
def folders(tmp_path, photos):
    """Lists of equal labels and file names: photographs, their smaller and greyer copies, and other photographs."""
    found = {}
    for name in ("first", "copied", "other"):
        folder, shown = tmp_path / name, photos[::-1] if name == "other" else photos
        (folder / "images_by_number").mkdir(parents=True)
        for k in range(3):
            image = shown[k][100 * (k == 1) :, ::-1] if name == "other" else shown[k]
            if name == "copied":
                image = cv2.cvtColor(cv2.cvtColor(cv2.resize(image, (90, 60)), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            cv2.imwrite(str(folder / f"images_by_number/{k:05d}.jpg"), image[..., ::-1])
        (folder / "list.txt").write_text("".join(f"images_by_number/{k:05d}.jpg {k}\n" for k in range(3)))
        found[name] = read_list(folder / "list.txt")
    return found


def test_list_of_other_images_with_equal_names_and_labels_is_not_seen(folders):
    first, copied, other = folders.values()
    assert first.fingerprint() == copied.fingerprint() == other.fingerprint()
    known = [entry(first.source, first.fingerprint())]
    assert [find_seen(known, files) for files in (first, copied, other)] == [(3, []), (3, []), (0, [])]


def test_list_of_equal_names_is_seen_where_its_images_cannot_be_compared(folders):
    first, other = folders["first"], folders["other"]
    published = [entry(None, first.fingerprint())]
    assert find_seen(published, other) == (3, [])
    for file in first.source.parent.glob("*/*"):
        file.unlink()
    known = [entry(first.source, first.fingerprint())]
    assert find_seen(known, other) == (3, []), "the images may have moved"
    first.source.unlink()
    assert find_seen(known, other) == (3, [])


def test_start_whose_list_has_the_names_of_this_runs_list_is_checked(folders, caplog):
    first, copied = folders["first"], folders["copied"]
    known = [entry(copied.source, copied.fingerprint())]
    own = RunLists(first, copied, Classes(3), first.fingerprint(), copied.fingerprint(), {})
    own.warn_seen("a.pt", known)
    assert "a.pt was trained on 3 of the 3 images of" in caplog.text


def test_folds_network_that_learned_held_out_images_before_its_fold_is_refused(lists, photo_set, tmp_path):
    """A run of the whole list, resumed with the list of a fold, records that of the fold as its own."""
    train = parse_train(["--tag", "a", "--data_root", str(photo_set)])
    fold = SimpleNamespace(number=1, tag="a_fold1", train_list=lists[0].source, val_list=lists[1].source)
    run = SimpleNamespace(train=train, folds=[fold])
    known = [{"path": str(one.source), "fingerprint": one.fingerprint(), "task": "single"} for one in lists]
    data = {"train_list": known[0]["fingerprint"], "seen": [known[2], known[0]]}
    check_network(run, fold, tmp_path / "x.pt", {"data": json.loads(json.dumps(data))})
    data["seen"] = [known[1], known[0]]
    with pytest.raises(UserError, match="was trained on 12 of the images that fold 1 holds out"):
        check_network(run, fold, tmp_path / "x.pt", {"data": data})
