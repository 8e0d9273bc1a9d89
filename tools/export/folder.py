"""Writes the folder of an export, checks it in a process of its own, and reports what it costs and gains."""

import argparse
import json
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.file_list import FileList
from dataloader.listing.named import find_images
from evaluation.multilabel import thresholds_of
from inference import Inference, open_inference, predict, predict_targets
from inference.predictor import Predictor
from options import choices
from tools.export import graph, quantise
from tools.export.alone import check_alone
from tools.export.formats import FORMATS
from tools.export.speed import compare_speed, open_exported
from utils import run_lock
from utils.errors import UserError
from utils.files import json_text
from utils.logger import log
from utils.outputs import inputs
from utils.task import SOFTMAX, has_probabilities
from utils.whole_folder import whole_folder

# Of a golden probability, or of a number in its deviations: other processors and versions round differently.
TOLERANCE = 2e-3
INT8_TOLERANCE = 2e-2  # of the 8-bit model's own predictions, for other processors and versions
EXPECTED, INT8_EXPECTED = "probabilities.npy", "int8.npy"  # in golden/: of eval.py, and of the 8-bit model here
MEANS = ("mean", *choices.FITTED_BLENDS)  # of --blend: weighted means of predictions
SHIPPED = ("predict.py", "preprocess.py")
VERSIONED = ("torch", "timm", "numpy", *dict.fromkeys(name for form in FORMATS.values() for name in form.needs))


class Golden(NamedTuple):
    """Images of the user with the predictions, float32 (N, C), that eval.py gives: probabilities, or numbers."""

    files: FileList
    predictions: NDArray[np.float32]


def export_folder(opt: argparse.Namespace, eval_opt: argparse.Namespace, out: Path) -> None:
    """Export the networks of `eval_opt`, flags of eval.py, into the folder `out`, as the tool's flags `opt` say.

    Raises:
        UserError: the networks cannot be loaded or exported, `out` holds something else, or the exported model gives
            other probabilities than PyTorch.
    """
    _check_place(out)
    run_lock.acquire(out)
    named = FileList.of_paths(find_images(opt.images), "--images") if opt.images else None
    run = open_inference(eval_opt, "val" if named is None else named, match_classes=named is None, tasks=choices.TASKS)
    if run.loaded.saved:
        raise UserError(
            f"{run.loaded.saved[0].path} holds the probabilities of one list, so it cannot be exported. "
            "Give checkpoints alone."
        )
    if run.predictor.blend == "rank":
        raise UserError("--blend rank gives no probabilities, so it cannot be exported. Try: --blend mean")
    if opt.members == "apart" and len(run.predictor.members) == 1:
        log.warning("--members apart has no effect: there is one network. Try: leave it out, or several --load")
    if opt.members == "apart" and not has_probabilities(run.classes.task) and run.predictor.blend not in MEANS:
        raise UserError(
            f"--members apart and --blend {run.predictor.blend} are for one class per image; the task of the "
            f"checkpoint is {run.classes.task}. Try: --members together"
        )
    if opt.outputs == "logits" and any(one.model.settings.activation != SOFTMAX for one in run.predictor.members):
        raise UserError("--outputs logits is for networks whose logits go into a softmax. Try: --outputs probabilities")
    _check_inputs(out, inputs(run.opt, run.files))
    golden = _golden(run, opt.golden)
    with whole_folder(out) as staging:
        config = _describe(opt, run)
        _write_parts(staging, config, run, golden)
        _write_models(staging, config, run, opt)
        write_config(staging, config)
        report = _quantise(staging, config, run, golden, opt) if opt.int8 else []
        worst = check_alone(staging, FORMATS[opt.to].runtimes)
        lines = compare_speed(staging, run.predictor)
        shutil.rmtree(staging / "__pycache__", ignore_errors=True)
    log.info(f"{len(golden.files)} golden images, in a process without this project: largest difference {worst:.2e}")
    log.info("\n".join([*lines, *report]))
    log.info(f"Written: {out}/\nNext: python {out}/predict.py --check")


