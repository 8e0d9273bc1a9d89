"""Rules across the options of eval.py and submit.py. Each returns a list of problems, as those of `rules` do."""

import argparse

from options.choices import FITTED_BLENDS
from options.rules import Rule, is_on
from options.wording import count_of

NEED_PROBABILITIES = ("calibrate", "temperature", "save_probs", "pseudo_label")


def load(opt: argparse.Namespace) -> list[str]:
    """Require a checkpoint: --load or --ensemble, not both."""
    if opt.ensemble:
        given = [name for name in ("load", "weights") if getattr(opt, name)]
        return [
            f"--ensemble and --{name} contradict: the file holds members and weights; leave one out" for name in given
        ]
    return [] if opt.load else ["--load is needed: which checkpoint? (for example --load checkpoints/<tag>/best.pt)"]


def weights(opt: argparse.Namespace) -> list[str]:
    """Require one weight per checkpoint, not all of them 0."""
    if opt.weights is None or opt.load is None:
        return []
    problems = []
    if len(opt.weights) != len(opt.load):
        problems.append(
            f"--weights has {count_of(len(opt.weights), 'number')} for {count_of(len(opt.load), 'checkpoint')}; "
            "give one per checkpoint"
        )
    if sum(opt.weights) == 0:
        problems.append("--weights are all 0; at least one must be above 0")
    return problems


def blend(opt: argparse.Namespace) -> list[str]:
    """Require several members and labels where --blend fits the weights, and no weights from the user."""
    if opt.blend not in FITTED_BLENDS:
        return []
    problems = []
    if opt.ensemble:
        problems.append(
            f"--ensemble and --blend {opt.blend} contradict: the file's weights are fitted already; leave one out"
        )
    elif opt.load and len(opt.load) < 2:
        problems.append(f"--blend {opt.blend} needs two or more --load")
    if opt.weights:
        problems.append(f"--weights and --blend {opt.blend} contradict: --blend fits the weights; leave one out")
    if "test_list" in vars(opt):
        problems.append(
            f"--blend {opt.blend} fits weights to labels, which a test list does not have. "
            "Try: eval.py, then submit.py --ensemble FILE"
        )
    return problems


def without_probabilities(opt: argparse.Namespace) -> list[str]:
    """Return the flags that --blend rank, which orders the classes, gives nothing for; empty with another --blend."""
    if opt.blend != "rank":
        return []
    flags = [f"--{name}" for name in NEED_PROBABILITIES if is_on(opt, name)]
    return flags + ["--metric log_loss"] * (vars(opt).get("metric") == "log_loss")


def rank(opt: argparse.Namespace) -> list[str]:
    """Allow nothing that needs probabilities beside --blend rank."""
    return [
        f"{flag} and --blend rank contradict: ranks are not probabilities. Try: --blend mean"
        for flag in without_probabilities(opt)
    ]


def submission(opt: argparse.Namespace) -> list[str]:
    """Require a format of the submission that can be read back."""
    problems = []
    if opt.separator != "tab" and (len(opt.separator) != 1 or opt.separator in '"\r\n'):
        problems.append(f"--separator is {opt.separator!r}; allowed: one character (no quote, no line end), or tab")
    if opt.format == "json":
        unused = [name for name in ("columns", "header", "separator", "joiner") if name in opt.given]
        problems += [
            f"--{name} and --format json contradict: its keys are id and predicted; leave one out" for name in unused
        ]
    if opt.like is not None:
        taken = [name for name in ("columns", "header", "separator", "id", "format") if name in opt.given]
        problems += [
            f"--{name} and --like contradict: the sample says how the file must look; leave one out" for name in taken
        ]
    if not opt.header and "columns" in opt.given:
        problems.append("--columns and --no-header contradict: the names are written in the header; leave one out")
    if opt.top_k > 1 and not opt.joiner:
        problems.append("--joiner is empty; allowed with --top_k: any text")
    if opt.probabilities and "threshold" in opt.given:
        problems.append("--probabilities and --threshold contradict: a probability needs no threshold; leave one out")
    return problems


def images(opt: argparse.Namespace) -> list[str]:
    """Allow beside --images no flag about a list, or about the form of a submission."""
    if not opt.images:
        return []
    about = (
        "data_root",
        "test_list",
        "pseudo_label",
        "save_probs",
        "columns",
        "header",
        "separator",
        "id",
        "labels",
        "like",
        "probabilities",
        "joiner",
    )
    return [
        f"--images and --{name} contradict: with --images there is no list, and no submission; leave one out"
        for name in about
        if name in opt.given
    ]


def calibrate(opt: argparse.Namespace) -> list[str]:
    """Allow no --temperature beside --calibrate."""
    clash = opt.calibrate and opt.temperature != "none"
    return ["--calibrate and --temperature contradict: --calibrate fits a temperature; leave one out"] if clash else []


def fit_thresholds(opt: argparse.Namespace) -> list[str]:
    """Allow no --threshold beside --fit_thresholds."""
    clash = opt.fit_thresholds and opt.threshold
    text = "--fit_thresholds and --threshold contradict: --fit_thresholds decides the thresholds; leave one out"
    return [text] if clash else []


OF_BOTH: tuple[Rule, ...] = (load, weights, blend, rank)
