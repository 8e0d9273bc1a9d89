"""Checkpoints of an earlier version, kept in tests/data/: they load, predict to the same bits, and resume.

They are of tests/tiny.py's network and images:

- `sgd`: after epoch 1 of 2, with a temperature.
- `adamw_cut`: in epoch 2 of 2, with --ema, --mixup and --clip_grad.
- `ranger_fp16`: after epoch 2 of 3, with --swa, --head arcface and a gradient scaler.
"""

import json

import cv2
import numpy as np
import pytest
import torch

import dataloader
import inference
import network.loading
from evaluation.step_points import read_table
from options import parse_eval
from tiny import DATA, KEPT, Tiny, unpack, write_images
from utils import checkpoint

EXPECTED = json.loads((DATA / "checkpoints.json").read_text())


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    monkeypatch.setitem(network.models, "Tiny", Tiny)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plain_probabilities(content, folder):
    """What the shown weights give for the validation images, without any of our code but the network itself."""
    model = network.get_model("Tiny")(network.loading.options_from_checkpoint(content, 3, "Tiny"))
    model.net.load_state_dict(content[content["showing"]] if content["showing"] != "raw" else content["weights"])
    images = []
    for line in (folder / "val.txt").read_text().splitlines():
        image = cv2.cvtColor(cv2.imread(str(folder / line.split()[0])), cv2.COLOR_BGR2RGB)
        images.append(image)
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    model.to_device(torch.device("cpu"))
    with torch.inference_mode():
        return model.eval()(batch).float().softmax(dim=1)


@pytest.mark.parametrize("name", KEPT)
def test_old_checkpoint_loads_predicts_and_resumes(name, script, tmp_path):
    data = write_images(tmp_path)
    path = unpack(name, tmp_path)
    content = checkpoint.load(path)
    wanted = EXPECTED[name]
    assert checkpoint.identity(content) == wanted["identity"]

    words = ["--load", str(path), "--data_root", str(data), "--gpu", "-1", "-w", "0"]
    opt = parse_eval([*words, "--precision", "fp32", "--no-fold"])
    predictor = inference.load_predictor(opt, torch.device("cpu")).predictor
    loader = dataloader.eval_loader(opt, dataloader.open_list(opt, "val"), predictor.preprocesses)
    rows = inference.predict(predictor, loader, rows=np.arange(6))[0].rows
    assert torch.equal(torch.from_numpy(rows.probability), plain_probabilities(content, data))

    result = script("train.py", "--tag", "on", *words, "--resume")
    assert result.code == 0, result.err
    found = summary(checkpoint.load(tmp_path / "checkpoints/on/last.pt"))
    assert found["steps"] == wanted["resumed"]["steps"]
    points, _ = read_table(tmp_path / "logs/on/steps.csv", ("step", "epoch"))
    trained = [row["step"] for row in points if "lr" in row]  # by this version: the steps since the checkpoint
    assert trained == list(range(content["training"]["step"] + 1, found["steps"] + 1))
    assert found["sums"] == pytest.approx(wanted["resumed"]["sums"], rel=1e-3, abs=1e-3)


def summary(content):
    """Return a checkpoint's steps and the sums over each kind of weights, equal to rounding on any machine."""
    sums = {
        kind: sum(float(one.double().abs().sum()) for one in content[kind].values())
        for kind in ("weights", "ema", "swa")
        if content[kind]
    }
    return {"steps": content["training"]["step"], "sums": sums}
