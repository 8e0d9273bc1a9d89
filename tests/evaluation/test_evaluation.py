"""What eval.py adds to the plain scores, against scikit-learn, SciPy, cleanlab and torch.

Also calibration, Grad-CAM and datasets/clean.py.
"""

import csv
import dataclasses
import json
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from dataloader.file_list import FileList
from evaluation import bootstrap, calibration, compare, label_issues, results
from evaluation.metrics import BINS, Predictions, ProbabilityRows, confused_pairs, ece, extended_scores, score
from evaluation.scored import Scored
from utils import checkpoint
from utils.classes import Classes
from utils.errors import UserError

CLASSES = 6


def made(seed=0, count=600, classes=CLASSES, sharp=1.0, kept=None):
    """Predictions of `count` images; every 15th is unreadable. `sharp` > 1 makes them too sure."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(count) % classes)
    logits = rng.normal(size=(count, classes)) + 2.0 * np.eye(classes)[label]
    probability = np.exp(sharp * logits)
    probability = (probability / probability.sum(axis=1, keepdims=True)).astype(np.float32)
    top = np.argsort(-probability, axis=1)[:, : kept or min(5, classes)]
    true = probability[np.arange(count), label]
    columns = (np.arange(count), label, top, np.take_along_axis(probability, top, 1), true, np.arange(count) % 15 != 0)
    return Predictions(*columns, ProbabilityRows(np.arange(count), probability)), probability


@pytest.fixture
def case():
    return made()


# ------------------------------------------------------------------------ scores


def test_extended_scores_equal_scikit_learn(case):
    predictions, probability = case
    seen = predictions.scorable
    label, first = predictions.label[seen], predictions.top[seen, 0]
    images = [500, 101, 100, 20, 19, 1]
    found = score(predictions, CLASSES) | extended_scores(predictions, CLASSES, images)
    near = {"abs": 1e-6}
    assert found["macro_f1"] == pytest.approx(sk.f1_score(label, first, average="macro"), **near)
    assert found["weighted_f1"] == pytest.approx(sk.f1_score(label, first, average="weighted"), **near)
    assert found["mean_class_error"] == pytest.approx(1 - sk.balanced_accuracy_score(label, first), **near)
    normed = probability[seen].astype(np.float64)
    normed /= normed.sum(axis=1, keepdims=True)
    assert found["roc_auc"] == pytest.approx(
        sk.roc_auc_score(label, normed, multi_class="ovr", average="macro"), **near
    )
    for name, members in (("head", (0, 1)), ("middle", (2, 3)), ("tail", (4, 5))):
        inside = np.isin(label, members)
        assert found[f"{name}_accuracy"] == pytest.approx(
            sk.recall_score(label[inside], first[inside], labels=members, average="macro"), **near
        )


def test_macro_f1_ignores_absent_classes(case):
    predictions, _ = case
    found = score(predictions, CLASSES + 3) | extended_scores(predictions, CLASSES + 3)
    assert found["macro_f1"] == pytest.approx(score(predictions, CLASSES)["macro_f1"])
    assert "roc_auc" not in found  # a class without images has no curve
    assert "head_accuracy" not in found


def test_ece_equals_its_definition(case):
    """Guo et al. (2017), eq. 3, bin by bin, as torchmetrics has it, but for confidences that are exactly an edge."""
    predictions, _ = case
    sure, hit = predictions.probability[:, 0], predictions.top[:, 0] == predictions.label
    wanted = 0.0
    for k in range(BINS):
        inside = (sure > k / BINS) & (sure <= (k + 1) / BINS)
        if inside.any():
            wanted += inside.mean() * abs(hit[inside].mean() - sure[inside].astype(np.float64).mean())
    assert wanted > 0.02
    assert ece(sure, hit) == pytest.approx(wanted, abs=1e-6)


def test_confused_pairs_equal_off_diagonal_matrix(case):
    predictions, _ = case
    seen = predictions.scorable
    matrix = sk.confusion_matrix(predictions.label[seen], predictions.top[seen, 0])
    np.fill_diagonal(matrix, 0)
    pairs = confused_pairs(predictions, CLASSES, 1000)
    rebuilt = np.zeros_like(matrix)
    rebuilt[pairs[:, 0], pairs[:, 1]] = pairs[:, 2]
    assert (rebuilt == matrix).all()
    assert (np.diff(pairs[:, 2]) <= 0).all()
    assert len(confused_pairs(predictions, CLASSES, 3)) == 3


# ------------------------------------------------------------------------ intervals, two predictions


def test_intervals_contain_binomial_and_repeat(case):
    predictions, _ = case
    images = [500, 101, 100, 20, 19, 1]
    found = bootstrap.intervals(predictions, Classes(CLASSES, None, images), seed=3, resamples=800)
    scores = {**score(predictions, CLASSES), **extended_scores(predictions, CLASSES, images)}
    assert set(found) == set(scores) - {"count", "unreadable", "num_classes"}
    for name, (low, high) in found.items():
        assert low < high, name
        assert low <= scores[name] <= high, name
    p, n = scores["top1"], scores["count"]
    half = 1.96 * (p * (1 - p) / n) ** 0.5
    assert found["top1"] == pytest.approx([p - half, p + half], abs=0.15 * half)
    assert bootstrap.intervals(
        predictions, Classes(CLASSES, None, images), seed=3, resamples=20
    ) == bootstrap.intervals(predictions, Classes(CLASSES, None, images), seed=3, resamples=20)


def test_intervals_of_lines_of_one_image_are_those_of_the_image():
    """Four lines of each image made the intervals half as wide. Where no image is listed again, nothing changes."""
    predictions, _ = made(count=300, classes=6)
    lines = np.tile(np.arange(300), 4)
    names = ("index", "label", "top", "probability", "true_probability", "readable")
    copies = {name: getattr(predictions, name)[lines] for name in names}
    again = dataclasses.replace(predictions, rows=None, **copies)
    predictions = dataclasses.replace(predictions, rows=None)
    once = bootstrap.intervals(predictions, Classes(6), seed=3, resamples=200)
    image = np.random.default_rng(0).permutation(300).astype(np.uint64)
    assert bootstrap.intervals(predictions, Classes(6), seed=3, resamples=200, image=image) == once
    found = bootstrap.intervals(again, Classes(6), seed=3, resamples=200, image=lines)
    assert found.keys() == once.keys() and all(found[name] == pytest.approx(once[name]) for name in once)
    alone = bootstrap.intervals(again, Classes(6), seed=3, resamples=200)
    assert np.ptp(alone["top1"]) < 0.6 * np.ptp(once["top1"])


def test_paired_difference_of_lines_of_one_image_is_that_of_the_image():
    rng = np.random.default_rng(1)
    these, others = rng.random((2, 400)) < [[0.8], [0.7]]
    lines = np.tile(np.arange(400), 4)
    once = bootstrap.paired_difference(these, others, 0, 2000)
    assert bootstrap.paired_difference(these, others, 0, 2000, np.arange(400)[::-1]) == once
    again = bootstrap.paired_difference(these[lines], others[lines], 0, 2000, lines)
    assert again == pytest.approx(once, abs=0.01)
    assert np.ptp(bootstrap.paired_difference(these[lines], others[lines], 0, 2000)[1:]) < 0.6 * np.ptp(once[1:])


def test_intervals_of_constant_score_are_absent(case):
    """Of three images that are all wrong, the interval would be 0 to 0."""
    predictions, _ = case
    wrong = predictions.label == 5
    predictions = dataclasses.replace(predictions, top=np.where(wrong[:, None], np.arange(5), predictions.top))
    found = bootstrap.intervals(predictions, Classes(CLASSES, None, [500, 500, 500, 500, 500, 1]), seed=3, resamples=20)
    assert "tail_accuracy" not in found and found["head_accuracy"][0] < found["head_accuracy"][1] and "top1" in found
    assert extended_scores(predictions, CLASSES, [500, 500, 500, 500, 500, 1])["tail_accuracy"] == 0


def test_label_issues_method_names_its_limit(case):
    predictions, _ = case
    few = dataclasses.replace(predictions, rows=None)
    assert label_issues.find(few, CLASSES).method.endswith("as 600 × 6 probabilities are too many to keep")
    assert label_issues.find(predictions, CLASSES + 2).method.endswith(
        f"as 2 of {CLASSES + 2} classes have no image here"
    )


def test_intervals_of_small_classes_contain_score():
    """Three images a class: plain percentiles of the macro F1 lie wholly below it."""
    predictions, _ = made(count=600, classes=200)
    found = bootstrap.intervals(predictions, Classes(200), seed=0, resamples=100)
    scores = score(predictions, 200) | extended_scores(predictions, 200)
    for name in ("macro_f1", "weighted_f1", "ece"):
        low, high = found[name]
        assert 0 <= low < scores[name] < high <= 1, name


def _all_scores(predictions, classes):
    return score(predictions, classes) | extended_scores(predictions, classes)


def drawn_list(seed, count, classes, sharpness):
    """Draw images of a fixed population: class k is `2 + 2 k / classes` deviations apart; sharpness 1 is calibrated."""
    rng = np.random.default_rng([seed, 7])
    label = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), label] += 2 + 2 * label / classes
    logits *= sharpness
    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability = (probability / probability.sum(axis=1, keepdims=True)).astype(np.float32)
    top = np.argsort(-probability, axis=1)[:, :5]
    chosen = np.take_along_axis(probability, top, 1)
    return Predictions(np.arange(count), label, top, chosen, probability[np.arange(count), label], np.ones(count, bool))


def test_intervals_of_biased_scores_contain_truth():
    """40 lists: macro F1 with 3 images per class, and ECE near 0. Plain recentring contains the truth of 33 and 6."""
    for name, count, classes, sharpness in (("macro_f1", 150, 50, 2.0), ("ece", 100, 10, 2.3)):
        truth = _all_scores(drawn_list(0, 200_000, classes, sharpness), classes)[name]
        held = 0
        for seed in range(1, 41):
            low, high = bootstrap.intervals(
                drawn_list(seed, count, classes, sharpness), Classes(classes), seed, resamples=100
            )[name]
            held += low <= truth <= high
        assert held >= 35, (name, truth, held)


def test_intervals_of_overconfident_ece_exclude_zero():
    predictions = drawn_list(1, 3000, 10, 6.0)
    assert bootstrap.intervals(predictions, Classes(10), 0, resamples=100)["ece"][0] > 0.02


def test_bootstrap_weights_score_as_repeated_images(case):
    """Each weighted score equals the plain one of a list that has image i weight[i] times, ROC-AUC with ties too."""
    predictions, probability = case
    probability = np.round(probability, 2)
    predictions.rows = ProbabilityRows(np.arange(len(probability)), probability)
    images = [500, 101, 100, 20, 19, 1]
    seen = np.flatnonzero(predictions.scorable)
    weight = np.bincount(np.random.default_rng(0).integers(0, len(seen), len(seen)), minlength=len(seen))
    found = bootstrap._resample(bootstrap._per_image(predictions, predictions.scorable, images), weight, CLASSES)
    found["roc_auc"] = bootstrap._auc_of_weights(predictions, CLASSES)(weight)
    again = np.repeat(seen, weight)
    columns = (
        predictions.label,
        predictions.top,
        predictions.probability,
        predictions.true_probability,
        predictions.readable,
    )
    repeated = Predictions(
        again, *(column[again] for column in columns), ProbabilityRows(np.arange(len(again)), probability[again])
    )
    wanted = {**score(repeated, CLASSES), **extended_scores(repeated, CLASSES, images)}
    assert {name: wanted[name] for name in found} == pytest.approx(found, abs=1e-9)


def test_auc_of_a_draw_with_one_class_is_unknown_without_a_warning(case):
    """Of six images many draws are of one class, and eval.py printed NumPy's RuntimeWarning."""
    predictions, probability = case
    predictions.rows = ProbabilityRows(np.arange(len(probability)), probability)
    label = predictions.label[np.flatnonzero(predictions.scorable)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(bootstrap._auc_of_weights(predictions, CLASSES)((label == 1).astype(np.int64)))


def listed(folder, predictions, change=(), image=None):
    """Write a predictions.csv as eval.py does; `change`: rows whose prediction is another; `image`: of `compared`."""
    image = predictions.index if image is None else image
    path = folder / "predictions.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "predicted"])
        for row in range(len(predictions.index)):
            first = int(predictions.top[row, 1 if row in change else 0])
            writer.writerow(
                [f"/x/{image[row]}.jpg", predictions.label[row], first if predictions.readable[row] else ""]
            )
    return path


def compared(predictions, path, names=None, image=None, group=None):
    """Compare with a predictions.csv, as eval.py does; `image`: the file of each row, by default one each."""
    image = predictions.index if image is None else image
    files = FileList.of_paths([f"/x/{k}.jpg" for k in image], "val")
    files = dataclasses.replace(files, label=predictions.label, group=group)
    classes = Classes(CLASSES, names)
    other = compare.read_classes(str(path), files, classes, len(predictions.index))
    return compare.compare(Scored(predictions, files, classes), other)


def test_compare_equals_exact_mcnemar_test(case, tmp_path):
    from scipy.stats import binomtest

    predictions, _ = case
    change = set(range(1, 80))
    found = compared(predictions, listed(tmp_path, predictions, change))
    seen = [row for row in sorted(change) if predictions.readable[row]]
    assert found.rows.tolist() == seen
    lost = sum(predictions.top[row, 0] == predictions.label[row] for row in seen)
    won = sum(predictions.top[row, 1] == predictions.label[row] for row in seen)
    test = found.test
    assert (test.only_this, test.only_other) == (lost, won)
    assert lost + won + test.both + test.neither == predictions.scorable.sum()
    assert test.p_value == pytest.approx(binomtest(min(lost, won), lost + won).pvalue, abs=1e-12)
    assert compared(predictions, listed(tmp_path, predictions)).test.p_value == 1


def test_mcnemar_of_lines_of_one_image_is_that_of_the_image():
    rng = np.random.default_rng(0)
    these, others = rng.random(90) < 0.7, rng.random(90) < 0.5
    lines = rng.permutation(np.repeat(np.arange(90), rng.integers(1, 5, 90)))
    once = compare.mcnemar(these, others)
    assert compare.mcnemar(these[lines], others[lines], lines) == once
    assert compare.mcnemar(these[lines], others[lines]).p_value < once.p_value / 2
    right, wrong = np.array([True, False, True]), np.array([False, True, False])
    assert compare.mcnemar(right, wrong, np.zeros(3)) == (1, 0, 0, 0, 1), "two labels of one image: by its lines"
    assert compare.mcnemar(right[:2], wrong[:2], np.zeros(2)) == (0, 0, 1, 0, 1)


def test_compare_counts_a_group_of_images_once(case, tmp_path):
    predictions, _ = case
    other, group = listed(tmp_path, predictions, set(range(1, 80))), np.arange(len(predictions.index)) // 4
    images, groups = compared(predictions, other), compared(predictions, other, group=group)
    assert (images.counted, groups.counted) == ("images", "groups of images")
    assert groups.test.only_this + groups.test.only_other + groups.test.both + groups.test.neither == len(
        np.unique(group[predictions.scorable])
    )
    assert groups.test.p_value > images.test.p_value
    assert groups.rows.tolist() == images.rows.tolist()
    assert " groups of images are correct only here" in results.describe_comparison("a.csv", groups)


def test_compare_counts_an_image_of_several_lines_once(case, tmp_path):
    predictions, _ = case
    change, twice = set(range(1, 80)), np.tile(predictions.index, 2)
    once = compared(predictions, listed(tmp_path, predictions, change))
    columns = [getattr(predictions, field.name)[twice] for field in dataclasses.fields(predictions)[1:6]]
    again = Predictions(np.arange(len(twice)), *columns)
    path = listed(tmp_path, again, change | {row + len(predictions.index) for row in change}, twice)
    found = compared(again, path, image=twice)
    assert found.test == once.test and len(found.rows) == 2 * len(once.rows)


def test_compare_of_other_images_is_refused(case, tmp_path):
    predictions, _ = case
    path = listed(tmp_path, predictions)
    text = path.read_text()
    for wrong, message in (
        (text.replace("/x/7.jpg", "/x/other.jpg"), "row 9"),
        (text + "/x/600.jpg,1,1\r\n", "601 images"),
        (text[: text.index("/x/599.jpg")], "599 images"),
        ("a,b\n1,2\n", "columns"),
        ("", r"the columns \[\]"),
        (text.replace("/x/7.jpg,", "/x/7.jpg,1"), "row 9 .* has the label 1"),
        (text.replace("/x/7.jpg,", "/x/7.jpg,1,"), "row 9 .* has 4 cells, not 3"),
        (
            f"path,label,predicted\n/x/0.jpg,{predictions.label[0]},99\n",
            "row 2 .* predicts '99'; allowed: a class from 0",
        ),
        (f"path,label,predicted\n/x/0.jpg,{'9' * 200_000},1\n", "no CSV file"),
        (text.replace("/x/7.jpg,", '"/x/7.jpg,'), "no CSV file .line 9: a quoted field"),
    ):
        path.write_text(wrong)
        with pytest.raises(UserError, match=message):
            compared(predictions, path)
    with pytest.raises(UserError, match="no file"):
        compared(predictions, tmp_path / "none.csv")
    head, *rows = text.splitlines()
    path.write_text(
        "\n".join(
            [f"{head},predicted_name", *(f"{row},{'abcdef'[int(row[-1])] if row[-1] != ',' else ''}" for row in rows)]
        )
    )
    assert compared(predictions, path, list("abcdef")).test.p_value == 1
    with pytest.raises(UserError, match="class 1 is 'b' in .*, but 'c' here"):
        compared(predictions, path, list("acbdef"))


# ------------------------------------------------------------------------ calibration


def test_fit_temperature_undoes_overconfidence():
    predictions, probability = made(sharp=1.0)
    honest = calibration.fit_temperature(predictions).temperature
    sharper, _ = made(sharp=3.0)
    fitted = calibration.fit_temperature(sharper)
    assert fitted.temperature == pytest.approx(3 * honest, rel=1e-3)
    assert fitted.loss_after < fitted.loss_before and fitted.ece_after < fitted.ece_before
    logits = torch.log(torch.from_numpy(made(sharp=3.0)[1]).double())[sharper.scorable]
    log_t = torch.zeros((), dtype=torch.double, requires_grad=True)
    step = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss():
        step.zero_grad()
        value = torch.nn.functional.cross_entropy(
            logits / log_t.exp(), torch.from_numpy(sharper.label[sharper.scorable])
        )
        value.backward()
        return value

    step.step(loss)
    assert fitted.temperature == pytest.approx(float(log_t.detach().exp()), rel=1e-3)
    assert fitted.loss_after == pytest.approx(float(loss().detach()), abs=1e-6)
    rows = torch.softmax(torch.from_numpy(probability).double().log() / 2.5, dim=1).numpy()
    assert np.allclose(calibration.classes_at_temperature(probability, 2.5), rows, atol=1e-7)


def test_amend_changes_only_its_keys(tmp_path):
    path = tmp_path / "a.pt"
    weights = {
        "w": torch.randn(3, 4).to(memory_format=torch.contiguous_format),
        "h": torch.randn(5).half(),
        "n": torch.tensor(7),
    }
    content = {
        "model": "x",
        "epoch": 3,
        "weights": weights,
        "more": {"step": 9, "m": torch.randn(2)},
        "history": [{"epoch": 1}],
    }
    checkpoint.save(path, content)
    before = checkpoint.load(path)
    (tmp_path / "best.pt").hardlink_to(path)
    (tmp_path / "another.pt").write_bytes(path.read_bytes())  # equal, but no link
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    known = checkpoint.identity(before)
    with pytest.raises(UserError, match="no longer the checkpoint that was loaded"):
        checkpoint.amend(link, "calibration", {}, checkpoint.identity({**before, "epoch": 4, "model": "y"}))
    assert checkpoint.amend(link, "calibration", {"temperature": 1.5, "tta": "none"}, known) == [tmp_path / "best.pt"]
    assert link.is_symlink() and link.samefile(path) and path.stat().st_mode & 0o777 == 0o640
    link.unlink()
    assert "calibration" not in checkpoint.load(tmp_path / "best.pt")
    for name in ("best.pt", "another.pt"):
        (tmp_path / name).unlink()
    after = checkpoint.load(path)
    assert after.pop("calibration") == {"temperature": 1.5, "tta": "none"}
    assert list(after) == list(before)
    for name, value in weights.items():
        assert torch.equal(after["weights"][name], value) and after["weights"][name].dtype == value.dtype
    assert torch.equal(after["more"]["m"], content["more"]["m"])
    assert {**after, "weights": 0, "more": 0} == {**before, "weights": 0, "more": 0}
    torch.save(weights, path)
    with pytest.raises(UserError, match="plain state dict"):
        checkpoint.amend(path, "calibration", {}, known)
    assert list(tmp_path.iterdir()) == [path]


def test_amend_by_two_commands_at_once_keeps_both_keys(tmp_path, monkeypatch):
    """eval.py --calibrate and --fit_thresholds that ended together each said "Stored", and one of the two was lost."""
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"model": "x", "epoch": 3, "weights": {"w": torch.ones(2)}})
    known, real, others = checkpoint.identity(checkpoint.load(path)), checkpoint.save, []

    def save(*args):
        if not others:
            others.append(threading.Thread(target=checkpoint.amend, args=(path, "thresholds", {"values": []}, known)))
            others[0].start()
            others[0].join(1)
        real(*args)

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(checkpoint, "_check", lambda *_: None)
    checkpoint.amend(path, "calibration", {"temperature": 1.5}, known)
    others[0].join(60)
    assert {"calibration", "thresholds"} <= checkpoint.load(path).keys()
    path.unlink()
    tmp_path.rmdir()
    with pytest.raises(UserError, match="There is no checkpoint"):
        checkpoint.amend(path, "calibration", {}, known)


