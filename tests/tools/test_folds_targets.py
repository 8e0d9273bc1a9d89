"""tools.folds of several labels, of numbers and of ordered classes: lists, out-of-fold predictions, the ensemble."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataloader.file_list import read_list
from dataloader.targets import LabelSets
from evaluation import multilabel
from evaluation.cut_points import fit_positions
from evaluation.targets import TargetPredictions
from evaluation.thresholds import fit_thresholds
from forked import launch_fold
from inference import saved_probs
from options import choices
from options.plain_yaml import read_yaml
from tools.folds import command, cut_points, draw, flags, training
from utils import checkpoint
from utils.classes import Classes
from utils.errors import UserError

SMALL = (
    "--model timm:test_resnet --no-pretrained --preset original --scale 32 -b 6 -w 0 --gpu -1 --optimizer sgd "
    "--transform light --precision fp32 --epochs 1"
).split()
TASKS = ("multilabel", "regression", "ordinal")
AS_NUMBERS = ("--loss", "mse")


@pytest.fixture(scope="module")
def done(colours, tmp_path_factory):
    """A folder with two finished folds of each task, under the task's name as tag.

    And those of `other`, a regression, and of `numbers`, ordered classes that are learned as numbers.
    """
    folder = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(training, "launch", launch_fold)
        others = (("other", "regression", "0.1"), ("numbers", "ordinal", "0.01", *AS_NUMBERS))
        for tag, task, lr, *more in (*((task, task, "0.01") for task in TASKS), *others):
            words = ["--task", task, "--tag", tag, "--data_root", str(colours / task), "--lr", lr, *more]
            assert command.main(["--folds", "2", "--allow_rare", "--", *SMALL, *words]) == 0, Path(
                "train.log"
            ).read_text()
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_oof_of_a_task_has_each_image_by_the_network_that_has_not_seen_it(done, colours, script, task):
    listed = read_list(colours / task / "train.txt", task=task)
    with np.load(done / f"results/{task}/oof.npz") as oof:
        found = {name: oof[name] for name in oof.files}
    assert found["list_hash"] == listed.content_hash() and str(found["task"]) == task
    if isinstance(listed.targets, LabelSets):
        assert np.array_equal(found["labels"], listed.targets.label)
        assert np.array_equal(found["label_start"], listed.targets.start)
    elif listed.targets is not None:
        assert np.array_equal(found["targets"], listed.targets)
    else:
        assert np.array_equal(found["labels"], listed.label)
    values = found["log_probabilities" if task == "ordinal" else "predictions"]
    for number in (1, 2):
        train, val = (
            read_list(done / f"results/{task}/folds/fold{number}_{part}.txt", task=task) for part in ("train", "val")
        )
        held = np.flatnonzero(found["fold"] == number)
        assert [val.path(k) for k in range(len(val))] == [listed.path(k) for k in held.tolist()]
        assert [val.target_text(k) for k in range(len(val))] == [listed.target_text(k) for k in held.tolist()]
        assert not {val.path(k) for k in range(len(val))} & {train.path(k) for k in range(len(train))}
        load = ["--load", done / f"checkpoints/{task}_fold{number}/last.pt", "--val_list", val.source]
        result = script("eval.py", "--tag", "e", *load, "--gpu", -1, "-b", 6, "--save_probs", "--resamples", 0)
        assert result.code == 0, result.err
        (path,) = Path("results/e").glob(f"{task}_fold{number}*/probs.npz")
        assert np.array_equal(saved_probs.read(str(path)).values, values[held])


@pytest.mark.parametrize("task", TASKS)
def test_oof_score_of_a_task_has_an_interval_and_equals_that_of_eval(done, colours, script, task):
    metric = choices.TASK_METRICS[task][0]
    scores = json.loads((done / f"results/{task}/folds.json").read_text())
    low, high = scores["oof"]["intervals"][metric]
    assert scores["metric"] == metric and low < scores["oof"][metric] < high
    assert [fold["count"] for fold in scores["folds"]] == [9, 9] and scores["oof"]["count"] == 18
    files = ["--load", done / f"results/{task}/oof.npz", "--val_list", colours / task / "train.txt"]
    result = script("eval.py", "--tag", "e", *files, "--resamples", 20)
    assert result.code == 0 and f"{metric} {scores['oof'][metric]:.6f}" in result.out, result.err
    metrics = json.loads(Path("results/e/oof/metrics.json").read_text())
    names = choices.TASK_METRICS[task]
    assert {name: metrics[name] for name in names if name in metrics} == {
        name: scores["oof"][name] for name in names if name in metrics
    }
    page = (done / f"results/{task}/oof/report.html").read_text()
    assert "2 folds of timm:test_resnet" in page and f"{metric} by fold" in page


def test_oof_score_of_numbers_is_that_of_both_folds_together(done):
    scores = json.loads((done / "results/regression/folds.json").read_text())
    parts = [fold["mae"] for fold in scores["folds"]]
    assert parts[0] != parts[1] and scores["oof"]["mae"] == pytest.approx(np.mean(parts), rel=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_folds_of_a_task_submit_the_mean_of_their_networks(done, script, task):
    content = read_yaml(done / f"results/{task}/ensemble.yaml")
    networks = [done / f"checkpoints/{task}_fold{number}/last.pt" for number in (1, 2)]
    assert [(done / f"results/{task}" / path).resolve() for path in content["load"]] == networks
    common = ["--gpu", -1, "--save_probs", "-b", 6]
    for tag, members in (
        ("whole", ["--ensemble", done / f"results/{task}/ensemble.yaml"]),
        *((f"one{k}", ["--load", network]) for k, network in enumerate(networks)),
    ):
        result = script("submit.py", "--tag", tag, *members, *common)
        assert result.code == 0, result.err
    whole, *each = (saved_probs.read(f"results/{tag}/probs.npz") for tag in ("whole", "one0", "one1"))
    plain = [np.exp(one.values.astype(np.float32)) if one.is_log else one.values for one in (whole, *each)]
    assert len(whole.values) == 4 and plain[0] == pytest.approx((plain[1] + plain[2]) / 2, rel=3e-3)


SAMPLES = {
    "multilabel": ("Id,green,red", "{},0.5,0"),
    "regression": ("greenness,redness,Id", "0,0,{}"),
    "ordinal": ("Id,0,1,2", "{},0,0,1"),
}


@pytest.mark.parametrize("task", TASKS)
def test_folds_of_a_task_submit_like_a_sample(done, script, task):
    header, row = SAMPLES[task]
    ids = ["29", "26", "28", "27"]
    Path("sample.csv").write_text("\n".join([header, *(row.format(one) for one in ids)]) + "\n")
    common = ["--ensemble", done / f"results/{task}/ensemble.yaml", "--gpu", -1, "-b", 6]
    result = script("submit.py", "--tag", "like", *common, "--like", "sample.csv", "--save_probs")
    assert result.code == 0, result.err
    with open("results/like/submission.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    saved = saved_probs.read("results/like/probs.npz")
    values = np.exp(saved.values.astype(np.float32)) if saved.is_log else saved.values
    names = saved.data["class_names"] or ["0", "1", "2"]
    assert list(rows[0]) == header.split(",") and [one["Id"] for one in rows] == ids
    for one in rows:
        found = [float(one[name]) for name in names]
        assert found == pytest.approx(values[int(one["Id"]) - 26], rel=2e-3)


def test_oof_of_ordered_numbers_has_cut_points_of_the_other_fold(done, colours, script, monkeypatch, capfd):
    """The networks' own were fitted to the labels of the very images that they predict out of fold."""
    parts = []
    for number in (1, 2):
        with np.load(done / f"results/numbers/folds/fold{number}.npz") as content:
            parts.append(content["position"])
    with np.load(done / "results/numbers/oof.npz") as content:
        values, label, fold = content["log_probabilities"], content["labels"], content["fold"]
    own = [checkpoint.load(done / f"checkpoints/numbers_fold{number}/last.pt") for number in (1, 2)]
    for number, position in enumerate(parts, 1):
        assert own[number - 1]["data"]["cut_points"] == fit_positions(position, label[fold == number], 3)
        content = own[number - 1]
        cuts = fit_positions(parts[2 - number], label[fold != number], 3)
        checkpoint.save(Path("other.pt"), content | {"data": content["data"] | {"cut_points": cuts}})
        load = ["--load", "other.pt", "--val_list", done / f"results/numbers/folds/fold{number}_val.txt"]
        result = script("eval.py", "--tag", f"e{number}", *load, "--gpu", -1, "-b", 6, "--save_probs", "--resamples", 0)
        assert result.code == 0, result.err
        (path,) = Path(f"results/e{number}").glob("*/probs.npz")
        assert np.array_equal(saved_probs.read(str(path)).values, values[fold == number])
        scores = json.loads((done / "results/numbers/folds.json").read_text())["folds"][number - 1]
        assert scores["qwk"] == json.loads((path.parent / "metrics.json").read_text())["qwk"]

    monkeypatch.chdir(done)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    before = Path("results/numbers/oof.npz").read_bytes()
    first = Path("results/numbers/folds/fold1.npz")
    with np.load(first) as content:
        arrays = dict(content)
    settings = str(arrays["settings"]).removesuffix(" without its cut points")  # as an earlier version wrote it
    np.savez(first, **{name: value for name, value in arrays.items() if name != "position"} | {"settings": settings})
    words = ["--task", "ordinal", "--tag", "numbers", "--data_root", str(colours / "ordinal"), "--lr", "0.01"]
    assert command.main(["--folds", "2", "--allow_rare", "--", *SMALL, *words, *AS_NUMBERS]) == 0
    assert capfd.readouterr().out.count("is predicted already") == 1
    assert Path("results/numbers/oof.npz").read_bytes() == before


