"""tools.lr_find finds a learning rate; tools.sweep continues after a kill; TensorBoard has each point once."""

import contextlib
import csv
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT, gated, wait_for
from evaluation.report import tool_plots
from options import build_parser, parse_train
from tools import lr_find, preview, sweep_space
from tools.sweep import FIXED
from utils import logger
from utils.errors import UserError

CODE = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def tiny(photo_set) -> list[str]:
    """Flags for a run of a third of a second: 373,000 parameters, epochs of three batches."""
    words = (
        "--model timm:test_resnet --no-pretrained --preset original "
        "--scale 32 -b 12 -w 0 --gpu -1 --lr 0.01 --optimizer sgd"
    )
    return [*words.split(), "--transform", "light", "--precision", "fp32", "--data_root", str(photo_set)]


# ------------------------------------------------------------------------ lr_find


def test_suggest_on_known_curve_finds_steepest_fall():
    rates = np.logspace(-6, 1, 200)
    losses = 1 + 1 / (1 + (rates / 1e-2) ** 2) + np.where(rates > 1, rates, 0)  # falls fastest at 1e-2, in log(rate)
    found = lr_find.suggest(rates, losses)
    assert 0.7e-2 <= found <= 1.4e-2
    assert lr_find.suggest(rates, np.linspace(1, 2, 200)) is None


def test_lr_find_in_several_processes_is_refused(monkeypatch, capfd):
    """It ended in a traceback of torch."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lr_find.main([]) == 2
    assert "Range tests run in one process, but torchrun started 2" in capfd.readouterr().err


def test_lr_find_writes_only_its_results_and_valid_command(tmp_path, monkeypatch, tiny, capfd, photo_set):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text("steps: 60\nsmooth: 0.1\n")
    words = [*tiny, "--high", "100", "--low=1e-5", "--config", "more.yaml", "--log_dir", "my logs", "--accumulate", "2"]
    monkeypatch.setattr(logger, "PROGRESS_SECONDS", 0.0)
    code = lr_find.main(words)
    shown = capfd.readouterr()
    assert code == 0, shown.err
    assert sorted(str(path) for path in Path().rglob("*.*")) == [
        "more.yaml",
        "my logs/cache/lr_find.csv",
        "my logs/cache/lr_find.png",
    ]
    # no terminal shows a bar here
    assert re.search(r"^range test: 1 of 60, [0-9.]+ min left$", shown.out, re.MULTILINE)
    with open("my logs/cache/lr_find.csv", newline="") as file:
        rows = [(float(row["lr"]), float(row["loss"])) for row in csv.DictReader(file)]
    factor = (100 / 1e-5) ** (1 / 59)
    assert rows[0][0] == pytest.approx(1e-5) and rows[5][0] / rows[4][0] == pytest.approx(factor)
    assert len(rows) < 60 and "exploded" in shown.out  # a rate of 100 blows every network up
    line = shlex.split(shown.out.strip().splitlines()[-1])
    assert line[:2] == ["python", "train.py"]
    monkeypatch.setattr(sys, "argv", line[1:])
    opt = parse_train()
    assert 1e-5 < opt.lr < 100 and opt.model == "timm:test_resnet" and opt.accumulate == 2
    assert opt.smooth == 0.1 and opt.log_dir == "my logs" and opt.epochs == 20 and opt.config is None


@pytest.mark.parametrize(
    "words, batch", [([], 16), (["-b", "48"], 36), (["-b", "8"], 8)], ids=["chosen", "all", "given"]
)
def test_lr_find_title_names_the_batch_of_the_test(words, batch, tmp_path, monkeypatch, photo_set):
    """It named the default of the parser, which --preset auto does not use."""
    monkeypatch.chdir(tmp_path)
    titles, draw = [], tool_plots.range_test
    monkeypatch.setattr(tool_plots, "range_test", lambda *args: (titles.append(args[-1]), draw(*args)))
    words = [*words, *f"--tag x --data_root {photo_set} --model timm:test_resnet --no-pretrained".split()]
    words += "--scale 16 -w 0 --gpu -1 --low 1e-4 --high 1e-1 --steps 20 --precision fp32".split()
    lr_find.main(words)
    assert titles == [f"timm:test_resnet, adamw, batches of {batch}"]


@pytest.mark.parametrize("words", [[], ["--epochs", "7"], ["--preset", "original"]], ids=str)
def test_preview_says_whose_augmentation_it_shows(words, tmp_path, monkeypatch, capfd, photo_set):
    """It chooses the epochs, and with them the strength, without the network, so a run may choose others."""
    monkeypatch.chdir(tmp_path)
    words = [*words, "--data_root", str(photo_set), "--scale", "16", "--samples", "1", "--views", "1"]
    assert preview.main(words) == 0
    assert ("augmented as in 30 epochs" in capfd.readouterr().out) == (len(words) == 8)


def test_preview_draws_each_epoch_at_its_size_of_the_schedule(tmp_path, monkeypatch, photo_set):
    """It drew --scale, at which no epoch of such a run is trained."""
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(preview, "gallery", lambda path, images, captions, *_, **__: drawn.append((images, captions)))
    words = ["--data_root", str(photo_set), "--scale", "16", "--scale_schedule", "1:12,3:24"]
    assert preview.main([*words, "--samples", "2", "--views", "3"]) == 0
    ((images, captions),) = drawn
    assert [image.shape[0] for image in images] == [16, 12, 12, 24] * 2
    assert captions[1:4] == ["epoch 1, 12 px", "epoch 2, 12 px", "epoch 3, 24 px"]


def test_lr_find_of_few_images_takes_every_step_of_the_range(tmp_path, monkeypatch, capfd, photo_set):
    """36 images in 30 epochs make fewer batches than steps; the chosen rate must not move the range."""
    monkeypatch.chdir(tmp_path)
    words = f"--tag x --data_root {photo_set} --model timm:test_resnet --no-pretrained --scale 32 -w 0 --gpu -1".split()
    words += "--low 1e-5 --high 1e-3 --steps 200 --class_weight effective --precision fp32".split()
    assert lr_find.main(words) == 0, capfd.readouterr().err
    with open("logs/x/lr_find.csv", newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert len(rates) == 200 and (rates[0], rates[-1]) == (pytest.approx(1e-5), pytest.approx(1e-3))


@pytest.mark.parametrize(
    "words, part",
    [
        (["--low", "1", "--high", "0.1"], "--low 1 is not below"),
        (["--resume"], "--resume continues"),
        (["-b", "auto"], "Try: -b NUMBER"),
    ],
)
def test_lr_find_impossible_range_is_refused(tiny, capfd, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    assert lr_find.main([*tiny, *words]) == 2
    assert part in capfd.readouterr().err


# ------------------------------------------------------------------------ sweep


def sweep(*words: object) -> list[str]:
    return [sys.executable, "-m", "tools.sweep", "--name", "s", "--space", "space.yaml", *map(str, words)]


HELD = """
import os, runpy, sys, time
from pathlib import Path
if "s-1" in sys.argv and not Path("s-1.here").exists():
    sweep = os.getppid()
    Path("s-1.here").touch()
    while os.getppid() == sweep:
        time.sleep(0.01)
    sys.exit("the sweep was killed")
