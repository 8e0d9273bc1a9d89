"""tools.folds: folds that keep groups whole, out-of-fold probabilities, the ensemble, a kill at any time."""

import argparse
import csv
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import ROOT, wait_for
from dataloader.file_list import read_list
from dataloader.list_checks import units_of
from evaluation.cross_fit import image_keys
from evaluation.seen_images import count_seen
from forked import Forked, launch_fold
from inference import saved_probs
from options import parse_train
from options.plain_yaml import read_yaml
from tools.folds import command, draw, flags, neighbours, oof, seen, training
from utils import checkpoint
from utils.classes import Classes
from utils.errors import UserError
from utils.seen_lists import seen_lists
from utils.signals import RunInterrupted

SMALL = (
    "--model timm:test_resnet --no-pretrained --preset original --scale 32 -b 12 -w 0 --gpu -1 --optimizer sgd "
    "--transform light --precision fp32 --epochs 2"
).split()


def folds(photo_set, tag, *ours, lr=0.01):
    return command.main([*map(str, ours), "--", *SMALL, "--lr", str(lr), "--data_root", str(photo_set), "--tag", tag])


@pytest.fixture(scope="module")
def done(photo_set, tmp_path_factory):
    """A folder with the finished folds of the tags `a` (three folds) and `b` (two folds, another learning rate)."""
    folder = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(training, "launch", launch_fold)
        assert folds(photo_set, "a", "--folds", 3) == 0, Path("train.log").read_text()
        assert folds(photo_set, "b", "--folds", 2, lr=0.1) == 0, Path("train.log").read_text()
    return folder


