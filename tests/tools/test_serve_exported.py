"""Exported folders that serve themselves, without this project and torch; and what the command refuses."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT
from inference import load
from serving import CLASSES, Server, httpx, picture, save
from tools.export import command as export
from tools.export.alone import link_package
from tools.export.speed import load_shipped
from tools.serve import command

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint, and the folder that tools.export makes of it."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "a.png").write_bytes(picture(0))
    path = save(folder)
    words = ["--load", path, "--images", folder / "a.png", "--out", folder / "model"]
    assert export.main([str(word) for word in words]) == 0
    return path, folder / "model"


def rows_of(reply):
    """Return float32 (N, C) of the answers."""
    rows = [{one["label"]: one["probability"] for one in answer["top"]} for answer in reply.json()["answers"]]
    return np.array([[row[label] for label in range(len(CLASSES))] for row in rows], np.float32)


def test_serve_exported_folder_beside_its_checkpoint_agrees(exported):
    path, folder = exported
    server = Server("--load", folder, path, "--names", "exported", "ours", "--gpu", -1, "--precision", "fp32")
    images = [picture(k, form, 90) for k, form in enumerate(("PNG", "JPEG", "WEBP"))]
    one = rows_of(server.predict(images[0], model="exported"))
    assert np.array_equal(one[0], load_shipped(folder).Predictor(folder).predictions(images[:1])[0])
    both = [rows_of(server.predict(*images, model=name)) for name in ("exported", "ours")]
    np.testing.assert_allclose(*both, atol=2e-3)
    about = httpx.get(f"{server.url}/models").json()["models"]
    assert [(one["name"], one["gradcam"]) for one in about] == [("exported", False), ("ours", True)]
    reply = httpx.post(f"{server.url}/gradcam", files={"images": ("a.png", images[0])})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "no_gradcam")
    bad = server.predict(b"\xff\xd8\xff", model="exported")
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "unreadable_image")
    assert server.stop()[0] == 0


def test_dockerfile_commands_run_in_the_folder_without_this_project(exported, tmp_path):
    path, folder = exported
    assert command.main(["--dockerfile", str(folder)]) == 0
    image = tmp_path / "model"
    shutil.copytree(folder, image)  # COPY . .
    lines = (image / "Dockerfile").read_text().splitlines()
    steps = {name: rest for name, _, rest in (line.partition(" ") for line in lines)}
    assert steps["COPY"] == ". ." and "requirements-serve.txt" in " ".join(lines)
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in re.findall(
        r"^[\w-]+", (image / "requirements.txt").read_text() + (image / "requirements-serve.txt").read_text(), re.M
    ):
        link_package(name, packages)
    env = {"PYTHONPATH": str(packages), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    found = "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, ('torch', 'inference', 'tools'))))"
    assert subprocess.run([sys.executable, "-S", "-c", found], cwd=image, env=env).returncode == 0
    (check,) = [shlex.split(line)[2:] for line in lines if line.startswith("RUN python")]
    done = subprocess.run([sys.executable, "-S", *check], cwd=image, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    python, *words = json.loads(steps["CMD"])
    assert python == "python"
    server = Server(command=("-S", *words), cwd=image, env=env)
    _, *probe = json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])
    probe = [word.replace("8000", server.url.rpartition(":")[2]) for word in probe]
    assert subprocess.run([sys.executable, *probe]).returncode == 0
    expected = load(path, gpu=-1, precision="fp32")([picture(3)]).probabilities
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    reply = httpx.post(f"{url}/predict", files={"images": ("a.png", picture(3))}, timeout=None)
    np.testing.assert_allclose(rows_of(reply), expected, atol=2e-3)
    assert "<title>" in httpx.get(url).text
    assert server.stop()[0] == 0
    assert subprocess.run([sys.executable, *probe], capture_output=True).returncode != 0


def test_dockerfile_of_another_folder_is_refused(tmp_path, capsys):
    assert command.main(["--dockerfile", str(tmp_path)]) == 2
    out = capsys.readouterr()
    assert "no folder that tools.export wrote" in out.out + out.err and not list(tmp_path.iterdir())


def test_dockerfile_that_the_user_edited_is_replaced_with_force_alone(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"export": {}}')
    words = ["--dockerfile", str(tmp_path)]
    assert command.main(words) == 0 == command.main(words)
    ours = (tmp_path / "Dockerfile").read_text()
    (tmp_path / "Dockerfile").write_text(ours + "ENV A=1\n")
    assert command.main(words) == 2
    out = capsys.readouterr()
    assert "Dockerfile exists already" in out.out + out.err
    assert (tmp_path / "Dockerfile").read_text() == ours + "ENV A=1\n"
    assert command.main([*words, "--force"]) == 0 and (tmp_path / "Dockerfile").read_text() == ours


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "are both missing"),
        ("--load a.pt --dockerfile b", "contradict: give one"),
        ("--load a.pt --max_batch 0 --port 70000", "--max_batch is 0; allowed: 1 to 65536.*--port is 70000"),
        ("--load a.pt --max_delay nan", "--max_delay is nan"),
        ("--load a.pt --max_delay inf --max_mb inf", "--max_delay is inf; allowed: 0 to 60000.*--max_mb is inf"),
        ("--load a.pt --max_queue 4 --max_images 5", "contradict: a request must fit"),
        ("--load x/a.pt y/x/a.pt", "Two models have the name 'x/a'.*--names"),
        ("--load a.pt --names a b", "2 names for 1 model;"),
        ("--load .", "without an export"),
        ("--load none.pt", "none.pt"),
        ("--load a.pt oof.npz", "oof.npz holds the probabilities of one list.*checkpoints and exported folders alone"),
        ("--load . --tta flip --gpu -1", "--tta, --gpu have no effect here.*leave them out"),
        ("--load a.pt --force", "--force has no effect here"),
        ("--dockerfile b --max_mb 3 --tta flip", "--port, --max_mb, --tta have no effect beside --dockerfile"),
        ("--load a.pt --host 203.0.113.1", "--host 203.0.113.1.*--port 0"),
    ],
)
def test_serve_wrong_flags_are_refused_by_name(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([*words.split(), *(["--port", "0"] if "--port" not in words else [])]) == 2
    out = capsys.readouterr()
    assert re.search(said, out.out + out.err, re.S), out


def test_serve_folder_of_a_run_is_refused_with_its_checkpoint_to_try(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/best.pt").touch()
    assert command.main(["--load", "run", "--port", "0"]) == 2
    out = capsys.readouterr()
    assert (out.out + out.err).rstrip().endswith("\nTry: run/best.pt"), out


def test_serve_port_in_use_is_named_before_the_model_is_loaded(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert command.main(["--load", str(tmp_path / "none.pt"), "--port", str(port)]) == 2
    out = capsys.readouterr()
    assert f"--port {port}: Address already in use" in out.out + out.err


def test_serve_port_that_another_server_takes_meanwhile_is_named(monkeypatch, capsys):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        model = SimpleNamespace(name="a", about="", task="single", classes=[])
        monkeypatch.setattr(command, "_open", lambda *_: (other.listen(), model)[1])
        assert command.main(["--load", "a.pt", "--port", str(port)]) == 2
    out = capsys.readouterr()
    assert f"--port {port}: Address already in use" in out.out + out.err


@pytest.mark.parametrize("predict", [None, "raise RuntimeError('no model')"])
def test_serve_exported_folder_that_is_damaged_is_named(predict, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"export": {}}')
    if predict:
        (tmp_path / "predict.py").write_text(predict)
    assert command.main(["--load", str(tmp_path), "--port", "0"]) == 2
    out = capsys.readouterr()
    assert f"{tmp_path} is an exported folder that cannot be opened" in out.out + out.err


def test_shipped_server_refuses_negative_threads(capsys):
    """The runtime's error was taken for a damaged model: "copy the folder again"."""
    from tools.serve.shipped.__main__ import main

    with pytest.raises(SystemExit) as stop:
        main(["--threads", "-1"])
    assert stop.value.code == 2 and "--threads is -1; allowed: from 0 on" in capsys.readouterr().err


def test_serve_without_its_packages_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(command, "MODULES", ("fastapi", "no_such_module"))
    assert command.main(["--load", "a.pt"]) == 2
    out = capsys.readouterr()
    assert "needs no_such_module, which is missing.\nTry: pip install fastapi uvicorn" in out.out + out.err


def test_serve_command_imports_none_of_its_packages_before_it_checks():
    code = "import sys; import tools.serve.command; sys.exit(bool({'fastapi', 'uvicorn', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("damage", ["model.onnx", "config.json", "classes.txt"])
def test_exported_folder_that_is_damaged_ends_both_commands_with_a_message(exported, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(exported[1], folder)
    assert command.main(["--dockerfile", str(folder)]) == 0
    content = (folder / damage).read_bytes()
    (folder / damage).write_bytes(content[: len(content) // 2]) if damage != "classes.txt" else (
        folder / damage
    ).unlink()
    shutil.copy(exported[1].parent / "a.png", tmp_path)
    for line in (["predict.py", str(tmp_path / "a.png")], ["-m", "serve", "--port", "0"]):
        done = subprocess.run([sys.executable, *line], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert "does not hold a whole exported model" in done.stderr and "Traceback" not in done.stderr
