"""Prediction from Python: the bits of eval.py, from any kind of image, and nothing changed outside of the project."""

import csv
import io
import json
import subprocess
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

import processes
from conftest import ROOT
from dataloader.file_list import read_list
from inference import load, load_predictor, saved_probs
from inference.images import ImagePredictor
from inference.predictor import Predictor
from made import make
from options import parse_eval
from options.choices import FITTED_BLENDS
from utils import checkpoint
from utils.classes import Classes
from utils.errors import ImageError, UserError
from utils.tensors import likeliest

COUNTS = ([12, 4, 12], [28, 8, 8])  # training images per class, of two checkpoints


@pytest.fixture(scope="module")
def trained(photo_set, tmp_path_factory, request):
    """A checkpoint of a small run."""
    folder = tmp_path_factory.mktemp("run")
    words = "--model timm:test_resnet --no-pretrained --preset original --scale 32 -b 12 -w 0 --gpu -1 --lr 0.01"
    words += f" --transform light --precision fp32 --tag run --epochs 1 --data_root {photo_set}"
    subprocess.run([sys.executable, ROOT / "train.py", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder / "checkpoints" / "run" / "best.pt"


@pytest.mark.parametrize("tta", ["none", "x8"])
def test_load_gives_the_bits_of_eval(trained, photo_set, tta, caplog):
    from inference import open_inference, predict
    from options import parse_eval

    run = open_inference(parse_eval(f"--load {trained} --tta {tta} -b 5 --gpu -1 -w 2".split()), "val")
    expected, kept = predict(run.predictor, run.batches(), keep=True)
    names, probabilities = load(trained, tta=tta, batch_size=5, gpu=-1)([run.files.path(k) for k in range(12)])
    assert np.array_equal(np.sort(probabilities, axis=1)[:, ::-1], expected.probability)
    assert np.array_equal(np.log(probabilities.clip(1e-30)).astype(np.float16), kept)
    assert names == [run.classes.name(int(label)) for label in expected.top[:, 0]]
    assert len(set(map(bytes, probabilities))) > 6
    assert ("upside down" in caplog.text) == (tta == "x8")  # --transform light never shows that


def test_load_any_kind_of_image_gives_the_same(trained, tmp_path, photos):
    path = tmp_path / "a.png"
    PIL.Image.fromarray(photos[1]).save(path)
    predictor = load([trained], gpu=-1)
    images = [str(path), path, path.read_bytes(), photos[1], PIL.Image.open(path)]
    rows = [predictor(image).probabilities[0] for image in images]
    assert (
        all(np.array_equal(row, rows[0]) for row in rows) and predictor(images).names == [predictor(path).names[0]] * 5
    )
    grey = predictor(cv2.cvtColor(photos[1], cv2.COLOR_RGB2GRAY)).probabilities[0]
    assert not np.array_equal(grey, rows[0])
    assert predictor.classes == ["china", "flower", "hopper"] and predictor([]).probabilities.shape == (0, 3)


def test_load_upright_pil_image_is_that_of_its_file(trained, tmp_path, photos):
    path = tmp_path / "turned.jpg"
    exif = PIL.Image.Exif()
    exif[274] = 6
    PIL.Image.fromarray(photos[2]).save(path, exif=exif, quality=95, subsampling=0)
    predictor = load(trained, gpu=-1, scale=512)  # so that the file is decoded in full size
    from_file, from_image = predictor([path, PIL.Image.open(path)]).probabilities
    assert np.abs(from_file - from_image).max() < 2e-3 * from_file.max()


def test_load_wrong_input_is_named(trained, tmp_path):
    predictor = load(trained, gpu=-1)
    (tmp_path / "no.jpg").write_bytes(b"\xff\xd8\xff no")
    with pytest.raises(ImageError, match="2 of 3 images cannot be read(.|\n)*no.jpg"):
        predictor([tmp_path / "no.jpg", np.zeros((9, 9), np.uint8), tmp_path / "absent.png"])
    with pytest.raises(UserError, match="image 0 is an array of float32"):
        predictor(np.zeros((9, 9, 3), np.float32))
    with pytest.raises(UserError, match="image 1 is of type int"):
        predictor([np.zeros((9, 9), np.uint8), 7])
    with pytest.raises(UserError, match="invalid choice: 'x9'"):
        load(trained, tta="x9")
    with pytest.raises(UserError, match=r"absent\.pt"):
        load(tmp_path / "absent.pt")


def test_load_of_saved_predictions_is_refused(photo_set, tmp_path):
    """The rows of a probs.npz answered for any images, by their places among them."""
    files, path = read_list(photo_set / "val.txt"), tmp_path / "probs.npz"
    values, readable = np.full((len(files), 3), -1, np.float16), np.ones(len(files), bool)
    saved_probs.write(path, values, readable, files, Classes(3))
    with pytest.raises(UserError, match=r"probs\.npz holds the predictions of one list(.|\n)*Try: checkpoints alone"):
        load(path, gpu=-1)


@pytest.mark.parametrize("blend", FITTED_BLENDS)
def test_load_with_a_blend_that_is_fitted_is_refused(blend):
    """It was the plain mean, without a word."""
    with pytest.raises(UserError, match=f"blend is '{blend}', which fits(.|\n)*allowed: mean, logits, geometric, rank"):
        load(["a.pt", "b.pt"], blend=blend, gpu=-1)


def test_load_and_submit_images_by_rank_warn_that_these_are_no_probabilities(trained, photo_set, script, caplog):
    """They showed 54.55 % for a class that both networks put first, whatever their probabilities."""
    said, image = (
        "means of 1/rank, which order the classes of an image and are no probabilities",
        next(photo_set.glob("*.jpg")),
    )
    load([trained, trained], blend="rank", gpu=-1)
    assert said in caplog.text
    words = ("--images", image, "--gpu", -1, "-w", 0)
    done = script("submit.py", "--load", trained, trained, "--blend", "rank", *words)
    assert done.code == 0 and said in done.err, done.err
    assert "1/rank" not in script("submit.py", "--load", trained, trained, *words).err


def test_load_of_equal_classes_names_the_one_that_eval_and_an_export_name(monkeypatch):
    """Ranks of two networks, and logits in bf16, are often equal; each command named another of the classes."""
    rows = torch.randint(4, (200, 10), generator=torch.Generator().manual_seed(0)).float()
    monkeypatch.setattr(ImagePredictor, "_predict", lambda predictor, several: rows)
    found = ImagePredictor(Predictor([]), Classes(10))(["a.jpg"])
    first = likeliest(rows, 5)[1][:, 0].tolist()  # as inference.predictor takes them
    exported = np.argsort(-rows.numpy(), axis=1, kind="stable")[:, 0].tolist()
    assert [int(name) for name in found.names] == first == exported


STATE = """
import faulthandler, json, logging, os, random, signal, sys, threading, warnings
import albumentations, cv2, matplotlib, numpy, PIL.Image, scipy.stats, sklearn, timm, torch, torchvision, tqdm

def state():
    return {
        "handlers": [repr(one) for one in logging.getLogger().handlers], "level": logging.getLogger().level,
        "signals": [repr(signal.getsignal(one)) for one in signal.valid_signals()],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), cv2.getNumThreads()],
        "running": threading.active_count(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "environ": dict(os.environ), "hooks": [repr(sys.excepthook), repr(sys.stdout), repr(sys.stderr)],
        "random": hash(random.getstate()), "numpy": numpy.random.get_state()[1].sum().item(),
        "torch": torch.random.get_rng_state().sum().item(), "grad": torch.is_grad_enabled(), "path": sys.path,
        "disabled": logging.raiseExceptions, "encoding": [sys.stdout.errors, sys.stderr.errors],
    }

before, filters, opened = state(), list(map(repr, warnings.filters)), []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "ctypes.dlopen" else None)
from inference import load
imported = state() | {"filters": list(map(repr, warnings.filters))}
assert imported == before | {"filters": filters}, (imported, before)
assert not any("libc" in one for one in opened), opened
predictor = load(sys.argv[1], gpu=-1)
predictor(sys.argv[2:])
after = state()
assert after == before, {name: after[name] for name in after if after[name] != before[name]}
print("same")
"""


def test_load_and_predict_change_nothing_outside_of_the_project(trained, photo_set, tmp_path):
    files = read_list(photo_set / "val.txt")
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{STATE}", trained, files.path(0)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stdout + done.stderr
    assert done.stderr == "" and list(tmp_path.iterdir()) == []


def test_submit_images_agrees_with_load(trained, photo_set, script):
    files = read_list(photo_set / "val.txt")
    paths = [files.path(k) for k in range(4)]
    done = script("submit.py", "--load", trained, "--images", *paths, "--format", "json", "--gpu", -1, "--top_k", 3)
    assert done.code == 0, done.err
    found = {one["file"]: {c["class"]: c["probability"] for c in one["classes"]} for one in json.loads(done.out)}
    predictor = load(trained, gpu=-1)
    expected = {
        path: dict(zip(predictor.classes, row, strict=True))
        for path, row in zip(paths, predictor(paths).probabilities.tolist(), strict=True)
    }
    assert found == expected


# ------------------------------------------------------------------------------------------------ other tasks


def test_load_of_several_lists_knows_the_mean_of_them_in_any_order(tmp_path, photo_set, task_checkpoint):
    """It was what the first member knew: the rare classes, and the class of an unreadable image, were its own."""
    paths = [make(tmp_path / f"{k}.pt", photo_set, 0.1 * k, data={"class_images": c}) for k, c in enumerate(COUNTS)]
    for some in (paths, paths[::-1]):
        assert load(some, gpu=-1).known.train_counts == [20, 6, 10]
    assert load(paths[0], gpu=-1).known.train_counts == COUNTS[0]
    first = task_checkpoint("regression")
    content = checkpoint.load(first)
    other, mean = tmp_path / "other.pt", content["data"]["target_mean"]
    moved = content["data"] | {"target_mean": [one + 4 for one in mean]}
    checkpoint.save(other, content | {"data": moved})
    for some in ([first, other], [other, first]):
        assert load(some, gpu=-1).known.mean == pytest.approx([one + 2 for one in mean])
        assert load(some, gpu=-1).known.std == content["data"]["target_std"]


def test_greedy_blend_of_checkpoints_with_different_metrics_says_which_it_improves(tmp_path, photo_set, caplog):
    """It was that of the first without a word, so that another order of --load gave other weights."""
    paths = [
        make(tmp_path / f"{metric}.pt", photo_set, noise, options={"metric": metric})
        for noise, metric in ((0.1, "top1"), (0.2, "log_loss"))
    ]
    for words in ([], ["--blend", "greedy", "--metric", "top1"], ["--blend", "greedy"]):
        load_predictor(parse_eval(["--load", *paths[::-1], "--gpu", "-1", *words]), torch.device("cpu"))
        assert ("by log_loss and top1. --blend greedy improves log_loss" in caplog.text) == (len(words) == 2)


@pytest.mark.parametrize("task", ["multilabel", "regression", "ordinal", "corn"])
@pytest.mark.parametrize("tta", ["none", "flip"])
def test_load_of_other_tasks_gives_the_bits_of_eval(task, tta, task_checkpoint, colours):
    from inference import open_inference, predict, predict_targets
    from options import choices, parse_eval

    path = task_checkpoint(task)
    run = open_inference(
        parse_eval(f"--load {path} --tta {tta} -b 3 --gpu -1 -w 0".split()), "val", tasks=choices.TASKS
    )
    found = load(path, tta=tta, batch_size=3, gpu=-1)([run.files.path(k) for k in range(8)])
    if task in ("ordinal", "corn"):
        expected = predict(run.predictor, run.batches())[0]
        assert found.names == [run.classes.name(int(label)) for label in expected.top[:, 0]]
        assert np.array_equal(found.probabilities.max(axis=1), expected.probability[:, 0])
        return
    expected = predict_targets(run.predictor, run.batches(), 2).value
    assert np.array_equal(found[1], expected) and len(set(map(bytes, expected))) == 8
    if task == "regression":
        assert found.names == ["redness", "greenness"] and found.values.dtype == np.float32
        return
    threshold = float(np.median(expected[:, 0]))  # so that some images have the label
    chosen = load(path, tta=tta, batch_size=3, gpu=-1, threshold=[threshold, 0.0])
    names = chosen([run.files.path(k) for k in range(8)]).names
    assert ["red" in row for row in names] == (expected[:, 0] >= threshold).tolist()
    for row, p in zip(names, expected, strict=True):
        assert "green" in row and row == [("red", "green")[k] for k in np.argsort(-p) if ("red", "green")[k] in row]
    assert chosen([]).names == [] and chosen([]).probabilities.shape == (0, 2)


def test_load_of_labels_uses_the_stored_thresholds(task_checkpoint, colours):
    from utils import checkpoint

    path = task_checkpoint("multilabel")
    stored = {"rule": "per_label", "values": [0.0, 1.0], "tta": "none"}
    checkpoint.save(path, {**checkpoint.load(path), "thresholds": stored})
    files = read_list(colours / "multilabel/val.txt", task="multilabel")
    predictor = load(path, gpu=-1)
    assert predictor.known.thresholds == [0, 1] and predictor(files.path(0)).names == [["red"]]
    with pytest.raises(UserError, match="--threshold is for several labels per image"):
        load(task_checkpoint("ordinal"), gpu=-1, threshold=0.3)


@pytest.mark.parametrize("task", ["multilabel", "regression", "ordinal"])
def test_submit_images_of_other_tasks_agree_with_load(task, task_checkpoint, colours, script, tmp_path):
    path = task_checkpoint(task)
    files = read_list(colours / "ordinal/val.txt")
    paths = [files.path(k) for k in range(4)]
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    edge = []
    if task == "multilabel":
        p = np.sort(load(path, gpu=-1)(paths).probabilities.ravel())
        edge = ["--threshold", (float(p[4]) + float(p[5])) / 2]
    words = ["--load", path, "--images", *paths, "bad.png", "--gpu", -1, "-w", 0, *edge]
    done = {form: script("submit.py", *words, "--format", form) for form in ("json", "csv")}
    assert done["json"].code == done["csv"].code == 0, done["csv"].err
    found, rows = json.loads(done["json"].out), list(csv.DictReader(io.StringIO(done["csv"].out)))
    assert [one["file"] for one in found] == [*paths, "bad.png"] == list(dict.fromkeys(row["file"] for row in rows))
    table = script("submit.py", *words).out.splitlines()
    predictor = load(path, gpu=-1, **({"threshold": float(edge[1])} if edge else {}))
    expected = predictor(paths)
    if task == "regression":
        assert [one["values"] for one in found] == [
            *(dict(zip(expected.names, row, strict=True)) for row in expected.values.tolist()),
            None,
        ]
        assert [float(row["value"]) for row in rows[:-1]] == expected.values.ravel().tolist()
        assert table[0].split() == ["file", "name", "value"] and "redness" in table[1] and "cannot be read" in table[-1]
        return
    names = [[one["class"] for one in each["classes"] or ()] for each in found[:4]]
    by_file = {path: [row["class"] for row in rows if row["file"] == path and row["class"]] for path in paths}
    assert names == list(by_file.values()) and table[0].split() == ["file", "class", "probability"]
    if task == "ordinal":
        assert [row[0] for row in names] == expected.names and found[4]["classes"] == []
        return
    assert names == expected.names and [] in names and any(names) and found[4]["classes"] is None
    p = {one["class"]: one["probability"] for one in found[0]["classes"]}
    row = dict(zip(predictor.classes, expected.probabilities[0].tolist(), strict=True))
    assert p == {name: row[name] for name in p}
    assert any(line.endswith("no label") for line in table) and table[-1].endswith("cannot be read")
    marks = {row["file"]: row["label"] for row in rows if not row["class"]}
    assert marks["bad.png"] == "" and set(marks.values()) == {"", "-"}


OWN_GROUP = """
import sys
sys.path.insert(0, {root!r})
import torch
from inference import load
from utils import distributed
from utils.errors import UserError

said = open({folder!r} + f"/said{{distributed.rank()}}.txt", "w", buffering=1)  # torch's warnings go to the log
# The caller's own group, in a file: a store behind the port of `init` would close it while the other process joins.
rank = distributed.rank()
torch.distributed.init_process_group("gloo", init_method="file://" + {folder!r} + "/own", rank=rank, world_size=2)
try:
    load({checkpoint!r}, gpu=-1)
except UserError as error:
    print(str(error).splitlines()[0], file=said)
torch.distributed.destroy_process_group()
distributed.init(torch.device("cpu"))
if distributed.rank() == 1:  # the other process has no part in it
    predictor = load({checkpoint!r}, gpu=-1, batch_size=3)
    print(len(predictor({images!r}).names), "names", file=said)
distributed.shutdown()
"""


def test_load_in_several_processes_waits_for_none(trained, photo_set, tmp_path):
    files = read_list(photo_set / "val.txt")
    images = [files.path(k) for k in range(4)]
    content = OWN_GROUP.format(root=str(ROOT), folder=str(tmp_path), checkpoint=str(trained), images=images)
    (tmp_path / "own.py").write_text(content)
    assert processes.ranks(tmp_path, [tmp_path / "own.py"], [tmp_path / "own.py"]) == [0, 0], processes.logs(tmp_path)
    refused = "This command and `inference.load` run in one process, but torchrun started 2."
    said = [(tmp_path / f"said{rank}.txt").read_text().strip() for rank in range(2)]
    assert said == [refused, f"{refused}\n4 names"]


def test_load_on_the_cpu_leaves_the_gpus_alone(trained, monkeypatch):
    """It asked each GPU for the state of its generator, which starts CUDA in this process, and torch warned."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail(f"asked GPU {device}"))
    assert load(trained, gpu=-1).classes == ["china", "flower", "hopper"]