# ------------------------------------------------------------------------ label errors


def test_confident_joint_equals_cleanlab():
    predictions, _ = made(seed=2, count=900, classes=5, kept=5)
    rows = label_issues.confident_joint_off_diagonal(predictions, 5)
    issues = label_issues.find(predictions, 5)
    assert "cleanlab" in issues.method
    assert len(rows) > 20
    assert set(rows.tolist()) == set(issues.row.tolist())
    assert (np.diff(issues.quality) >= 0).all()
    assert (issues.suggested != predictions.label[issues.row]).all()
    predictions.rows = None
    bounded = label_issues.find(predictions, 5)
    assert "likeliest" in bounded.method and bounded.row.tolist() == issues.row.tolist()


def clean_module():
    from tools.prepare import clean

    return clean


@pytest.fixture
def a_list(tmp_path):
    path = tmp_path / "val.txt"
    path.write_text("a b.jpg 0\nc.jpg 1\nd.jpg 2\ne.jpg 0\n")
    return path


def decide(folder, *rows):
    path = folder / "decisions.csv"
    path.write_text("path,label,action,new_label\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_clean_drops_relabels_and_keeps(a_list, tmp_path):
    clean = clean_module()
    decisions = decide(
        tmp_path,
        f"{tmp_path}/a b.jpg,0,relabel,2",
        f"{tmp_path}/c.jpg,1,drop,",
        f"{tmp_path}/d.jpg,2,keep,0",
        f"{tmp_path}/e.jpg,0,,1",
    )
    out = tmp_path / "new.txt"
    assert clean.main([str(a_list), "--decisions", str(decisions), "--out", str(out)]) == 0
    assert out.read_text() == "a b.jpg 2\nd.jpg 2\ne.jpg 0\n"
    away = tmp_path / "away" / "new.txt"
    assert clean.clean(a_list, decisions, away) == {"keep": 1, "drop": 1, "relabel": 1}
    assert away.read_text().splitlines()[0] == f"{tmp_path}/a b.jpg 2"


def test_clean_accepts_spreadsheet_csv(tmp_path, monkeypatch):
    """A byte order mark, capitals, spaces, relative paths, and a name that is not UTF-8, which is kept to the byte."""
    (tmp_path / "val.txt").write_bytes(b"caf\xe9.jpg 0\n/far/b.jpg 1\nc.jpg 2\n")
    (tmp_path / "decisions.csv").write_bytes(
        b"\xef\xbb\xbfpath,label,action,new_label\ncaf\xe9.jpg,0, Relabel ,1\nc.jpg,2,DROP,\n"
    )
    monkeypatch.chdir(tmp_path)
    clean_module().clean(Path("val.txt"), Path("decisions.csv"), Path("new.txt"))
    assert Path("new.txt").read_bytes() == b"caf\xe9.jpg 1\n/far/b.jpg 1\n"


def test_clean_missing_columns_or_file_is_refused(a_list, tmp_path, capsys):
    clean, out = clean_module(), tmp_path / "new.txt"
    (tmp_path / "bare.csv").write_text(f"path,label,action\n{tmp_path}/c.jpg,1,drop\n")
    for decisions, message in (("bare.csv", "needed: path, label, action, new_label"), ("none.csv", "cannot be read")):
        assert clean.main([str(a_list), "--decisions", str(tmp_path / decisions), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_clean_failure_keeps_old_list(a_list, tmp_path, monkeypatch):
    clean, out = clean_module(), tmp_path / "new.txt"
    out.write_text("before.jpg 0\n")
    monkeypatch.setattr(clean, "_written", lambda files, index, out: 1 / (2 - index) and "a.jpg")
    with pytest.raises(ZeroDivisionError):
        clean.clean(a_list, decide(tmp_path, f"{tmp_path}/d.jpg,2,keep,"), out)
    assert out.read_text() == "before.jpg 0\n"
    out.write_text("no list\n")
    with pytest.raises(UserError, match="does not look like a list"):
        clean.clean(a_list, decide(tmp_path, f"{tmp_path}/d.jpg,2,keep,"), out)


@pytest.mark.parametrize(
    "row, message",
    [
        ("{}/zz.jpg,0,drop,", "not in"),
        ("{}/c.jpg,0,drop,", "The list has changed since the decisions"),
        ("{}/c.jpg,1,burn,", "allowed: keep, drop, relabel"),
        ("{}/c.jpg,1,relabel,", "must be class numbers"),
        ("{}/c.jpg,1,relabel,-2", "from 0"),
        ("{0}/c.jpg,1,drop,\n{0}/c.jpg,1,keep,", "above. Keep one"),
    ],
)
def test_clean_wrong_decision_writes_nothing(a_list, tmp_path, row, message, capsys):
    clean = clean_module()
    decisions = decide(tmp_path, row.format(tmp_path))
    out = tmp_path / "new.txt"
    assert clean.main([str(a_list), "--decisions", str(decisions), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
    assert clean.main([str(a_list), "--decisions", str(decide(tmp_path)), "--out", str(a_list)]) == 2


# ------------------------------------------------------------------------ Grad-CAM


class Plain(torch.nn.Module):
    """Normalises nothing, and is its own net: enough of a BaseModel for Grad-CAM."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def evaluating(self):
        import contextlib

        return contextlib.nullcontext(self.net.eval())

    def normalise(self, images):
        return images.float() / 255


def test_gradcam_of_linear_head_equals_cam():
    """After global average pooling and one linear layer, Grad-CAM is CAM (Selvaraju et al., section 3)."""
    from inference.gradcam import gradcam

    torch.manual_seed(0)
    conv, head = torch.nn.Conv2d(3, 7, 3, stride=2), torch.nn.Linear(7, 4)
    net = torch.nn.Sequential(
        conv, torch.nn.ReLU(inplace=True), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), head
    )
    images = torch.randint(0, 256, (3, 3, 17, 17), dtype=torch.uint8)
    classes = torch.tensor([0, 3, 1])
    found = gradcam(Plain(net), images, classes)
    with torch.no_grad():
        features = torch.relu(conv(images.float() / 255))
        wanted = torch.einsum("bchw,bc->bhw", features, head.weight[classes]).relu()
    wanted = wanted / wanted.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    assert found.shape == (3, 8, 8) and not found.requires_grad
    assert float(found.max()) == 1
    assert torch.allclose(found, wanted, atol=1e-4)


def test_gradcam_uses_last_fine_features():
    from inference.gradcam import gradcam

    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(3, 5, 3, stride=4), torch.nn.Conv2d(5, 7, 2, stride=2)
    net = torch.nn.Sequential(first, second, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(7, 4))
    assert [
        gradcam(Plain(net), torch.zeros(2, 3, side, side, dtype=torch.uint8)).shape[1:] for side in (35, 27, 11)
    ] == [
        (4, 4),  # of `second`
        (7, 7),  # of `first`: `second` has 3 x 3
        (3, 3),  # nothing is fine: the last that has places
    ]


class Tokens(torch.nn.Module):
    """A transformer of one block; its classifier reads the class token, or the mean of the others."""

    def __init__(self, pool, width=4):
        super().__init__()
        self.pool, self.num_features, self.num_prefix_tokens = pool, 8, 1
        self.embed, self.first = torch.nn.Conv2d(3, 8, width, stride=width), torch.nn.Parameter(torch.zeros(1, 1, 8))
        self.norm1, self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)

    def forward(self, images):
        tokens = torch.cat(
            [self.first.expand(len(images), -1, -1), self.embed(images).flatten(2).transpose(1, 2)], dim=1
        )
        read = self.norm1(tokens)
        tokens = self.norm(tokens + (read @ read.transpose(1, 2)).softmax(dim=2) @ read)
        return self.head(tokens[:, 0] if self.pool == "token" else tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize(("pool", "part"), [("token", "norm1"), ("mean", "norm")])
def test_gradcam_of_tokens_uses_last_relevant_block(pool, part):
    from inference.gradcam import gradcam

    torch.manual_seed(1)
    net, kept = Tokens(pool), []
    images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    found = gradcam(Plain(net), images)
    getattr(net, part).register_forward_hook(lambda *parts: kept.append(parts[2]))
    logits = net(images.float() / 255)
    (slope,) = torch.autograd.grad(logits.amax(dim=1).sum(), kept[0])
    weight = slope[:, 1:].mean(dim=1, keepdim=True)
    wanted = (kept[0][:, 1:] * weight).sum(dim=2).relu().view(2, 3, 3).detach()
    assert torch.allclose(found, wanted / wanted.amax(dim=(1, 2), keepdim=True), atol=1e-5)
    assert found.amax(dim=(1, 2)).tolist() == [1, 1]


def test_gradcam_without_spatial_features_is_none():
    from inference.gradcam import gradcam

    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    assert gradcam(Plain(flat), torch.zeros(2, 3, 6, 6, dtype=torch.uint8)) is None


# ------------------------------------------------------------------------ memory


def test_evaluation_of_50030_classes_fits_in_memory(tmp_path):
    """50,030 classes: memory grows with the images, not with images x classes (30 GB) or with classes squared."""
    import tracemalloc

    rng = np.random.default_rng(0)
    count, classes = 20_000, 50_030
    top = rng.integers(0, classes, (count, 5))
    probability = np.sort(rng.dirichlet(np.ones(6), count).astype(np.float32)[:, :5], axis=1)[:, ::-1]
    predictions = Predictions(
        np.arange(count), top[:, 1].copy(), top, probability, probability[:, 1].copy(), np.ones(count, bool)
    )
    tracemalloc.start()
    extended_scores(predictions, classes, [3] * classes)
    bootstrap.intervals(predictions, Classes(classes, None, [3] * classes), 0, resamples=2)
    label_issues.find(predictions, classes)
    confused_pairs(predictions, classes, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_eval_calibrate_of_plain_weights_changes_no_file(script, photo_set, small, tmp_path):
    """A plain state dict has no place for a temperature. It used to be an error, after the whole evaluation."""
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 1, *small).code == 0
    trained = checkpoint.load("checkpoints/run/last.pt")
    torch.save(trained["weights"], "plain.pt")
    before = (tmp_path / "plain.pt").read_bytes()
    words = ["--model", trained["model"], "--data_root", photo_set]
    words += "--load plain.pt --scale 32 -b 12 --gpu -1 -w 0".split()
    result = script("eval.py", *words, "--calibrate", "--no-report", "--resamples", 0)
    assert result.code == 0, result.err
    assert "No checkpoint was changed" in result.out and "is rewritten" not in result.out
    assert (tmp_path / "plain.pt").read_bytes() == before
    fitted = json.loads((tmp_path / "results/cache/plain_weights/metrics.json").read_text())["calibration"][
        "temperature"
    ]
    assert f"use it with --temperature {fitted:.6f}" in result.out


def test_eval_calibrate_stores_temperature_and_uses_it(script, photo_set, small, tmp_path):
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 1, *small).code == 0
    words = "--load checkpoints/run/last.pt -b 12 --gpu -1 -w 0 --resamples 20"
    flags = [*words.split(), "--data_root", photo_set]
    assert "--calibrate" in script("eval.py", *flags, "--tag", "run", "--temperature", "ckpt").err
    before = checkpoint.load("checkpoints/run/last.pt")
    first = script("eval.py", *flags, "--tag", "run", "--calibrate")
    assert first.code == 0, first.err
    announced = first.out.index("--calibrate adds the temperature to checkpoints/run/last.pt: that file is rewritten")
    assert (
        announced
        < first.out.index("Temperature ")
        < first.out.index("Writing the temperature into checkpoints/run/last.pt")
    )
    after = checkpoint.load("checkpoints/run/last.pt")
    fitted = after.pop("calibration")
    assert after["weights"].keys() == before["weights"].keys()
    assert all(torch.equal(after["weights"][name], value) for name, value in before["weights"].items())
    old = tmp_path / "results/run/1/predictions.csv"
    result = script("eval.py", *flags, "--tag", "warm", "--temperature", "ckpt", "--compare", old, "--no-report")
    assert result.code == 0, result.err
    assert f"Compared with {old}: 0 images are correct only here, 0 only there" in result.out
    assert "p = 1. 0 predictions changed" in result.out
    warm = json.loads((tmp_path / "results/warm/run_1/metrics.json").read_text())
    cold = json.loads((tmp_path / "results/run/1/metrics.json").read_text())
    assert warm["loss"] == pytest.approx(fitted["loss_after"], abs=1e-5)
    assert cold["loss"] == pytest.approx(fitted["loss_before"], abs=1e-5)
    assert warm["top1"] == cold["top1"] and warm["compare"]["p_value"] == 1
    assert (tmp_path / "results/run/1/report.html").is_file()
    assert not (tmp_path / "results/warm/run_1/report.html").exists()
    for name, foreign in (("a", "[1]"), ("b", '{"runs": [3, {"count": 12}]}'), ("c", "{")):  # other programs' files
        (tmp_path / "results/run" / name).mkdir()
        (tmp_path / "results/run" / name / "metrics.json").write_text(foreign)
    assert (fitted["tta"], fitted["scale"], fitted["fit"]) == ("none", 32, "squash") and "fitted with" not in result.out
    result = script("eval.py", *flags, "--tag", "warm", "--temperature", "ckpt", "--scale", 48, "--fit", "pad")
    assert "The temperature was fitted with --scale 32; now it is 48." in result.out
    assert "The temperature was fitted with --fit squash; now it is pad." in result.out
    earlier = checkpoint.load("checkpoints/run/last.pt")
    earlier["calibration"] = {name: value for name, value in fitted.items() if name not in ("scale", "fit")}
    checkpoint.save(tmp_path / "earlier.pt", earlier)
    result = script("eval.py", *flags, "--load", "earlier.pt", "--tag", "warm", "--temperature", "ckpt", "--scale", 48)
    assert result.code == 0 and "fitted with" not in result.out
    assert script("eval.py", *flags, "--tag", "run", "--tta", "flip").code == 0
    runs = json.loads((tmp_path / "results/run/1/metrics.json").read_text())["runs"]
    assert [run["tta"] for run in runs] == ["none", "flip"]
    text = (tmp_path / "results/run/1/report.html").read_text()
    assert "Other settings and ensembles" in text
    assert "<h1>Evaluation of timm:test_resnet, epoch 1 of run</h1>" in text
    assert str(photo_set / "val.txt") in text
    csv_path = tmp_path / "submission.csv"
    flags = [flag for flag in flags if flag not in ("--resamples", "20")]
    assert script("submit.py", *flags, "--tag", "run", "--temperature", "ckpt", "--out", csv_path).code == 0
