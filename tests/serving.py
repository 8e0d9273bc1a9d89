"""Checkpoints, images, and servers as processes, for the tests of tools.serve."""

import io
import re
import signal
import subprocess
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from conftest import ROOT
from network import get_model
from options import parse_train
from utils import checkpoint

httpx = pytest.importorskip("httpx")
for needed in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(needed)
CLASSES = ["red", "一个很长的中文类别名称，用来检查条形图", "Blüte & <b>bud</b>", "x" * 90]


def save(folder, name="best", task="single", count=4, seed=0, **more):
    """Write a checkpoint of a network with random weights, whose answers differ between images; return its path.

    `more`: what else it holds.
    """
    torch.manual_seed(seed)
    words = ["--model", "timm:test_resnet", "--no-pretrained", "--scale", "32", "--num_classes", str(count)]
    model = get_model("timm:test_resnet")(parse_train(words))
    weights = {key: 30 * value if key.endswith("fc.weight") else value for key, value in model.net.state_dict().items()}
    names = CLASSES[:count]
    data = {"num_classes": count, "class_names": names, "class_images": None, "task": task}
    data |= {"target_mean": [10.0] * count, "target_std": [3.0] * count} if task == "regression" else {}
    data |= {"preprocess": model.preprocess().as_dict()}
    path = folder / f"{name}.pt"
    checkpoint.save(path, {"model": "timm:test_resnet", "weights": weights, "data": data, **more})
    return path


def picture(number, form="PNG", side=40):
    """Return an image file; each number gives another image."""
    rng = np.random.default_rng(number)
    pixels = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, form)
    return file.getvalue()


class Server:
    """`python -m tools.serve` with more words, at a free port."""

    def __init__(self, *words, command=("-m", "tools.serve"), cwd=ROOT, env=None):
        line = [sys.executable, *command, *map(str, words), "--port", "0"]
        self.process = subprocess.Popen(
            line, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines = []
        for text in self.process.stdout:
            self.lines.append(text)
            found = re.search(r"Serving on (\S+)", text)
            if found:
                self.url = found[1]
                return
        pytest.fail("".join(self.lines))

    def stop(self, number=signal.SIGTERM):
        """Send a signal; return the exit code and what was printed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out = self.process.communicate()[0]
        return self.process.returncode, "".join(self.lines) + out

    def predict(self, *images, client=httpx, **query):
        files = [("images", (f"{k}.png", data)) for k, data in enumerate(images)]
        return client.post(f"{self.url}/predict", files=files, params=query, timeout=None)
