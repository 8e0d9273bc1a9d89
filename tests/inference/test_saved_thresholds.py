"""Thresholds of labels in a file of probabilities: --save_probs writes them, --load uses them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from inference import saved_probs

SCORE = ["--gpu", "-1", "-w", "0", "-b", "6", "--resamples", "0", "--no-report"]


@pytest.fixture
def evaluated(script, colours):
    """`evaluated(tag, *words)` runs eval.py on the labels; its metrics and what it prints."""

    def run(tag: str, *words: object) -> tuple[dict, str]:
        lists = ["--val_list", colours / "multilabel/val.txt"]
        result = script("eval.py", "--tag", tag, *lists, *SCORE, *words)
        assert result.code == 0, result.err
        return json.loads(next(Path(f"results/{tag}").glob("*/metrics.json")).read_text()), result.out

    return run


def test_file_of_probabilities_is_scored_at_the_thresholds_of_its_checkpoint(evaluated, task_checkpoint):
    network = task_checkpoint("multilabel")
    fitted, _ = evaluated("fit", "--load", network, "--fit_thresholds", "per_label", "--save_probs")
    network_again, _ = evaluated("network", "--load", network, "--temperature", "2", "--save_probs")
    paths = [next(Path(f"results/{tag}").glob("*/probs.npz")) for tag in ("fit", "network")]
    for tag, path, expected in zip(("a", "b"), paths, (fitted, network_again), strict=True):
        found, shown = evaluated(tag, "--load", path)
        names = ("micro_f1", "macro_f1", "threshold")
        assert [found[name] for name in names] == [expected[name] for name in names]
        assert f"as {path} says" in shown and found["threshold"] != 0.5
    cold = saved_probs.read(str(paths[0])).thresholds
    warm, _ = evaluated("warm", "--load", paths[0], "--temperature", "2")
    assert warm["micro_f1"] == pytest.approx(fitted["micro_f1"]) and warm["threshold"] != cold
    blend, shown = evaluated("two", "--load", *paths)
    assert blend["threshold"] == 0.5 and f"{paths[0]} holds thresholds of its own probabilities" in shown


def test_file_without_thresholds_is_scored_at_one_half_and_says_so(evaluated, task_checkpoint):
    before, _ = evaluated("n", "--load", task_checkpoint("multilabel"), "--save_probs")
    path = next(Path("results/n").glob("*/probs.npz"))
    found, shown = evaluated("f", "--load", path)
    assert found["threshold"] == 0.5 and found["micro_f1"] == before["micro_f1"]
    assert f"from probability 0.5000 on: {path} holds no thresholds" in shown
    assert "holds no thresholds" not in evaluated("g", "--load", path, "--threshold", "0.4")[1]


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 1.5], [[0.5, 0.5]], [np.nan, 0.5]])
def test_file_with_damaged_thresholds_is_refused(evaluated, script, task_checkpoint, thresholds):
    evaluated("n", "--load", task_checkpoint("multilabel"), "--save_probs")
    path = shutil.copy(next(Path("results/n").glob("*/probs.npz")), "p.npz")
    with np.load(path) as content:
        arrays = dict(content)
    np.savez(path, **arrays, thresholds=np.array(thresholds))
    result = script("eval.py", "--tag", "x", "--load", path, "--val_list", "val.txt", *SCORE)
    assert result.code == 2 and "is damaged: its thresholds are" in result.err
    assert "Try: python eval.py --load CKPT --save_probs" in result.err