sys.argv[0] = {real!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_sweep_killed_grid_continues_and_names_failed_trial(tmp_path, tiny):
    pytest.importorskip("optuna")
    import optuna

    (tmp_path / "space.yaml").write_text("cache: [none, ram, dsk]\n")  # the last is refused at once
    words = sweep("--sampler", "grid", "--trials", 3, "--", *tiny, "--epochs", 1)
    (tmp_path / "train.py").write_text(HELD.format(real=str(ROOT / "train.py")))
    code = (
        "import sys; from pathlib import Path; from tools import sweep; sweep.ROOT = Path.cwd(); sys.exit(sweep.main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *words[3:]], cwd=tmp_path, env=CODE, stdout=subprocess.DEVNULL
    ) as cut:
        wait_for(lambda: (tmp_path / "s-1.here").exists() or cut.poll() is not None)
        cut.kill()
    done = subprocess.run(words, cwd=tmp_path, env=CODE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "s-1 was interrupted; its settings run again" in done.stdout
    assert "s-0: top1" not in done.stdout  # what was done is not done again
    assert "3 trials: 2 complete, 0 pruned, 1 failed" in done.stdout
    assert "s-2 failed: exit code 2: train.py: --cache is 'dsk'; allowed" in done.stdout
    with open(tmp_path / "results/s/trials.csv", newline="") as file:
        rows = {row["tag"]: row for row in csv.DictReader(file)}
    assert {tag: (row["state"], row["cache"]) for tag, row in rows.items()} == {
        "s-0": ("complete", "none"), "s-3": ("complete", "ram"), "s-2": ("fail", "dsk"),
    }  # fmt: skip
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/results/s/study.db")
    with open(tmp_path / "logs/s-0/metrics.csv", newline="") as file:
        assert study.trials[0].value == max(float(row["val_top1"]) for row in csv.DictReader(file))
    assert (tmp_path / "results/s/sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "--tag s-best" in done.stdout.strip().splitlines()[-1]


STUB = """
import csv, pathlib, sys, time
words = dict(word.lstrip("-").split("=") for word in sys.argv[1:] if "=" in word)
folder = pathlib.Path("logs") / sys.argv[sys.argv.index("--tag") + 1]
folder.mkdir(parents=True)
(folder / "began").touch()
for epoch in range(1, 60 if folder.name == "s-3" else 4):
    rows = [(k, float(words["lr"])) for k in range(1, epoch + 1)]
    (folder / "metrics.tmp").write_text("epoch,val_top1\\n" + "".join(f"{k},{top1}\\n" for k, top1 in rows))
    (folder / "metrics.tmp").rename(folder / "metrics.csv")
    time.sleep(0.05 if epoch < 4 else 1)
(folder / "ended").touch()
"""


def test_sweep_of_log_loss_prefers_lowest_and_keeps_its_metric(tmp_path, monkeypatch, capfd):
    optuna = pytest.importorskip("optuna")
    from tools import sweep as tool

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    stub = STUB.replace("val_top1", "val_log_loss").replace("{k},{top1}", "{k},{top1 + abs(k - 2)}")
    (tmp_path / "train.py").write_text(stub)  # the second epoch is the best
    (tmp_path / "space.yaml").write_text("lr: [0.5, 0.3, 0.7]\n")
    words = ["--name", "s", "--space", "space.yaml", "--sampler", "grid", "--trials", "3"]
    assert tool.main([*words, "--", "--metric", "log_loss"]) == 0
    shown = capfd.readouterr().out
    assert "s-1: log_loss 0.3" in shown
    assert "--metric log_loss --lr=0.3 --tag s-best" in shown.strip().splitlines()[-1]
    with open("results/s/trials.csv", newline="") as file:
        assert [row["val_log_loss"] for row in csv.DictReader(file)] == ["0.5", "0.3", "0.7"]
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/results/s/study.db")
    assert study.direction.name == "MINIMIZE"
    assert tool.main(words) == 2
    assert "was started with --metric log_loss, not top1" in capfd.readouterr().err


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """Return a function that sweeps with a train.py that scores its --lr, and the words of a sweep of three values."""
    pytest.importorskip("optuna")
    from tools import sweep as tool

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text(STUB.replace("0.05 if epoch < 4 else 1", "0"))
    (tmp_path / "space.yaml").write_text("lr: [0.5, 0.6, 0.7]\n")
    return lambda *words: tool.main(["--name", "s", "--space", "space.yaml", *map(str, words)])


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_sweep_continued_by_another_command_equals_that_of_one(sampler, swept):
    """A sampler that each command makes anew would propose its first settings again."""
    Path("space.yaml").write_text("lr: {low: 0.0001, high: 1, log: true}\n")
    for name, calls in (("once", (6,)), ("twice", (2, 3, 6))):
        for trials in calls:
            assert swept("--name", name, "--sampler", sampler, "--trials", trials) == 0
    tried = {}
    for name in ("once", "twice"):
        with open(f"results/{name}/trials.csv", newline="") as file:
            tried[name] = [row["lr"] for row in csv.DictReader(file)]
    assert len(set(tried["once"])) == 6 and tried["twice"] == tried["once"]


def test_sweep_with_other_flags_for_training_is_refused(swept, capfd):
    """Its trials cannot be compared with those that are there. Flags that change no result may differ."""
    optuna = pytest.importorskip("optuna")
    assert swept("--sampler", "grid", "--trials", 1, "--", "--epochs", 2) == 0
    assert swept("--sampler", "grid", "--trials", 2, "--", "--epochs", 9, "--seed", 3) == 2
    said = capfd.readouterr().err
    assert "other flags after --" in said and "--epochs 2 -> 9" in said and "--seed 42 -> 3" in said
    assert "--lr" not in said and not Path("logs/s-1").exists()
    assert swept("--sampler", "grid", "--trials", 2, "--", "--epochs", 2, "--workers", 0) == 0
    study = optuna.load_study(study_name="s", storage="sqlite:///results/s/study.db")
    assert len(study.trials) == 2


def test_sweep_of_an_earlier_version_continues_with_a_warning(swept, capfd, monkeypatch):
    from tools import sweep as tool

    with monkeypatch.context() as patch:
        patch.setattr(tool, "check_same_options", lambda *_: None)  # it noted no flags
        assert swept("--sampler", "grid", "--trials", 1, "--", "--epochs", 2) == 0
    capfd.readouterr()
    assert swept("--sampler", "grid", "--trials", 2, "--", "--epochs", 2) == 0
    assert "does not record the flags after -- of its earlier trials" in "".join(capfd.readouterr())


def test_sweep_whose_lists_changed_is_refused(swept, tmp_path, capfd, monkeypatch):
    """The list has the same name, so the flags are the same; the trials would be of different images."""
    from tools import sweep as tool

    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text(f"a_{name}.jpg 0\nb_{name}.jpg 1\n")
    words = ["--sampler", "grid", "--trials"]
    assert swept(*words, 1, "--", "--data_root", tmp_path) == 0
    (tmp_path / "val.txt").write_text("a_val.jpg 0\n")
    capfd.readouterr()
    assert swept(*words, 2, "--", "--data_root", tmp_path) == 2
    said = capfd.readouterr().err
    assert f"{tmp_path / 'val.txt'} changed since the sweep s was started" in said and "train.txt" not in said
    assert not Path("logs/s-1").exists()
    assert swept("--sampler", "grid", "--trials", 1, "--", "--data_root", tmp_path, "--val_freq", 0) == 2, "no score"
    (tmp_path / "val.txt").write_text("a_val.jpg 0\nb_val.jpg 1\n")
    assert swept(*words, 2, "--", "--data_root", tmp_path) == 0
    real, asked = tool.check_same_lists, []

    def edited(*args):
        if asked:
            (tmp_path / "train.txt").write_text("c_train.jpg 0\n")
        asked.append(args)
        real(*args)

    monkeypatch.setattr(tool, "check_same_lists", edited)
    assert swept(*words, 3, "--", "--data_root", tmp_path) == 2, "the list changed while the sweep went on"
    assert "train.txt changed since" in capfd.readouterr().err and not Path("logs/s-2").exists()


def test_sweep_whose_list_names_equal_files_of_another_folder_is_refused(swept, tmp_path, capfd):
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("a/images/00000001.jpg 0\na/images/00000002.jpg 1\n")
    words = ["--sampler", "grid", "--trials"]
    assert swept(*words, 1, "--", "--data_root", tmp_path) == 0
    (tmp_path / "val.txt").write_text("b/images/00000001.jpg 0\nb/images/00000002.jpg 1\n")
    capfd.readouterr()
    assert swept(*words, 2, "--", "--data_root", tmp_path) == 2
    assert f"{tmp_path / 'val.txt'} changed since" in capfd.readouterr().err


def test_sweep_of_an_earlier_version_takes_the_lists_of_now_with_a_warning(swept, tmp_path, capfd, monkeypatch):
    from tools import sweep as tool

    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("a.jpg 0\nb.jpg 1\n")
    with monkeypatch.context() as patch:
        patch.setattr(tool, "check_same_lists", lambda *_: None)  # it noted no lists
        assert swept("--sampler", "grid", "--trials", 1, "--", "--data_root", tmp_path) == 0
    capfd.readouterr()
    assert swept("--sampler", "grid", "--trials", 2, "--", "--data_root", tmp_path) == 0
    assert "".join(capfd.readouterr()).count("does not record what the lists of its earlier trials held") == 1


@pytest.mark.parametrize("varies", [False, True])
def test_sweep_whose_network_was_replaced_is_refused(varies, swept, tmp_path, capfd, monkeypatch):
    """The path of --load, or of a teacher in the space, is the same, so the flags are."""
    from tools import sweep as tool

    if varies:
        Path("space.yaml").write_text("lr: [0.5, 0.6, 0.7]\nteacher: [t.pt, w.pt]\n")
    torch.save({"a": torch.zeros(2)}, "w.pt")
    torch.save({"a": torch.zeros(3)}, "t.pt")
    words = ["--", "--data_root", tmp_path, *([] if varies else ["--load", "w.pt"])]
    with monkeypatch.context() as patch:
        patch.setattr(tool, "check_same_networks", lambda *_: None)  # an earlier version noted none
        assert swept("--sampler", "grid", "--trials", 1, *words) == 0
    assert swept("--sampler", "grid", "--trials", 2, *words) == 0
    torch.save({"a": torch.ones(2)}, "w.pt")
    capfd.readouterr()
    assert swept("--sampler", "grid", "--trials", 3, *words) == 2
    assert "w.pt: another network than when the sweep s was started" in capfd.readouterr().err
    assert swept("--sampler", "grid", "--trials", 2, *words) == 0, "nothing is left to train"
    torch.save({"a": torch.zeros(2)}, "w.pt")
    assert swept("--sampler", "grid", "--trials", 3, *words) == 0


@pytest.mark.parametrize(
    "space, words", [("lr: [0.5]", ["--val_freq", 0]), ("val_freq: [1, 0]", []), ("val_freq: {low: 0, high: 2}", [])]
)
def test_sweep_without_validation_is_refused_at_once(space, words, swept, capfd):
    """Each trial was trained to its end, and failed with exit code 0."""
    Path("space.yaml").write_text(space)
    assert swept("--trials", 1, "--", *words) == 2
    assert "--val_freq is 0, and tools.sweep compares validation scores" in capfd.readouterr().err
    assert not Path("results").exists()


def test_sweep_of_class_folders_notices_another_image(swept, tmp_path, capfd):
    for label in ("cat", "dog"):
        (tmp_path / "root" / label).mkdir(parents=True)
        for k in range(10):
            (tmp_path / "root" / label / f"{label}_{k}.jpg").write_bytes(b"x")
    assert swept("--sampler", "grid", "--trials", 1, "--", "--data_root", "root") == 0
    assert swept("--sampler", "grid", "--trials", 2, "--", "--data_root", "root") == 0
    (tmp_path / "root/cat/another.jpg").write_bytes(b"x")
    assert swept("--sampler", "grid", "--trials", 3, "--", "--data_root", "root") == 2
    assert "train.txt" in (said := capfd.readouterr().err) and "changed since the sweep s was started" in said


def test_sweep_of_class_folders_gives_all_seeds_one_split(swept, tmp_path, capfd, monkeypatch):
    """Each seed drew a split of its own, and the best seed was that of the easiest validation images."""
    from tools import sweep as tool

    for label in ("cat", "dog"):
        (tmp_path / "root" / label).mkdir(parents=True)
        for k in range(10):
            (tmp_path / "root" / label / f"{label}_{k}.jpg").write_bytes(b"x")
    given = []
    run = tool.run_trial
    monkeypatch.setattr(
        tool, "run_trial", lambda study, trial, words, files: (given.append(words), run(study, trial, words, files))
    )
    Path("space.yaml").write_text("seed: [1, 2]\nlr: [0.5]\n")
    assert swept("--sampler", "grid", "--trials", 1, "--", "--data_root", "root") == 0
    assert swept("--sampler", "grid", "--trials", 2, "--", "--data_root", "root") == 0
    lists = ["--train_list", "results/s/lists/train.txt", "--val_list", "results/s/lists/val.txt"]
    assert [words[2:6] for words in given] == [lists, lists] and {"--seed=1", "--seed=2"} <= {*given[0], *given[1]}
    said = capfd.readouterr().out
    assert shlex.join(lists) in said.strip().splitlines()[-1] and "drew a split each" not in said
    Path("space.yaml").write_text("lr: [0.5]\n")
    assert swept("--name", "t", "--sampler", "grid", "--trials", 1, "--", "--data_root", "root") == 0
    assert "--train_list" not in given[-1]  # train.py draws the same
    Path("space.yaml").write_text("seed: [1, 2]\nlr: [0.5]\n")
    with monkeypatch.context() as patch:
        patch.setattr(tool, "_shared_lists", lambda *_: [])
        assert swept("--name", "u", "--sampler", "grid", "--trials", 1, "--", "--data_root", "root") == 0
    assert swept("--name", "u", "--sampler", "grid", "--trials", 2, "--", "--data_root", "root") == 0
    assert "drew a split each" in "".join(capfd.readouterr())


def test_sweep_of_ordered_classes_logs_their_order(swept, tmp_path, capfd):
    """train.py logs it into the file of each trial, which nobody reads before the end."""
    (tmp_path / "classes.txt").write_text("high\nlow\nmedium\n")
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}_{k}.jpg {k}\n" for k in range(3)))
    words = ["--sampler", "grid", "--trials", 1, "--", "--data_root", tmp_path, "--task", "ordinal", "--metric", "top1"]
    assert swept(*words) == 0
    said = "".join(capfd.readouterr())
    assert "classes.txt: high < low < medium" in said and "order of the alphabet" in said


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("scale: [16, 24]\n", "so `scale` in the space changes only the size at which they are scored"),
        ("lr: [0.5]\n", "--scale_schedule ends with 12 px, and --scale is 16"),
        ("scale_schedule: ['1:12', '1:16']\n", ""),
    ],
)
def test_sweep_whose_trials_are_scored_at_another_size_is_warned_of(space, said, swept, tmp_path, capfd):
    """The trials of two scales were trained alike, and the size of the test alone made one the best."""
    (tmp_path / "space.yaml").write_text(space)
    words = [] if space.startswith("scale:") else ["--scale", 16]
    words += ["--scale_schedule", "1:12"] if said else []
    swept("--sampler", "grid", "--trials", 1, "--", *words)
    found = "".join(capfd.readouterr())
    assert said in found
    assert bool(said) == ("--scale_schedule ends" in found or "changes only the size" in found)


