"""Predict with the exported network beside this file. It needs NumPy, Pillow, and the runtime of the model's format.

    python predict.py a.jpg photos/ --top 5
    python predict.py --json a.jpg
    python predict.py --check

In Python:

    from predict import Predictor
    predictor = Predictor("folder")
    predictor("a.jpg")                          # [("bag", 0.93), ("shirt", 0.04), …], the likeliest first
    predictor.probabilities(["a.jpg", data])    # float32 (images, classes); data: the bytes of an image file

--check predicts the images in golden/, and compares with the probabilities that the training framework gave.
"""

import argparse
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


class Predictor:
    """The exported network: `Predictor("folder")("a.jpg")`."""

    def __init__(self, folder: str | os.PathLike = Path(__file__).parent, threads: int = 0) -> None:
        """Load the model in `folder`. `threads`: of the runtime; 0: its own choice."""
        self.folder = Path(folder)
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        names = (self.folder / "classes.txt").read_text(encoding="utf-8").split("\n")
        self.classes = names[: self.config["num_classes"]]
        self.preprocess = _sibling(self.folder, "preprocess")
        ways = [{**way, "mean": tuple(way["mean"]), "std": tuple(way["std"])} for way in self.config["preprocess"]]
        self.ways = [self.preprocess.Preprocess(**way) for way in ways]
        self.models = [_open(self.folder / model["file"], threads) for model in self.config["models"]]

    def __call__(self, image: ImageFile, top: int = 5) -> list[tuple[str, float]]:
        """Return the `top` likeliest classes of an image, each with its probability."""
        row = self.probabilities([image])[0]
        return [(self.classes[k], float(row[k])) for k in np.argsort(-row, kind="stable")[:top]]

    def probabilities(self, images: Sequence[ImageFile]) -> np.ndarray:
        """Return the probabilities, float32 (N, C), of N images: paths, or the bytes of image files.

        Raises:
            ImageError: an image cannot be read.
        """
        rows = [np.zeros((0, self.config["num_classes"]), np.float32)]
        for first in range(0, len(images), BATCH):
            prepared = [self._prepare(image) for image in images[first : first + BATCH]]
            rows.append(self.run([np.stack(batch) for batch in zip(*prepared, strict=True)]))
        return np.concatenate(rows)

    def run(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Return the probabilities of prepared images: uint8 (B, 3, S, S) for each way to prepare them."""
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
        """Return the probabilities that the outputs of all models give together."""
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
        return mean if temperature == 1 else _softmax(np.log(np.maximum(mean, MIN_PROBABILITY)) / temperature)


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
    return {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_torch}[path.suffix](path, threads)


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


# ------------------------------------------------------------------------------------------------ the command


def check(predictor: Predictor) -> int:
    """Predict the golden images, print the largest difference, and return 1 where it is beyond the tolerance."""
    golden, allowed = predictor.folder / "golden", predictor.config["tolerance"]
    files = json.loads((golden / "files.json").read_text(encoding="utf-8"))
    expected = np.load(golden / predictor.config["golden"])
    found = predictor.probabilities([golden / name for name in files])
    difference = np.abs(found - expected).max(axis=1)
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


def main() -> int:
    parser = argparse.ArgumentParser("predict.py", description="Predict images with the exported network.")
    parser.add_argument("images", nargs="*", help="files or folders")
    parser.add_argument("--top", type=int, default=5, help="classes per image")
    parser.add_argument("--json", action="store_true", help="print a list of objects with file and classes")
    parser.add_argument(
        "--check", action="store_true", help="compare with the golden probabilities; exit code 1 if they differ"
    )
    parser.add_argument("--threads", type=int, default=0, help="of the runtime; 0: its own choice")
    opt = parser.parse_args()
    if not opt.images and not opt.check:
        parser.error("which images? Give files or folders, or --check.")
    try:
        predictor = Predictor(threads=opt.threads)
    except ImportError as error:
        packages = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch", "PIL": "pillow"}
        print(f"{error}\nTry: pip install {packages.get(error.name or '', error.name)}", file=sys.stderr)
        return 2
    if opt.check:
        return check(predictor)
    answers, failed = [], 0
    for path in find(opt.images):
        try:
            answers.append((str(path), predictor(path, opt.top)))
        except (OSError, predictor.preprocess.ImageError) as error:
            print(error, file=sys.stderr)
            failed = 1
    if opt.json:
        keys = ("class", "probability")
        print(
            json.dumps(
                [{"file": name, "classes": [dict(zip(keys, one, strict=True)) for one in row]} for name, row in answers]
            )
        )
        return failed
    for name, row in answers:
        for k, (label, probability) in enumerate(row):
            print(f"{name if k == 0 else ' ' * len(name)}  {probability:8.2%}  {label}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
