"""Exported folders: our bits from a file's bytes to the network's input, and eval.py's probabilities without torch."""

import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from conftest import NAMES, ROOT
from dataloader.decode import decode
from dataloader.file_list import read_list
from dataloader.geometry import EvalGeometry, resize
from inference import saved_probs
from inference.predictor import Member, Predictor
from made import make, shown
from network import get_model
from options import parse_train
from options.choices import MODELS
from tools.export import alone, command, formats, graph
from tools.export.shipped import predict
from tools.export.shipped import preprocess as shipped
from utils.classes import Classes
from utils.errors import UserError
from utils.preprocess import Preprocess

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
STATS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ------------------------------------------------------------------------------------------------ preprocessing


def both(data: bytes, way: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Return the square of the framework, and that of the exported folder."""
    geometry = EvalGeometry(way)
    image, full = decode(data, lambda height, width: geometry.choose_region(height, width).decode_scale())
    out = np.empty((way.scale, way.scale, 3), np.uint8)
    geometry.render(image, full, geometry.choose_region(*full), out)
    return out, shipped.Preprocess(way.scale, way.fit, way.mean, way.std).square(data)


def saved(image: np.ndarray, form: str, **settings) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, form, **settings)
    return file.getvalue()


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_shipped_preprocess_gives_our_bits_for_jpegs_of_odd_sizes(fit, photos):
    rng = np.random.default_rng(0)
    off_by_one = 0
    for k in range(60):
        height, width = (int(side) for side in rng.integers(9, 400, 2))
        photo = np.ascontiguousarray(photos[k % 3][:height, :width])
        data = saved(photo, "JPEG", quality=int(rng.integers(40, 99)), subsampling=k % 3, progressive=bool(k % 2))
        ours, theirs = both(data, Preprocess(int(rng.integers(17, 130)), fit, *STATS))
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 1, (k, height, width)
        off_by_one += difference.sum() / difference.size  # a warp rounds a half the other way
    assert off_by_one / 60 < (1e-3 if fit == "crop" else 1e-9)


def odd_images(photo: np.ndarray) -> dict[str, bytes]:
    """Return files of every kind that decodes in its own way."""
    photo = np.ascontiguousarray(photo[:121, :203])
    exif = PIL.Image.Exif()
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    alpha = np.dstack([photo, np.tile(np.arange(203, dtype=np.uint8), (121, 1))])
    found = {"png": saved(photo, "PNG"), "grey": saved(grey, "PNG"), "alpha": saved(alpha, "PNG")}
    found["grey jpeg"] = saved(grey, "JPEG")
    found["palette"] = saved(np.asarray(photo), "GIF")
    found["webp"], found["tiff"] = saved(photo, "WEBP", lossless=True), saved(photo, "TIFF")
    found["16 bits"] = saved(grey.astype(np.uint16) * 16, "PNG")
    found["16-bit colour"] = cv2.imencode(".png", photo.astype(np.uint16) * 257)[1].tobytes()
    found["12 bits"] = cv2.imencode(".png", photo.astype(np.uint16) * 16)[1].tobytes()
    file = io.BytesIO()
    PIL.Image.fromarray(photo).convert("CMYK").save(file, "JPEG")
    found["cmyk"] = file.getvalue()
    for turn in range(2, 9):
        exif[274] = turn
        found[f"turned {turn}"] = saved(photo, "JPEG", exif=exif)
        found[f"turned png {turn}"] = saved(photo, "PNG", exif=exif)
    return found


@pytest.mark.parametrize("way", [Preprocess(64, "squash", *STATS), Preprocess(80, "pad", *STATS)], ids=str)
def test_shipped_preprocess_gives_our_bits_for_every_kind_of_file(way, photos):
    for name, data in odd_images(photos[0]).items():
        ours, theirs = both(data, way)
        assert np.array_equal(ours, theirs), name


def test_shipped_resize_is_torchs(photos):
    rng = np.random.default_rng(1)
    for k in range(200):
        height, width = (int(side) for side in rng.integers(3, 200, 2))
        image = np.ascontiguousarray(photos[k % 3][:height, :width])
        size = image.shape[:2] if k % 2 else tuple(float(side - rng.random() * 0.9) for side in image.shape[:2])
        out = tuple(int(side) for side in rng.integers(1, 200, 2))
        assert np.array_equal(resize(image, size, out), shipped.resize(image, size, out)), (image.shape, size, out)


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 no"])
def test_shipped_preprocess_names_what_is_no_image(data):
    with pytest.raises(shipped.ImageError):
        shipped.Preprocess(32, "squash", *STATS).square(data)


# ------------------------------------------------------------------------------------------------ graphs


def built(name: str, scale: int, *words: str, tta: str = "none") -> Predictor:
    """Return a predictor of a network with random weights and other than trivial statistics."""
    torch.manual_seed(0)
    opt = parse_train(["--model", name, "--no-pretrained", "--scale", str(scale), "--num_classes", "7", *words])
    model = get_model(name)(opt)
    for part in model.net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0  # the statistics of the next batch: with others, a thousand layers overflow
    model.to_device(torch.device("cpu"))
    with torch.no_grad():
        model.train()(torch.randint(0, 256, (4, 3, scale, scale), dtype=torch.uint8))
        for part in model.net.modules():
            if isinstance(part, torch.nn.BatchNorm2d):  # a variance near 0, of 16 values, would magnify all rounding
                part.running_var += part.running_var.mean()
    model.eval()
    return Predictor([Member(model, model.preprocess())], tta=tta)


def agreement(predictor: Predictor, path, count: int = 3, shown=None, **settings) -> float:
    """Return the largest difference between ONNX Runtime and PyTorch, relative to the largest output.

    `shown`: the images for PyTorch, and those for ONNX Runtime; None: random ones for both.
    """
    made = graph.Graph(predictor, **settings)
    formats.write_onnx(made, path)
    session = onnxruntime.InferenceSession(str(path))
    images = [torch.randint(0, 256, (count, 3, way.scale, way.scale), dtype=torch.uint8) for way in made.preprocesses]
    images = images if shown is None else [shown[0]]
    with torch.inference_mode():
        expected = made(*images).numpy() if made.logits else predictor(tuple(images)).numpy()
    inputs = {one.name: image.numpy() for one, image in zip(session.get_inputs(), images, strict=True)}
    if shown is not None:
        inputs = {session.get_inputs()[0].name: shown[1]}
    (found,) = session.run(None, inputs)
    assert expected.std() > 1e-6 and found.shape == (count, 7)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "words", "tta"),
    [
        ("timm:test_resnet", ("--head", "subcenter", "--pool", "gem"), "flip"),
        ("timm:test_vit", ("--head", "cosine"), "none"),
        ("timm:test_efficientnet", (), "fivecrop"),
        ("Airbench", (), "x8"),
        ("EfficientNet-Lite0", (), "multiscale"),
    ],
)
def test_onnx_of_each_part_agrees(name, words, tta, tmp_path):
    scale = 160 if "vit" in name else 32
    assert agreement(built(name, scale, *words, tta=tta), tmp_path / "m.onnx") < 1e-4
    if tta == "none":
        assert agreement(built(name, scale, *words), tmp_path / "l.onnx", count=1, logits=True) < 1e-4


def test_onnx_of_an_ensemble_with_temperature_agrees(tmp_path):
    members = [built("timm:test_resnet", 32).members[0], built("Airbench", 40).members[0]]
    for blend in ("mean", "geometric", "logits"):
        predictor = Predictor(members, tta="flip", blend=blend)
        predictor.weights, predictor.temperature = [2.0, 1.0], 1.7
        assert len(graph.Graph(predictor).preprocesses) == 2
        assert agreement(predictor, tmp_path / "m.onnx") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_of_every_backbone_agrees_from_the_bytes_of_photographs(name, tmp_path, photos):
    predictor = built(name, 32 if name == "Airbench" else 64)
    files = [saved(np.ascontiguousarray(photos[k][: 301 - 50 * k, : 407 + k]), "JPEG") for k in range(3)]
    ours, theirs = zip(*(both(data, predictor.preprocesses[0]) for data in files), strict=True)
    assert agreement(predictor, tmp_path / "m.onnx", shown=(batch(ours), batch(theirs).numpy())) < 1e-3


def batch(images) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


# ------------------------------------------------------------------------------------------------ the folder


@pytest.fixture(scope="module")
def trained(photo_set, tmp_path_factory):
    """Two checkpoints of small runs."""
    folder = tmp_path_factory.mktemp("run")
    words = "--no-pretrained --preset original -b 12 -w 0 --gpu -1 --lr 0.01 --transform light --precision fp32"
    for tag, model, scale in (("a", "timm:test_resnet", 32), ("b", "timm:test_efficientnet", 40)):
        flags = f"{words} --epochs 1 --model {model} --scale {scale} --tag {tag} --fit crop --data_root {photo_set}"
        run = [sys.executable, ROOT / "train.py", *flags.split()]
        subprocess.run(run, cwd=folder, check=True, capture_output=True)
    return [str(folder / "checkpoints" / tag / "best.pt") for tag in "ab"]


def export(*words: object) -> int:
    return command.main([str(word) for word in words])


def check(folder) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, folder / "predict.py", "--check"], capture_output=True, text=True)


def test_formats_have_each_a_runtime_that_opens_them():
    """The exported folder has a table of its own, as it predicts without this project."""
    assert {made.suffix for made in formats.FORMATS.values()} == set(predict.RUNTIMES)


@pytest.mark.parametrize(
    "words",
    [
        ("--to", "onnx"),
        pytest.param(
            ("--to", "onnx", "--outputs", "logits", "--normalise", "file", "--temperature", "2"), marks=pytest.mark.slow
        ),
        pytest.param(("--to", "openvino", "--tta", "flip"), marks=pytest.mark.slow),
        pytest.param(("--to", "torch_export"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_export_folder_repeats_its_probabilities(words, trained, tmp_path, photo_set, capfd):
    if "openvino" in words:
        pytest.importorskip("openvino")
    assert export("--load", trained[0], "--out", tmp_path / "x", *words) == 0, capfd.readouterr()
    folder = tmp_path / "x"
    assert "in a process without this project: largest difference" in capfd.readouterr().out
    names = ["classes.txt", "config.json", "golden", "predict.py", "preprocess.py", "requirements.txt"]
    assert {*names} < {path.name for path in folder.iterdir()} and not (folder / "__pycache__").exists()
    assert len(json.loads((folder / "golden" / "files.json").read_text())) == 12
    assert (folder / "classes.txt").read_text() == (photo_set / "classes.txt").read_text()


def test_export_folder_changed_fails_its_check(trained, tmp_path, capfd):
    folder = tmp_path / "x"
    assert export("--load", trained[0], "--out", folder, "--golden", 3) == 0
    done = check(folder)
    assert done.returncode == 0 and "3 golden images" in done.stdout
    config = json.loads((folder / "config.json").read_text())
    config["preprocess"][0]["fit"] = "squash"  # as a program that left the crop behind
    (folder / "config.json").write_text(json.dumps(config))
    done = check(folder)
    assert done.returncode == 1 and "differs most" in done.stdout
    words = [sys.executable, folder / "predict.py", "none.jpg"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "none.jpg: No such file or directory\n")


def printed_snippet(folder, image):
    """The Python of docs/export.md, for another folder and image, which prints its answer."""
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert '"exported"' in code and code.endswith('predictor("a.jpg")\n')
    return code.replace('"exported"', repr(str(folder))).replace(
        'predictor("a.jpg")', f"print(predictor({str(image)!r}))"
    )


def test_export_predictor_answers_as_the_page_says(trained, photo_set, tmp_path, capfd):
    folder = tmp_path / "x"
    assert export("--load", *trained, "--weights", 2, 1, "--members", "apart", "--out", folder) == 0
    assert {path.name for path in folder.glob("*.onnx")} == {"model_0.onnx", "model_1.onnx"}
    assert export("--load", *trained, "--weights", 2, 1, "--out", tmp_path / "y") == 0
    image = next(photo_set.glob("val*.jpg"))
    answers = []
    for made in (folder, tmp_path / "y"):
        words = [sys.executable, "-c", printed_snippet(made, image)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answers.append(dict(eval(done.stdout)))
    from inference import load

    predictor = load(trained, weights=[2, 1], gpu=-1)
    expected = dict(zip(predictor.classes, predictor(image).probabilities[0].tolist(), strict=True))
    for answer in answers:
        assert answer == pytest.approx(expected, abs=1e-5)
    done = subprocess.run([sys.executable, folder / "predict.py", "--json", image], capture_output=True, text=True)
    (found,) = json.loads(done.stdout)
    assert found["file"] == str(image) and len(found["classes"]) == 3


@pytest.mark.parametrize("task", ["multilabel", "regression", "corn"])
def test_export_of_other_tasks_answers_as_load(task, task_checkpoint, colours, tmp_path, capfd):
    from inference import load
    from tools.export.speed import open_exported

    path, folder = task_checkpoint(task), tmp_path / "x"
    images = [str(colours / f"{k}.png") for k in range(6)]
    loads, settings, words = [path], {}, []
    if task == "multilabel":  # predict.py blends, applies the temperature, and knows the thresholds
        loads, settings = [path, path], {"temperature": 2.0}
        edge = float(np.median(load(loads, gpu=-1, **settings)(images).probabilities[:, 0]))
        settings["threshold"] = [edge, 0.0]
        words = ["--members", "apart", "--temperature", 2, "--threshold", edge, 0]
    assert export("--load", *loads, "--out", folder, "--golden", 4, *words) == 0, capfd.readouterr()
    expected, exported = load(loads, gpu=-1, **settings)(images), open_exported(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["task"] == ("ordinal" if task == "corn" else task)
    scale = np.array(config["units"])
    assert np.abs((exported.predictions(images) - expected[1]) / scale).max() < 1e-4
    answers = [exported(image, top=1) for image in images]
    names = [[name for name, _ in answer] for answer in answers]
    if task == "regression":
        assert names == [expected.names] * 6
        values = json.loads(_predict(folder, "--json", images[0]))[0]["values"]
        assert values == pytest.approx(dict(zip(expected.names, expected.values[0].tolist(), strict=True)), rel=1e-4)
        golden = np.load(folder / "golden/probabilities.npy")
        np.save(folder / "golden/probabilities.npy", golden + np.array([0, 0.01 * scale[1]]))  # 0.01 deviations
        assert scale[1] < 0.1 and check(folder).returncode == 1
    elif task == "multilabel":
        assert names == expected.names and {"red" in row for row in names} == {True, False}
    else:
        assert [row[0] for row in names] == expected.names


def _predict(folder, *words: str) -> str:
    done = subprocess.run([sys.executable, folder / "predict.py", *words], capture_output=True, text=True, check=True)
    return done.stdout


def test_export_of_labels_as_logits_is_refused(task_checkpoint, tmp_path, capfd):
    words = ("--load", task_checkpoint("multilabel"), "--outputs", "logits", "--out", tmp_path / "x")
    assert export(*words) == 2 and "whose logits go into a softmax" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric"), [("multilabel", "mAP"), ("regression", "mae")])
def test_export_int8_of_other_tasks_reports_their_metric(task, metric, task_checkpoint, tmp_path, capfd):
    folder = tmp_path / "x"
    assert export("--load", task_checkpoint(task), "--int8", "--out", folder) == 0, capfd.readouterr()
    out = capfd.readouterr().out
    assert f"int8: {metric} " in out and "times the speed of the float model" in out
    assert check(folder).returncode == 0


@pytest.mark.slow
def test_export_int8_measured_on_training_images_warns(photo_set, tmp_path, capfd):
    listed, network = photo_set / "train.txt", make(tmp_path / "a.pt", photo_set)
    assert export("--load", network, "--int8", "--val_list", listed, "--out", tmp_path / "x") == 0, capfd.readouterr()
    said = f"{network} was trained on 36 of the 36 images of {listed}. It knows their answers, so the accuracy of both"
    assert said in shown(capfd)


@pytest.mark.slow
def test_export_int8_reports_its_accuracy_and_repeats_itself(trained, tmp_path, capfd):
    folder = tmp_path / "x"
    assert export("--load", trained[0], "--int8", "--out", folder) == 0, capfd.readouterr()
    out, err = capfd.readouterr()
    assert "was trained on" not in out + err
    assert "int8: top-1" in out and "times the speed of the float model" in out
    assert b"QuantizeLinear" in (folder / "model.onnx").read_bytes() and not list(folder.glob("prepared*"))
    assert check(folder).returncode == 0


def test_export_wrong_flags_and_places_are_refused(trained, photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    files, votes = read_list(photo_set / "val.txt"), np.full((12, 3), -1.0986, np.float16)
    saved_probs.write(tmp_path / "votes.npz", votes, np.ones(12, bool), files, Classes(3, list(NAMES), None))
    for words, said in (
        (("--load", trained[0], "--out", "mine"), "is no earlier export"),
        (("--out", "x"), "--load is needed"),
        (("--load", trained[0], "votes.npz", "--out", "x"), "cannot be exported"),
        (("--load", *trained, "--outputs", "logits", "--out", "x"), "one network and one view"),
        (("--load", trained[0], "--to", "openvino", "--int8", "--out", "x"), "--int8 and --to openvino contradict"),
        (("--load", trained[0], "--calibration_images", "9", "--out", "x"), "--calibration_images without --int8"),
        (("--load", trained[0], "--train_list", "t.txt", "--out", "x"), "--train_list without --int8 would"),
    ):
        assert export(*words) == 2
        assert said in capfd.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").exists() and not (tmp_path / "x").exists()
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert export("--load", trained[0], "--out", "x") == 2
    assert "Try: pip install onnx onnxruntime" in capfd.readouterr().err


def test_export_that_onnx_lacks_an_operation_for_names_the_other_format(trained, tmp_path, monkeypatch, capfd):
    def refuse(*_, dynamo, **__):
        raise torch.onnx.errors.OnnxExporterError("no such operation") if dynamo else ValueError("no trace")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    assert export("--load", trained[0], "--out", tmp_path / "x") == 2
    shown = capfd.readouterr().err
    assert "cannot be written as ONNX: no such operation\nTry: --to torch_export\n" in shown


def test_export_that_differs_is_not_written(trained, tmp_path, monkeypatch, capfd):
    forward = graph.Graph._logits
    monkeypatch.setattr(graph.Graph, "_logits", lambda self, k, view, shown: 1.5 * forward(self, k, view, shown))
    assert export("--load", trained[0], "--out", tmp_path / "x") == 2
    assert "does not give the predictions of eval.py" in capfd.readouterr().err and not (tmp_path / "x").exists()


# ------------------------------------------------------------------------ a full disk


def test_write_torch_on_a_full_disk_is_an_error(tmp_path, monkeypatch):
    """torch's own writer ended the process, with exit code 134 and no message."""
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    monkeypatch.setattr(graph, "export_program", lambda _: program)
    (tmp_path / "full.pt2").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        formats.write_torch(None, tmp_path / "full.pt2")
    formats.write_torch(None, tmp_path / "model.pt2")
    x = torch.randn(1, 2)
    assert torch.equal(torch.export.load(str(tmp_path / "model.pt2")).module()(x), program.module()(x))


@pytest.mark.parametrize("full", [True, False])
def test_write_onnx_on_a_full_disk_blames_the_disk_alone(full, tmp_path, monkeypatch):
    """It said that the network cannot be traced, and traced it a second time."""
    failure, again = OSError(28, "No space left on device") if full else OSError("could not get source code"), []

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(formats, "_write_with_dynamo", lambda *_: again.append(1))
    some = SimpleNamespace(preprocesses=[0], output_name="y", examples=tuple)
    if full:
        with pytest.raises(OSError, match="No space left"):
            formats.write_onnx(some, tmp_path / "model.onnx")
    else:
        formats.write_onnx(some, tmp_path / "model.onnx")
    assert again == [] if full else again == [1]


@pytest.mark.parametrize(
    "step, said", [("convert_model", "cannot convert this network: no such"), ("save_model", "df -h")]
)
def test_write_openvino_that_fails_is_one_message(step, said, tmp_path, monkeypatch):
    """A full disk, and a network that OpenVINO does not take, ended in a traceback."""
    openvino = pytest.importorskip("openvino")

    def fail(*_, **__):
        raise RuntimeError("no such\noperation")

    monkeypatch.setattr(formats, "write_onnx", lambda _, path: path.touch())
    monkeypatch.setattr(openvino, "convert_model", lambda _: None)
    monkeypatch.setattr(openvino, step, fail)
    with pytest.raises(UserError, match=said):
        formats.write_openvino(None, tmp_path / "model.xml")


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_predict_of_a_folder_without_files_says_so(more, tmp_path, monkeypatch, capsys):
    """It printed nothing, with exit code 0."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "some").mkdir()
    (tmp_path / "some/a.png").touch()

    class Known:
        task, preprocess = "single", shipped

        def __call__(self, path, top):
            return [("cap", 1.0)]

    monkeypatch.setattr(predict, "Predictor", lambda **_: Known())
    monkeypatch.setattr(sys, "argv", ["predict.py", *more, str(tmp_path / "empty"), str(tmp_path / "some")])
    assert predict.main() == 2
    shown = capsys.readouterr()
    assert shown.err == f"{tmp_path}/empty: the folder holds no file\n" and "some/a.png" in shown.out


@pytest.mark.parametrize(
    "words", ["--check a.jpg", "--check --json", "--top 0 a.jpg", "--top -1 a.jpg", "--threads -1 a.jpg"]
)
def test_predict_refuses_flags_that_would_mislead(words, monkeypatch, capsys):
    """--top 0 said "no label", --top -1 left out the last class, and --check ignored the images."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *words.split()])
    with pytest.raises(SystemExit) as stop:
        predict.main()
    assert stop.value.code == 2 and re.search("leave it out|allowed", capsys.readouterr().err)


def test_predict_prints_names_that_the_terminal_cannot_encode(tmp_path, monkeypatch):
    """A terminal of Windows, or a file of another encoding, ended in a UnicodeEncodeError after the prediction."""

    class Known:
        task, preprocess = "single", shipped

        def __call__(self, path, top):
            return [("连衣裙", 1.0)]

    (tmp_path / "a.png").touch()
    stream = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(predict, "Predictor", lambda **_: Known())
    monkeypatch.setattr(sys, "argv", ["predict.py", str(tmp_path / "a.png")])
    monkeypatch.setattr(sys, "stdout", stream)
    assert predict.main() == 0
    stream.flush()
    assert b"\\u8fde\\u8863\\u88d9" in stream.buffer.getvalue()


def test_check_alone_lets_python_find_its_own_library(tmp_path, monkeypatch):
    """A Python of a cluster's modules did not start, and the exported folder was said not to run by itself."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$LD_LIBRARY_PATH" ] || { echo "libpython: cannot open shared object file" >&2; exit 127; }\n'
        'echo "largest difference 0.0"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/python/lib")
    assert alone.check_alone(tmp_path, ()) == 0
    monkeypatch.delenv("LD_LIBRARY_PATH")
    with pytest.raises(UserError, match="cannot open shared object"):
        alone.check_alone(tmp_path, ())
