"""Average the weights of several checkpoints of one architecture into one checkpoint, and score it beside them.

    python -m tools.average --load a.pt b.pt c.pt --how greedy --out soup.pt
    python -m tools.average --tag lite0 --last 5 --how swa --out swa.pt
    python -m tools.average --load checkpoints/lite0/best.pt --how ema --out ema.pt

uniform: the mean of all weights, a soup (Wortsman et al., 2022). greedy: starts with the checkpoint of the best score,
and adds the others in the order of their scores, as long as --metric does not fall. swa: the mean of the raw weights
that a tag kept at the ends of epochs (Izmailov et al., 2018). ema: the moving average that training --ema kept.

The statistics of batch norm do not average, so they are recomputed with images of the training list, as train.py --swa
does. Only fine-tuned copies of one network have averages that predict well; compare the scores in the table. The choice
of a greedy soup is fitted to the validation list, so its score there is optimistic. Writes the checkpoint --out, which
eval.py, submit.py and the tools load, and a JSON of the same name with the scores and sha256 of each ingredient.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options import choices, command, given_words, parse_eval
from options.parser import ToolParser, expanded
from utils.errors import UserError
from utils.run import run_tool

if TYPE_CHECKING:
    from tools.average.ingredients import Ingredient
    from tools.average.soups import Soup
    from utils.seen_lists import Seen

METHODS = ("uniform", "greedy", "swa", "ema")
MAX_BATCHNORM_IMAGES = 10_000  # by default: more hardly move a mean over batches


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and average; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), average, write_flags="--out FILE")


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser("-m tools.average", __doc__)
    add = parser.add_argument
    add("--load", type=expanded, nargs="+", metavar="CKPT", help="the checkpoints of train.py to average")
    add("--tag", help="instead of --load, with --how swa: the checkpoints of the epochs of this run")
    add("--last", type=int, metavar="N", help="only the last N of the run --tag; default: all that are there")
    add("--checkpoint_dir", type=expanded, default="checkpoints", metavar="DIR", help="where the run --tag is")
    add("--how", choices=METHODS, required=True, help="what is averaged; see above")
    add("--out", type=expanded, required=True, metavar="FILE", help="the checkpoint to write; beside it, a .json")
    add("--overwrite", action="store_true", help="let --out replace a file")
    add("--metric", choices=choices.METRICS, help="the score that decides; default: the first checkpoint's")
    add(
        "--bn_images",
        type=int,
        metavar="N",
        help="training images for the statistics of batch norm; 0: keep the mean of the checkpoints' statistics; "
        f"default: {MAX_BATCHNORM_IMAGES}, with --how ema 0",
    )
    add(
        "--data_root", type=expanded, metavar="DIR", help="folder of the lists; default: that of the checkpoints' lists"
    )
    add("--train_list", type=expanded, metavar="FILE", help="default: the checkpoints'")
    add("--val_list", type=expanded, metavar="FILE", help="default: the checkpoints'")
    add("--precision", choices=(*choices.PRECISIONS, "fast"), help="of the scores, as for eval.py; default: auto")
    add("-b", "--batch_size", type=int, metavar="N", help="default: the first checkpoint's")
    add("-w", "--workers", type=int, help="threads that load images")
    add("--gpu", type=int, metavar="N", help="number of the GPU; -1: CPU")
    return parser


def average(opt: argparse.Namespace) -> None:
    """Average, score, print the table, and write both files. Raises UserError where that is impossible."""
    _check_flags(opt)
    from evaluation.ranking import check_decides
    from evaluation.seen_images import warn_seen
    from tools.average import batchnorm, ingredients, soups
    from tools.average.scores import Scorer, table
    from utils import distributed, run_lock
    from utils.logger import log
    from utils.run import get_device, tune_malloc
    from utils.seen_lists import seen_lists

    distributed.require_single_process("Averages")
    tune_malloc()
    out = Path(opt.out)
    run_lock.acquire(out)
    paths = ingredients.epoch_files(opt) if opt.tag else list(opt.load)
    _check_outputs(opt, paths)
    parts = ingredients.read_all(paths, opt.how)
    eval_opt = _eval_options(opt, paths, parts[0])
    scorer = Scorer(eval_opt, parts, get_device(opt.gpu), opt.metric)
    if opt.how == "greedy":
        check_decides(scorer.metric, scorer.classes.count, "the checkpoints of --how greedy")
        effect = "Its scores on them say nothing, and nor does the choice of --how greedy."
        for part in parts:
            warn_seen(part.path, seen_lists(part.content), scorer.files, effect)
    wanted = opt.bn_images if opt.bn_images is not None else 0 if opt.how == "ema" else MAX_BATCHNORM_IMAGES
    refresh = batchnorm.Refresher(eval_opt, parts, scorer.device, wanted, opt.train_list)
    soup = soups.cook(opt.how, parts, scorer, refresh)
    log.info(table(out, parts, soup, scorer))
    _warn_of_thresholds(out, parts, soup)
    content = _content(out, opt, parts, soup, scorer, refresh)
    _write(out, content)
    log.info(f"Written: {out}, {out.with_suffix('.json').name}")


def _check_flags(opt: argparse.Namespace) -> None:
    """Raise one UserError with all problems of the flags."""
    wrong = []
    if not opt.load and not opt.tag:
        wrong.append("--load is needed: which checkpoints? (for example --load a.pt b.pt; or --how swa --tag NAME)")
    if opt.load and opt.tag:
        wrong.append("--load and --tag contradict: both say which checkpoints; leave one out")
    if opt.tag and opt.how != "swa":
        wrong.append(f"--tag and --how {opt.how} contradict: the epochs of one run are for --how swa; give --load")
    if opt.last is not None and (not opt.tag or opt.last < 2):
        wrong.append(f"--last is {opt.last}; allowed: 2 or more, with --tag")
    count = len(opt.load or ())
    if opt.how == "ema" and count > 1:
        wrong.append(f"--how ema takes one checkpoint; --load has {count}")
    if opt.how != "ema" and count == 1:
        wrong.append(f"--how {opt.how} takes two checkpoints or more; --load has 1")
    if opt.bn_images is not None and opt.bn_images < 0:
        wrong.append(f"--bn_images is {opt.bn_images}; allowed: 0 or more")
    if opt.batch_size is not None and opt.batch_size < 1:
        wrong.append(f"--batch_size is {opt.batch_size}; allowed: 1 or more")
    if Path(opt.out).suffix != ".pt":
        wrong.append(f"--out is {opt.out}; allowed: a name that ends in .pt")
    if wrong:
        raise UserError("\n".join(wrong))


def _check_outputs(opt: argparse.Namespace, paths: Sequence[str]) -> None:
    """Raise UserError where an output is an input, or exists and --overwrite is not given."""
    from utils.outputs import Output, check, inputs

    out = Path(opt.out)
    outputs = [Output(out, "the average"), Output(out.with_suffix(".json"), "its scores")]
    check(outputs, {**inputs(opt), **dict.fromkeys(paths, "--load")})
    present = [str(one.path) for one in outputs if one.path.exists()]
    if present and not opt.overwrite:
        raise UserError(
            f"{' and '.join(present)} exists already. Give another name with --out, or --overwrite to replace it."
        )


def _eval_options(opt: argparse.Namespace, paths: Sequence[str], first: "Ingredient") -> argparse.Namespace:
    """Return the flags of eval.py under which everything is scored."""
    batch_size = opt.batch_size or first.content["opt"].get("batch_size")
    values = {**vars(opt), "load": paths, "batch_size": batch_size if isinstance(batch_size, int) else None}
    return parse_eval(given_words(values, "load", "batch_size", "data_root", "val_list", "precision", "workers", "gpu"))


def _content(
    out: Path, opt: argparse.Namespace, parts: Sequence["Ingredient"], soup: "Soup", scorer: Any, refresh: Any
) -> dict[str, Any]:
    """Return the checkpoint: the first one's network and classes, the new weights, and what they are made of."""
    from tools.average.ingredients import FITTED, tag_of

    first = parts[0].content
    about = {
        "how": opt.how,
        "metric": scorer.metric,
        "scores": soup.scores,
        "val_list": {"path": str(scorer.files.source), "sha256": scorer.files.content_hash()},
        "batchnorm": refresh.about,
        "ingredients": [
            {**part.about(), "used": used, "scores": scores}
            for part, used, scores in zip(parts, soup.used, soup.single, strict=True)
        ],
    }
    options = {**first["opt"], "tag": tag_of(out), "load": None, "resume": False}
    epoch = max(part.content.get("epoch", 0) for part in parts)
    used = [part.content for part, used in zip(parts, soup.used, strict=True) if used]
    data = data_of(used, scorer.files.source, refresh.seen)
    content = {"model": first["model"], "epoch": epoch, "opt": options, "data": data}
    if len(used) == 1 and len(parts) > 1:  # a greedy soup of one is that network, with what was fitted to it
        content |= {name: used[0][name] for name in FITTED if used[0].get(name) is not None}
    return {**content, "weights": soup.weights, "showing": "raw", "average": about}


