"""Quantises ONNX models to 8 bits with images of the training list, and measures what it costs and gains."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dataloader
from dataloader.file_list import FileList
from evaluation.scoring import score
from evaluation.targets import of_list
from inference import Inference
from inference.seen import warn_of_members
from options import changed
from options.choices import TASK_METRICS
from tools.export.graph import input_names
from tools.export.speed import open_exported, time_in_turns
from utils.errors import UserError
from utils.logger import log, progress
from utils.task import has_probabilities

QUANTISED = ["Conv", "Gemm", "MatMul"]
TIMED_BATCH = 8


def quantise(staging: Path, config: dict[str, Any], run: Inference, opt: argparse.Namespace) -> list[str]:
    """Replace the ONNX models in the folder `staging` by quantised ones; return lines on accuracy and speed.

    Weights are signed, with a scale for each output channel; activations are unsigned, with one scale, from the range
    that they take for images of the training list. Only convolutions and matrix products are quantised.

    config.json is in the folder already.

    Raises:
        UserError: the training list is missing, or none of its images can be read.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    files = _training_images(run, opt)
    if run.files.is_labelled():
        warn_of_members(run, "It knows their answers, so the accuracy of both models on them says nothing.")
    plain = open_exported(staging)
    before = {model["file"]: (staging / model["file"]).stat().st_size for model in config["models"]}
    for model in config["models"]:
        path, prepared = staging / model["file"], staging / f"prepared_{model['file']}"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        path.unlink()
        quantize_static(
            str(prepared),
            str(path),
            _Images(run, files, model["inputs"], plain),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=not _has_vnni(),
            op_types_to_quantize=QUANTISED,
        )
        prepared.unlink()
        log.info(f"{path.name}: {before[path.name] / 1e6:.1f} MB -> {path.stat().st_size / 1e6:.1f} MB")
    compare = _compare if has_probabilities(run.classes.task) else _compare_targets
    return compare(plain, open_exported(staging), run)


def _has_vnni() -> bool:
    """Return whether the processor multiplies 8-bit numbers without saturating sums of two products in 16 bits."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _training_images(run: Inference, opt: argparse.Namespace) -> FileList:
    """Return opt.calibration_images of the training list, spread over it."""
    flags = changed(run.opt, train_list=opt.train_list)
    files = dataloader.open_list(flags, "train", known=run.loaded.lists, task=run.classes.task)
    dataloader.warn_changed(files, "train", run.loaded.datas)
    keep = np.zeros(len(files), bool)
    keep[np.unique(np.linspace(0, len(files) - 1, opt.calibration_images).astype(np.int64))] = True
    return files.select(keep)


class _Images:
    """Gives ONNX Runtime's calibrator one batch after another; a CalibrationDataReader."""

    def __init__(self, run: Inference, files: FileList, places: list[int], plain: Any) -> None:
        """`places`: which of the preprocessings the model takes. `plain`: the exported folder's Predictor."""
        self.names, self.places, self.plain = input_names(len(places)), places, plain
        self.batches = self._batches(run, files)

    def _batches(self, run: Inference, files: FileList) -> Iterator[dict[str, NDArray[Any]]]:
        loader = dataloader.eval_loader(run.opt, files, run.predictor.preprocesses)
        read = 0
        for batch in progress(loader, "calibrating", len(loader)):
            readable = batch.readable.numpy()
            read += int(readable.sum())
            images = [batch.images[place].numpy()[readable] for place in self.places]
            if self.plain.config["normalise"] == "file":
                images = [self.plain.ways[k].normalise(one) for k, one in zip(self.places, images, strict=True)]
            if readable.any():
                yield {name: np.ascontiguousarray(one) for name, one in zip(self.names, images, strict=True)}
        if not read:
            raise UserError(f"None of the {len(files)} images of {files.source} can be read, so --int8 has no ranges.")

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch by input name; None at the end."""
        return next(self.batches, None)


def _compare(plain: Any, small: Any, run: Inference) -> list[str]:
    """Return lines on the accuracy of both on the validation list, and on their speed."""
    right, same, count = [0, 0], 0, 0
    loader = run.batches()
    example: list[NDArray[np.uint8]] = []
    for batch in progress(loader, "comparing", len(loader)):
        keep = (batch.readable & (batch.label >= 0)).numpy()
        images = [np.ascontiguousarray(one.numpy()[keep]) for one in batch.images]
        if not keep.any():
            continue
        example = example or [one[:TIMED_BATCH] for one in images]
        tops = [model.run(images).argmax(axis=1) for model in (plain, small)]
        label = batch.label.numpy()[keep]
        right = [total + int((top == label).sum()) for total, top in zip(right, tops, strict=True)]
        same += int((tops[0] == tops[1]).sum())
        count += len(label)
    if not count:
        return ["int8: no image has a label, so its accuracy is not measured; give --val_list"]
    float_top1, int8_top1 = (total / count for total in right)
    return [
        f"int8: top-1 {int8_top1:.2%} instead of {float_top1:.2%} on {count} images "
        f"({100 * (int8_top1 - float_top1):+.2f} points; {same / count:.2%} of the answers are the same)",
        _compare_speed(plain, small, example),
    ]


def _compare_targets(plain: Any, small: Any, run: Inference) -> list[str]:
    """Return lines on the scores of both on the validation list, and on their speed."""
    loader, metric = run.batches(), TASK_METRICS[run.classes.task][0]
    index, values = list[NDArray[np.int64]](), tuple(list[NDArray[np.float32]]() for _ in range(2))
    example: list[NDArray[np.uint8]] = []
    for batch in progress(loader, "comparing", len(loader)):
        keep = batch.readable.numpy()
        images = [np.ascontiguousarray(one.numpy()[keep]) for one in batch.images]
        if keep.any() and run.files.targets is not None:
            example = example or [one[:TIMED_BATCH] for one in images]
            index.append(batch.index.numpy()[keep])
            for model, found in zip((plain, small), values, strict=True):
                found.append(model.run(images))
    if not index:
        return ["int8: no image has a label, so its accuracy is not measured; give --val_list"]
    rows = np.concatenate(index)
    readable = np.ones(len(rows), bool)
    float_score, int8_score = (
        score(of_list(rows, np.concatenate(found), readable, run.files.targets), run.classes)[metric]
        for found in values
    )
    return [
        f"int8: {metric} {int8_score:.6g} instead of {float_score:.6g} on {len(rows)} images",
        _compare_speed(plain, small, example),
    ]


def _compare_speed(plain: Any, small: Any, example: list[NDArray[np.uint8]]) -> str:
    """Return a line on how fast both predict the images `example`."""
    slow, fast = time_in_turns([lambda: plain.run(example), lambda: small.run(example)])
    return f"int8: {slow / fast:.2f} times the speed of the float model (batches of {len(example[0])})"
