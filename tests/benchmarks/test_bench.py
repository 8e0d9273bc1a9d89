"""The benchmarks of input, evaluation, training and the report, each from its flags to its JSON, at a tiny size."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import crash_test
from benchmarks import eval as bench_eval
from benchmarks import harness as bench
from benchmarks import input as bench_input
from benchmarks import report as bench_report
from benchmarks import serve as bench_serve
from benchmarks import train as bench_train
from utils.errors import UserError
from utils.run import set_openmp_spin

pytestmark = pytest.mark.pictures


@pytest.fixture
def here(monkeypatch):
    """Rows are measured in this process, which spares the imports; the number of threads is afterwards as it was."""

    def one(name, row):
        assert row.ours == ("timm" not in str(row.title))
        tool = {"input": bench_input, "eval": bench_eval, "serve": bench_serve, "train": bench_train}[name]
        return json.loads(json.dumps(tool.measure(json.loads(json.dumps(row.task)))))

    monkeypatch.setattr(bench, "one", one)
    monkeypatch.setattr(bench_input, "WARM_UP_BATCHES", 1)
    monkeypatch.setattr(bench_train, "WARM_UP_BATCHES", 1)
    monkeypatch.setattr(bench_train, "MIN_LOADER_SECONDS", 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def measured(tool, photo_set, tmp_path, *words):
    """What `tool` writes after one round of the 36 photographs."""
    out = tmp_path / "out"
    common = ["--list", str(photo_set / "train.txt"), *"--rounds 1 --workers 1 --gpu -1".split(), "--out", str(out)]
    assert tool.main([*common, *words]) == 0
    assert (out / f"{tool.NAME}.png").is_file()
    return json.loads((out / f"{tool.NAME}.json").read_text())


def test_input_benchmark_writes_its_rates(here, photo_set, tmp_path, capsys):
    found = measured(
        bench_input, photo_set, tmp_path, "--scale", "32", "--batch", "6", "--only", "decode only", "ours", "timm"
    )
    assert set(found) == {"settings", "cores", "device", "rates", "medians"}
    kinds = ("crop, flip", "crop, flip, colour")
    assert set(found["rates"]) == {f"{name} · {kind}" for name in ("decode only", "ours", "timm") for kind in kinds} | {
        "ours, default chain"
    }
    assert all(len(values) == 1 and values[0] > 0 for values in found["rates"].values())
    assert "1.00 x" in capsys.readouterr().out


def test_eval_benchmark_writes_its_rates(here, photo_set, tmp_path):
    found = measured(bench_eval, photo_set, tmp_path, "--cases", "ResNet18:32", "--batch", "12")
    assert set(found) == {"settings", "cores", "device", "rates", "medians", "ratios"}
    assert set(found["rates"]["ResNet18:32"]) == set(bench_eval.ROWS)
    rate, ratios = found["medians"]["ResNet18:32"], found["ratios"]["ResNet18:32"]
    assert len(ratios) == 7 and min(rate.values()) > 0
    limit = 1 / (1 / rate["forward fp32"] + 1 / rate["loader, cached"])
    assert ratios["cached / its limit, fp32"] == pytest.approx(rate["ours fp32, cached"] / limit)


def test_serve_benchmark_writes_latencies_and_rates(here, photo_set, tmp_path, capsys):
    words = ["--case", "timm:test_resnet:32", "--clients", "4", "--requests", "2"]
    found = measured(bench_serve, photo_set, tmp_path, *words)
    assert set(found["medians"]) == set(bench_serve.ROWS)
    for row in ("dynamic batches", "each image alone"):
        numbers = found["medians"][row]
        assert 0 < numbers["p50_ms"] <= numbers["p99_ms"] and numbers["rate"] > 0
    assert found["medians"]["each image alone"]["mean_batch"] == 1
    assert 0 < found["medians"]["full batch"]["network_ms"] < found["medians"]["full batch"]["batch_ms"]
    assert "p99 of dynamic batches / mean of a full batch" in capsys.readouterr().out


def test_train_benchmark_writes_its_rates(here, photo_set, tmp_path, capsys):
    network, before = "ResNet18:32:6", Path.cwd()
    rows = [row for row in bench_train.FLAGS if "compiled" not in row]
    words = ["--networks", network, "--steps", "4", "--precision", "fp32", "--only", *rows]
    found = measured(bench_train, photo_set, tmp_path, *words)
    assert Path.cwd() == before
    assert set(found["rates"][network]) == set(rows) > set(bench_train.ROWS)
    assert all(len(values) == 1 and values[0] > 0 for values in found["rates"][network].values())
    assert set(found["data_wait"][network]) == {"ours, loop cached", "ours, loop jpeg"}
    assert all(0 < values[0] < 1 for values in found["data_wait"][network].values())
    rate, ratios = found["medians"][network], found["ratios"][network]
    assert set(ratios) == {target.name for target in bench_train.TARGETS} - {"engine / timm, both compiled"}
    assert ratios["loop jpeg / min(step, loader)"] == pytest.approx(
        rate["ours, loop jpeg"] / min(rate["ours, step"], rate["ours, loader jpeg"])
    )
    best = max(rate["timm channels_last"], rate["timm channels_last bf16"])
    assert ratios["loop jpeg / timm best"] == pytest.approx(rate["ours, loop jpeg"] / best)
    assert found["targets"][network]["loop jpeg / timm best"] == 1.05
    assert "waiting for data" in capsys.readouterr().out


def test_train_benchmark_row_runs_in_its_own_process(photo_set, tmp_path, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    words = ["--networks", "timm:test_resnet:32:6", "--only", "ours, step", "--steps", "2"]
    found = measured(bench_train, photo_set, tmp_path, *words)
    assert found["precision"]["timm:test_resnet:32:6"] in ("fp32", "bf16")
    assert found["rates"]["timm:test_resnet:32:6"]["ours, step"][0] > 0
    assert found["ratios"]["timm:test_resnet:32:6"] == {}
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="nobody did not run"):
        bench.one("train", bench.Row("nobody", {}, ours=True))


def test_train_benchmark_ratios_match_their_names():
    rate = {
        "ours, step": 100.0,
        "ours, loader cached": 300.0,
        "ours, loop cached": 60.0,
        "timm defaults": 20.0,
        "ours, loop jpeg": 50.0,
    }
    found = bench_train.ratios("EfficientNet-Lite0:64:64", rate)
    assert found["loop cached / (1 / (1/step + 1/loader))"] == (pytest.approx(0.8), 0.95)
    assert found["loop jpeg / timm defaults"] == (2.5, 1.8)
    assert found["loop cached / step"] == (0.6, None)
    assert "loop jpeg / timm best" not in found
    rate |= {"timm channels_last": 40.0, "timm channels_last bf16": 25.0}
    assert bench_train.ratios("EfficientNet-Lite0:64:64", rate)["loop jpeg / timm best"] == (1.25, 1.3)
    assert bench_train.ratios("ResNet50:128:32", rate)["loop jpeg / timm best"] == (1.25, 1.05)


def test_train_benchmark_interrupted_keeps_finished_rows(photo_set, tmp_path, capsys, monkeypatch):
    measured = [100.0, 50.0, 120.0]

    def one(name, row):
        if len(measured) == 1:
            raise KeyboardInterrupt
        return measured.pop(0)

    monkeypatch.setattr(bench, "one", one)
    words = ["--list", str(photo_set / "train.txt"), "--out", str(tmp_path), "--only", "ours", "timm"]
    assert bench_input.main(words) == 130
    kept = json.loads((tmp_path / "input.rows.json").read_text())
    assert [row["measured"] for row in kept["rows"]] == [100.0, 50.0]
    assert kept["of"] == 15
    assert kept["settings"]["workers"] == 2
    assert "1/15  ours · crop, flip" in capsys.readouterr().out
    measured[:] = [1.0] * 99
    assert bench_input.main([*words, "--rounds", "1"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"input.json", "input.png"}


@pytest.mark.parametrize(
    "words", [["--networks", "ResNet50:128"], ["--steps", "1"], ["--rounds", "0"], ["--list", "no.txt"]], ids=str
)
def test_train_benchmark_wrong_flag_is_refused(words, photo_set, tmp_path, capsys):
    given = [] if "--list" in words else ["--list", str(photo_set / "train.txt")]
    assert bench_train.main([*given, "--out", str(tmp_path), *words]) == 2
    assert "error: " in capsys.readouterr().err


def test_set_openmp_spin_keeps_user_settings():
    plain: dict[str, str] = {}
    set_openmp_spin(plain)
    assert plain == {"GOMP_SPINCOUNT": "20000"}
    for given in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}):
        mine = dict(given)
        set_openmp_spin(mine)
        assert mine == given


def test_scripts_set_openmp_spin_before_torch(tmp_path):
    """libgomp reads its settings when it is loaded, and no later."""
    code = "import sys, utils.run, options, train, eval, submit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=bench.ROOT).returncode == 0


def test_report_benchmark_writes_page_and_times(tmp_path, capsys):
    assert bench_report.main(["--classes", "12", "--images", "60", "--out", str(tmp_path / "0")]) == 0
    assert (tmp_path / "0/report.html").stat().st_size > 50_000
    assert "scores and tables" in capsys.readouterr().out


@pytest.mark.parametrize("gpu, words", [(None, []), (-1, ["--gpu", "-1"]), (1, ["--gpu", "1"])])
def test_benchmark_gpu_flag_reaches_its_rows(gpu, words):
    task = {"model": "ResNet18", "list": "a.txt", "val": "b.txt", "precision": "fp32"}
    task |= {"scale": 32, "batch": 4, "workers": 0}
    assert bench.gpu_words({"gpu": gpu}) == words
    assert bench_train._options(task | {"gpu": gpu, "row": "ours, step"}).gpu == gpu


def test_rate_on_gpu_synchronises_at_both_ends(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(bench_train, "WARM_UP_BATCHES", 2)
    images = (events.append("batch") or 4 for _ in range(9))
    bench_train._rate(images, torch.device("cuda", 0), steps=3)
    assert events == ["batch"] * 2 + ["wait"] + ["batch"] * 3 + ["wait"]
    bench.synchronize(torch.device("cpu"))
    assert events[-1] == "wait" and len(events) == 7


def test_crash_test_moments_name_existing_functions():
    """A renamed function would count as no moment: put its new name into crash_test.MOMENTS, MAIN or SAVING."""
    for file, name in (*crash_test.MOMENTS.values(), crash_test.MAIN, *crash_test.SAVING):
        tree = ast.parse((bench.ROOT / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (
            f"{file} has no {name}"
        )


def test_crash_test_on_stack_matches_file_and_function():
    frames = (
        '"/here/training/run.py", line 9 in end_epoch',
        '"/here/train.py", line 7 in train',
        '"<string>", line 1 in <module>',
    )
    stack = "".join(f"  File {frame}\n" for frame in frames)
    assert crash_test.on_stack(("train.py", "train"), stack)
    assert crash_test.on_stack(("training/run.py", "end_epoch"), stack)
    assert not crash_test.on_stack(("train.py", "tra"), stack)
    assert not crash_test.on_stack(("eval.py", "train"), stack)
