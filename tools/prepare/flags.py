"""What the flags of datasets/prepare.py mean, for all of its sources."""

import argparse

from dataloader.listing.splits import DEFAULT_VAL, SplitPlan


def split_plan(opt: argparse.Namespace) -> SplitPlan:
    """Return what --val, or --folds and --fold, hold out."""
    share = DEFAULT_VAL if opt.val is None else opt.val
    return SplitPlan(share, opt.folds, opt.fold, opt.seed)