def test_sweep_of_an_earlier_version_keeps_its_whole_numbers(swept, capfd, monkeypatch):
    """It took 0 and 1 as a range of whole numbers for any flag; its database would refuse another kind of range."""
    pytest.importorskip("optuna")
    from tools import sweep as tool

    Path("space.yaml").write_text("lr: {low: 0, high: 1}\n")
    with monkeypatch.context() as patch:
        read = tool.read_space
        patch.setattr(tool, "read_space", lambda *words: {"lr": read(*words)["lr"] | {"whole": True}})
        assert swept("--sampler", "random", "--trials", 1) == 0
    capfd.readouterr()
    assert swept("--sampler", "random", "--trials", 3) == 0
    assert "goes on with whole numbers for lr" in "".join(capfd.readouterr())
    with open("results/s/trials.csv", newline="") as file:
        assert {row["lr"] for row in csv.DictReader(file)} <= {"0", "1"}
    Path("space.yaml").write_text("lr: {low: 0, high: 2}\n")
    assert swept("--trials", 4) == 2 and "started with another space" in capfd.readouterr().err


@pytest.mark.parametrize(
    "word", ["-b 32", "-b=32", "-b32", "--batch_size 32", "--label_smoothing 0.2", "--smooth=0.2", "--no-pretrained"]
)
def test_sweep_flag_of_the_space_after_the_dashes_is_refused(word, swept, capfd):
    """In any spelling: each trial would override it."""
    Path("space.yaml").write_text("batch_size: [16, 24]\nsmooth: [0, 0.1]\npretrained: [true, false]\n")
    assert swept("--trials", 1, "--", *word.split()) == 2
    assert "is also given after --, but each trial sets its own" in capfd.readouterr().err
    assert not Path("results/s").exists()