def copy_of(done, tmp_path, monkeypatch):
    """Copy the finished folds, so that a test may change them, and go there."""
    shutil.copytree(done, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


# ------------------------------------------------------------------------ out of fold


def test_oof_has_each_image_once_by_the_network_that_has_not_seen_it(done, photo_set, script, monkeypatch):
    listed = read_list(photo_set / "train.txt")
    with np.load(done / "results/a/oof.npz") as oof:
        found = {name: oof[name] for name in oof.files}
    assert found["files"].tolist() == [listed.path(k) for k in range(len(listed))]
    assert found["labels"].tolist() == listed.label.tolist()
    assert found["list_hash"] == listed.content_hash() and found["readable"].all()
    assert Counter(found["fold"].tolist()) == {1: 12, 2: 12, 3: 12}
    for number in (1, 2, 3):
        train, val = (read_list(done / f"results/a/folds/fold{number}_{part}.txt") for part in ("train", "val"))
        held = [k for k in range(36) if found["fold"][k] == number]
        assert [val.path(k) for k in range(len(val))] == [listed.path(k) for k in held]
        assert {train.path(k) for k in range(len(train))} == {listed.path(k) for k in range(36) if k not in held}
        assert np.bincount(val.label).tolist() == [4, 4, 4]
        network = done / f"checkpoints/a_fold{number}/last.pt"
        assert checkpoint.load(network)["data"]["train_list"] == train.fingerprint()
        assert (
            script("eval.py", "--load", network, "--val_list", val.source, "--gpu", -1, "-b", 12, "--save_probs").code
            == 0
        )
        (path,) = Path("results/cache").glob(f"a_fold{number}*/probs.npz")
        assert np.array_equal(saved_probs.read(str(path)).values, found["log_probabilities"][held])


def test_oof_score_equals_the_last_validations_and_eval(done, photo_set, script):
    scores = json.loads((done / "results/a/folds.json").read_text())
    for fold in scores["folds"]:
        with open(done / f"logs/{fold['tag']}/metrics.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        assert fold["top1"] == float(last["val_top1"]) and fold["count"] == 12
        assert fold["log_loss"] == pytest.approx(float(last["val_log_loss"]), abs=1e-3)
    assert scores["oof"]["top1"] == pytest.approx(np.mean([fold["top1"] for fold in scores["folds"]]))
    low, high = scores["oof"]["intervals"]["top1"]
    assert low < scores["oof"]["top1"] < high
    assert script("eval.py", "--load", done / "results/a/oof.npz", "--val_list", photo_set / "train.txt").code == 0
    assert json.loads(Path("results/cache/oof/metrics.json").read_text())["log_loss"] == scores["oof"]["log_loss"]
    page = (done / "results/a/oof/report.html").read_text()
    assert "the nearest images by the network's features" in page
    assert "3 folds of timm:test_resnet" in page and "top1 by fold" in page


def test_folds_neighbours_are_of_the_same_fold_and_nearest_by_its_features():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((10, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    fold_of = np.array([0, 1] * 5)
    folds = [SimpleNamespace(number=number, probs=rows[fold_of == number - 1]) for number in (1, 2)]
    run = SimpleNamespace(fold_of=fold_of, folds=folds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_read", lambda kept: kept)
        readable = np.arange(10) != 2
        found = neighbours.FoldFeatures(run).nearest_neighbours(np.array([0, 5]), readable, np.arange(10), 3)
    for place, near in found.items():
        others = [k for k in range(10) if k != place and k != 2 and fold_of[k] == fold_of[place]]
        wanted = sorted(others, key=lambda k: -float(rows[k] @ rows[place]))[:3]
        assert [other for other, _ in near] == wanted
        assert [cosine for _, cosine in near] == pytest.approx([float(rows[k] @ rows[place]) for k in wanted], abs=1e-3)
    assert sorted(found) == [0, 5]


def test_folds_keep_features_beside_the_probabilities(done):
    for number in (1, 2, 3):
        with np.load(done / f"results/a/folds/fold{number}.npz") as content:
            assert len(content["features"]) == len(content["log_probabilities"]) == 12
            lengths = np.linalg.norm(content["features"].astype(np.float32), axis=1)
            assert lengths == pytest.approx(np.ones(12), abs=1e-2)


def test_eval_does_not_replace_the_report_of_the_folds(photo_set, done, tmp_path, monkeypatch, script):
    folder = copy_of(done, tmp_path, monkeypatch)
    report = (folder / "results/a/oof/report.html").read_bytes()
    words = ("--load", "results/a/oof.npz", "--val_list", photo_set / "train.txt")
    refused = script("eval.py", "--tag", "a", *words)
    assert refused.code == 2
    assert "results/a/oof/ is the report of tools.folds" in refused.err
    again = refused.err.partition("Try: python ")[2].split()
    assert (folder / "results/a/oof/report.html").read_bytes() == report
    assert script(*again).code == 0
    assert (folder / "results/a_oof/oof/report.html").is_file()


def test_folds_ensemble_submits_the_mean_of_its_networks(done, photo_set, script):
    content = read_yaml(done / "results/a/ensemble.yaml")
    networks = [done / f"checkpoints/a_fold{number}/last.pt" for number in (1, 2, 3)]
    assert [(done / "results/a" / path).resolve() for path in content["load"]] == networks
    common = ["--gpu", -1, "--save_probs", "-b", 12]
    for tag, members in (("whole", ["--ensemble", done / "results/a/ensemble.yaml"]), ("typed", ["--load", *networks])):
        result = script(
            "submit.py", "--tag", tag, *members, *common
        )  # the test list is the one beside the training list
        assert result.code == 0, result.err
    one, two = (saved_probs.read(f"results/{tag}/probs.npz").values for tag in ("whole", "typed"))
    assert len(one) == 6 and np.array_equal(one, two)
    assert Path("results/whole/submission.csv").read_text() == Path("results/typed/submission.csv").read_text()


def test_oof_files_of_two_recipes_stack_into_one_ensemble(done, photo_set, script):
    files = [done / f"results/{tag}/oof.npz" for tag in ("a", "b")]
    result = script(
        "eval.py", "--tag", "s", "--load", *files, "--val_list", photo_set / "train.txt", "--blend", "optimal"
    )
    assert result.code == 0, result.err
    content = read_yaml(Path("results/s/oof+oof/ensemble.yaml"))
    fitted = [float(word) for word in re.search(r"weights: (\S+) .*, (\S+) ", result.out).groups()]
    weights = [float(weight) for weight in content["weights"]]
    assert weights == pytest.approx([fitted[0] / 3] * 3 + [fitted[1] / 2] * 2, abs=1e-4) and sum(
        fitted
    ) == pytest.approx(1)
    names = [f"{tag}_fold{number}" for tag, count in (("a", 3), ("b", 2)) for number in range(1, count + 1)]
    assert [Path(path).parent.name for path in content["load"]] == names
    assert "submit.py --tag s --ensemble results/s/oof+oof/ensemble.yaml" in result.out
    assert script("submit.py", "--tag", "s", "--ensemble", "results/s/oof+oof/ensemble.yaml", "--gpu", -1).code == 0
    assert len(Path("results/s/submission.csv").read_text().splitlines()) == 7


def test_oof_file_that_changed_is_stacked_as_a_file(done, photo_set, script, tmp_path, monkeypatch):
    """Its ensemble.yaml is of other probabilities, so its networks are not those that the weights were fitted to."""
    folder = copy_of(done, tmp_path, monkeypatch)
    path = folder / "results/b/oof.npz"
    with np.load(path) as oof:
        np.savez(path, **{name: oof[name] for name in oof.files} | {"extra": np.zeros(1)})
    files = ["results/a/oof.npz", path]
    result = script(
        "eval.py", "--tag", "s", "--load", *files, "--val_list", photo_set / "train.txt", "--blend", "greedy"
    )
    assert result.code == 0 and "with their .npz of the test list" in result.out


# ------------------------------------------------------------------------ continuing


def test_folds_second_call_trains_nothing_and_gives_same_bits(done, photo_set, tmp_path, monkeypatch, capfd):
    folder = copy_of(done, tmp_path, monkeypatch)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    before = (folder / "results/a/oof.npz").read_bytes()
    assert folds(photo_set, "a", "--folds", 3) == 0
    shown = capfd.readouterr().out
    assert "continue: 3 of 3 are trained" in shown and shown.count("is predicted already") == 3
    assert (folder / "results/a/oof.npz").read_bytes() == before
    assert "Next: python submit.py --tag a" in shown


@pytest.mark.parametrize(
    ("ours", "lr", "said"),
    [
        (["--folds", 3], 0.02, "--lr 0.01 -> 0.02"),
        (["--folds", 4], 0.01, "--folds 3 -> 4"),
        (["--folds", 3, "--seed", 7], 0.01, "the images are in other folds"),
    ],
)
def test_folds_of_another_plan_are_refused(done, photo_set, tmp_path, monkeypatch, capfd, ours, lr, said):
    folder = copy_of(done, tmp_path, monkeypatch)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    assert folds(photo_set, "a", *ours, lr=lr) == 2
    assert said in capfd.readouterr().err
    assert (folder / "results/a/oof.npz").is_file()


def test_folds_of_other_class_names_are_refused(done, photo_set, tmp_path, monkeypatch, capfd):
    """They continued: oof.npz had the new names, and the networks the old ones."""
    copy_of(done, tmp_path, monkeypatch)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    edited, path = tmp_path / "edited", Path("results/a/folds/plan.json")
    shutil.copytree(photo_set, edited)
    names = (edited / "classes.txt").read_text().split()
    for text, said in (
        ("\n".join(names[::-1]), f"class 0 is {names[0]!r} there and {names[-1]!r} in classes.txt"),
        ("", "classes.txt names no classes now"),
    ):
        (edited / "classes.txt").write_text(text) if text else (edited / "classes.txt").unlink()
        plan = json.loads(path.read_text())
        path.write_text(json.dumps(plan | {"options": plan["options"] | {"data_root": str(edited)}}))
        before = path.read_bytes()
        assert folds(edited, "a", "--folds", 3) == 2
        assert said in capfd.readouterr().err and path.read_bytes() == before
    plan = json.loads(path.read_text())
    del plan["classes"]  # as an earlier version wrote it
    path.write_text(json.dumps(plan))
    assert folds(edited, "a", "--folds", 3) == 0


def test_folds_refuse_runs_of_another_origin_and_overwrite_deletes_them(done, photo_set, tmp_path, monkeypatch, capfd):
    folder = copy_of(done, tmp_path, monkeypatch)
    shutil.rmtree("results/a")
    assert folds(photo_set, "a", "--folds", 3) == 2
    assert "There are runs of tag a_fold1, a_fold2, a_fold3 already" in capfd.readouterr().err

    class BeganError(Exception):
        pass

    def stop(line, _):
        assert not list((folder / "checkpoints").glob("a_fold*/*.pt")) and "--resume" not in line
        raise BeganError

    monkeypatch.setattr(training, "launch", stop)
    assert folds(photo_set, "a", "--folds", 3, "--overwrite") == 1
    assert "BeganError" in capfd.readouterr().err
    assert len(list((folder / "checkpoints").glob("b_fold*/last.pt"))) == 2


def test_folds_overwrite_with_fewer_folds_deletes_the_further_ones(done, photo_set, tmp_path, monkeypatch, capfd):
    """The third network stayed, trained on other parts, and a_fold*/last.pt named it too."""
    folder = copy_of(done, tmp_path, monkeypatch)
    assert folds(photo_set, "a", "--folds", 2) == 2 and "--folds 3 -> 2" in capfd.readouterr().err
    assert len(list((folder / "checkpoints").glob("a_fold*/last.pt"))) == 3, "a call that is refused deletes nothing"
    monkeypatch.setattr(training, "launch", launch_fold)
    assert folds(photo_set, "a", "--folds", 2, "--overwrite") == 0
    assert sorted(path.parent.name for path in (folder / "checkpoints").glob("a_*/last.pt")) == ["a_fold1", "a_fold2"]
    assert (
        not list((folder / "checkpoints/a_fold3").glob("*.pt")) and not (folder / "logs/a_fold3/metrics.csv").exists()
    )
    lists = {path.name for path in (folder / "results/a/folds").rglob("*fold*.txt")}
    assert lists and not any("3" in name for name in lists)


def amend(path, data=None, **changes):
    """Change keys of a checkpoint, and in its `data`; None removes a key there."""
    content = checkpoint.load(path)
    content["data"] = {k: v for k, v in (content["data"] | (data or {})).items() if v is not None}
    checkpoint.save(path, content | changes)


@pytest.mark.parametrize("name", ["last", "best"])
def test_folds_network_of_another_list_never_predicts(done, photo_set, tmp_path, monkeypatch, capfd, name):
    """The network of fold 2 has seen the images that fold 1 holds out."""
    folder = copy_of(done, tmp_path, monkeypatch)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    before = (folder / "results/a/oof.npz").read_bytes()
    shutil.copy(f"checkpoints/a_fold2/{name}.pt", f"checkpoints/a_fold1/{name}.pt")
    assert folds(photo_set, "a", "--folds", 3, "--checkpoint", name) == 2
    said = capfd.readouterr().err
    assert f"checkpoints/a_fold1/{name}.pt was trained on another list than results/a/folds/fold1_train.txt: " in said
    assert "fold2_train.txt.\n" in said and "try: python clear.py --tag a_fold1" in said
    assert (folder / "results/a/oof.npz").read_bytes() == before


def test_folds_interrupted_run_of_another_list_is_not_resumed(done, photo_set, tmp_path, monkeypatch, capfd):
    copy_of(done, tmp_path, monkeypatch)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    Path("results/a/folds/fold1.trained").unlink()
    shutil.copy("checkpoints/a_fold2/last.pt", "checkpoints/a_fold1/last.pt")
    assert folds(photo_set, "a", "--folds", 3) == 2
    assert "was trained on another list" in capfd.readouterr().err


def test_folds_run_that_another_continued_is_refused(done, photo_set, tmp_path, monkeypatch, capfd):
    """Its list is the fold's, but the plan has other epochs. Marks of earlier versions note no identity."""
    copy_of(done, tmp_path, monkeypatch)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    last = Path("checkpoints/a_fold1/last.pt")
    amend(last, opt=checkpoint.load(last)["opt"] | {"epochs": 3})
    assert folds(photo_set, "a", "--folds", 3) == 2
    assert "another run of tag 'a_fold1' has replaced or continued it" in capfd.readouterr().err
    Path("results/a/folds/fold1.trained").write_text('{"tag": "a_fold1"}')
    assert folds(photo_set, "a", "--folds", 3) == 0


def test_folds_checkpoint_that_records_no_list_passes(done, photo_set, tmp_path, monkeypatch):
    copy_of(done, tmp_path, monkeypatch)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    amend("checkpoints/a_fold1/last.pt", {"train_list": None, "lists": None})
    Path("results/a/folds/fold1.trained").write_text('{"tag": "a_fold1"}')
    assert folds(photo_set, "a", "--folds", 3) == 0


def test_folds_image_that_was_missing_in_training_keeps_its_network(done, photo_set, tmp_path, monkeypatch):
    """train.py leaves missing images out, and records the list of the others."""
    copy_of(done, tmp_path, monkeypatch)
    fold = SimpleNamespace(number=1, tag="a_fold1", train_list=Path("results/a/folds/fold1_train.txt"))
    listed = read_list(fold.train_list)
    fold.train_list.write_text(fold.train_list.read_text() + f"{tmp_path}/gone_image_of_a_class.jpg 0\n")
    content = {"data": {"train_list": listed.fingerprint()}}
    words = [*SMALL, "--tag", "a", "--data_root", str(photo_set), "--on_bad_image", "skip"]
    run = SimpleNamespace(train=parse_train(words), folds=[fold])
    seen.check_network(run, fold, Path("x.pt"), content)
    with pytest.raises(UserError, match="was trained on another list"):
        seen.check_network(run, fold, Path("x.pt"), {"data": {"train_list": "0"}})


def test_folds_of_another_checkpoint_folder_are_refused(done, photo_set, tmp_path, monkeypatch, capfd):
    """There may be runs of the same tags there, which these folds did not begin."""
    copy_of(done, tmp_path, monkeypatch)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    shutil.copytree("checkpoints", "others")
    words = ["--folds", "3", "--", *SMALL, "--lr", "0.01", "--data_root", str(photo_set), "--tag", "a"]
    assert command.main([*words, "--checkpoint_dir", "others"]) == 2
    assert "--checkpoint_dir checkpoints -> others" in capfd.readouterr().err
    plan = Path("results/a/folds/plan.json")
    plan.write_text(json.dumps({k: v for k, v in json.loads(plan.read_text()).items() if k != "checkpoint_dir"}))
    assert command.main([*words, "--checkpoint_dir", "./others"]) == 0  # a plan of an earlier version


KILLED = """
import os, runpy, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import gate
from tools import train_process
from tools.folds import command, training

def launch(line, processes):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    train_process.end_with_parent()
    sys.argv = [{train!r}, *line]
    if "k_fold2" in line:
        gate.hold(Path("gates"), {{1}})
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        os._exit(0)
    except SystemExit as end:
        os._exit(end.code or 0)

training.launch = launch
sys.exit(command.main())
"""


@pytest.mark.parametrize("hard", [False, True], ids=["tool", "tool and training"])
def test_folds_killed_in_a_training_end_with_the_same_bits(photo_set, tmp_path, monkeypatch, capfd, hard):
    """SIGKILL while the second of two folds is between its epochs; its training saves its state, or is killed too."""
    words = ["--folds", "2", "--", *SMALL, "--lr", "0.01", "--data_root", str(photo_set), "--tag", "k"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    monkeypatch.setattr(training, "launch", launch_fold)
    monkeypatch.chdir(whole)
    assert command.main(words) == 0, Path("train.log").read_text()

    (cut / "gates").mkdir()
    tests = str(ROOT / "tests")
    (cut / "tool.py").write_text(KILLED.format(root=str(ROOT), tests=tests, train=str(ROOT / "train.py")))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = Forked(cut, cut / "out", cut / "tool.py", *words, environment=environment, session=True)
    wait_for(lambda: (cut / "gates/1").exists() or process.poll() is not None)
    assert process.poll() is None, (cut / "out").read_text()
    if hard:
        os.killpg(process.pid, 9)
    process.kill()
    process.wait()
    assert not (cut / "results/k/oof.npz").exists()

    monkeypatch.chdir(cut)
    capfd.readouterr()
    assert command.main(words) == 0, Path("train.log").read_text()
    shown = capfd.readouterr().out
    assert "k_fold1 is trained already" in shown and "resuming k_fold2" in shown
    assert (cut / "results/k/oof.npz").read_bytes() == (whole / "results/k/oof.npz").read_bytes()


@pytest.mark.parametrize(("code", "error"), [(2, UserError), (-9, UserError), (143, RunInterrupted)])
def test_folds_training_that_fails_ends_with_one_error(done, photo_set, tmp_path, monkeypatch, capfd, code, error):
    copy_of(done, tmp_path, monkeypatch)
    Path("results/a/folds/fold2.trained").unlink()
    lines = []
    monkeypatch.setattr(training, "launch", lambda line, _: lines.append(line) or code)
    assert folds(photo_set, "a", "--folds", 3) == (2 if error is UserError else 143)
    shown = "".join(capfd.readouterr())
    assert "Fold 2 of 3, tag a_fold2: the training" in shown and "Run the same command again" in shown
    ((*line,),) = lines
    assert "--resume" in line and "--lr" not in line  # the checkpoint has it


def test_launch_with_processes_uses_torchrun(monkeypatch):
    import contextlib
    import sys

    started = []

    @contextlib.contextmanager
    def record(command, **_):
        started.append(command)
        yield argparse.Namespace(wait=lambda: 0)

    monkeypatch.setattr(training, "train_process", record)
    assert training.launch(["--tag", "x"], 2) == 0 and training.launch(["--tag", "x"], 1) == 0
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert started == [[sys.executable, *more, str(ROOT / "train.py"), "--tag", "x"] for more in (several, [])]


# ------------------------------------------------------------------------ drawing


def write_list(folder, labels, paths=None):
    folder.mkdir(exist_ok=True)
    paths = paths or [f"p{k}.jpg" for k in range(len(labels))]
    lines = [f"{path} {label}\n" for path, label in zip(paths, labels, strict=True)]
    (folder / "train.txt").write_text("".join(lines))
    return read_list(folder / "train.txt")


def drawn(files, *words):
    opt = flags.option_parser().parse_args(list(map(str, words)))
    return draw.draw(opt, files, Classes(int(files.label.max()) + 1))[1]


def test_draw_spreads_classes_and_repeats_with_its_seed(tmp_path):
    files = write_list(tmp_path, [0] * 50 + [1] * 10)
    one = drawn(files, "--folds", 5)
    for label, each in ((0, 10), (1, 2)):
        assert np.bincount(one[files.label == label]).tolist() == [each] * 5
    assert np.array_equal(one, drawn(files, "--folds", 5))
    assert not np.array_equal(one, drawn(files, "--folds", 5, "--seed", 1))


def test_draw_keeps_groups_of_a_table_whole(tmp_path):
    files = write_list(tmp_path, [k % 2 for k in range(40)])
    rows = [f"p{k}.jpg,item {k // 4},x" for k in range(40)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["image,product,more", *rows]) + "\n")
    words = ["--group_table", table, "--group_column", "product", "--path_column", "image"]
    fold = drawn(files, "--folds", 5, *words)
    assert all(len(set(fold[k : k + 4])) == 1 for k in range(0, 40, 4)) and len(set(fold)) == 5
    table.write_text("\n".join(["image,product,more", *rows[:-2]]) + "\n")
    with pytest.raises(UserError, match=r"no row for 2 of 40 images.*p38\.jpg"):
        drawn(files, "--folds", 5, *words)
    table.write_text("\n".join(["image,product,more", *rows, "p0.jpg,other,x"]) + "\n")
    with pytest.raises(UserError, match=r"gives .*p0\.jpg two groups"):
        drawn(files, "--folds", 5, *words)
    with pytest.raises(UserError, match="no column 'produkt'.*"):
        drawn(files, "--folds", 5, *words[:2], "--group_column", "produkt", *words[4:])


def test_draw_keeps_groups_of_a_pattern_and_repeated_lines_together(tmp_path):
    files = write_list(tmp_path, [k % 2 for k in range(40)], [f"{k // 4}_view{k % 4}.jpg" for k in range(40)])
    fold = drawn(files, "--folds", 5, "--group_by", "([^/]+)_view")
    assert all(len(set(fold[k : k + 4])) == 1 for k in range(0, 40, 4))
    twice = write_list(tmp_path, [0, 1] * 20, [f"{'./' * (k // 20)}p{k % 20}.jpg" for k in range(40)])
    fold = drawn(twice, "--folds", 5)
    assert np.array_equal(fold[:20], fold[20:])
    for pattern in (r"(.*)\.jpg", r"(p\d)\.jpg"):  # it captures "./" too; it leaves half of the images alone
        fold = drawn(twice, "--folds", 5, "--group_by", pattern)
        assert np.array_equal(fold[:20], fold[20:]) and len(set(fold)) == 5


def test_oof_of_grouped_images_keeps_groups_together_in_intervals_and_cross_fits(photo_set, tmp_path, script):
    """Images of a group were drawn one by one, so intervals were too narrow where such images are alike."""
    listed, words = read_list(photo_set / "train.txt"), ["--group_by", r"train_(\w+_\d)"]  # the first digit of a number
    files, fold_of = draw.draw(flags.option_parser().parse_args(["--folds", "2", *words]), listed, Classes(3))
    assert len(np.unique(files.group)) == 3 * 10 and len(files.select(fold_of == 0).group) == (fold_of == 0).sum()
    assert np.array_equal(image_keys(files), files.group) and np.array_equal(units_of(files), files.group)
    assert len(np.unique(units_of(listed))) == len(listed) == 36

    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 36).astype(np.float32)
    values, classes = saved_probs.to_log_float16(probabilities), Classes(3, task="single")
    parts = [SimpleNamespace(number=k + 1, probs=tmp_path / f"fold{k + 1}.npz") for k in range(2)]
    for k, part in enumerate(parts):
        mine = fold_of == k
        saved_probs.write(part.probs, values[mine], np.ones(mine.sum(), bool), files.select(mine), classes)
    found = {}
    for name, grouped in (("with", files), ("without", listed)):
        opt, folder = SimpleNamespace(fit_thresholds=None, resamples=200), tmp_path / name
        folder.mkdir()
        train = SimpleNamespace(seed=0)
        run = SimpleNamespace(
            files=grouped, fold_of=fold_of, folds=parts, folder=folder, classes=classes, opt=opt, train=train
        )
        path, _ = oof.write_oof(run)
        assert ("group" in np.load(path)) == (name == "with")
        load = ["--load", path, "--val_list", listed.source, "--resamples", 200, "--seed", 0, "--no-report"]
        result = script("eval.py", "--tag", name, *load, "--gpu", -1)
        assert result.code == 0, result.err
        assert ("keep the groups of" in result.out) == (name == "with")
        metrics = json.loads(Path(f"results/{name}/oof/metrics.json").read_text())
        found[name] = metrics["intervals"]["top1"]
    assert found["with"] != found["without"]


def test_draw_groups_that_list_the_same_image_become_one(tmp_path, caplog):
    """A third group lists an image of each of two groups again, by another spelling."""
    paths = [f"g{k // 4}_view{k % 4}.jpg" for k in range(40)] + ["./both/../g0_view0.jpg", "both/../g1_view0.jpg"]
    files = write_list(tmp_path, [0] * 42, paths)
    fold = drawn(files, "--folds", 4, "--group_by", r"(both|g\d_view)")
    assert len(set(fold[:8])) == 1 and len({*fold[40:], *fold[:8]}) == 1
    assert "2 group(s) are joined" in caplog.text


def test_draw_class_with_fewer_images_than_folds_is_refused_by_name(tmp_path):
    files = write_list(tmp_path, [0] * 20 + [1] * 3)
    with pytest.raises(UserError, match=r"--folds is 5, and 1 of 2 classes have fewer images: 1 \(3\)(.|\n)*--folds 3"):
        drawn(files, "--folds", 5)
    assert len(set(drawn(files, "--folds", 5, "--allow_rare")[20:])) == 3
    grouped = write_list(tmp_path, [0] * 20 + [1] * 6, [f"g{min(k, 20)}_view{k}.jpg" for k in range(26)])
    with pytest.raises(UserError, match=r"fewer groups: 1 \(1\)"):
        drawn(grouped, "--folds", 5, "--group_by", "(g[0-9]+)_view")


def test_draw_class_in_one_fold_alone_is_counted_with_allow_rare(tmp_path, caplog):
    files = write_list(tmp_path, [0] * 20 + [1])
    drawn(files, "--folds", 5, "--allow_rare")
    assert "1 class(es) have all their images in one fold: 1. 1 image(s) are predicted by a network" in caplog.text


# ------------------------------------------------------------------------ flags


WRONG = {
    "folds": (["--folds", "1"], [], "--folds is 1; allowed: 2"),
    "val_list": ([], ["--val_list", "x.txt"], "--val_list after -- does not fit"),
    "resume": ([], ["--resume"], "--resume after -- does not fit"),
    "overwrite": ([], ["--overwrite"], "give --overwrite before --"),
    "column alone": (["--group_column", "g"], [], "--group_column is of a table. Try: --group_table FILE"),
    "no table": (["--group_table", "no.csv"], [], "There is no file no.csv for --group_table"),
    "both groups": (["--group_table", "no.csv", "--group_by", "x"], [], "leave one out"),
    "pattern": (["--group_by", "("], [], "not a regular expression"),
    "best": (["--checkpoint", "best"], ["--val_freq", "0"], "--checkpoint best needs validations"),
    "long tag": ([], ["--tag", "x" * 98], "is too long"),
}


@pytest.mark.parametrize("case", WRONG)
def test_folds_wrong_flags_are_refused_before_anything_is_read(case, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    ours, theirs, said = WRONG[case]
    assert command.main([*ours, "--", *theirs]) == 2
    assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_folds_of_class_folders_divide_all_their_images(photo_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in photo_set.glob("train_*.jpg"):
        folder = Path("root") / path.name.split("_")[1]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    lines = []
    monkeypatch.setattr(training, "launch", lambda line, _: lines.append(line) or 2)
    assert command.main(["--folds", "3", "--", "--tag", "x", *SMALL, "--data_root", "root"]) == 2
    assert lines[0][lines[0].index("--train_list") + 1] == "results/x/folds/fold1_train.txt"
    assert len(read_list("results/x/folds/fold1_train.txt")) == 24
    assert Path("results/x/folds/classes.txt").read_text().split() == ["china", "flower", "hopper"]


def test_folds_table_without_its_columns_lists_them(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("image,product\n")
    assert command.main(["--group_table", "t.csv", "--", "--model", "ResNet18"]) == 2
    assert "needs --group_column and --path_column; the first line of t.csv is: image,product" in capfd.readouterr().err


def test_folds_under_torchrun_name_the_flag(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.main(["--", "--tag", "x"]) == 2
    assert "--processes 2" in capfd.readouterr().err


@pytest.mark.parametrize("flag", ["--load", "--teacher"])
def test_folds_network_that_has_seen_the_list_is_refused(done, photo_set, tmp_path, monkeypatch, capfd, flag):
    """A fold's own training list stands for the whole one."""
    copy_of(done, tmp_path, monkeypatch)
    words = ["--folds", "2", "--", "--tag", "x", *SMALL, "--data_root", str(photo_set)]
    words += ["--train_list", "results/a/folds/fold1_train.txt", flag, "checkpoints/a_fold1/last.pt"]
    assert command.main(words) == 2
    assert f"{flag} checkpoints/a_fold1/last.pt was trained on" in capfd.readouterr().err
    assert not Path("results/x").exists()


@pytest.mark.parametrize("flag", ["--load", "--teacher"])
def test_folds_of_another_network_at_the_same_path_are_refused(photo_set, tmp_path, monkeypatch, capfd, flag):
    """Fold 2 was trained from another network than fold 1, and both were one oof score."""
    monkeypatch.chdir(tmp_path)
    first, other = ({"weights": {"a": torch.full((2,), value)}} for value in (0.0, 1.0))
    torch.save(first["weights"], "w.pt")
    lines = []
    monkeypatch.setattr(training, "launch", lambda line, _: lines.append(line) or 2)
    words = ["--folds", "2", "--", *SMALL, "--data_root", str(photo_set), "--tag", "x", flag, "w.pt"]
    assert command.main(words) == 2 and len(lines) == 1
    plan = Path("results/x/folds/plan.json")
    kept = json.loads(plan.read_text())
    assert kept["networks"] == {"w.pt": checkpoint.identity(first)}
    torch.save(other["weights"], "w.pt")
    capfd.readouterr()
    for _ in range(2):  # a call that is refused does not make the new network the known one
        assert command.main(words) == 2 and len(lines) == 1
        assert "w.pt: another network than when the folds of tag 'x' were begun" in capfd.readouterr().err
    torch.save(first["weights"], "w.pt")
    assert command.main(words) == 2 and len(lines) == 2
    torch.save(other["weights"], "w.pt")
    plan.write_text(json.dumps({name: value for name, value in kept.items() if name != "networks"}))
    assert command.main(words) == 2 and len(lines) == 3, "an earlier version noted no network"
    assert json.loads(plan.read_text())["networks"] == {"w.pt": checkpoint.identity(other)}
    torch.save(first["weights"], "w.pt")
    assert command.main([words[0], words[1], "--overwrite", *words[2:]]) == 2 and len(lines) == 4


def test_folds_network_that_has_seen_images_of_a_cleaned_list_is_refused(done, photo_set, tmp_path, monkeypatch, capfd):
    """One line is out of the list, so the lists differ, and all of its images are known. A list that is gone warns."""
    copy_of(done, tmp_path, monkeypatch)
    monkeypatch.setattr(training, "launch", lambda *_: 2)
    listed = Path("results/a/folds/fold1_train.txt")
    lines = listed.read_text().splitlines(keepends=True)
    Path("cleaned.txt").write_text("".join(lines[1:]))
    words = ["--folds", "2", "--", "--tag", "x", *SMALL, "--data_root", str(photo_set)]
    words += ["--train_list", "cleaned.txt", "--load", "checkpoints/a_fold1/last.pt"]
    assert command.main(words) == 2
    assert "a_fold1/last.pt was trained on 23 of the 23 images of cleaned.txt" in capfd.readouterr().err
    assert not Path("results/x").exists()
    listed.unlink()
    amend("checkpoints/a_fold1/last.pt", {"seen": [{"path": str(listed), "fingerprint": "0"}]})
    assert command.main(words) == 2  # as the training "fails"
    shown = "".join(capfd.readouterr())
    assert "fold1_train.txt, which cannot be read now, so it cannot be checked" in shown
    assert Path("results/x").exists()


def test_count_seen_of_records_of_any_age_is_a_number_or_a_warning(tmp_path, caplog):
    files = write_list(tmp_path / "a", [0, 1] * 3)
    write_list(tmp_path / "b", [0, 1] * 3, ["more.jpg", *(f"p{k}.jpg" for k in range(5))])
    mine, theirs = str(tmp_path / "a/train.txt"), str(tmp_path / "b/train.txt")

    def count(data, opt=None):
        caplog.clear()
        return count_seen("--load x", seen_lists({"data": data, "opt": opt or {}}), files)

    assert count({"train_list": files.fingerprint(), "lists": None}) == 6 and not caplog.text
    assert count({"train_list": "0" * 64, "lists": {"train": mine}}) == 6
    assert count({}, {"train_list": mine}) == 6 and count({}, {"data_root": str(tmp_path / "a")}) == 6
    new = read_list(theirs).fingerprint()
    assert count({"train_list": new, "lists": {"train": theirs}}) == 0 and not caplog.text
    assert count({"train_list": "1" * 64, "lists": {"train": theirs}}) == 0 and "has changed since" in caplog.text
    assert count({"train_list": "1" * 64}) == 0 and "does not record where its training list is" in caplog.text


def test_which_checkpoint_is_last_unless_patience_ends_the_run():
    opt = flags.option_parser().parse_args([])
    assert flags.which_checkpoint(opt, argparse.Namespace(patience=0)) == "last"
    assert flags.which_checkpoint(opt, argparse.Namespace(patience=3)) == "best"
    opt = flags.option_parser().parse_args(["--checkpoint", "last"])
    assert flags.which_checkpoint(opt, argparse.Namespace(patience=3)) == "last"