def test_cross_fitted_cut_points_of_a_fold_do_not_depend_on_its_labels(tmp_path):
    rng = np.random.default_rng(0)
    position, label = rng.uniform(0, 2, 40).astype(np.float32), rng.integers(3, size=40)
    fold_of = np.arange(40) % 2
    folds = [SimpleNamespace(number=number, probs=tmp_path / f"{number}.npz") for number in (1, 2)]
    for fold in folds:
        np.savez(fold.probs, position=position[fold_of == fold.number - 1])

    def cut(label):
        files, classes = SimpleNamespace(label=label), Classes(3, task="ordinal")
        values = np.zeros((40, 3), np.float16)
        cut_points.cross_fit(SimpleNamespace(folds=folds, fold_of=fold_of, files=files, classes=classes), values, known)
        return values

    known = np.ones(40, bool)
    one, other = cut(label), cut(np.where(fold_of == 0, 2 - label, label))
    assert np.array_equal(one[fold_of == 0], other[fold_of == 0])
    assert not np.array_equal(one[fold_of == 1], other[fold_of == 1])


def test_oof_files_of_two_recipes_of_numbers_stack_into_one_ensemble(done, colours, script):
    files = [done / f"results/{tag}/oof.npz" for tag in ("regression", "other")]
    words = ["--val_list", colours / "regression/train.txt", "--blend", "optimal", "--resamples", 0]
    result = script("eval.py", "--tag", "s", "--load", *files, *words)
    assert result.code == 0, result.err
    content = read_yaml(Path("results/s/oof+oof/ensemble.yaml"))
    fitted = [float(word) for word in re.search(r"weights: (\S+) .*, (\S+) ", result.out).groups()]
    assert [float(one) for one in content["weights"]] == pytest.approx(
        [fitted[0] / 2] * 2 + [fitted[1] / 2] * 2, abs=1e-4
    )
    names = [f"{tag}_fold{number}" for tag in ("regression", "other") for number in (1, 2)]
    assert [Path(path).parent.name for path in content["load"]] == names
    result = script("submit.py", "--tag", "s", "--ensemble", "results/s/oof+oof/ensemble.yaml", "--gpu", -1)
    assert result.code == 0 and len(Path("results/s/submission.csv").read_text().splitlines()) == 5, result.err