def _check_place(out: Path) -> None:
    """Raise UserError where `out` is not empty, and no earlier export."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            ours = "export" in json.loads((out / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise UserError(f"--out {out} exists already and is no earlier export. Give the name of a new folder.")


def _check_inputs(out: Path, read: dict[str, str]) -> None:
    """Raise UserError where a file that is read is in the folder that will be replaced."""
    for path, what in read.items():
        if out.resolve() in Path(path).resolve().parents:
            raise UserError(f"{path} ({what}) is inside --out {out}, which is replaced. Give another folder.")


def _golden(run: Inference, count: int) -> Golden:
    """Return `count` readable images, spread over the list, with what eval.py predicts of them."""
    import dataloader

    keep = np.zeros(len(run.files), bool)
    keep[np.unique(np.linspace(0, len(run.files) - 1, count).astype(np.int64))] = True
    files = run.files.select(keep)
    loader = dataloader.eval_loader(run.opt, files, run.predictor.preprocesses)
    if not has_probabilities(run.classes.task):
        found = predict_targets(run.predictor, loader, run.classes.count)
        return Golden(files.select(found.readable), np.asarray(found.value[found.readable]))
    predictions, _ = predict(run.predictor, loader, rows=np.arange(len(files)))
    assert predictions.rows is not None
    return Golden(files.select(predictions.readable), predictions.rows.probability[predictions.readable])


def _describe(opt: argparse.Namespace, run: Inference) -> dict[str, Any]:
    """Return what config.json says; the models are added later."""
    predictor, loaded = run.predictor, run.loaded
    apart = opt.members == "apart" and len(predictor.members) > 1
    outside = apart or opt.outputs == "logits"
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "task": run.classes.task,
        "num_classes": run.classes.count,
        **({"thresholds": thresholds_of(run.classes).tolist()} if run.classes.task == "multilabel" else {}),
        "units": run.classes.std or 1.0,  # of --check's tolerance; of a regression one for each number
        "outputs": opt.outputs,
        "normalise": opt.normalise,
        "blend": "mean" if predictor.blend in MEANS else "geometric",
        "temperature": predictor.temperature if outside else 1.0,
        "golden": EXPECTED,
        "tolerance": TOLERANCE,
        "preprocess": [{**way.as_dict(), "max_pixels": run.opt.max_pixels} for way in predictor.preprocesses],
        "models": [],
        "export": {
            "title": loaded.title,
            "members": loaded.provenance(),
            "format": opt.to,
            "int8": opt.int8,
            "tta": run.opt.tta,
            "temperature": predictor.temperature,
            "command": sys.argv,
            "versions": versions,
        },
    }


def _write_parts(staging: Path, config: dict[str, Any], run: Inference, golden: Golden) -> None:
    """Write everything but the model: code, classes, requirements, golden images."""
    for name in SHIPPED:
        shutil.copyfile(Path(__file__).parent / "shipped" / name, staging / name)
    names = [run.classes.name(label) for label in range(run.classes.count)]
    (staging / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    runtimes = FORMATS[config["export"]["format"]].runtimes
    (staging / "requirements.txt").write_text("".join(f"{name}\n" for name in ["numpy", "pillow", *runtimes]))
    (staging / "golden").mkdir()
    copied = []
    for place in range(len(golden.files)):
        source = golden.files.path(place)
        copied.append(f"{place:02d}{Path(source).suffix.lower()}")
        shutil.copyfile(source, staging / "golden" / copied[-1])
    (staging / "golden" / "files.json").write_text(json_text(copied, indent=1), encoding="utf-8")
    np.save(staging / "golden" / EXPECTED, golden.predictions)


def write_config(staging: Path, config: dict[str, Any]) -> None:
    """Write config.json into the folder `staging`."""
    (staging / "config.json").write_text(json_text(config, indent=2) + "\n", encoding="utf-8")


def _write_models(staging: Path, config: dict[str, Any], run: Inference, opt: argparse.Namespace) -> None:
    """Write the graph of the predictor, or one for each member, and enter them in `config`."""
    whole = run.predictor
    parts = [whole]
    if opt.members == "apart":
        parts = [Predictor([member], run.opt.tta, whole.blend, task=whole.task) for member in whole.members]
    total = sum(whole.weights)
    for k, part in enumerate(parts):
        name = "model" if len(parts) == 1 else f"model_{k}"
        path = staging / f"{name}{FORMATS[opt.to].suffix}"
        traced = graph.Graph(part, logits=opt.outputs == "logits", normalised=opt.normalise == "file")
        log.info(f"Exporting {path.name} …")
        FORMATS[opt.to].write(traced, path)
        weight = whole.weights[k] / total if len(parts) > 1 else 1.0
        places = [whole.preprocesses.index(way) for way in part.preprocesses]
        config["models"].append({"file": path.name, "weight": weight, "inputs": places})
        size = sum(one.stat().st_size for one in staging.glob(f"{name}.*"))
        log.info(f"{path.name}: {size / 1e6:.1f} MB, inputs {graph.describe_inputs(traced)}")


def _quantise(
    staging: Path, config: dict[str, Any], run: Inference, golden: Golden, opt: argparse.Namespace
) -> list[str]:
    """Quantise the models, and let the check compare with what they give here; return lines of the report.

    Rounding to 8 bits moves single probabilities far. What it costs is measured as accuracy.
    """
    report = quantise.quantise(staging, config, run, opt)
    files = [
        staging / "golden" / name
        for name in json.loads((staging / "golden" / "files.json").read_text(encoding="utf-8"))
    ]
    found = open_exported(staging).predictions(files)
    np.save(staging / "golden" / INT8_EXPECTED, found)
    config |= {"golden": INT8_EXPECTED, "tolerance": INT8_TOLERANCE}
    write_config(staging, config)
    difference = np.abs(found - golden.predictions) / np.array(config["units"])
    return [*report, f"int8: golden predictions differ from eval.py's by {difference.max():.2g} at most"]