def test_sweep_grid_after_another_sampler_tries_every_combination(swept, capfd):
    """Trials that a random sampler chose count for the combinations that they have, and for no other."""
    assert swept("--sampler", "random", "--trials", 3, "--seed", 4) == 0
    assert swept("--sampler", "grid", "--trials", 20) == 0
    with open("results/s/trials.csv", newline="") as file:
        rows = [float(row["lr"]) for row in csv.DictReader(file)]
    assert len(set(rows[:3])) < 3, "choose another --seed: the random sampler has tried all"
    assert set(rows) == {0.5, 0.6, 0.7} and len(rows) == 3 + 3 - len(set(rows[:3]))
    capfd.readouterr()
    assert swept("--sampler", "grid", "--trials", 20) == 0
    assert f"{len(rows)} trials: {len(rows)} complete" in capfd.readouterr().out


def test_sweep_weak_trial_is_pruned_and_ended(tmp_path, monkeypatch, capfd):
    """With a train.py that scores its --lr: three trials set the median, and the fourth is below it."""
    pytest.importorskip("optuna")
    from tools import sweep as tool

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text(STUB)
    (tmp_path / "space.yaml").write_text("lr: [0.5, 0.6, 0.7, 0.01, 0.8]\n")
    assert tool.main(["--name", "s", "--space", "space.yaml", "--sampler", "grid", "--trials", "5", "--prune"]) == 0
    shown = capfd.readouterr().out
    assert "s-3: pruned after epoch" in shown and "5 trials: 4 complete, 1 pruned, 0 failed" in shown
    with open("results/s/trials.csv", newline="") as file:
        assert [(row["tag"], row["state"], row["val_top1"]) for row in csv.DictReader(file)] == [
            ("s-0", "complete", "0.5"),
            ("s-1", "complete", "0.6"),
            ("s-2", "complete", "0.7"),
            ("s-3", "pruned", ""),
            ("s-4", "complete", "0.8"),
        ]
    assert (tmp_path / "logs/s-3/began").exists() and not (tmp_path / "logs/s-3/ended").exists()
    shutil.rmtree(tmp_path / "results")  # the sweep is deleted, and its runs are not: they are kept
    assert tool.main(["--name", "s", "--space", "space.yaml"]) == 2
    assert "There are runs of an earlier sweep 's': s-0, s-1, s-2, s-3, s-4." in capfd.readouterr().err
    assert not list((tmp_path / "results").glob("s/*.log"))


