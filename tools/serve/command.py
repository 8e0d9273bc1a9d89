"""Serve checkpoints, or folders of tools.export, over HTTP, with a page to try them.

    python -m tools.serve --load checkpoints/lite0/best.pt
    python -m tools.serve --load checkpoints/lite0/best.pt exported --names ours exported --port 8080
    python -m tools.serve --dockerfile exported

POST images to /predict as multipart files named "images"; /openapi.json describes all paths. The page at / shows the
likeliest classes as bars, Grad-CAM, and several models side by side. Images of several requests share a batch. SIGTERM
and Ctrl-C let the accepted requests finish, refuse new ones, and end with exit code 0. --dockerfile makes an exported
folder serve itself: it adds the server and a Dockerfile, and needs neither this project nor torch.
"""

import argparse
import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from options import choices, given_words, parse_eval
from options.parser import ToolParser, expanded
from options.shared_flags import temperature
from options.wording import count_of
from tools.serve.dockerfile import REQUIREMENTS, write_dockerfile
from tools.serve.shipped.served import ExportedModel, Model, is_exported
from tools.serve.shipped.settings import Settings, add_flags, settings_of
from utils.classes import counted
from utils.errors import UserError
from utils.logger import log
from utils.run import run_tool, set_openmp_spin, tune_malloc

MODULES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
CHECKPOINT_FLAGS = ("tta", "temperature", "scale", "fit", "precision", "gpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and serve; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), run, write_flags="--dockerfile DIR")


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser("-m tools.serve", __doc__)
    add = parser.add_argument
    add("--load", type=expanded, nargs="+", metavar="PATH", help="checkpoints and exported folders; each is a model")
    add("--names", nargs="+", metavar="NAME", help="a name per model; default: from its path")
    add("--dockerfile", type=expanded, metavar="DIR", help="instead of --load: make this exported folder serve itself")
    add("--force", action="store_true", help="let --dockerfile replace its files where you have changed them")
    add_flags(parser)
    add("--tta", choices=choices.TTAS, help="the views of an image, for checkpoints; default: none")
    add("--temperature", type=temperature, metavar="T", help="none, a number, or ckpt, as for eval.py; default: none")
    add("--scale", type=int, metavar="PX", help="side of the square input; default: the checkpoint's")
    add("--fit", choices=choices.FITS, help="how an image becomes a square; default: the checkpoint's way")
    add("--precision", choices=(*choices.PRECISIONS, "fast"), help="of checkpoints, as for eval.py; default: auto")
    add("--gpu", type=int, metavar="N", help="which GPU; -1: the CPU; default: GPU 0, or the CPU if there is none")
    return parser


def run(opt: argparse.Namespace) -> int:
    """Serve, or write the Dockerfile; return the exit code. Raises UserError."""
    if bool(opt.load) == bool(opt.dockerfile):
        problem = "contradict: give one of them" if opt.load else "are both missing: which model?"
        raise UserError(
            f"--load and --dockerfile {problem}.\nTry: python -m tools.serve --load checkpoints/<tag>/best.pt"
        )
    _check_unused(opt)
    if opt.dockerfile:
        write_dockerfile(Path(opt.dockerfile), opt.force)
        return 0
    try:
        settings = settings_of(opt)
    except ValueError as error:
        raise UserError(str(error)) from None
    names = model_names(opt.load, opt.names)
    check_packages()
    set_openmp_spin(os.environ)
    tune_malloc()
    return _serve(opt, settings, names)


def _check_unused(opt: argparse.Namespace) -> None:
    """Raise UserError where a flag is given that would change nothing, or a path that is no model."""
    parser = option_parser()
    given = [name for name, value in vars(opt).items() if value != parser.get_default(name)]
    if opt.dockerfile:
        unused = [f"--{name}" for name in given if name not in ("dockerfile", "force")]
        reason = "no effect beside --dockerfile, which only writes files"
    else:
        saved = [path for path in opt.load if path.endswith(".npz")]
        if saved:
            raise UserError(
                f"{saved[0]} holds the probabilities of one list, so it cannot be served. "
                "Try: --load with checkpoints and exported folders alone"
            )
        alone = all(Path(path).is_dir() for path in opt.load)
        unused = [f"--{name}" for name in given if name == "force" or (alone and name in CHECKPOINT_FLAGS)]
        reason = "no effect here: --force is for --dockerfile, the others for checkpoints"
    if unused:
        verb, them = ("have", "them") if len(unused) > 1 else ("has", "it")
        raise UserError(f"{', '.join(unused)} {verb} {reason}.\nTry: leave {them} out")


def model_names(paths: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """Return a name per model: those given, else made of the path: lite0/best of checkpoints/lite0/best.pt.

    Raises:
        UserError: there are too many or too few, or two are equal.
    """
    if given is not None and len(given) != len(paths):
        names_given, models = count_of(len(given), "name"), count_of(len(paths), "model")
        raise UserError(f"--names has {names_given} for {models}; allowed: one per model.")
    names = list(given) if given is not None else [_name(Path(path)) for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two models have the name {name!r}.\nTry: --names with a name per model")
    return names


def _name(path: Path) -> str:
    path = path.absolute()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.stem}"


def check_packages() -> None:
    """Raise UserError where a package that the server needs is missing."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"tools.serve needs {', '.join(missing)}, which is missing.\nTry: pip install {' '.join(REQUIREMENTS)}"
        )


def _serve(opt: argparse.Namespace, settings: Settings, names: Sequence[str]) -> int:
    """Load the models and answer requests until a signal; return the exit code. Raises UserError."""
    from tools.serve.shipped.run import bind, serve

    with _naming_port(settings):
        place = bind(settings)
    with place:
        models = [_open(opt, path, name, settings) for path, name in zip(opt.load, names, strict=True)]
        for model in models:
            log.info(f"{model.name}: {model.about}, task {model.task}, {counted(len(model.classes), model.task)}")
        with _naming_port(settings):
            place.listen()  # another server may have begun meanwhile: two sockets may have one address until then
        return serve(models, settings, place, log.info)


@contextlib.contextmanager
def _naming_port(settings: Settings) -> Iterator[None]:
    """Turn an OSError of a socket into a UserError that names the address."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--host {settings.host} --port {settings.port}: {error.strerror}.\nTry: --port 0, for a free port"
        ) from None


def _open(opt: argparse.Namespace, path: str, name: str, settings: Settings) -> Model:
    """Return the model of a checkpoint, or of an exported folder. Raises UserError."""
    if Path(path).is_dir():
        if not is_exported(Path(path)):
            from utils import checkpoint

            problem = f"{path} is a folder without an export; allowed: a checkpoint, or an exported folder."
            raise UserError(problem + checkpoint.beside(Path(path)))
        try:
            return ExportedModel(Path(path), name, settings.max_pixels)
        except ModuleNotFoundError as error:
            raise UserError(f"{path}: {error}.\nTry: pip install -r {path}/requirements.txt") from None
        except MemoryError:
            raise
        except Exception as error:  # of any runtime, or of a predict.py that is missing or damaged
            raise UserError(
                f"{path} is an exported folder that cannot be opened ({type(error).__name__}: {error}).\n"
                f"Try: python -m tools.export --load checkpoints/<tag>/best.pt --out {path}"
            ) from error
    from tools.serve.checkpoints import CheckpointModel

    words = given_words(
        {**vars(opt), "load": path, "batch_size": settings.max_batch}, "load", "batch_size", *CHECKPOINT_FLAGS
    )
    return CheckpointModel(parse_eval(words), name, settings.max_pixels)
