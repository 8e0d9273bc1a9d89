"""tools.publish: timm gives the same logits, our own --load the same bits, and nothing of this machine is told."""

import json
import sys
from types import SimpleNamespace

import cv2
import huggingface_hub
import PIL.Image
import pytest
import timm
import torch
import yaml

from conftest import NAMES
from dataloader.decode import decode
from dataloader.geometry import EvalGeometry
from made import make, shown
from network import get_model
from network.loading import build_from_checkpoint
from options import parse_train
from options.choices import MODELS
from tools.publish import card, command, folder, hub, timm_config
from utils import checkpoint
from utils.errors import UserError
from utils.files import file_hash
from utils.preprocess import Preprocess

TOOL = ("-w", "0", "--gpu", "-1", "--precision", "fp32", "-b", "6")
WITHIN = {"epoch": 3, "done": 1, "counted": 1, "images": 6, "waited": 0.0, "lr": 0.1, "spent": 0.0, "ended": False}
WITHIN |= {"totals": [torch.zeros(6)]}


def publish(*words) -> int:
    return command.main([str(word) for word in words])


def header(path) -> dict:
    """Return the header of a model card, as the hub's own library reads it."""
    text = path.read_text()
    data = huggingface_hub.ModelCard(text).data.to_dict()
    assert data == yaml.safe_load(text.split("---")[1])
    return data


# ------------------------------------------------------------------------------------------------ round trips


def test_published_folder_gives_timm_the_same_logits(photo_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "a.pt", photo_set, 0.01, options={"fit": "crop"})
    assert publish("--load", path, "--out", "out", "--license", "apache-2.0") == 0
    theirs = timm.create_model("local-dir:out", pretrained=True).eval()
    model, _ = build_from_checkpoint(checkpoint.load(path), path)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(theirs(images), model.net(images))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architecture"] == "test_resnet" and config["label_names"] == list(NAMES)
    shape = {name: config["pretrained_cfg"][name] for name in ("input_size", "crop_mode", "crop_pct", "interpolation")}
    assert shape == {"input_size": [3, 32, 32], "crop_mode": "center", "crop_pct": 0.875, "interpolation": "bilinear"}
    assert theirs.pretrained_cfg["mean"] == list(model.mean) and theirs.pretrained_cfg["license"] == "apache-2.0"
    data = timm.data.resolve_model_data_config(theirs)
    assert tuple(data["input_size"]) == (3, 32, 32) and data["crop_mode"] == "center"