SPACES = {
    "no flag": ("lrr: [1, 2]\n", "no option of train.py 'lrr'"),
    "the tag": ("tag: [a, b]\n", "no option of train.py 'tag'"),
    "upside down": ("lr: {low: 1, high: 0.1}\n", "low below high"),
    "zero in a logarithm": ("lr: {low: 0, high: 1, log: true}\n", "above 0"),
    "no number": ("lr: {low: a, high: 1}\n", "'a', which is not a number"),
    "a word for a number": ("scale: [64, big]\n", "--scale: 'big' is no whole number"),
    "a choice out of range": ("hflip: [0, 2]\n", "--hflip is 2.0; allowed: from 0 to 1"),
    "an end out of range": ("lr: {low: 1e-3, high: 1e3}\n", "--lr is 1000.0; allowed: from 0 to 100"),
    "a fraction for a whole number": ("ra_ops: {low: 1, high: 2.5}\n", "allowed: whole numbers"),
    "a list for a value": ("optimizer: [[sgd, --lr]]\n", "allowed: one value"),
    "two names of one option": (
        "smooth: [0, 0.1]\nlabel_smoothing: [0, 0.2]\n",
        "label_smoothing is an option that the file names already",
    ),
    "an alias": ("lr: &a [1, 2]\nmin_lr: *a\n", "aliases are not allowed"),
    "a value alone": ("lr: 3\n", "allowed: a list"),
    "nothing": ("", "must hold lines"),
    "no YAML": ("lr: [", "cannot be read"),
}