def _warn_of_thresholds(out: Path, parts: Sequence["Ingredient"], soup: "Soup") -> None:
    """Warn where thresholds of the labels were fitted to networks that were averaged: the average has none."""
    from tools.average.ingredients import tag_of
    from utils.logger import log

    used = [part for part, is_used in zip(parts, soup.used, strict=True) if is_used]
    held = [part for part in used if part.thresholds is not None]
    if held and len(used) > 1:
        rule = held[0].content["thresholds"]["rule"]
        log.warning(
            f"{held[0].path} holds thresholds of its own probabilities, with which it is scored; {out} has none, so "
            "labels count from 0.5 on. To fit some: "
            f"{command('eval', {'tag': tag_of(out), 'load': str(out), 'fit_thresholds': rule})}"
        )


def data_of(used: Sequence[dict[str, Any]], val_list: Path, more: "Seen") -> dict[str, Any]:
    """Return the `data` of an average of the checkpoints `used`: what they share, and all lists that they have seen.

    The average of networks of different lists has no training list of its own, nor images per class.

    Args:
        val_list: where the average was scored; it has this validation list if the networks share none.
        more: a list that it has seen besides.
    """
    from utils.seen_lists import joined, seen_lists

    parts = [content["data"] for content in used]
    data = {**parts[0], "seen": joined(*map(seen_lists, used), more)}
    lists = [part.get("lists") or {} for part in parts]
    shared = {name: path for name, path in lists[0].items() if all(one.get(name) == path for one in lists)}
    data["lists"] = {"val": os.path.abspath(val_list)} | shared
    for name in ("train_list", "val_list", "class_images"):
        if any(part.get(name) != parts[0].get(name) for part in parts):
            data.pop(name, None)
    if "val" not in shared:  # it is not a fingerprint of the list above
        data.pop("val_list", None)
    return {"class_images": None} | data


def _write(out: Path, content: dict[str, Any]) -> None:
    """Write the checkpoint, and the JSON beside it, which holds the checkpoint's sha256."""
    from utils import checkpoint
    from utils.files import file_hash, write_json

    checkpoint.save(out, content)
    result = {"path": str(out), "sha256": file_hash(out), "identity": checkpoint.identity(content)}
    write_json(out.with_suffix(".json"), {**result, **content["average"]})
