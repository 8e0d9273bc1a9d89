"""Flags of eval.py alone."""

from options import choices
from options.parser import Parser, expanded
from options.shared_flags import SWITCH


def evaluation(parser: Parser) -> None:
    """Add what is scored and compared, and what is fitted and kept."""
    add = parser.group("evaluation")
    add("--report", action=SWITCH, default=True, help="write report.html, a single page to read and share")
    add(
        "--compare",
        type=expanded,
        metavar="CSV",
        help="predictions.csv of another evaluation of this list: show McNemar's test, or the difference in mAP, mae "
        "or qwk with its interval, and the changed images",
    )
    add(
        "--metric",
        choices=choices.METRICS,
        help="what --blend greedy maximises, and what is shown first; default: that of the checkpoint's training",
    )
    add(
        "--calibrate",
        action="store_true",
        help="fit a temperature on this list and write it into the checkpoint of --load: "
        "that file changes, its weights do not",
    )
    add(
        "--fit_thresholds",
        choices=choices.THRESHOLDS,
        help="several labels per image: fit the thresholds with the highest F1 on this list, one for all labels or one "
        "per label, and write them into the checkpoint of --load, as --calibrate does, or for several into an "
        "ensemble.yaml; half: write 0.5",
    )
    add(
        "--resamples",
        type=int,
        default=1000,
        low=0,
        high=100_000,
        metavar="N",
        help="bootstrap resamples for the confidence intervals of the scores; 0: no intervals",
    )
