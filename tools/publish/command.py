"""Write a checkpoint as a folder for other people and programs, in the format of the Hugging Face hub.

    python -m tools.publish --load checkpoints/lite0/best.pt --out published --license apache-2.0
    python -m tools.publish --load soup.pt --metrics results/soup/3/metrics.json --out published
    python -m tools.publish --load checkpoints/lite0/best.pt --out published --license mit --push owner/name --private

The folder holds model.safetensors, config.json, classes.txt, preprocess.json, scores.json, provenance.json and a model
card, README.md. `timm.create_model("local-dir:published", pretrained=True)` loads it where timm has the network; the
logits are compared before the folder takes its name. eval.py, submit.py and train.py take every such folder with
--load. Options keep the names of files and folders, not where they are on this machine. --push uploads the folder by
huggingface_hub, to a new repository; --overwrite allows an earlier one.
"""

import argparse
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from options.parser import ToolParser, expanded
from tools.publish.licences import LICENCES
from utils.errors import UserError, unknown_name
from utils.run import run_tool

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and publish; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), publish)


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser("-m tools.publish", __doc__)
    add = parser.add_argument
    add("--load", type=expanded, required=True, metavar="CKPT", help="a checkpoint of train.py or of tools.average")
    add("--out", type=expanded, required=True, metavar="DIR", help="the folder to write")
    add("--overwrite", action="store_true", help="replace an earlier published folder, and an earlier repository")
    add("--title", help="of the model card; default: the name of the folder")
    add(
        "--license",
        metavar="ID",
        help="the hub's identifier of the licence, such as apache-2.0; default: none",
    )
    add("--license_name", metavar="NAME", help="of --license other")
    add("--license_link", metavar="URL", help="of --license other")
    add("--metrics", type=expanded, metavar="FILE", help="a metrics.json of eval.py for this checkpoint")
    add("--push", metavar="OWNER/NAME", help="also upload the folder to this repository of the Hugging Face hub")
    add("--private", action="store_true", help="make the repository of --push private")
    return parser


def publish(opt: argparse.Namespace) -> None:
    """Check the flags, write the folder, and upload it if asked. Raises UserError where that is impossible."""
    _check_flags(opt)
    from tools.publish import hub
    from tools.publish.folder import write_folder

    if opt.push:
        hub.check(opt.push, opt.private, opt.overwrite)
    out = Path(opt.out)
    write_folder(opt, out)
    if opt.push:
        hub.push(out, opt.push, opt.private, opt.overwrite)


def _check_flags(opt: argparse.Namespace) -> None:
    """Raise one UserError with all problems of the flags."""
    if opt.license is not None and opt.license not in LICENCES:
        raise unknown_name("licence", opt.license, LICENCES, "--license ")
    wrong = []
    other = [name for name in ("license_name", "license_link") if getattr(opt, name)]
    if opt.license == "other" and len(other) < 2:
        wrong.append("--license other needs --license_name NAME and --license_link URL")
    if opt.license != "other" and other:
        wrong.append(f"--{other[0]} is for --license other; leave it out")
    if opt.push and not REPOSITORY.fullmatch(opt.push):
        wrong.append(f"--push is {opt.push!r}; allowed: <owner>/<name>, of letters, digits, -, _ and .")
    if opt.private and not opt.push:
        wrong.append("--private is for --push; leave it out")
    if wrong:
        raise UserError("\n".join(wrong))
    if opt.push and importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("--push needs huggingface_hub, which is missing.\nTry: pip install huggingface_hub")