def test_folds_of_a_task_second_call_trains_nothing_and_gives_same_bits(done, colours, monkeypatch, capfd):
    monkeypatch.chdir(done)
    monkeypatch.setattr(training, "launch", lambda *_: pytest.fail("it trains"))
    before = Path("results/regression/oof.npz").read_bytes()
    words = ["--task", "regression", "--tag", "regression", "--data_root", str(colours / "regression"), "--lr", "0.01"]
    assert command.main(["--folds", "2", "--allow_rare", "--", *SMALL, *words]) == 0
    shown = capfd.readouterr().out
    assert shown.count("is predicted already") == 2 and re.search(r"Next: python submit.py .*ensemble.yaml", shown)
    assert Path("results/regression/oof.npz").read_bytes() == before


# ------------------------------------------------------------------------ drawing


def drawn(folder, task, targets, *words):
    (folder / "train.txt").write_text("".join(f"p{k}.jpg {target}\n" for k, target in enumerate(targets)))
    files = read_list(folder / "train.txt", task=task)
    count = files.targets.count if isinstance(files.targets, LabelSets) else files.targets.shape[1]
    opt = flags.option_parser().parse_args(list(map(str, words)))
    return draw.draw(opt, files, Classes(count, task=task))[1]


def test_draw_spreads_each_label_of_a_set(tmp_path):
    sets = [{0}] * 30 + [{0, 1}] * 10 + [{2}] * 5 + [set()] * 5
    fold = drawn(tmp_path, "multilabel", [",".join(map(str, sorted(one))) or "-" for one in sets], "--folds", 5)
    for label, each in ((0, 8), (1, 2), (2, 1)):
        has = np.array([label in one for one in sets])
        assert np.bincount(fold[has], minlength=5).tolist() == [each] * 5
    assert np.bincount(fold).tolist() == [10] * 5


