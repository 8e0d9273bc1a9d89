"""The commands of README.md and docs/ run, in the order of their page, on a small network and small data."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import PIL.Image
import pytest
import timm
import torch

import network
from conftest import NAMES, ROOT
from network.backbones import timm_network
from network.Timm.model import Model as Timm
from scripts.test_docs import PAIRS, SCRIPTS, blocks, page_commands, read

# What a page goes on from where it does not make it itself: a path, and the commands that make it.
FASHION = "--model EfficientNet-Lite0 --data_root datasets/fashion-mnist"
EARLIER = {
    "checkpoints/lite0": [f"python train.py --tag lite0 {FASHION} --epochs 2 --val_freq 2"],  # the second is the best
    "checkpoints/finer": [f"python train.py --tag finer {FASHION} --epochs 1"],
    "checkpoints/new": [f"python train.py --tag new {FASHION} --epochs 1"],
    "checkpoints/old": [f"python train.py --tag old {FASHION} --epochs 1"],
    "logs/first": ["python train.py --tag first --model EfficientNet-Lite0 --epochs 1"],
    "results/old/20": [
        "python eval.py --tag old --load checkpoints/old/best.pt --save_probs",
        "mv results/old/1 results/old/20",
    ],
    "results/pair": [
        "python eval.py --tag pair --load checkpoints/lite0/2_EfficientNet-Lite0.pt checkpoints/finer/best.pt --blend "
        "optimal --data_root datasets/fashion-mnist"
    ],
    "results/soup": [
        "python eval.py --tag soup --load soup.pt --data_root datasets/fashion-mnist",
        "test -d results/soup/3 || mv results/soup/* results/soup/3",
    ],
    **{
        f"{name}.pt": [f"cp checkpoints/lite0/{k}_EfficientNet-Lite0.pt {name}.pt"]
        for k, name in enumerate("abc", start=1)
    },
    "exported": ["python -m tools.export --load checkpoints/lite0/best.pt --to onnx --out exported"],
}
OF_PAGE = {
    "docs/publish.md": {
        "checkpoints/lite0": [f"python train.py --tag lite0 {FASHION} --epochs 5 --keep 5 --ema 0.9"],
    },
    "docs/tasks.md": {
        "checkpoints/old": [
            "python train.py --tag old --task multilabel --model EfficientNet-Lite0 --epochs 1 --data_root "
            "datasets/tags"
        ]
    },
    "docs/folds.md": {
        "datasets/tags": [
            "python datasets/prepare.py csv tags.csv --path_column image --label_column tags --label_separator ';' "
            "--root photos/ --test photos_to_predict/ --out datasets/tags"
        ]
    },
}
# What a page asks for and a test has not the time, the data or the network for: a pattern, and where it is tested.
ELSEWHERE = {
    r"-m (venv|pip) ": "CI installs by requirements.txt in an empty folder",
    r"^(source|tensorboard|make|cd|cp -r|set) ": "not our commands; CI and each release run make",
    r"/kaggle/": "the folders of Kaggle; tests/tools/test_packaged.py",
    r"prepare.py (fashion-mnist|elpv|openclipart|stamps)": "tests/datasets/test_prepare.py",
    r"-m benchmarks\.": "tests/benchmarks",
    r"-m tools\.serve --load": "it serves until it is ended; tests/tools/test_serve.py",
    r"-m tools\.sweep ": "tests/tools/test_tuning.py",
    r"^torchrun ": "tests/scripts/test_distributed.py and test_prediction_processes.py",
    r"--push ": "the hub; tests/tools/test_publish.py",
    r"--model MyNet|--tag mine ": "with code of the page; tests/scripts/test_docs.py",
}
# What a page says, and what runs in its place: less work, networks that are here, the folders of this world.
SMALLER = {
    "timm:convnext_tiny": "ResNet18",
    "timm:resnet18": "ResNet50",
    "--hours 0.5": "--hours 0.002",
    "--folds 5": "--folds 2",
    "photos/train --val_root photos/val": "train --val_root val",
}
MORE = {"train": "--scale 32 -w 0 --gpu -1", "eval": "-w 0 --gpu -1", "submit": "-w 0 --gpu -1"}
MORE["tools.folds"] = MORE["train"]


def elsewhere(words):
    """Where a command is tested instead; None: it runs here."""
    return next((where for pattern, where in ELSEWHERE.items() if re.search(pattern, shlex.join(words))), None)


COMMANDS = {page: [words for words in page_commands(page) if elsewhere(words) is None] for page in PAIRS}
COMMANDS = {page: found for page, found in COMMANDS.items() if found}


class Small(Timm):
    """Stands for each of our networks: timm's smallest, with the weights that write_world has put into pretrained/."""

    def build(self, arch):
        return timm_network("test_resnet", self.settings)