@pytest.mark.parametrize("case", SPACES)
def test_read_space_wrong_file_is_refused(tmp_path, case):
    text, part = SPACES[case]
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(part)):
        sweep_space.read_space(tmp_path / "space.yaml", build_parser("train"), FIXED)


def test_grid_of_ranges_has_expected_values(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "lr: {low: 1e-4, high: 1.0, log: true}\nwarmup: {low: 0, high: 4, step: 2}\n"
        "mixup: {low: 0, high: 1}\nra_ops: {low: 1, high: 3}\n"
        "hflip: [0, 0.5]\nimg_size: [0128]\nsync_bn: [on, off]\n"
    )
    space = sweep_space.read_space(tmp_path / "s.yaml", build_parser("train"))
    table = sweep_space.grid(space)
    assert table["lr"] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert table["warmup"] == [0, 2, 4]
    assert table["mixup"] == [0, 0.25, 0.5, 0.75, 1]  # whole bounds are no range of whole numbers, but for a whole flag
    assert table["ra_ops"] == [1, 2, 3]
    assert table["hflip"] == [0, 0.5]
    assert table["scale"] == [128] and table["sync_bn"] == [True, False]
    assert sweep_space.words_of({"lr": 1e-3, "ema": True, "pretrained": False}) == [
        "--lr=0.001",
        "--ema",
        "--no-pretrained",
    ]


