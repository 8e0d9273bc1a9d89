"""eval.py --compare of labels, numbers and ordered classes: the paired interval, its words, and what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, cohen_kappa_score

from dataloader.file_list import read_list
from dataloader.targets import joined
from evaluation import multilabel, paired, target_compare
from evaluation.paired import Difference, describe, error_scores, kappa_scores, paired_scores, precision_scores
from evaluation.scored import TargetScored
from evaluation.target_compare import OtherTargets
from evaluation.targets import TargetPredictions
from inference.predictor import Predictor
from utils.classes import Classes


def drawn_weights(images: int, resamples: int = 6) -> np.ndarray:
    rng = np.random.default_rng(5)
    drawn = [np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(resamples)]
    return np.stack(drawn, axis=1).astype(np.int32)


@pytest.mark.parametrize("steps", [0, 4])
def test_paired_scores_of_labels_equal_sklearn_on_repeated_images(steps):
    """With `steps`, many probabilities are equal; one label never occurs, one on a single image."""
    rng = np.random.default_rng(0)
    present = rng.random((40, 4)) < (0.5, 0.2, 0.0, 0.0)
    present[3, 3] = True
    values = [rng.random(present.shape).astype(np.float32) for _ in range(2)]
    values = [np.round(value * steps) / np.float32(steps) if steps else value for value in values]
    weights = drawn_weights(40)
    assert (weights[3] == 0).any()  # then no image of the resample has the last label
    for found, value in zip(precision_scores(present, *values)(weights), values, strict=True):
        for column, score in zip(weights.T, found, strict=True):
            again = np.repeat(np.arange(40), column)
            occurs = np.flatnonzero(present[again].any(axis=0))
            each = [average_precision_score(present[again, k], value[again, k]) for k in occurs]
            assert score == pytest.approx(np.mean(each), abs=1e-9)


def test_paired_scores_of_ordered_classes_equal_sklearn_on_repeated_images():
    rng = np.random.default_rng(1)
    label, one, two = rng.integers(0, 4, (3, 50))
    weights = drawn_weights(50)
    for found, predicted in zip(kappa_scores(label, one, two, 4)(weights), (one, two), strict=True):
        for column, score in zip(weights.T, found, strict=True):
            again = np.repeat(np.arange(50), column)
            assert score == pytest.approx(cohen_kappa_score(label[again], predicted[again], weights="quadratic"))


def test_paired_interval_of_an_error_is_that_of_the_mean_difference(monkeypatch):
    """Both errors share a part that is far larger than their difference; only a paired draw sees past it."""
    rng = np.random.default_rng(2)
    shared, gap = rng.random(900) * 50, rng.normal(0.3, 1, 900)
    scores = error_scores(shared, shared + gap)
    found = paired_scores("mae", scores, np.arange(900), 1, 2000)
    width = 1.96 * gap.std() / 30
    assert found.difference == pytest.approx(-gap.mean())
    assert found.interval == pytest.approx([-gap.mean() - width, -gap.mean() + width], abs=0.012)
    monkeypatch.setattr(paired, "BLOCK_WEIGHTS", 900 * 7)
    assert paired_scores("mae", scores, np.arange(900), 1, 2000).interval == pytest.approx(found.interval)
    assert paired_scores("mae", scores, np.arange(900), 2, 2000).interval != found.interval


def test_paired_interval_of_lines_of_one_image_is_that_of_the_image():
    """Four lines of each image made the interval half as wide."""
    rng = np.random.default_rng(2)
    shared, gap = rng.random(300) * 50, rng.normal(0.3, 1, 300)
    once = paired_scores("mae", error_scores(shared, shared + gap), np.arange(300), 1, 1000)
    lines = np.tile(np.arange(300), 4)
    scores = error_scores(shared[lines], shared[lines] + gap[lines])
    again = paired_scores("mae", scores, lines, 1, 1000)
    assert again.interval == pytest.approx(once.interval) and again.difference == pytest.approx(once.difference)
    alone = paired_scores("mae", scores, np.arange(1200), 1, 1000).interval
    assert np.ptp(alone) == pytest.approx(np.ptp(once.interval) / 2, rel=0.1)


def test_paired_interval_of_equal_or_single_images_is_zero_or_absent():
    error = np.arange(5.0)
    assert paired_scores("mae", error_scores(error, error), np.arange(5), 0, 50).interval == [0, 0]
    alone = paired_scores("mae", error_scores(np.array([1.0]), np.array([2.0])), np.arange(1), 0, 50)
    assert alone.interval is None and "all resamples are equal" in describe("a.csv", alone)
    without = paired_scores("mae", error_scores(error, error + 1), np.arange(5), 0, 0)
    assert without.interval is None and "There is no interval (--resamples is 0)" in describe("a.csv", without)


@pytest.mark.parametrize(
    ("metric", "interval", "verdict"),
    [
        ("mAP", [0.01, 0.2], "excludes 0: this evaluation is better"),
        ("mAP", [-0.2, -0.01], "excludes 0: the other evaluation is better"),
        ("mae", [0.01, 0.2], "excludes 0: the other evaluation is better"),
        ("mae", [-0.2, -0.01], "excludes 0: this evaluation is better"),
        ("qwk", [-0.1, 0.1], "holds 0: neither is shown to be better"),
    ],
)
def test_describe_names_the_better_evaluation(metric, interval, verdict):
    text = describe("a.csv", Difference(metric, 0.5, 0.4, 0.1, interval, 90))
    assert verdict in text and f"Compared with a.csv by {metric} on 90 images" in text


def test_compare_of_many_probabilities_has_the_exact_scores_and_no_interval(monkeypatch, tmp_path):
    rng = np.random.default_rng(3)
    present = rng.random((30, 3)) < 0.4
    value, that = rng.random((2, 30, 3)).astype(np.float32)
    readable = np.arange(30) != 4
    sets = joined("multilabel", [np.flatnonzero(row).tolist() for row in present])
    predictions = TargetPredictions(np.arange(30), value, readable, sets)
    (tmp_path / "list.txt").write_text("".join(f"{k}.jpg 0\n" for k in range(30)))
    scored = TargetScored(predictions, read_list(tmp_path / "list.txt"), Classes(3, task="multilabel"))
    other = OtherTargets("a.csv", that, np.arange(30) != 7, [np.flatnonzero(row >= 0.5).tolist() for row in that])
    whole = target_compare.compare(scored, other, 0, 100).difference
    monkeypatch.setattr(target_compare, "MAX_VALUES", 83)
    large = target_compare.compare(scored, other, 0, 100).difference
    assert large.interval is None and "84 probabilities are more than 83" in describe("a.csv", large)
    assert large[1:4] == pytest.approx(whole[1:4]) and large.images == whole.images == 28 and whole.interval
    assert multilabel.score(predictions)["mAP"] != whole.this  # it has an image more


# ------------------------------------------------------------------------------------------------ eval.py


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def twice(script, task_checkpoint):
    """`twice(task, *words)`: two evaluations, the second of other views with --compare and `words`; its Result."""

    def run(task: str, *words: object, **replaced: str):
        load = ["--load", task_checkpoint(task), "--gpu", "-1", "-w", "0", "--no-report"]
        if not Path("results/one").exists():
            first = script("eval.py", "--tag", "one", *load, "--save_probs", "--resamples", "0")
            assert first.code == 0, first.err
        (old,) = Path("results/one").glob("*/predictions.csv")
        for before, after in replaced.items():
            text = old.read_text()
            assert before in text
            old.write_text(text.replace(before, after, 1))
        return script("eval.py", "--tag", "two", *load, "--scale", "24", "--compare", old, *words)

    return run


@pytest.mark.parametrize(("task", "metric"), [("multilabel", "mAP"), ("regression", "mae"), ("ordinal", "qwk")])
def test_eval_compare_of_a_task_writes_its_difference(twice, task, metric):
    result = twice(task, "--resamples", "200", "--report")
    assert result.code == 0, result.err
    (line,) = (line for line in result.out.splitlines() if f"by {metric} on 8 images" in line)
    assert "95 % interval" in line or "There is no interval" in line
    here, there = (
        json.loads(next(Path(f"results/{tag}").glob("*/metrics.json")).read_text()) for tag in ("one", "two")
    )
    found = there["compare"]
    assert found["metric"] == metric and found["images"] == 8
    assert [found["other"], found["this"]] == pytest.approx([here[metric], there[metric]])
    assert found["difference"] == pytest.approx(there[metric] - here[metric])
    (changed,) = Path("results/two").glob("*/changed.csv")
    rows = table(str(changed))
    assert ("changed" not in found or found["changed"] == len(rows)) and "other" in str(changed.read_text())
    (page,) = Path("results/two").glob("*/report.html")
    assert f"by {metric} on 8 images" in page.read_text()
    if task == "regression":
        files = (next(Path(f"results/{tag}").glob("*/predictions.csv")) for tag in ("one", "two"))
        old, new = (table(str(path)) for path in files)
        assert [row["other_predicted_redness"] for row in rows] == [row["predicted_redness"] for row in old]
        assert [row["predicted_redness"] for row in rows] == [row["predicted_redness"] for row in new]


def test_eval_compare_of_labels_needs_the_probs_of_that_evaluation(twice):
    assert twice("multilabel").code == 0
    (beside,) = Path("results/one").glob("*/probs.npz")
    (old,) = Path("results/one").glob("*/predictions.csv")
    text = old.read_text()
    probability = next(row["probability"].split()[0] for row in table(str(old)) if row["probability"])
    result = twice("multilabel", **{probability: "0.123456"})
    assert result.code == 2 and "has other probabilities than" in result.err and "Try: " in result.err
    old.write_text(text)
    beside.rename(beside.with_name("gone.npz"))
    result = twice("multilabel")
    assert result.code == 2 and f"there is no {beside}" in result.err and "--save_probs" in result.err


@pytest.mark.parametrize(
    ("task", "before", "after", "problem"),
    [
        ("multilabel", "18.png", "17.png", "17.png, but"),
        ("multilabel", "target_name", "name", "has the columns"),
        ("regression", "target_redness", "target_blueness", "has the columns"),
        ("regression", "18.png,", "18.png,1", "has the target 1"),
    ],
)
def test_eval_compare_of_another_list_is_refused(twice, task, before, after, problem):
    result = twice(task, **{before: after})
    assert result.code == 2 and problem in result.err and "Give the predictions.csv" in result.err


WRONG_FILES = {
    "missing": None,
    "other columns": lambda text: text.replace("path,", "file,", 1),
    "other image": lambda text: text.replace("18.png", "17.png", 1),
    "other count": lambda text: text[: text.rindex("\n", 0, -1) + 1],
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("ordinal", ["--calibrate"]),
        ("ordinal", ["--blend", "greedy"]),
        ("multilabel", ["--calibrate", "--fit_thresholds", "one"]),
        ("regression", ["--blend", "optimal"]),
    ],
)
def test_eval_compare_with_a_wrong_file_runs_no_network_and_changes_nothing(
    script, task_checkpoint, monkeypatch, task, words, wrong
):
    path, ran = task_checkpoint(task), []
    content, share = path.read_bytes(), Predictor.share

    def counted(*arguments):
        ran.append(1)
        return share(*arguments)

    monkeypatch.setattr(Predictor, "share", counted)
    load = ["--load", path, *([path] if "--blend" in words else []), "--gpu", "-1", "-w", "0", "--no-report"]
    assert script("eval.py", "--tag", "one", "--load", path, *load[-5:], "--save_probs", "--resamples", "0").code == 0
    assert ran
    ran.clear()
    (old,) = Path("results/one").glob("*/predictions.csv")
    change = WRONG_FILES[wrong]
    old.write_text(change(old.read_text())) if change else old.unlink()
    before = {file: file.read_bytes() for file in Path("results").rglob("*") if file.is_file()}
    result = script("eval.py", "--tag", "two", *load, *words, "--compare", old)
    assert result.code == 2 and "--compare: " in result.err and "Give the predictions.csv" in result.err
    assert not ran and path.read_bytes() == content
    assert {file: file.read_bytes() for file in Path("results").rglob("*") if file.is_file()} == before


def test_eval_compare_in_debug_takes_the_first_images(script, task_checkpoint):
    words = ["--load", task_checkpoint("ordinal"), "--gpu", "-1", "-w", "0", "--no-report", "-b", "1", "--debug"]
    assert script("eval.py", "--tag", "one", *words).code == 0
    (old,) = Path("results/one").glob("*/predictions.csv")
    assert len(table(str(old))) < 8
    result = script("eval.py", "--tag", "two", *words, "--compare", old)
    assert result.code == 0 and "0 predictions changed" in result.out, result.err
