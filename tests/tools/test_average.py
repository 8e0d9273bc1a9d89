"""tools.average: means of weights, batch norm as --swa has it, a greedy choice, and refusals."""

import json
from math import nan

import pytest
import torch

from made import RESNET, VIT, make, shown
from tools.average import command, ingredients, soups
from utils import checkpoint
from utils.errors import NotFinite, UserError
from utils.files import file_hash

ORDINAL = {"task": "ordinal"}
TOOL = ("-w", "0", "--gpu", "-1", "--precision", "fp32", "-b", "6")


def average(*words) -> int:
    return command.main([*TOOL, *map(str, words)])


# ------------------------------------------------------------------------------------------------ from end to end


def test_swa_of_a_tag_is_what_training_averages(script, photo_set, small, tmp_path):
    """The weights and the statistics of batch norm of --swa, from the epochs that the run kept."""
    words = ["--tag", "run", "--data_root", photo_set, "--epochs", 3, "--swa", 2, "--keep", 3, "--cutout", 0, *small]
    assert script("train.py", *words).code == 0
    trained = checkpoint.load(tmp_path / "checkpoints/run/last.pt")
    assert average("--how", "swa", "--tag", "run", "--last", 2, "--out", "swa.pt", "-b", 12) == 0
    made = checkpoint.load("swa.pt")["weights"]
    assert made.keys() == trained["swa"].keys()
    for name, value in trained["swa"].items():
        assert torch.allclose(made[name], value, rtol=1e-4, atol=1e-6), name
    moved = [name for name in made if not torch.equal(made[name], trained["weights"][name])]
    assert any("running_var" in name for name in moved) and any("weight" in name for name in moved)
    found = json.loads((tmp_path / "swa.json").read_text())
    assert found["scores"]["top1"] == trained["history"][-1]["val_swa_top1"]
    assert [one["epoch"] for one in found["ingredients"]] == [2, 3]


def test_soup_scores_as_eval_prints_and_names_its_ingredients(script, photo_set, tmp_path, capfd):
    paths = [make(tmp_path / f"{k}.pt", photo_set, noise) for k, noise in enumerate((0.0, 0.01, 0.02))]
    assert average("--load", *paths, "--how", "uniform", "--metric", "log_loss", "--out", "soup.pt") == 0
    printed = shown(capfd)
    found = json.loads((tmp_path / "soup.json").read_text())
    assert found["sha256"] == file_hash("soup.pt")
    assert [one["path"] for one in found["ingredients"]] == paths
    assert [one["sha256"] for one in found["ingredients"]] == [file_hash(path) for path in paths]
    for path, scores in [*((one["path"], one["scores"]) for one in found["ingredients"]), ("soup.pt", found["scores"])]:
        code = script("eval.py", "--load", path, "--tag", "t", "--no-report", *TOOL).code
        (metrics,) = (tmp_path / "results/t").glob("*/metrics.json")
        listed = json.loads(metrics.read_text())
        assert code == 0 and listed["log_loss"] == scores["log_loss"] and listed["top1"] == scores["top1"]
        assert f"{scores['log_loss']:.6f}" in printed
        metrics.rename(tmp_path / "seen.json")
        metrics.parent.rename(tmp_path / f"seen_{len(list(tmp_path.glob('seen_*')))}")
    content = checkpoint.load("soup.pt")
    assert content["average"]["ingredients"] == found["ingredients"] and content["opt"]["tag"] == "soup"
    parts = [checkpoint.load(path)["weights"] for path in paths]
    for name, value in content["weights"].items():
        if "running" not in name and value.is_floating_point():
            assert torch.equal(value, (sum(part[name].double() for part in parts) / 3).float()), name