def test_published_folder_of_classes_learned_as_numbers_says_how_to_get_the_class(photo_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = 4 * torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    options, data = {"task": "ordinal", "loss": "mse"}, {"task": "ordinal"}
    path = make(tmp_path / "a.pt", photo_set, options=options, data=data)
    net = build_from_checkpoint(checkpoint.load(path), path)[0].net
    with torch.inference_mode():
        number = (net(images)[:, 0] * (2 / 3) ** 0.5 + 1).clamp(0, 2)
    data |= {"cut_points": number.quantile(torch.tensor([0.3, 0.6])).tolist()}
    path = make(tmp_path / "a.pt", photo_set, options=options, data=data)
    assert publish("--load", path, "--out", "out") == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["cut_points"] == data["cut_points"] and "`cut_points`" in (tmp_path / "out/README.md").read_text()
    model, _ = build_from_checkpoint(checkpoint.load(path), path)
    with torch.inference_mode():
        output = timm.create_model("local-dir:out", pretrained=True).eval()(images)[:, 0]
        wanted = model.predictions(model.net(images)).argmax(dim=1)
    number = (output * config["target_std"][0] + config["target_mean"][0]).clamp(0, 2)
    found = sum((number >= cut).long() for cut in config["cut_points"])
    assert torch.equal(found, wanted) and set(wanted.tolist()) == {0, 1, 2}


def test_published_folder_loads_as_the_checkpoint_to_the_bit(script, photo_set, tmp_path):
    path = make(tmp_path / "a.pt", photo_set, 0.01, options={"tag": "mine", "weights_dir": "/home/me/w"})
    content = checkpoint.load(path)
    content |= {"calibration": {"temperature": 1.5, "tta": "none"}}
    content["ema"] = {
        name: value + 1e-3 if value.is_floating_point() else value for name, value in content["weights"].items()
    }
    checkpoint.save(tmp_path / "a.pt", content | {"showing": "ema"})
    assert publish("--load", path, "--out", "out") == 0
    found = checkpoint.load("out")
    assert all(torch.equal(found["weights"][name], value) for name, value in content["ema"].items())
    assert found["calibration"] == content["calibration"] and found["model"] == content["model"]
    assert found["opt"] == json.loads(json.dumps({**content["opt"], "weights_dir": "w"}))
    assert {**found["data"], "lists": content["data"]["lists"]} == content["data"]
    scores = []
    for load in (path, "out", "out/model.safetensors"):
        words = ["--load", load, "--tag", "t", "--no-report", "--data_root", photo_set, "--temperature", "ckpt", *TOOL]
        assert script("eval.py", *words).code == 0
        (metrics,) = (tmp_path / "results/t").glob("*/metrics.json")
        scores.append((metrics.parent / "predictions.csv").read_bytes())
        metrics.parent.rename(tmp_path / f"seen{len(scores)}")
    assert scores[0] == scores[1] == scores[2]
    small = ["--data_root", photo_set, *"--lr 0 --preset original --epochs 1 -w 0 --gpu -1 -b 12 --scale 32".split()]
    for flag in ("--load", "--pretrained"):
        words = [
            "--tag",
            flag.strip("-"),
            "--model",
            content["model"],
            flag,
            "out",
            "--lr",
            0,
            "--preset",
            "original",
            *small,
        ]
        assert script("train.py", *words).code == 0
        start = checkpoint.load(tmp_path / "checkpoints" / flag.strip("-") / "last.pt")["weights"]
        assert torch.equal(start["fc.weight"], content["ema"]["fc.weight"])


def test_published_folder_keeps_what_was_fitted(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "a.pt", photo_set, options={"task": "multilabel"}, data={"task": "multilabel"})
    fitted = {
        "thresholds": {"rule": "per_label", "values": [0.1, 0.37, 0.9], "tta": "none"},
        "calibration": {"temperature": 1.5, "tta": "none"},
    }
    made_by = {"long_tail": {"mean": "prior", "tau": 0.7, "list": "/data/secret/val.txt"}}
    checkpoint.save(tmp_path / "a.pt", checkpoint.load(path) | fitted | made_by)
    assert publish("--load", path, "--out", "out") == 0
    found, about = checkpoint.load("out"), json.loads((tmp_path / "out/provenance.json").read_text())
    assert found["long_tail"] == about["long_tail"] == {"mean": "prior", "tau": 0.7, "list": "val.txt"}
    for name, value in fitted.items():
        assert found[name] == about[name] == value
        with monkeypatch.context() as patch:
            patch.setattr(folder, "KEPT", tuple(key for key in folder.KEPT if key != name))
            assert publish("--load", path, "--out", "less") == 2
        assert "The folder does not load as" in shown(capfd) and not (tmp_path / "less").exists()


@pytest.mark.parametrize("name", [*MODELS, "timm:test_vit", "timm:test_efficientnet"])
def test_every_model_says_whether_timm_builds_it(name):
    """The tensors are compared without memory for them; the logits are compared for small ones elsewhere."""
    scale = "160" if "test" in name else "32"
    with torch.device("meta"):
        opt = parse_train(["--model", name, "--no-pretrained", "--scale", scale, "--num_classes", "7"])
        model = get_model(name)(opt.replace(scale=int(scale)))
    found, reason = timm_config.architecture_of(model)
    family = MODELS.get(name, ("Timm", name.removeprefix("timm:")))
    if family[0] in ("iResNet", "Airbench"):
        assert found == "" and reason == f"timm has no network {name}"
    else:
        assert found == family[1] and reason == ""


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("iResNet50", {}, "timm has no network iResNet50"),
        ("Airbench", {}, "timm has no network Airbench"),
        ("timm:test_resnet", {"head": "cosine"}, "timm has no classifier like that of --head cosine"),
        ("timm:test_resnet", {"pool": "gem"}, "timm has no pooling like that of --pool gem"),
    ],
)
def test_network_that_timm_lacks_says_so_and_loads_here(
    model, options, reason, photo_set, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "a.pt", photo_set, 0.01, model, options)
    assert publish("--load", path, "--out", "out") == 0
    assert f"not by timm: {reason}" in shown(capfd)
    text = (tmp_path / "out/README.md").read_text()
    assert f"timm cannot load this folder: {reason}" in text and "timm.create_model" not in text
    assert "library_name" not in header(tmp_path / "out/README.md")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("local-dir:out", pretrained=True)
    ours, own = (build_from_checkpoint(checkpoint.load(place), place)[0].net.state_dict() for place in ("out", path))
    assert all(torch.equal(ours[name], value) for name, value in own.items())


