"""`make demo`: prepare real product images, fine-tune a pretrained network on them, score it, write a submission.

Each step is a command that you could have typed; it is printed before it runs.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from utils.text import prepare_streams

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


def main() -> int:
    """Run the steps; returns the exit code of the first that fails, else 0."""
    prepare_streams()
    began = time.monotonic()
    for step in STEPS:
        print(f"\n$ python {step}", flush=True)
        code = subprocess.run([sys.executable, *shlex.split(step)]).returncode
        if code:
            print(f"The demo stopped: `python {step}` ended with exit code {code}.", file=sys.stderr)
            return code
    metrics = json.loads(Path(f"results/{TAG}/1/metrics.json").read_text(encoding="utf-8"))
    print(
        f"\nDone in {time.monotonic() - began:.0f} s: top-1 {100 * metrics['top1']:.2f} % on {metrics['count']} validation images."
    )
    print(f"  what the network was shown    logs/{TAG}/preview.png")
    print(f"  the run                       logs/{TAG}/log.txt, metrics.csv, curves.png, and TensorBoard files")
    print(f"  the weights                   checkpoints/{TAG}/best.pt")
    print(f"  scores, tables, pictures      results/{TAG}/1/  (report.html, metrics.json, per_class.csv, …)")
    print(f"  the submission                results/{TAG}/submission.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