def test_statistics_of_batch_norm_are_recomputed_only_where_there_are_some(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    paths = [make(tmp_path / f"{k}.pt", photo_set, noise) for k, noise in enumerate((0.0, 0.02))]
    for k, images in enumerate(("7", "0")):
        words = ("--load", *paths, "--how", "uniform", "--bn_images", images, "--out", f"soup{k}.pt")
        assert average(*words) == 0
    fresh, mean = (checkpoint.load(f"soup{k}.pt") for k in range(2))
    assert fresh["average"]["batchnorm"] == {"images": 12, "batches": 2} and mean["average"]["batchnorm"]["images"] == 0
    assert int(fresh["weights"]["bn1.num_batches_tracked"]) == 2
    parts = [checkpoint.load(path)["weights"]["bn1.running_var"] for path in paths]
    assert torch.equal(mean["weights"]["bn1.running_var"], ((parts[0].double() + parts[1].double()) / 2).float())
    assert not torch.allclose(fresh["weights"]["bn1.running_var"], mean["weights"]["bn1.running_var"], rtol=0.1)
    capfd.readouterr()
    frozen = [
        make(tmp_path / f"f{k}.pt", photo_set, noise, options={"probe_init": "x.pt"})
        for k, noise in enumerate((0.0, 0.02))
    ]
    assert average("--load", *frozen, "--how", "uniform", "--out", "frozen.pt") == 0
    assert "recomputed: the runs froze all" in shown(capfd)
    lists = {"lists": {"val": str(photo_set / "val.txt")}}
    vits = [make(tmp_path / f"v{k}.pt", photo_set, noise, VIT, data=lists) for k, noise in enumerate((0.0, 0.01))]
    assert average("--load", *vits, "--how", "uniform", "--out", "vit.pt") == 0
    assert f"recomputed: {VIT} has none" in shown(capfd)


def test_ema_becomes_the_weights(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "a.pt", photo_set)
    assert average("--load", path, "--how", "ema", "--out", "ema.pt") == 2
    assert "holds no moving average" in shown(capfd)
    content = checkpoint.load(path)
    content["ema"] = {name: value + 1 for name, value in content["weights"].items()}
    checkpoint.save(tmp_path / "a.pt", content)
    assert average("--load", path, "--how", "ema", "--out", "ema.pt") == 0
    made = checkpoint.load("ema.pt")
    assert made["weights"].keys() == content["ema"].keys() and "ema" not in made
    assert all(torch.equal(made["weights"][name], value) for name, value in content["ema"].items())
    assert made["average"]["ingredients"][0]["weights"] == "ema"


TARGETS = {"class_names": None, "class_images": None}


@pytest.mark.parametrize(
    ("task", "line", "data", "metric"),
    [
        ("multilabel", lambda k: f"{k % 3},{(k + 1) % 3}" if k % 2 else "1", {}, "mAP"),
        ("regression", lambda k: f"{k},{k * k},1.5", {"target_mean": [5.0] * 3, "target_std": [2.0] * 3}, "mae"),
    ],
)
def test_greedy_soup_of_other_tasks_is_scored_by_their_metric(task, line, data, metric, photo_set, tmp_path):
    for name in ("train", "val"):
        paths = [row.rpartition(" ")[0] for row in (photo_set / f"{name}.txt").read_text().splitlines()]
        (tmp_path / f"{name}.txt").write_text("".join(f"{path} {line(k)}\n" for k, path in enumerate(paths)))
    about = {"data": {"task": task, **TARGETS, **data}, "options": {"task": task, "metric": metric}}
    paths = [make(tmp_path / f"{k}.pt", tmp_path, k / 100, **about) for k in range(3)]
    assert average("--load", *paths, "--how", "greedy", "--out", tmp_path / "soup.pt") == 0
    found = json.loads((tmp_path / "soup.json").read_text())
    single = [one["scores"][metric] for one in found["ingredients"]]
    best = min(single) if metric == "mae" else max(single)
    assert found["metric"] == metric and len(set(single)) > 1
    assert found["scores"][metric] <= best if metric == "mae" else found["scores"][metric] >= best
    assert [one["used"] for one in found["ingredients"]][single.index(best)]
    assert checkpoint.load(tmp_path / "soup.pt")["data"].get("target_std") == data.get("target_std")


def test_fitted_thresholds_score_their_checkpoint_and_are_lost_with_a_warning_or_kept(
    script, photo_set, tmp_path, capfd
):
    """All labels counted from 0.5 on, so a soup looked better than a checkpoint with thresholds that is better."""
    for name in ("train", "val"):
        paths = [row.rpartition(" ")[0] for row in (photo_set / f"{name}.txt").read_text().splitlines()]
        (tmp_path / f"{name}.txt").write_text("".join(f"{path} {k % 2}\n" for k, path in enumerate(paths)))
    about = {"data": {"task": "multilabel", **TARGETS}, "options": {"task": "multilabel", "metric": "micro_f1"}}
    first, second = (make(tmp_path / f"{k}.pt", tmp_path, k / 100, **about) for k in range(2))
    content = checkpoint.load(first)
    rank = {"rule": "per_label", "images": 9, "tta": "none", "values": [0.0, 0.0, 1.0]}  # the two labels that there are
    checkpoint.save(first, content | {"thresholds": rank, "showing": "raw"})
    words = ("--tag", "e", "--load", first, "--gpu", -1, "-w", 0, "-b", 6, "--resamples", 0, "--precision", "fp32")
    assert script("eval.py", *words).code == 0
    (found,) = (tmp_path / "results/e").glob("*/metrics.json")
    wanted = json.loads(found.read_text())["micro_f1"]
    load = ("--load", first, second, "--out")
    assert average(*load, "mean.pt", "--how", "uniform") == 0
    printed = shown(capfd)
    scores = [one["scores"]["micro_f1"] for one in json.loads((tmp_path / "mean.json").read_text())["ingredients"]]
    assert scores[0] == wanted > scores[1]
    assert f"{first} holds thresholds of its own probabilities" in printed
    assert "eval.py --tag mean --load mean.pt" in printed and "--fit_thresholds per_label" in printed
    assert "thresholds" not in checkpoint.load("mean.pt")
    assert average(*load, "soup.pt", "--how", "greedy") == 0
    assert "holds thresholds of its own probabilities" not in shown(capfd)
    soup = checkpoint.load("soup.pt")
    assert soup["thresholds"]["values"] == [0.0, 0.0, 1.0], "a soup of one is that checkpoint"


# ------------------------------------------------------------------------------------------------ greedy


def test_greedy_soup_by_top5_of_few_classes_is_refused(photo_set, tmp_path, capfd):
    """It is 1 for every network of three classes, so all checkpoints were averaged, the bad ones too."""
    paths = [make(tmp_path / f"{k}.pt", photo_set, k / 100) for k in range(2)]
    words = ("--load", *paths, "--metric", "top5", "--out", tmp_path / "soup.pt")
    assert average(*words, "--how", "greedy") == 2
    assert "cannot choose the checkpoints of --how greedy" in shown(capfd) and not (tmp_path / "soup.pt").exists()
    assert average(*words, "--how", "uniform") == 0, "where nothing is chosen by it, it is only shown"


class Judge:
    """Scores a weight w as table[w], and notes what it was asked."""

    def __init__(self, table: dict[float, float]) -> None:
        self.table, self.asked = table, []

    def __call__(self, weights, title, thresholds=None):
        value = round(float(weights["w"]), 3)
        self.asked.append(value)
        if self.table[value] is None:
            raise NotFinite("broken")
        return {"top1": self.table[value]}

    def merit(self, scores):
        return scores["top1"]


def parts_of(*values: float) -> list[ingredients.Ingredient]:
    return [ingredients.Ingredient(f"{v}.pt", {"weights": {"w": torch.tensor([v])}}, "raw", "") for v in values]


@pytest.mark.parametrize(
    ("table", "used", "weight", "asked"),
    [
        # with 5 the mean falls, with 0 it stays: [the three, then 5 + 2, then 5 + 0]
        ({0.0: 0.5, 2.0: 0.6, 5.0: 0.7, 3.5: 0.69, 2.5: 0.7}, [True, False, True], 2.5, [0, 2, 5, 3.5, 2.5]),
        ({0.0: 0.5, 2.0: 0.7, 5.0: 0.6, 3.5: 0.8, 2.333: 0.79}, [False, True, True], 3.5, [0, 2, 5, 3.5, 2.333]),
        ({0.0: 0.5, 2.0: 0.5, 5.0: 0.7, 3.5: 0.6, 2.5: None}, [False, False, True], 5.0, [0, 2, 5, 2.5, 3.5]),
        ({0.0: nan, 2.0: 0.5, 5.0: 0.4, 3.5: 0.6, 2.333: nan}, [False, True, True], 3.5, [0, 2, 5, 3.5, 2.333]),
    ],
)
def test_greedy_soup_adds_the_next_best_while_the_score_does_not_fall(table, used, weight, asked):
    judge = Judge(table)
    soup = soups.cook("greedy", parts_of(0.0, 2.0, 5.0), judge, lambda weights: weights)
    assert soup.used == used and float(soup.weights["w"]) == weight
    assert judge.asked == asked
    assert soup.scores["top1"] == table[weight]


def test_mean_of_equal_weights_is_the_same_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    one = {"w": torch.randn(1000, generator=generator), "n": torch.tensor(7)}
    one |= {"h": one["w"].half(), "b": one["w"].bfloat16()}
    mean = ingredients.mean_weights([one, one, one])
    assert all(torch.equal(mean[name], value) and mean[name].dtype == value.dtype for name, value in one.items())


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model": VIT}, f"the network ({RESNET} and {VIT})"),
        ({"options": {"scale": 64}}, "the preprocessing's scale (32 and 64)"),
        ({"options": {"fit": "pad"}}, "the preprocessing's fit (squash and pad)"),
        ({"options": {"head": "cosine"}}, "head (linear and cosine)"),
        ({"options": {"pool": "gem"}}, "pool (avg and gem)"),
        ({"options": {"task": "ordinal", "loss": "corn"}, "data": ORDINAL}, "activation (softmax and corn)"),
        ({"data": {"class_names": ["china", "hopper", "flower"]}}, "the class names (class 1 is 'flower' there and"),
        ({"data": {"num_classes": 4, "class_names": None, "class_images": None}}, "the number of classes (3 and 4)"),
        ({"data": ORDINAL}, "the task (single and ordinal)"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_what_differs(changes, part, photo_set, tmp_path):
    paths = [make(tmp_path / "a.pt", photo_set), make(tmp_path / "b.pt", photo_set, 0.01, **changes)]
    with pytest.raises(UserError) as refused:
        ingredients.read_all(paths, "uniform")
    assert f"{paths[0]} and {paths[1]} cannot be averaged" in str(refused.value) and part in str(refused.value)


def test_tensors_that_differ_are_refused_by_name(photo_set, tmp_path):
    paths = [make(tmp_path / f"{k}.pt", photo_set, k / 100) for k in range(2)]
    content = checkpoint.load(paths[1])
    content["weights"]["bn1.weight"] = content["weights"]["bn1.weight"].half()
    checkpoint.save(tmp_path / "1.pt", content)
    with pytest.raises(UserError, match=r"the tensor bn1\.weight"):
        ingredients.read_all(paths, "uniform")


def test_network_with_cut_points_is_refused(photo_set, tmp_path):
    data = {"task": "ordinal", "cut_points": [0.5, 1.5]}
    path = make(tmp_path / "a.pt", photo_set, options={"task": "ordinal", "loss": "mse"}, data=data)
    with pytest.raises(UserError, match=f"{path} predicts a number, and its cut points"):
        ingredients.read_all([path], "ema")


def test_same_weights_and_bare_weights_are_refused(photo_set, tmp_path):
    path = make(tmp_path / "a.pt", photo_set)
    (tmp_path / "b.pt").hardlink_to(path)
    with pytest.raises(UserError, match="hold the same weights"):
        ingredients.read_all([path, str(tmp_path / "b.pt")], "uniform")
    torch.save(checkpoint.load(path)["weights"], tmp_path / "bare.pt")
    with pytest.raises(UserError, match="Give checkpoints of train.py"):
        ingredients.read_all([path, str(tmp_path / "bare.pt")], "uniform")


def test_epochs_of_a_tag_are_in_the_order_of_numbers(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("2_A.pt", "10_A.pt", "9_A.pt", "best.pt", "last.pt", "3_A.json", "2_A.norm.pt", "9_A.prior.pt"):
        (folder / name).touch()
    words = ["--how", "swa", "--out", "x.pt", "--checkpoint_dir", str(tmp_path), "--tag", "run"]
    opt = command.option_parser().parse_args(words)
    assert [path.rpartition("/")[2] for path in ingredients.epoch_files(opt)] == ["2_A.pt", "9_A.pt", "10_A.pt"]
    opt = command.option_parser().parse_args([*words, "--last", "2"])
    assert [path.rpartition("/")[2] for path in ingredients.epoch_files(opt)] == ["9_A.pt", "10_A.pt"]
    with pytest.raises(UserError, match="holds 3 checkpoints of epochs"):
        ingredients.epoch_files(command.option_parser().parse_args([*words, "--last", "4"]))


def test_existing_file_is_replaced_only_when_told(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    paths = [make(tmp_path / f"{k}.pt", photo_set, k / 100) for k in range(2)]
    (tmp_path / "soup.json").write_text("mine")
    words = ("--load", *paths, "--how", "uniform", "--out")
    assert average(*words, "soup.pt") == 2
    assert "soup.json exists already" in shown(capfd)
    assert average(*words, "1.pt", "--overwrite") == 2  # an ingredient, never
    assert "is the same file as" in shown(capfd)
    assert not (tmp_path / "soup.pt").exists() and (tmp_path / "soup.json").read_text() == "mine"
    assert average(*words, "soup.pt", "--overwrite") == 0
    assert json.loads((tmp_path / "soup.json").read_text())["how"] == "uniform"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--how", "uniform"], "--load is needed"),
        (["--how", "uniform", "--load", "a.pt"], "takes two checkpoints or more; --load has 1"),
        (["--how", "ema", "--load", "a.pt", "b.pt"], "--how ema takes one checkpoint; --load has 2"),
        (["--how", "greedy", "--tag", "x"], "--tag and --how greedy contradict"),
        (["--how", "swa", "--tag", "x", "--load", "a.pt", "b.pt"], "--load and --tag contradict"),
        (["--how", "swa", "--load", "a.pt", "b.pt", "--last", "3"], "--last is 3"),
        (["--how", "uniform", "--load", "a.pt", "b.pt", "--bn_images", "-1"], "--bn_images is -1"),
        (["--how", "swa", "--tag", "none"], "There is no folder checkpoints/none"),
        (["--how", "uniform", "--load", "a.pt", "b.pt", "--out", "x.bin"], "allowed: a name that ends in .pt"),
    ],
)
def test_average_with_flags_that_contradict_is_refused(words, part, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert average("--out", "x.pt", *words) == 2
    assert part in shown(capfd)
