"""What all tools and benchmarks share: a parser that answers --help, and a folder that one of them uses at a time."""

import importlib

import pytest

from conftest import ROOT, locked_elsewhere
from tools import best_scale, embed, sweep
from tools.doctor import command as doctor
from tools.folds import command as folds
from tools.probe import command as probe
from utils import run_lock

COMMANDS = sorted(
    f"{path.parent.relative_to(ROOT)}.{path.stem}".replace("/", ".").removesuffix(".__main__")
    for path in (*(ROOT / "tools").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"))
    if '__name__ == "__main__"' in path.read_text() and path.parent.name not in ("prepare", "shipped")
)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_shows_its_own_name(name, capsys, monkeypatch):
    module = importlib.import_module(f"{name}.command" if (ROOT / name.replace(".", "/")).is_dir() else name)
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: -m {name} ")


def test_commands_list_is_complete():
    assert {"tools.compare", "tools.doctor", "tools.lr_find", "tools.sweep"} < set(COMMANDS)
    benchmarks = {name.removeprefix("benchmarks.") for name in COMMANDS if name.startswith("benchmarks.")}
    known = {"crash_folds", "crash_test", "eval", "input", "photos", "processes", "proof", "report", "serve"}
    known |= {"ablation", "cleaning", "train", "transforms"}
    assert benchmarks == known


@pytest.mark.parametrize("tool", [best_scale, embed, doctor, folds, probe, sweep], ids=lambda tool: tool.__name__)
def test_tool_whose_folder_is_in_use_is_refused(tool, photo_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_lock, "TIMEOUT_SECONDS", 0.1)
    out, listed = tmp_path / "out", str(photo_set / "val.txt")
    (tmp_path / "space.yaml").write_text("lr: [0.1, 0.2]\n")
    words = ["--load", "no.pt", "--list", listed, "--out", str(out)]
    if tool is doctor:
        words = [listed, "--out", str(out)]
    elif tool is probe:
        words = ["--models", "timm:test_resnet", "--data_root", str(photo_set)]
        words += ["--tag", "out", "--result_dir", str(tmp_path)]
    elif tool is folds:
        words = ["--folds", "2", "--result_dir", str(tmp_path), "--", "--tag", "out", "--data_root", str(photo_set)]
    elif tool is sweep:
        pytest.importorskip("optuna")
        words = ["--name", "out", "--space", str(tmp_path / "space.yaml"), "--result_dir", str(tmp_path)]
    with locked_elsewhere(run_lock.lock_path(out)):
        assert tool.main(words) == 2
    assert f"{out} is in use by another command" in capsys.readouterr().err
    assert not out.exists()


def test_proof_differences_ignore_new_scores_alone():
    from benchmarks.proof import differences

    known = {"scores": [{"loss": "1"}], "hashes": {"weights": "a"}}
    assert differences(known, {"scores": [{"loss": "1", "f1": "2"}], "hashes": {"weights": "a"}}) == ""
    assert "hash of weights" in differences(known, {"scores": [{"loss": "1"}], "hashes": {"weights": "b"}})
    assert "loss 1 -> 3" in differences(known, {"scores": [{"loss": "3"}], "hashes": {"weights": "a"}})
    assert "loss 1 -> None" in differences(known, {"scores": [{}], "hashes": {"weights": "a"}})
    assert "number of epochs" in differences(known, {"scores": [], "hashes": {"weights": "a"}})
    assert "a new part, ema" in differences(known, {"scores": known["scores"], "hashes": {"weights": "a", "ema": "c"}})
    assert differences(None, known)