def test_network_that_computes_something_else_is_not_called_timms(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "a.pt", photo_set)
    monkeypatch.setattr(timm_config, "difference_in_timm", lambda *_: 1e-4)
    assert publish("--load", path, "--out", "out") == 0
    assert "with the same tensors gives other logits" in shown(capfd)
    assert json.loads((tmp_path / "out/config.json").read_text())["architecture"] == "timm:test_resnet"


# ------------------------------------------------------------------------------------------------ what it says


def test_card_scores_and_provenance_say_what_the_checkpoint_says(script, photo_set, tmp_path):
    path = make(tmp_path / "a.pt", photo_set, 0.01, options={"train_list": "/home/me/secret/train.txt"})
    content = checkpoint.load(path) | {"history": [{"epoch": 1, "val_top1": 0.5}, {"epoch": 2, "val_top1": 0.25}]}
    content["data"]["train_list"] = "f" * 64
    checkpoint.save(tmp_path / "a.pt", content)
    assert script("eval.py", "--load", path, "--tag", "t", "--no-report", *TOOL).code == 0
    (metrics,) = (tmp_path / "results/t").glob("*/metrics.json")
    assert (
        publish("--load", path, "--out", "out", "--metrics", metrics, "--license", "cc-by-4.0", "--title", "Cuts") == 0
    )
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    listed = json.loads(metrics.read_text())
    assert scores["epoch"] == {"epoch": 2, "val_top1": 0.25}
    assert scores["evaluation"]["top1"] == listed["top1"] and scores["evaluation"]["intervals"] == listed["intervals"]
    about = json.loads((tmp_path / "out/provenance.json").read_text())
    assert about["checkpoint"]["sha256"] == file_hash(path) and about["training_list"] == "f" * 64
    assert about["options"]["train_list"] == "train.txt" and about["options"]["lr"] == content["opt"]["lr"]
    text = (tmp_path / "out/README.md").read_text()
    assert f"| an evaluation of 12 images --precision fp32 | top1 | {listed['top1']:.4f} |" in text and "# Cuts" in text
    assert "| the validation list, in training | top1 | 0.2500 |" in text and "0.5000 |" not in text
    assert header(tmp_path / "out/README.md") == {
        "license": "cc-by-4.0",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "safetensors"],
    }
    assert (tmp_path / "out/classes.txt").read_text().split() == list(NAMES)
    for file in (tmp_path / "out").iterdir():  # nothing of this machine
        raw = file.read_bytes()
        assert b"/home/me" not in raw and str(tmp_path).encode() not in raw and str(photo_set).encode() not in raw
    listed["options"] |= {"tta": "flip", "scale": 40, "temperature": 1.5, "precision": "auto"}
    metrics.write_text(json.dumps(listed))
    found = folder._scores(folder._read(path), str(metrics))
    about = "an evaluation of 12 images --tta flip --scale 40 --temperature 1.5"
    assert f"| {about} | top1 | {listed['top1']:.4f} |" in card._scores(found, "single")[1]
    listed["checkpoints"] = ["0" * 64]
    metrics.write_text(json.dumps(listed))
    with pytest.raises(UserError, match="is not of"):
        folder._scores(folder._read(path), str(metrics))


@pytest.mark.parametrize(
    "changes",
    [{"history": [{"epoch": 1, "val_top1": 0.5}]}, {"history": [{"epoch": 2, "val_top1": 0.5}], "within": WITHIN}],
)
def test_card_of_an_epoch_without_scores_says_so(changes, photo_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "a.pt", photo_set)
    checkpoint.save(tmp_path / "a.pt", checkpoint.load(path) | changes)
    assert publish("--load", path, "--out", "out") == 0
    assert json.loads((tmp_path / "out/scores.json").read_text()) == {}
    assert "The checkpoint holds no scores of this epoch." in (tmp_path / "out/README.md").read_text()


