"""What all tools and benchmarks share: a parser that answers --help, and a folder that one of them uses at a time."""

import pytest
from tools import best_scale, embed, sweep
from tools.doctor import command as doctor
from utils import run_lock

from conftest import locked_elsewhere


@pytest.mark.parametrize("tool", [best_scale, embed, doctor, sweep], ids=lambda tool: tool.__name__)
def test_tool_whose_folder_is_in_use_is_refused(tool, photo_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_lock, "TIMEOUT_SECONDS", 0.1)
    out, listed = tmp_path / "out", str(photo_set / "val.txt")
    (tmp_path / "space.yaml").write_text("lr: [0.1, 0.2]\n")
    words = ["--load", "no.pt", "--list", listed, "--out", str(out)]
    if tool is doctor:
        words = [listed, "--out", str(out)]
    elif tool is sweep:
        pytest.importorskip("optuna")
        words = ["--name", "out", "--space", str(tmp_path / "space.yaml"), "--result_dir", str(tmp_path)]
    with locked_elsewhere(run_lock.lock_path(out)):
        assert tool.main(words) == 2
    assert f"{out} is in use by another command" in capsys.readouterr().err
    assert not out.exists()