@pytest.mark.parametrize("case", ["damaged", "of another Optuna", "lost while a trial begins"])
def test_sweep_whose_study_cannot_be_used_is_one_message(case, swept, capfd, monkeypatch):
    """A full disk, or a copy that was cut short, ended in a traceback of SQLAlchemy."""
    from tools import sweep as tool

    study, real = Path("results/s/study.db"), tool.next_trial
    assert swept("--trials", 1) == 0
    if case == "damaged":
        study.write_bytes(study.read_bytes()[:5000])
    elif case == "of another Optuna":
        with contextlib.closing(sqlite3.connect(study)) as file, file:
            file.execute("UPDATE alembic_version SET version_num = 'v0.1'")
    else:

        def lose(*args):
            study.write_bytes(b"no database at all" * 1000)
            return real(*args)

        monkeypatch.setattr(tool, "next_trial", lose)
    capfd.readouterr()
    assert swept("--trials", 2) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"\nerror: {study}, which keeps the trials, cannot be read or written: ")
    assert "Traceback" not in said and "try: another --name" in said


def test_sweep_without_optuna_names_the_package(tmp_path, monkeypatch, capsys):
    from tools import sweep

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweep.main(["--name", "s", "--space", "x.yaml"]) == 2
    assert "pip install 'optuna" in capsys.readouterr().err


