"""Prediction from Python: the bits of eval.py, from any kind of image, and nothing changed outside of the project."""

import json
import subprocess
import sys

import cv2
import numpy as np
import PIL.Image
import pytest

from conftest import ROOT
from dataloader.file_list import read_list
from inference import load
from utils.errors import ImageError, UserError


@pytest.fixture(scope="module")
def trained(photo_set, tmp_path_factory, request):
    """A checkpoint of a small run."""
    folder = tmp_path_factory.mktemp("run")
    words = "--model timm:test_resnet --no-pretrained --preset original --scale 32 -b 12 -w 0 --gpu -1 --lr 0.01"
    words += f" --transform light --precision fp32 --tag run --epochs 1 --data_root {photo_set}"
    subprocess.run([sys.executable, ROOT / "train.py", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder / "checkpoints" / "run" / "best.pt"


@pytest.mark.parametrize("tta", ["none", "x8"])
def test_load_gives_the_bits_of_eval(trained, photo_set, tta):
    from inference import open_inference, predict
    from options import parse_eval

    run = open_inference(parse_eval(f"--load {trained} --tta {tta} -b 5 --gpu -1 -w 2".split()), "val")
    expected, kept = predict(run.predictor, run.batches(), keep=True)
    names, probabilities = load(trained, tta=tta, batch_size=5, gpu=-1)([run.files.path(k) for k in range(12)])
    assert np.array_equal(np.sort(probabilities, axis=1)[:, ::-1], expected.probability)
    assert np.array_equal(np.log(probabilities.clip(1e-30)).astype(np.float16), kept)
    assert names == [run.classes.name(int(label)) for label in expected.top[:, 0]]
    assert len(set(map(bytes, probabilities))) > 6


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