def test_card_without_licence_names_none(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "a.pt", photo_set)
    assert publish("--load", path, "--out", "out") == 0
    assert "license" not in header(tmp_path / "out/README.md") and "No --license was given" in shown(capfd)
    assert "No licence was named" in (tmp_path / "out/README.md").read_text()
    assert "license" not in json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]
    words = ["--license", "other", "--license_name", "mine", "--license_link", "https://example.com"]
    assert publish("--load", path, "--out", "other", *words) == 0
    assert header(tmp_path / "other/README.md")["license_name"] == "mine"


@pytest.mark.parametrize(
    ("options", "data", "part"),
    [
        ({"task": "multilabel"}, {}, "The sigmoid of each logit"),
        (
            {"task": "regression"},
            {"target_mean": [5.0] * 3, "target_std": [2.0] * 3},
            "multiply by `target_std`, then add `target_mean`",
        ),
        ({"task": "ordinal", "loss": "corn"}, {}, "Logit k says whether the class is above k"),
    ],
)
def test_card_of_other_tasks_says_what_the_outputs_mean(options, data, part, photo_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"task": options["task"], "class_images": None, **data}
    assert publish("--load", make(tmp_path / "a.pt", photo_set, 0.0, options=options, data=data), "--out", "out") == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    rows = 2 if "loss" in options else 3
    assert config["num_classes"] == rows and ("label_names" in config) == (rows == 3)
    assert config.get("target_std") == data.get("target_std")
    assert part in (tmp_path / "out/README.md").read_text()
    assert ("pipeline_tag" in header(tmp_path / "out/README.md")) == (options["task"] != "regression")
    assert timm.create_model("local-dir:out", pretrained=True).num_classes == rows
    assert build_from_checkpoint(checkpoint.load("out"), "out")[0].settings.activation in ("sigmoid", "linear", "corn")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--license", "apache2"], "Did you mean apache-2.0"),
        (["--license", "other"], "--license other needs --license_name"),
        (["--license", "mit", "--license_name", "x"], "--license_name is for --license other"),
        (["--push", "name"], "--push is 'name'; allowed: <owner>/<name>"),
        (["--private"], "--private is for --push"),
        (["--load", "none.pt"], "There is no checkpoint none.pt"),
    ],
)
def test_publish_with_unusable_flags_is_refused(words, part, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert publish("--load", "a.pt", "--out", "out", *words) == 2
    assert part in shown(capfd) and not (tmp_path / "out").exists()


def test_folder_is_replaced_only_when_told_and_only_our_own(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "a.pt", photo_set)
    (tmp_path / "out").mkdir()
    assert publish("--load", path, "--out", "out") == 0
    assert publish("--load", path, "--out", "out") == 2
    assert "--out out exists already. Give another name, or --overwrite" in shown(capfd)
    (tmp_path / "out/stale").touch()
    assert publish("--load", path, "--out", "out", "--overwrite") == 0 and not (tmp_path / "out/stale").exists()
    assert publish("--load", "out", "--out", "out", "--overwrite") == 2
    assert "which would be replaced" in shown(capfd)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text('{"architecture": "resnet18"}')
    assert publish("--load", path, "--out", "mine", "--overwrite") == 2
    assert "is no published folder" in shown(capfd)


def test_published_weights_that_changed_are_refused(photo_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert publish("--load", make(tmp_path / "a.pt", photo_set), "--out", "out") == 0
    file = tmp_path / "out/model.safetensors"
    raw = file.read_bytes()
    for change in (
        raw.replace(b"flower", b"Flower"),
        raw[:-1] + bytes([raw[-1] ^ 1]),
        raw.replace(b'"sha256"', b'"sha255"'),
    ):
        assert change != raw
        file.write_bytes(change)
        with pytest.raises(UserError, match="differs from the hash"):
            checkpoint.load("out")


def test_bare_weights_are_refused(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint.load(make(tmp_path / "a.pt", photo_set))["weights"], tmp_path / "bare.pt")
    assert publish("--load", "bare.pt", "--out", "out") == 2
    assert "Give a checkpoint of train.py" in shown(capfd)


# ------------------------------------------------------------------------------------------------ the hub


class FakeHub:
    """Stands for huggingface_hub.HfApi, and notes what it is asked."""

    def __init__(self, there: bool, broken: bool = False, private: bool = True) -> None:
        self.there, self.broken, self.private, self.calls = there, broken, private, []

    def __call__(self):
        return self

    def repo_exists(self, repository):
        return self.there

    def repo_info(self, repository):
        return SimpleNamespace(private=self.private)

    def create_repo(self, repository, private, exist_ok):
        self.calls.append(("create", repository, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
        if self.broken:
            raise ConnectionError("the line is cut")
        self.calls.append(("upload", repo_id, folder_path, delete_patterns))


@pytest.mark.parametrize(
    ("words", "there", "calls"),
    [
        ((), False, [("create", "me/x", None, False), ("upload", "me/x", "out", None)]),
        (("--private",), False, [("create", "me/x", True, False), ("upload", "me/x", "out", None)]),
        (("--overwrite",), True, [("create", "me/x", None, True), ("upload", "me/x", "out", "*")]),
        (("--private", "--overwrite"), True, [("create", "me/x", True, True), ("upload", "me/x", "out", "*")]),
    ],
)
def test_push_uploads_the_folder(words, there, calls, photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    fake = FakeHub(there)
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    assert publish("--load", make(tmp_path / "a.pt", photo_set), "--out", "out", "--push", "me/x", *words) == 0
    assert fake.calls == calls and 'timm.create_model("hf-hub:me/x"' in shown(capfd)
    assert 'create_model("hf-hub:me/x"' in (tmp_path / "out/README.md").read_text()


def test_push_to_a_repository_that_exists_is_refused_before_the_work(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub(there=True))
    assert publish("--load", make(tmp_path / "a.pt", photo_set), "--out", "out", "--push", "me/x") == 2
    assert "has a repository me/x already" in shown(capfd) and not (tmp_path / "out").exists()


def test_private_push_to_a_public_repository_is_refused(photo_set, tmp_path, monkeypatch, capfd):
    """The hub ignores `private` for a repository that exists, before the work or since."""
    monkeypatch.chdir(tmp_path)
    words = ["--load", make(tmp_path / "a.pt", photo_set), "--push", "me/x", "--private", "--overwrite"]
    for there in (True, False):
        fake = FakeHub(there, private=False)
        monkeypatch.setattr(huggingface_hub, "HfApi", fake)
        assert publish(*words, "--out", f"out{there}") == 2
        assert "me/x is public" in shown(capfd) and "upload" not in [call[0] for call in fake.calls]
    assert not (tmp_path / "outTrue").exists() and (tmp_path / "outFalse").exists()


def test_push_that_breaks_leaves_the_folder(photo_set, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub(there=False, broken=True))
    assert publish("--load", make(tmp_path / "a.pt", photo_set), "--out", "out", "--push", "me/x") == 2
    assert "out is written, but its upload to me/x failed: the line is cut" in shown(capfd)
    assert checkpoint.load("out")["model"] == "timm:test_resnet"


def test_push_without_network_or_library_says_what_to_do(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="The hub cannot be asked for me/x"):
        hub.check("me/x", private=False, overwrite=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert publish("--load", "a.pt", "--out", "out", "--push", "me/x") == 2
    assert "pip install huggingface_hub" in shown(capfd)


def test_timm_sees_nearly_the_pixels_that_evaluation_sees(photo_set, photos, tmp_path, monkeypatch):
    """config.json names timm's way to resize and crop: another way would show other parts of the image."""
    monkeypatch.chdir(tmp_path)
    photo = photos[0][:300, :420]
    data = cv2.imencode(".png", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))[1].tobytes()
    for fit in ("squash", "crop", "pad"):
        path = make(tmp_path / "a.pt", photo_set, options={"fit": fit})
        assert publish("--load", path, "--out", fit) == 0
        config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{fit}", pretrained=True))
        theirs = timm.data.create_transform(**config, is_training=False)(PIL.Image.fromarray(photo))
        way = Preprocess.from_dict(json.loads((tmp_path / fit / "preprocess.json").read_text()))
        geometry = EvalGeometry(way)
        image, full = decode(data, lambda height, width: 1.0)
        out = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
        geometry.render(image, full, geometry.choose_region(*full), out)
        mean, std = (torch.tensor(values)[:, None, None] for values in (way.mean, way.std))
        ours = (torch.from_numpy(out).permute(2, 0, 1) / 255 - mean) / std
        assert (ours - theirs).abs().mean() < 0.05, fit
