"""Predict with the exported network beside this file. It needs NumPy, Pillow, and the runtime of the model's format.

    python predict.py a.jpg photos/ --top 5
    python predict.py --json a.jpg
    python predict.py --check

In Python, in this folder or with it in sys.path:

    from predict import Predictor
    predictor = Predictor()
    predictor("a.jpg")                        # [("bag", 0.93), ("shirt", 0.04), …], the likeliest first
    predictor.predictions(["a.jpg", data])    # float32 (images, classes); data: the bytes of an image file

A network of several labels per image answers with the labels whose probability reaches their thresholds in config.json;
a regression with each number and its name. `predictions` has all probabilities, or the numbers.
--check predicts the images in golden/, and compares with the predictions that the training framework gave.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MIN_PROBABILITY = 1e-30
BATCH = 8  # images per run of the model
ImageFile = str | os.PathLike | bytes
Model = Callable[[Sequence[np.ndarray]], np.ndarray]


class DamagedModelError(ValueError):
    """The folder does not hold the files that the export wrote; the message says which of them is unusable, and why."""


class Predictor:
    """The exported network: `Predictor()("a.jpg")`."""

    def __init__(self, folder: str | os.PathLike = Path(__file__).parent, threads: int = 0) -> None:
        """Load the model in `folder`, by default that of this file. `threads`: of the runtime; 0: its own choice.

        Raises:
            ImportError: a package is missing.
            DamagedModelError: a file is missing or damaged.
        """
        self.folder = Path(folder)
        try:
            self._load(threads)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # each runtime has exceptions of its own
            reason = str(error).strip().partition("\n")[0][:300]
            raise DamagedModelError(
                f"{self.folder} does not hold a whole exported model ({type(error).__name__}: {reason}).\n"
                "Try: copy the folder again from where it was exported"
            ) from error

    def _load(self, threads: int) -> None:
        """Read the configuration and open the models."""
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        names = (self.folder / "classes.txt").read_text(encoding="utf-8").split("\n")
        self.classes = names[: self.config["num_classes"]]
        self.task = self.config.get("task", "single")
        self.preprocess = _sibling(self.folder, "preprocess")
        ways = [{**way, "mean": tuple(way["mean"]), "std": tuple(way["std"])} for way in self.config["preprocess"]]
        self.ways = [self.preprocess.Preprocess(**way) for way in ways]
        self.models = [_open(self.folder / model["file"], threads) for model in self.config["models"]]

    def __call__(self, image: ImageFile, top: int = 5) -> list[tuple[str, float]]:
        """Return the `top` likeliest classes of an image, each with its probability.

        Of several labels per image these are the labels from their thresholds on, the likeliest first, in any number;
        of a regression the name and the value of each number.
        """
        row = self.predictions([image])[0]
        order = np.arange(len(row)) if self.task == "regression" else np.argsort(-row, kind="stable")
        if self.task == "multilabel":
            order = order[row[order] >= np.array(self.config["thresholds"])[order]]
        elif self.task != "regression":
            order = order[:top]
        return [(self.classes[k], float(row[k])) for k in order]

    def predictions(self, images: Sequence[ImageFile]) -> np.ndarray:
        """Return what the network says, float32 (N, C), of N images: paths, or the bytes of image files.

        Probabilities of the classes or labels, or numbers in the units of the training list.

        Raises:
            ImageError: an image cannot be read.
        """
        rows = [np.zeros((0, self.config["num_classes"]), np.float32)]
        for first in range(0, len(images), BATCH):
            prepared = [self._prepare(image) for image in images[first : first + BATCH]]
            rows.append(self.run([np.stack(batch) for batch in zip(*prepared, strict=True)]))
        return np.concatenate(rows)

    def probabilities(self, images: Sequence[ImageFile]) -> np.ndarray:
        """Return `predictions`, float32 (N, C), by their name for classes and labels."""
        return self.predictions(images)

    def run(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Return the predictions of prepared images: uint8 (B, 3, S, S) for each way to prepare them."""
        if self.config["normalise"] == "file":
            inputs = [way.normalise(images) for way, images in zip(self.ways, inputs, strict=True)]
        each = [
            model([inputs[k] for k in about["inputs"]])
            for model, about in zip(self.models, self.config["models"], strict=True)
        ]
        return self._blend(each).astype(np.float32)

    def _prepare(self, image: ImageFile) -> list[np.ndarray]:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        try:
            squares = self.preprocess.squares(data, self.ways)
        except self.preprocess.ImageError as error:
            name = "image" if isinstance(image, bytes) else os.fspath(image)
            raise self.preprocess.ImageError(f"{name}: {error}") from None
        return [square.transpose(2, 0, 1) for square in squares]

    def _blend(self, outputs: list[np.ndarray]) -> np.ndarray:
        """Return the predictions that the outputs of all models give together."""
        temperature = self.config["temperature"]
        if self.config["outputs"] == "logits":  # of one model
            return _softmax(outputs[0] / temperature)
        weights = [model["weight"] for model in self.config["models"]]
        if len(outputs) == 1:
            mean = outputs[0]
        elif self.config["blend"] == "mean":
            mean = sum(weight * one for weight, one in zip(weights, outputs, strict=True))
        else:
            logs = [np.log(np.maximum(one, MIN_PROBABILITY)) for one in outputs]
            mean = _softmax(sum(weight * one for weight, one in zip(weights, logs, strict=True)))
        if temperature == 1:
            return mean
        if self.task == "multilabel":  # sigmoid(logit(p) / T)
            present, absent = mean ** (1 / temperature), (1 - mean) ** (1 / temperature)
            return present / (present + absent)
        return _softmax(np.log(np.maximum(mean, MIN_PROBABILITY)) / temperature)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _sibling(folder: Path, name: str) -> Any:
    """Return the module `name` of the folder, whatever else has its name."""
    spec = importlib.util.spec_from_file_location(f"{name}_of_export", folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------ runtimes


def _open(path: Path, threads: int) -> Model:
    """Return a function from the inputs of a model to its output."""
    return RUNTIMES[path.suffix](path, threads)


def _open_onnx(path: Path, threads: int) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


def _open_openvino(path: Path, threads: int) -> Model:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda inputs: model(list(inputs))[0]


def _open_torch(path: Path, threads: int) -> Model:
    import torch

    if threads:
        torch.set_num_threads(threads)
    module = torch.export.load(str(path)).module()

    def run(inputs: Sequence[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return module(*(torch.from_numpy(np.ascontiguousarray(one)) for one in inputs)).numpy()

    return run


RUNTIMES = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_torch}  # by the suffix of the model's file


# ------------------------------------------------------------------------------------------------ the command


def check(predictor: Predictor) -> int:
    """Predict the golden images, print the largest difference, and return 1 where it is beyond the tolerance."""
    golden, allowed = predictor.folder / "golden", predictor.config["tolerance"]
    files = json.loads((golden / "files.json").read_text(encoding="utf-8"))
    expected = np.load(golden / predictor.config["golden"])
    found = predictor.predictions([golden / name for name in files])
    difference = (np.abs(found - expected) / np.array(predictor.config.get("units", 1.0))).max(axis=1)
    worst = int(difference.argmax())
    print(f"{len(files)} golden images: largest difference {difference[worst]:.2e} (allowed: {allowed:g})")
    if not difference[worst] <= allowed:
        print(f"{files[worst]} differs most. Is the model, or a package, another one than at the export?")
        return 1
    return 0


def find(names: list[str]) -> list[Path]:
    """Return the files that the names mean; a folder means all files in it that are not hidden."""
    found = []
    for name in names:
        path = Path(name)
        inside = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
        found += inside if path.is_dir() else [path]
    return found


def as_object(name: str, row: list[tuple[str, float]], task: str) -> dict[str, object]:
    """Return the answer for the file `name` as --json prints it."""
    if task == "regression":
        return {"file": name, "values": dict(row)}
    keys = ("class", "probability")
    return {"file": name, "classes": [dict(zip(keys, one, strict=True)) for one in row]}


def main() -> int:
    """Predict the images of the command line; return the exit code."""
    parser = argparse.ArgumentParser("predict.py", description="Predict images with the exported network.")
    parser.add_argument("images", nargs="*", help="files or folders")
    parser.add_argument("--top", type=int, default=5, help="classes per image; of several labels or numbers all")
    parser.add_argument("--json", action="store_true", help="print a list of objects with file and classes")
    parser.add_argument(
        "--check", action="store_true", help="compare with the golden predictions; exit code 1 if they differ"
    )
    parser.add_argument("--threads", type=int, default=0, help="of the runtime; 0: its own choice")
    opt = parser.parse_args()
    if not opt.images and not opt.check:
        parser.error("which images? Give files or folders, or --check.")
    if opt.check and (opt.images or opt.json):
        parser.error(
            "--check predicts the images in golden/ alone: leave it out, or give it without images and --json."
        )
    if opt.top < 1 or opt.threads < 0:
        parser.error(f"--top is {opt.top}, --threads {opt.threads}; allowed: --top from 1 on, --threads from 0 on.")
    # names that the terminal's encoding lacks; a notebook's stream, or a closed one, stays as it is
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        predictor = Predictor(threads=opt.threads)
    except ImportError as error:
        package = "pillow" if error.name == "PIL" else error.name
        print(f"{error}\nTry: pip install {package}", file=sys.stderr)
        return 2
    except DamagedModelError as error:
        print(error, file=sys.stderr)
        return 2
    if opt.check:
        return check(predictor)
    answers, failed = [], 0
    for name in opt.images:
        if Path(name).is_dir() and not find([name]):
            print(f"{name}: the folder holds no file", file=sys.stderr)
            failed = 2
    for path in find(opt.images):
        try:
            answers.append((str(path), predictor(path, opt.top)))
        except (OSError, predictor.preprocess.ImageError) as error:
            reason = f"{path}: {error.strerror}" if isinstance(error, OSError) and error.strerror else error
            print(reason, file=sys.stderr)
            failed = 2
    if opt.json:
        print(json.dumps([as_object(name, row, predictor.task) for name, row in answers]))
        return failed
    for name, row in answers:
        numbers = [f"{value:12.6g}" if predictor.task == "regression" else f"{value:8.2%}" for _, value in row]
        for k, (number, (label, _)) in enumerate(zip(numbers, row, strict=True)):
            print(f"{name if k == 0 else ' ' * len(name)}  {number}  {label}")
        if not row:
            print(f"{name}  no label")
    return failed


if __name__ == "__main__":
    sys.exit(main())