@pytest.fixture
def run(script, monkeypatch, capfd):
    """`run(["python", "train.py", …])` runs a command of a page in this process, small; it must end well."""

    def launch(line, processes):
        assert processes == 1
        return script("train.py", *line).code

    monkeypatch.setattr("tools.folds.training.launch", launch)

    def run_words(words):
        line = shlex.join(words)
        if "label_decisions.csv" in words:  # as the report of that list exports them
            image, _ = Path(words[2]).read_text().splitlines()[0].rsplit(" ", 1)
            Path("label_decisions.csv").write_text(f"path,label,action,new_label\n{image},0,relabel,1\n")
        if words[0] != "python":
            subprocess.run(" ".join(words), shell=True, check=True)
            return
        small = line
        for page, smaller in SMALLER.items():
            small = small.replace(page, smaller)
        words = shlex.split(small)[1:]
        name = words.pop(0).removesuffix(".py").replace("/", ".").replace("datasets.", "tools.prepare.")
        name = {"-m": "", "tools.prepare.prepare": "tools.prepare"}.get(name, name) or words.pop(0)
        words += MORE.get(name, "").split()
        if name in ("train", "tools.folds") and not {"--epochs", "--hours", "--resume", "--config"} & set(words):
            words += ["--epochs", "2"]
        if name in SCRIPTS:
            result = script(f"{name}.py", *words)
            assert result.code == 0, f"{line}\n{result.out}\n{result.err}"
            return
        name += ".command" if (ROOT / name.replace(".", "/") / "command.py").is_file() else ""
        code = importlib.import_module(name).main(words)
        shown = capfd.readouterr()
        assert not code, f"{line}\n{shown.out}\n{shown.err}"

    return run_words


def write_world(photo_set):
    """Write what the pages take as given: lists, folders of photos, tables, weights."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet")
    net(torch.rand(4, 3, 32, 32))  # gives batch norm its statistics, without which a network counts as untrained
    Path("pretrained").mkdir()
    for path in ("pretrained/test_resnet.pth", "iresnet101_pretrained.pth"):
        torch.save(net.state_dict(), path)
    for folder in ("datasets/fashion-mnist", "datasets/elpv-defect", "photos_to_predict", "more"):
        Path(folder).mkdir(parents=True)
    parts = {part: (photo_set / f"{part}.txt").read_text().splitlines() for part in ("train", "val", "test")}
    for k, image in enumerate(parts["test"]):
        shutil.copy(image, "photos_to_predict")
        shutil.copy(image, f"more/{k}.jpg")
    shutil.copy(parts["test"][0], "a.jpg")
    PIL.Image.open("a.jpg").save("more/b.png")
    lists = {"test": [f"{Path('photos_to_predict', Path(image).name).resolve()}" for image in parts["test"]]}
    tables = {"products": ["image,category,product"], "tags": ["image,tags"], "sizes": ["image,width,height"]}
    for part in ("train", "val"):
        lists[part], images, annotations = [], [], []
        for k, line in enumerate(parts[part]):
            image, label = line.rsplit(" ", 1)
            name = NAMES[int(label)]
            own = f"{name}/{part}{k // 2}_view{k % 2}.jpg"
            for root in (part, "photos"):
                Path(root, own).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, Path(root, own))
            lists[part].append(f"{Path('photos', own).resolve()} {label}")
            width, height = PIL.Image.open(image).size
            images.append({"id": k, "file_name": own, "width": width, "height": height})
            annotations.append({"id": k, "image_id": k, "category_id": int(label)})
            tables["products"].append(f"{own},{name},{part}{k // 2}")
            tables["tags"].append(f"{own},{name};{'wide' if width > 180 else 'narrow'}")
            tables["sizes"].append(f"{own},{width},{height}")
        categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
        coco = {"images": images, "annotations": annotations, "categories": categories}
        Path(f"{part}.json").write_text(json.dumps(coco))
    for folder in ("datasets", "datasets/fashion-mnist", "datasets/elpv-defect"):
        for part, lines in lists.items():
            Path(folder, f"{part}.txt").write_text("".join(f"{line}\n" for line in lines))
        Path(folder, "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for name, rows in {**tables, "new": tables["products"]}.items():
        Path(f"{name}.csv").write_text("".join(f"{row}\n" for row in rows))
    Path("all.txt").write_text("".join(f"{line}\n" for line in lists["train"]))
    ids = "".join(f"{Path(image).name},0\n" for image in lists["test"])
    Path("sample_submission.csv").write_text(f"id,label\n{ids}")


@pytest.fixture
def world(photo_set, monkeypatch, run, tmp_path):
    """The working folder, with what the pages take as given: lists, photos, tables, weights."""
    for name in network.models:
        monkeypatch.setitem(network.models, name, Small)
    write_world(photo_set)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", COMMANDS)
def test_docs_commands_run(page, world, run):
    for block in blocks(read(page), "yaml"):  # a file that a command reads is named in its first line
        Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
    earlier = EARLIER | OF_PAGE.get(page, {})

    def run_after_earlier(words):
        """Run a command, after those of `earlier` that make what it uses and is not there."""
        begins = words[1:2] == ["train.py"] and "--resume" not in words
        inputs = [word for flag, word in zip(["", *words], words, strict=False) if flag != "--out"]
        for path in list(earlier):
            tag = Path(path).name if path.startswith("checkpoints/") and not begins else ""
            uses = tag in words or any(word == path or word.startswith(f"{path}/") for word in inputs)
            if uses and path in earlier and not Path(path).exists():
                for line in earlier.pop(path):
                    run_after_earlier(shlex.split(line))
        run(words)

    for words in COMMANDS[page]:
        run_after_earlier(words)


def test_docs_commands_that_run_elsewhere_are_there():
    lines = [shlex.join(words) for page in PAIRS for words in page_commands(page)]
    assert [pattern for pattern in ELSEWHERE if not any(re.search(pattern, line) for line in lines)] == []
    assert all(any(path in line for line in lines) for path in SMALLER)
