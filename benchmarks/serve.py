"""Measure the latency and the throughput of tools.serve under many clients, with and without dynamic batching.

    python -m benchmarks.serve --case EfficientNet-Lite0:64 --clients 64 --rounds 3

Each row starts a server of its own with a checkpoint of random weights, several rounds, alternately. The clients are
threads of one more process on the same cores; each keeps its connection and sends its next photograph as soon as it has
an answer. After a warm-up, `--requests` per client are timed. "full batch" is the mean time of a batch of one image per
client, alone in a process: decoding by as many threads as the server has, then the network. Prints the median over the
rounds of images per second, and of the 50th and 99th percentile of the latency; writes serve.json and serve.png.
"""

import argparse
import contextlib
import http.client
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness as bench
from benchmarks.eval import random_checkpoint
from dataloader.file_list import read_list
from utils.errors import UserError
from utils.logger import log

NAME = "serve"
FULL = "full batch"
ROWS: dict[str, list[str]] = {  # row -> its flags of tools.serve
    FULL: [],
    "dynamic batches": [],
    "each image alone": ["--max_batch", "1", "--max_delay", "0"],
}
WARM_UP_REQUESTS = 3  # per client
FULL_BATCHES = 10


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark."""
    parser = bench.option_parser(NAME, __doc__)
    parser.add_argument("--case", default="EfficientNet-Lite0:64", help="MODEL:PX")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=20, help="timed requests per client")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="measure only these rows")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and measure; return the exit code."""
    return bench.run(lambda: option_parser().parse_args(argv), measure, compare)


def compare(opt: argparse.Namespace) -> None:
    """Measure the rows alternately, print the tables, write the JSON and the plot."""
    path = str(bench.photographs(opt))
    found: dict[str, list[dict[str, float]]] = {row: [] for row in opt.rows}
    with tempfile.TemporaryDirectory() as folder:
        load = random_checkpoint(Path(folder), opt.case, path)
        names = ("clients", "requests", "workers", "gpu")
        task = {"list": path, "load": load, **{name: getattr(opt, name) for name in names}}
        rows = [bench.Row(row, {**task, "row": row}, ours=True) for row in opt.rows]
        for row, numbers in bench.interleaved(NAME, rows, opt):
            found[row].append(numbers)
    report(found, opt)


def measure(task: dict[str, Any]) -> dict[str, float]:
    """Return images per second, and the latencies in ms, of one row; `task` as `compare` writes it."""
    files = read_list(task["list"])
    images = [Path(files.path(index)).read_bytes() for index in range(min(len(files), task["clients"]))]
    if task["row"] == FULL:
        return _full_batch(task, images)
    words = ["--load", task["load"], "--port", "0", "--workers", str(max(1, task["workers"])), "--precision", "fp32"]
    with _server([*words, *bench.gpu_words(task), *ROWS[task["row"]]]) as port:
        _load(port, images, task["clients"], WARM_UP_REQUESTS)
        began = time.perf_counter()
        seconds = _load(port, images, task["clients"], task["requests"])
        rate = len(seconds) / (time.perf_counter() - began)
        batch = _mean_batch(port)
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99]).tolist()
    return {"rate": rate, "p50_ms": p50, "p99_ms": p99, "mean_batch": batch}


def _full_batch(task: dict[str, Any], images: list[bytes]) -> dict[str, float]:
    """Return the mean time in ms of a batch of one image per client, and of the network's part of it."""
    from options import parse_eval
    from tools.serve.checkpoints import CheckpointModel

    count = task["clients"]
    words = ["--load", task["load"], "-b", str(count), "--precision", "fp32", *bench.gpu_words(task)]
    model = CheckpointModel(parse_eval(words), FULL, max_pixels=1 << 30)
    files = [images[k % len(images)] for k in range(count)]
    whole, network = [], []
    with ThreadPoolExecutor(max(1, task["workers"])) as pool:
        for _ in range(1 + FULL_BATCHES):
            began = time.perf_counter()
            batch = list(pool.map(model.prepare, files))
            decoded = time.perf_counter()
            model.run(batch)
            ended = time.perf_counter()
            whole.append(ended - began)
            network.append(ended - decoded)
    mean = float(np.mean(whole[1:]))  # the first one warms up
    return {"rate": count / mean, "batch_ms": 1000 * mean, "network_ms": 1000 * float(np.mean(network[1:]))}


@contextlib.contextmanager
def _server(words: Sequence[str]) -> Iterator[int]:
    """Run `python -m tools.serve` while the body runs; yield its port. Raises UserError where it does not start."""
    command = [sys.executable, "-m", "tools.serve", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=bench.ROOT
    ) as process:
        assert process.stdout is not None
        shown = ""
        for line in process.stdout:
            shown += line
            if ready := re.search(r"Serving on http://.*:(\d+)", line):
                break
        else:
            raise UserError(f"The server did not start:\n{shown}")
        try:
            yield int(ready[1])
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def _load(port: int, images: list[bytes], clients: int, requests: int) -> list[float]:
    """Return the seconds of each request of `clients` clients, which begin together."""
    start = threading.Barrier(clients)

    def client(number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        found = []
        start.wait()
        for turn in range(requests):
            body = _form(images[(number + turn) % len(images)])
            began = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": "multipart/form-data; boundary=b"})
            reply = connection.getresponse()
            reply.read()
            found.append(time.perf_counter() - began)
            if reply.status != 200:
                raise UserError(f"The server answered {reply.status}")
        connection.close()
        return found

    with ThreadPoolExecutor(clients) as pool:
        return [one for found in pool.map(client, range(clients)) for one in found]


def _form(data: bytes) -> bytes:
    """Return the body of a request with one image."""
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n"


def _mean_batch(port: int) -> float:
    """Return how many images a batch has held on average since the server began."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    images, batches = (
        float(re.findall(rf"^serve_batch_images_{kind}\S* (\S+)", text, re.M)[0]) for kind in ("sum", "count")
    )
    return images / batches


def report(found: dict[str, list[dict[str, float]]], opt: argparse.Namespace) -> None:
    """Print the tables; write serve.json and serve.png."""
    rates = {row: [one["rate"] for one in rounds] for row, rounds in found.items()}
    log.info(f"\n{opt.case}, {opt.clients} clients, {bench.conditions(opt)}")
    bench.table("images/s", rates)
    medians = {
        row: {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]} for row, rounds in found.items()
    }
    for row, numbers in medians.items():
        log.info(f"{row}: " + ", ".join(f"{key} {value:.1f}" for key, value in numbers.items() if key != "rate"))
    if {FULL, "dynamic batches"} <= medians.keys():
        ratio = medians["dynamic batches"]["p99_ms"] / medians[FULL]["batch_ms"]
        log.info(f"p99 of dynamic batches / mean of a full batch: {ratio:.2f} (aim: at most 3)")
    title = f"Images per second, {opt.clients} clients (median; whiskers: all rounds)"
    bench.write(NAME, opt, {"rounds": found, "medians": medians}, ({opt.case: rates}, title))


if __name__ == "__main__":
    sys.exit(main())
