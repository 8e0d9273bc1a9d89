"""The table of what each trick buys: its plans, its arithmetic, and how its runs are kept."""

import json
import math
import shlex

import pytest

from benchmarks import ablation
from benchmarks.ablation import Job
from benchmarks.kept_runs import KeptRuns
from conftest import ROOT
from options import parse_eval, parse_train
from options.defaults import Facts, fill_defaults
from utils.errors import UserError

PLANS = sorted(ROOT.glob("runs/*.yaml"))
SCORE = """
import json, pathlib, sys
folder = pathlib.Path("results", sys.argv[2], "1")
folder.mkdir(parents=True)
(folder / "metrics.json").write_text(json.dumps({"top1": float(sys.argv[3])}))
with open("calls.txt", "a") as file:
    print(sys.argv[2], file=file)
"""


def plan_of(path, *words):
    return ablation.read_plan(ablation.option_parser().parse_args([str(path), "--data_root", "x", *words]))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plans_of_the_project_hold_words_that_the_scripts_take(path):
    plan = plan_of(path)
    assert plan.rows and plan.predict

    def values(words):
        """What a run of these words would do; `given` alone is no difference."""
        opt = fill_defaults(parse_train(shlex.split(words)), Facts(12_000, "--no-pretrained" not in words, True))[0]
        return {name: value for name, value in vars(opt).items() if name not in ("given", "label_smoothing")}

    for row, words in plan.rows.items():
        assert values(f"{plan.base} {words}") != values(plan.base), row
    for words in plan.predict.values():
        parse_eval(["--load", "a.pt", *shlex.split(words)])


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("rows: {a: --ema 0.9}", [], "must hold `base: words for train.py`"),
        ("base: --ema 0.9\nsoup: [2]", [], "must hold `base: words for train.py`"),
        ("base: --ema 0.9\nrows: [2]", [], "rows must give words to each name"),
        ("base: [2]", [], "base must give words to each name"),
        ("base: --ema 0.9\nrows: {a: }", [], "rows must give words to each name"),
        ("base: --ema 0.9\nrows: {a: --sam 1}\npredict: {a: --tta flip}", [], "two rows called 'a'"),
        ("base: --ema 0.9\nrows: {a+b: --sam 1, a-b: --sam 2}", [], "names that differ in signs alone"),
        ("base: --ema 0.9\nrows: {base: --sam 1}", [], "two rows called 'base'"),
        ("base: --ema 0.9\nensembles: [4]", [], "ensembles is .*; allowed: 2 to 3, the number of seeds"),
        ("base: --ema 0.9\nsoups: [a]", [], "soups is .*; allowed: 2 to 3"),
        ("base: --ema 0.9\nmore_seeds: -2", [], "more_seeds is .*; allowed: 0 or more"),
        ("base: --ema 0.9\nrows: {a: --sam 1}", ["--only", "b"], "has no row 'b'; allowed: 'a'"),
        ("base: --ema 0.9", ["--seeds", "1"], "--seeds 1"),
        ("base: --ema '0.9", [], "base base: .* is no command line"),
        ('base: --ema 0.9\npredict: {a: "--tta \'flip"}', [], "predict a: .* is no command line"),
        ("base: [b", [], "cannot be read"),
    ],
)
def test_plan_that_is_none_is_refused(tmp_path, text, words, said):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        plan_of(tmp_path / "plan.yaml", *words)


def test_predictions_take_runs_of_the_base_in_turn():
    plan = ablation.Plan("", {}, {"TTA flip": "--tta flip"}, [2, 5], [3], 0)
    jobs = ablation.predictions(plan, range(1, 6), ["--gpu", "-1"])
    assert [job.seeds for job in jobs if job.row == "ensemble of 2"] == [(1, 2), (2, 3), (3, 4)]
    assert [job.seeds for job in jobs if job.row == "ensemble of 5"] == [(1, 2, 3, 4, 5)]
    flip = next(job for job in jobs if job.row == "TTA flip")
    assert flip.commands[0][3:] == (
        "--load",
        "checkpoints/base-1/last.pt",
        "--no-report",
        "--tta",
        "flip",
        "--gpu",
        "-1",
    )
    average, score = next(job for job in jobs if job.row == "soup of 3").commands
    assert average[2:6] == ("--load", *(f"checkpoints/base-{seed}/last.pt" for seed in (1, 2, 3)))
    assert average[average.index("--out") + 1] == score[score.index("--load") + 1]


def runs_of(scores):
    return {f"{row} {seeds}": {"row": row, "seeds": seeds, "top1": top1} for row, seeds, top1 in scores}


def test_markdown_gives_paired_gains_with_students_interval():
    scores = [("base", [1], 0.80), ("base", [2], 0.90), ("base", [3], 0.85)]
    scores += [("good", [1], 0.81), ("good", [2], 0.92), ("good", [3], 0.88)]  # +1, +2, +3 points
    scores += [("none", [1], 0.79), ("none", [2], 0.92), ("none", [3], 0.85)]
    scores += [("pair", [1, 2], 0.87), ("pair", [2, 3], 0.88)]
    done = runs_of(scores)
    assert ablation.gains(done, "good") == pytest.approx([1, 2, 3])
    assert ablation.gains(done, "pair") == pytest.approx([2, 0.5])  # over the mean of its members
    assert ablation.interval([1, 2, 3]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t of 2 degrees of freedom
    lines = [line for line in ablation.markdown(done, "here").splitlines() if line.startswith("|")][2:]
    assert lines[0].startswith("| base | 3 | 85.00 (80.00–90.00)")
    assert "+2.00 ± 2.48 | no" in lines[1] and lines[1].startswith("| good")
    assert lines[2].startswith("| pair") and "±" not in lines[2]  # both hold seed 2: no spread of independent runs
    assert lines[3].startswith("| none") and lines[3].endswith("| no |")


def test_runs_that_have_ended_are_kept_and_resumed(tmp_path):
    (tmp_path / "score.py").write_text(SCORE)

    def job(row, seed, top1="0.5"):
        return Job(row, (seed,), ((str(tmp_path / "score.py"), "--tag", f"{row}{seed}", top1),))

    first = KeptRuns(tmp_path, {"plan": 1}, resume=False)
    with pytest.raises(UserError, match=r"score\.py --tag a2 none failed"):
        ablation.do([job("a", 1), job("a", 2, "none")], first, 1)
    again = KeptRuns(tmp_path, {"plan": 1}, resume=True)
    ablation.do([job("a", 1), job("a", 2, "0.75")], again, 2)
    assert {name: run["top1"] for name, run in again.done.items()} == {"a, seed 1": 0.5, "a, seed 2": 0.75}
    assert (tmp_path / "calls.txt").read_text().split() == [
        "a1",
        "a2",
    ]  # the run that failed before its score is repeated
    assert json.loads((tmp_path / "runs.json").read_text())["done"].keys() == again.done.keys()
    with pytest.raises(UserError, match="another plan"):
        KeptRuns(tmp_path, {"plan": 2}, resume=True)
    with pytest.raises(UserError, match="another device"):
        KeptRuns(tmp_path, {"plan": 1, "device": "new"}, resume=True)
    with pytest.raises(UserError, match="Try: --resume"):
        KeptRuns(tmp_path, {"plan": 1}, resume=False)
