"""Export a checkpoint, or an ensemble, as a folder that predicts without this project and without torch.

    python -m tools.export --load checkpoints/lite0/best.pt --to onnx --out exported
    python -m tools.export --load a.pt b.pt --weights 2 1 --tta flip --to onnx --out exported
    python -m tools.export --load checkpoints/lite0/best.pt --to onnx --int8 --out small

The folder holds the model, config.json, classes.txt, preprocess.py, predict.py, and golden/: some of your images with
the predictions of eval.py. `python exported/predict.py a.jpg` predicts. `python exported/predict.py --check` repeats
the golden predictions. Before the folder takes its name, a process without torch runs that check. The largest
difference and the speed beside PyTorch are printed. --int8 quantises the model with images of the training list, and
prints what it costs in accuracy on the validation list.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from options import choices, given_words, parse_eval
from options.parser import ToolParser, expanded
from options.shared_flags import temperature
from tools.export.formats import FORMATS
from utils.errors import UserError
from utils.run import run_tool

MAX_GOLDEN = 1000
CALIBRATION_IMAGES = 256
# Flags of eval.py that a command may give: the members, and how they predict
MEMBER_FLAGS = ("load", "ensemble", "weights", "blend", "tta", "temperature", "threshold", "scale", "fit")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and export; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), export)


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser("-m tools.export", __doc__)
    add = parser.add_argument
    add("--load", type=expanded, nargs="+", metavar="CKPT", help="one checkpoint, or several to blend")
    add("--ensemble", type=expanded, metavar="FILE", help="instead of --load: an ensemble.yaml of eval.py --blend")
    add("--weights", type=float, nargs="+", metavar="W", help="one weight per --load; default: equal weights")
    add("--blend", choices=("mean", "logits", "geometric"), help="how several members are blended; default: mean")
    add("--tta", choices=choices.TTAS, help="the views of an image, inside the model; default: none")
    add("--temperature", type=temperature, metavar="T", help="none, a number, or ckpt, as for eval.py; default: none")
    add(
        "--threshold",
        type=float,
        nargs="+",
        metavar="P",
        help="several labels per image: as for eval.py; default: those of the checkpoint, or 0.5",
    )
    add("--scale", type=int, metavar="PX", help="side of the square input; default: the checkpoint's")
    add("--fit", choices=choices.FITS, help="how an image becomes a square; default: the checkpoint's way")
    add("--to", choices=FORMATS, default="onnx", help="the format; torch_export needs torch to predict")
    add("--out", type=expanded, required=True, metavar="DIR", help="the folder; an earlier export there is replaced")
    add(
        "--outputs",
        choices=("probabilities", "logits"),
        default="probabilities",
        help="probabilities: softmax, or what the task needs, and temperature are inside the model; logits: predict.py "
        "computes them, for one class per image",
    )
    add(
        "--normalise",
        choices=("graph", "file"),
        default="graph",
        help="where mean and standard deviation are applied: in the model, or in preprocess.py",
    )
    add(
        "--members",
        choices=("together", "apart"),
        default="together",
        help="an ensemble as one model, or as a model for each member",
    )
    add("--int8", action="store_true", help="quantise convolutions and matrix products to 8 bits (onnx)")
    add(
        "--calibration_images",
        type=int,
        metavar="N",
        help=f"images of the training list for --int8; default: {CALIBRATION_IMAGES}",
    )
    add(
        "--images",
        type=expanded,
        nargs="+",
        metavar="PATH",
        help="golden images: files, folders, patterns; default: some of the validation list",
    )
    add("--golden", type=int, default=20, metavar="N", help="how many golden images")
    add("--data_root", type=expanded, metavar="DIR", help="folder of the lists; default: that of the checkpoint's list")
    add("--train_list", type=expanded, metavar="FILE", help="default: the checkpoint's")
    add("--val_list", type=expanded, metavar="FILE", help="default: the checkpoint's")
    add("-w", "--workers", type=int, help="threads that load images")
    return parser


def export(opt: argparse.Namespace) -> None:
    """Check the flags, and write the folder. Raises UserError where that is impossible."""
    _check_flags(opt)
    if opt.calibration_images is None:  # the parser has no default, so that the check knows what was given
        opt.calibration_images = CALIBRATION_IMAGES
    check_packages(opt.to)
    from tools.export.folder import export_folder

    words = given_words(vars(opt), *MEMBER_FLAGS, "data_root", "val_list", "workers")
    export_folder(opt, parse_eval([*words, "--precision", "fp32", "--gpu", "-1"]), Path(opt.out))


def check_packages(form: str) -> None:
    """Raise UserError where a package that a format needs is missing."""
    needs = FORMATS[form].needs
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to {form} needs {' and '.join(missing)}, which is missing.\nTry: pip install {' '.join(needs)}"
        )


def _check_flags(opt: argparse.Namespace) -> None:
    """Raise one UserError with all problems of the flags."""
    wrong = []
    if not opt.load and not opt.ensemble:
        wrong.append("--load is needed: which checkpoint? (for example --load checkpoints/<tag>/best.pt)")
    if opt.int8 and opt.to != "onnx":
        wrong.append(f"--int8 and --to {opt.to} contradict: ONNX Runtime quantises; allowed: --to onnx")
    if opt.outputs == "logits" and (len(opt.load or ()) > 1 or opt.ensemble or opt.tta not in (None, "none")):
        wrong.append("--outputs logits is of one network and one view: leave --tta, --ensemble and other --load out")
    if not 1 <= opt.golden <= MAX_GOLDEN:
        wrong.append(f"--golden is {opt.golden}; allowed: 1 to {MAX_GOLDEN}")
    if not opt.int8:
        unused = [f"--{name}" for name in ("calibration_images", "train_list") if getattr(opt, name) is not None]
        wrong += [f"{one} without --int8 would have no effect: leave it out, or give --int8" for one in unused]
    if opt.calibration_images is not None and opt.calibration_images < 1:
        wrong.append(f"--calibration_images is {opt.calibration_images}; allowed: 1 or more")
    if wrong:
        raise UserError("\n".join(wrong))