# ------------------------------------------------------------------------ TensorBoard


def test_tensorboard_after_kill_and_resume_has_each_point_once(script, tmp_path, tiny):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = [*tiny, "--tag", "t", "--epochs", "5", "--histograms", "--save_minutes", "0"]
    cut = gated(tmp_path, 3, *words)
    cut.kill()
    cut.wait()
    done = script("train.py", *words, "--resume")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "logs/t").glob("events*"))) == 2
    events = accumulator.EventAccumulator(
        str(tmp_path / "logs/t"), size_guidance={"images": 0, "histograms": 0, "scalars": 0}
    ).Reload()
    wanted = {f"train/{name}" for name in ("loss", "top1", "lr", "grad_norm", "images_per_second", "data_wait")}
    wanted |= {"val/loss", "val/top1"}
    assert wanted <= set(events.Tags()["scalars"])
    for name in events.Tags()["scalars"]:
        assert [point.step for point in events.Scalars(name)] == [1, 2, 3, 4, 5], name
    assert [point.step for point in events.Images("val/confusion")] == [1, 2, 3, 4, 5]
    assert [point.step for point in events.Images("input/first_batch")] == [0]
    names = set(events.Tags()["histograms"])
    assert {"weights/fc.weight", "gradients/fc.weight"} <= names
    assert {name: [point.step for point in events.Histograms(name)] for name in names} == {
        key: [1, 2, 3, 4, 5] for key in names
    }
    assert all(point.histogram_value.max > 0 for point in events.Histograms("gradients/fc.weight"))
    with open(tmp_path / "logs/t/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [point.value for point in events.Scalars("val/top1")] == pytest.approx(
        [float(row["val_top1"]) for row in rows]
    )


def test_plotter_draws_in_background_and_survives_errors(tmp_path, caplog, monkeypatch):
    from training.plotter import BackgroundPlotter

    monkeypatch.setattr("utils.logger.log.propagate", True)
    artist, drawn, gate = BackgroundPlotter(), [], threading.Event()

    def draw(what):
        gate.wait(10)
        if what == "broken":
            raise ValueError("no such colour")
        drawn.append(what)

    for what in ("one", "broken", "two"):
        artist.draw(tmp_path / f"{what}.png", lambda what=what: draw(what))
    assert drawn == []  # nobody waited
    threading.Timer(0.2, gate.set).start()
    artist.draw(tmp_path / "one.png", lambda: draw("one again"))
    assert drawn[0] == "one"  # the same picture is not drawn twice at a time
    artist.wait()
    assert drawn == ["one", "two", "one again"]
    assert "broken.png could not be drawn: ValueError: no such colour" in caplog.text


def test_plotter_hanging_picture_times_out(tmp_path, caplog, monkeypatch):
    from training import plotter as module

    monkeypatch.setattr("utils.logger.log.propagate", True)
    monkeypatch.setattr(module, "SECONDS", 0.1)
    artist, gate = module.BackgroundPlotter(), threading.Event()
    artist.draw(tmp_path / "one", gate.wait)
    began = time.monotonic()
    artist.wait()
    artist.draw(tmp_path / "one", gate.wait)
    took = time.monotonic() - began
    gate.set()
    assert took >= 0.2
    assert "one is still being drawn after 0.1 s; a newer one is left out" in caplog.text


@pytest.mark.pictures
def test_train_with_failing_pictures_continues_with_warning(script, small, photo_set, monkeypatch, tmp_path):
    import training.recorder

    monkeypatch.setattr(training.recorder, "draw_curves", lambda *_: 1 / 0)
    result = script("train.py", *small, "--data_root", photo_set, "--epochs", 2, "--tag", "t")
    assert result.code == 0, result.err
    assert "curves.png could not be drawn: ZeroDivisionError" in result.out
    assert (tmp_path / "logs/t/confusion.png").stat().st_size > 5000


def test_metrics_writer_two_in_one_second_keep_all_points(tmp_path, monkeypatch):
    """A run that is cut and resumed within a second: tensorboardX alone would give both one file."""
    from utils.logger import MetricsWriter

    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1.8e9)
    fractions = iter((900_000_000, 100_000_000))  # of two seconds: the name must not follow it
    monkeypatch.setattr("time.time_ns", lambda: next(fractions))
    for step in (1, 2):
        writer = MetricsWriter(tmp_path, first_step=step)
        writer.scalars("train", {"loss": 0.5}, step)
        writer.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