def test_draw_spreads_a_number_by_its_quantiles(tmp_path):
    values = np.random.default_rng(0).permutation(100)
    fold = drawn(tmp_path, "regression", [f"{value},{-value}" for value in values], "--folds", 5)
    tenth = values // 10
    assert all(np.bincount(fold[tenth == k], minlength=5).tolist() == [2] * 5 for k in range(10))


def test_draw_label_with_fewer_images_than_folds_is_refused_by_name(tmp_path, caplog):
    sets = ["0"] * 20 + ["0,1"] * 3 + ["2"] * 6
    with pytest.raises(UserError, match=r"--folds is 5, and 1 of 3 labels have fewer images: 1 \(3\)"):
        drawn(tmp_path, "multilabel", sets, "--folds", 5)
    fold = drawn(tmp_path, "multilabel", sets, "--folds", 5, "--allow_rare")
    assert len(set(fold[20:23])) == 3
    drawn(tmp_path, "multilabel", [*sets, "3"], "--folds", 5, "--allow_rare")
    assert "1 label(s) have all their images in one fold: 3. 1 image(s) are predicted by a network" in caplog.text


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_draw_of_a_task_keeps_groups_of_a_table_whole(tmp_path, task):
    table = tmp_path / "t.csv"
    table.write_text("image,product\n" + "".join(f"p{k}.jpg,item {k // 4}\n" for k in range(40)))
    words = ["--group_table", table, "--group_column", "product", "--path_column", "image"]
    fold = drawn(tmp_path, task, [str(k % 3) for k in range(40)], "--folds", 5, *words)
    assert all(len(set(fold[k : k + 4])) == 1 for k in range(0, 40, 4)) and len(set(fold)) == 5


def test_folds_fit_thresholds_out_of_fold_and_the_ensemble_uses_them(done, colours, script):
    shutil.copytree(done, ".", dirs_exist_ok=True)
    words = ["--", *SMALL, "--task", "multilabel", "--tag", "multilabel", "--data_root", str(colours / "multilabel")]
    ours = ["--folds", "2", "--allow_rare"]
    folder = Path("results/multilabel")
    assert command.main([*ours, "--fit_thresholds", "one", *words, "--lr", "0.01"]) == 0
    content = read_yaml(folder / "ensemble.yaml")
    saved = saved_probs.read(str(folder / "oof.npz"))
    listed = read_list(colours / "multilabel/train.txt", task="multilabel")
    oof = TargetPredictions(np.arange(18), saved.values, saved.readable, listed.targets)
    value = fit_thresholds(oof, "one", np.arange(18)).values[0]
    assert content["thresholds"]["rule"] == "one" and content["thresholds"]["images"] == "18"
    assert [float(one) for one in content["thresholds"]["values"]] == pytest.approx([value], rel=1e-8)
    metrics = json.loads((folder / "oof/metrics.json").read_text())
    scores = json.loads((folder / "folds.json").read_text())
    assert metrics["threshold"] == value and "cross_fitted" in metrics["fitted_thresholds"]
    assert scores["oof"]["micro_f1"] == metrics["micro_f1"]
    first = replace(oof, readable=oof.readable & (np.load(folder / "oof.npz")["fold"] == 1))
    assert scores["folds"][0]["micro_f1"] == multilabel.score(first, np.full(2, value))["micro_f1"]
    result = script("submit.py", "--tag", "s", "--ensemble", folder / "ensemble.yaml", "--gpu", -1)
    assert result.code == 0 and "ensemble.yaml says (fitted to 18 images)" in result.out, result.err

    words = ["--load", folder / "oof.npz", "--val_list", listed.source, "--gpu", -1, "--resamples", 0, "--no-report"]
    result = script("eval.py", "--tag", "plain", *words)
    plain = json.loads(Path("results/plain/oof/metrics.json").read_text())
    assert plain["threshold"] == value and plain["micro_f1"] == metrics["micro_f1"], result.err
    assert f"as {folder / 'oof.npz'} says" in result.out

    load = ["--load", folder / "oof.npz", "--val_list", listed.source, "--gpu", -1, "--resamples", 0, "--no-report"]
    assert script("eval.py", "--tag", "e", *load, "--fit_thresholds", "one").code == 0
    again = read_yaml(Path("results/e/oof/ensemble.yaml"))
    assert again["thresholds"] == content["thresholds"] and again["hashes"] == content["hashes"]


def test_folds_fit_thresholds_of_another_task_is_refused_before_training(colours, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--", *SMALL, "--task", "regression", "--tag", "r", "--data_root", str(colours / "regression")]
    assert command.main(["--folds", "2", "--fit_thresholds", "one", *words]) == 2
    assert "--fit_thresholds is for several labels per image, and --task is regression" in capsys.readouterr().err
    assert not Path("checkpoints").exists()
