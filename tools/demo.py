"""Prepare real product images, fine-tune a pretrained network on them, score it, and write a submission.

    python -m tools.demo        # the same as `make demo`

Each step is a command that you could type yourself; it is printed before it runs.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from options.parser import ToolParser
from tools.train_process import train_process
from utils.run import run_tool

DATA = "datasets/fashion-mnist"
TAG = "demo"
STEPS = [
    f"datasets/prepare.py fashion-mnist --out {DATA} --train 12000",
    f"-m tools.preview --data_root {DATA} --tag {TAG} --scale 64 --transform resize --out logs/{TAG}/preview.png",
    f"train.py --tag {TAG} --model EfficientNet-Lite0 --data_root {DATA} --scale 64 --epochs 1"
    " -b 64 --lr 0.002 --warmup 0.1 --transform none --gpu -1 --overwrite",
    f"eval.py --tag {TAG} --load checkpoints/{TAG}/best.pt --data_root {DATA} -b 100 --gpu -1",
    f"submit.py --tag {TAG} --load checkpoints/{TAG}/best.pt --data_root {DATA} -b 100 --gpu -1",
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps; return the exit code of the first one that fails, else 0."""
    parser = ToolParser("-m tools.demo", __doc__)
    return run_tool(lambda: parser.parse_args(argv), run)


def run(opt: argparse.Namespace) -> int:
    """Run the steps, and print where their results are; return the exit code of the first one that fails, else 0."""
    began = time.monotonic()
    for step in STEPS:
        print(f"\n$ python {step}", flush=True)
        with train_process([sys.executable, *shlex.split(step)]) as process:
            code = process.wait()
        if code:
            print(f"The demo stopped: `python {step}` ended with exit code {code}.", file=sys.stderr)
            return code
    metrics = json.loads(Path(f"results/{TAG}/1/metrics.json").read_text(encoding="utf-8"))
    seconds, top1, count = time.monotonic() - began, 100 * metrics["top1"], metrics["count"]
    print(f"\nDone in {seconds:.0f} s: top-1 {top1:.2f} % on {count} validation images.")
    print(f"  augmented training images     logs/{TAG}/preview.png")
    print(f"  the run                       logs/{TAG}/log.txt, metrics.csv, curves.png, and TensorBoard files")
    print(f"  the weights                   checkpoints/{TAG}/best.pt")
    print(f"  scores, tables, pictures      results/{TAG}/1/  (report.html, metrics.json, per_class.csv, …)")
    print(f"  the submission                results/{TAG}/submission.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
