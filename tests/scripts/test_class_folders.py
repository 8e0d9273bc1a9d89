"""train.py on class folders without lists: a split by the seed, beside the run's log."""

import shutil

import pytest

from dataloader.listing.class_folders import write_lists
from tiny import FLAGS, write_images
from utils.logger import start_logging

WORDS = ["--model", "timm:test_resnet", *FLAGS[2:], "--epochs", 1]


@pytest.fixture
def folders(tmp_path):
    """Class folders of 8 images each."""
    made = write_images(tmp_path)
    for path in sorted(made.glob("*.png")):
        name = ("red", "green", "blue")[int(path.stem[-3])]
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "photos" / name / path.name)
    for name in ("train", "val", "test", "classes"):
        (tmp_path / f"{name}.txt").unlink()
    return tmp_path / "photos"


def lists(folder):
    return {name: (folder / f"{name}.txt").read_text() for name in ("train", "val", "classes")}


def test_train_class_folders_are_split_by_the_seed(folders, script, tmp_path):
    done = script("train.py", "--tag", "a", "--data_root", "photos", *WORDS)
    assert done.code == 0, done.err
    assert "photos holds class folders and no train.txt" in done.out and "Split by seed 42" in done.out
    made = lists(tmp_path / "logs/a/lists")
    assert made["classes"] == "blue\ngreen\nred\n"
    lines = made["train"].splitlines() + made["val"].splitlines()
    assert len(made["val"].splitlines()) == 2 and len(set(lines)) == 21
    assert all(f"/{('blue', 'green', 'red')[int(line.split()[1])]}/" in line for line in lines)
    assert not list(folders.glob("*.txt"))
    assert script("train.py", "--tag", "b", "--data_root", "photos", *WORDS, "--seed", 7).code == 0
    assert script("train.py", "--tag", "c", "--data_root", "photos", *WORDS).code == 0
    assert lists(tmp_path / "logs/b/lists")["val"] != made["val"] and lists(tmp_path / "logs/c/lists") == made


def test_train_class_folders_resumed_and_evaluated_keep_their_lists(folders, script, tmp_path):
    assert script("train.py", "--tag", "a", "--data_root", "photos", *WORDS).code == 0
    made = lists(tmp_path / "logs/a/lists")
    (folders / "red" / "new.png").write_bytes((folders / "red" / "val_image_of_class_0_0.png").read_bytes())
    done = script("train.py", "--tag", "a", "--data_root", "photos", "--resume", "--epochs", 2)
    assert done.code == 0 and "class folders" not in done.out and lists(tmp_path / "logs/a/lists") == made
    assert (
        "The training list is logs/a/lists/train.txt, as before: images that are new in photos are not in it."
        in done.out
    )
    shutil.copytree(folders, tmp_path / "photos2")
    done = script("train.py", "--tag", "a", "--data_root", "photos2", "--resume", "--epochs", 3)
    assert done.code == 2 and "--data_root photos2 does not replace the lists that checkpoints/a/last.pt" in done.err
    assert lists(tmp_path / "logs/a/lists") == made
    done = script("eval.py", "--load", "checkpoints/a/best.pt", "--gpu", -1, "-w", 0)
    assert done.code == 0 and "logs/a/lists/val.txt" in done.out


def test_train_class_folders_without_validation_train_on_all(folders, script, tmp_path):
    assert script("train.py", "--tag", "a", "--data_root", "photos", *WORDS, "--val_freq", 0).code == 0
    assert len((tmp_path / "logs/a/lists/train.txt").read_text().splitlines()) == 21
    assert not (tmp_path / "logs/a/lists/val.txt").exists()


def test_train_folders_of_a_split_are_its_lists(folders, script, tmp_path):
    for label, name in enumerate(("red", "green", "blue")):
        (tmp_path / "set/val" / name).mkdir(parents=True)
        shutil.move(folders / name / f"val_image_of_class_{label}_0.png", tmp_path / "set/val" / name)
    shutil.move(folders, tmp_path / "set/train")
    assert script("train.py", "--tag", "a", "--data_root", "set", *WORDS).code == 0
    made = lists(tmp_path / "logs/a/lists")
    assert len(made["val"].splitlines()) == 3 and all("/set/val/" in line for line in made["val"].splitlines())
    assert len(made["train"].splitlines()) == 18


def test_write_lists_names_folders_that_are_in_no_list(tmp_path, capfd):
    for part, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b"), ("test", "a"), ("figures", "")):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / part / name / f"{part}.png").write_bytes(b"")
    start_logging()
    for hold_out in (True, False):
        write_lists(tmp_path, tmp_path / f"lists_{hold_out}", 1, hold_out)
        said = "".join(capfd.readouterr())
        assert "are in no list: figures\n" in said
        assert (
            f"{tmp_path}/train" in said
            and (f"{tmp_path}/val is not used: no list holds its 2 images" in said) != hold_out
        )
        assert len((tmp_path / f"lists_{hold_out}/train.txt").read_text().splitlines()) == 2


def test_train_too_few_images_in_class_folders_are_refused(folders, script):
    for path in sorted(folders.rglob("*.png"))[:-2]:
        path.unlink()
    (folders / "blue" / "one.png").write_bytes(next(folders.rglob("*.png")).read_bytes())
    done = script("train.py", "--tag", "a", "--data_root", "photos", *WORDS)
    assert done.code == 2 and "too few images" in done.err and "--val_freq 0" in done.err


def test_train_without_data_root_draws_no_lists(folders, script):
    folders.rename(folders.parent / "datasets")
    done = script("train.py", "--tag", "a", *WORDS)
    assert done.code == 2 and "datasets/prepare.py folder datasets" in done.err
