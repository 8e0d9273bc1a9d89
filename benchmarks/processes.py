"""Measure how fast several processes predict a list, without the start of the programs.

    python -m benchmarks.processes --load checkpoints/lite0/best.pt --list datasets/fashion-mnist/val.txt -b 64
    torchrun --standalone --nproc_per_node=2 -m benchmarks.processes --load checkpoints/lite0/best.pt \\
        --list datasets/fashion-mnist/val.txt -b 128

The first pass fills the cache, and is not timed. Each of the other --passes is timed from the request for the first
batch to the last prediction in the main process, which prints images per second: the median, and all passes. Set
OMP_NUM_THREADS, so that the processes do not compete for the cores. Run both commands alternately.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

from options.parser import ToolParser, expanded
from tools.predicting import add_flags, open_checkpoint
from utils import distributed
from utils.run import run_tool


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark."""
    parser = ToolParser("-m benchmarks.processes", __doc__)
    parser.add_argument("--load", type=expanded, required=True, metavar="CKPT")
    parser.add_argument("--list", type=expanded, required=True, help="images to predict: path, space, label")
    parser.add_argument("--passes", type=int, default=3, metavar="N", help="passes over the list that are timed")
    add_flags(parser, batch_size=64)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; return the exit code."""
    return run_tool(lambda: option_parser().parse_args(argv), measure)


def measure(opt: argparse.Namespace) -> None:
    """Time the passes, and print images per second."""
    import torch

    from dataloader.file_list import read_list
    from inference import predict

    run = open_checkpoint(opt, read_list(opt.list), "--cache", "ram", shared=True)
    loader, rates = run.batches(), list[float]()
    for _ in range(1 + opt.passes):
        began = time.perf_counter()
        predictions, _ = predict(run.predictor, loader)
        rates.append(len(predictions.index) / (time.perf_counter() - began))
    if distributed.is_main():
        timed = ", ".join(f"{rate:.1f}" for rate in rates[1:])
        print(
            f"processes: {distributed.world_size()}, threads each: {torch.get_num_threads()}, "
            f"images/s: {statistics.median(rates[1:]):.1f} ({timed})"
        )


if __name__ == "__main__":
    sys.exit(main())
