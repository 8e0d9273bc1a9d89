"""submit.py --images: files, folders, patterns and names on standard input, as a table, CSV or JSON."""

import csv
import io
import json
import os
import sys

import pytest

from dataloader.listing.named import find_images
from tiny import FLAGS, write_images
from utils.errors import UserError
from utils.run import DEBUG_BATCHES


@pytest.fixture
def trained(script, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_images(folder)
    words = ["--model", "timm:test_resnet", *FLAGS[2:]]
    assert script("train.py", "--tag", "t", "--data_root", folder, "--epochs", 1, *words).code == 0
    return ["--load", "checkpoints/t/best.pt", "--gpu", -1, "-w", 0], folder


def test_find_images_expands_in_order_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/1.jpg", "b/note.txt", "a.jpg", "z[1].png", "plain"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert find_images(["z[1].png", "b", "*.jpg", "a.jpg", "plain"]) == [
        "z[1].png",
        "b/1.jpg",
        "b/2.png",
        "a.jpg",
        "plain",
    ]
    assert find_images(["**/*.png"]) == ["b/2.png", "z[1].png"]
    assert find_images(["-"], b"a.jpg\r\nb/1.jpg\n\n") == ["a.jpg", "b/1.jpg"]
    assert find_images(["-"], b"a.jpg\0b/1.jpg\0") == ["a.jpg", "b/1.jpg"]


@pytest.mark.parametrize(
    ("names", "lines", "said"),
    [
        (["aa.jpg"], b"", "there is no such file.*Did you mean a.jpg"),
        (["*.gif"], b"", "no image has such a name"),
        (["empty"], b"", "the folder holds no image"),
        (["-"], b"\n", "got none"),
        (["-", "a.jpg"], b"x.png\ny.png\n", "2 names mean no image:\n  x.png\n  y.png"),
    ],
)
def test_find_images_names_that_mean_nothing_are_refused(names, lines, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"(?s){said}"):
        find_images(names, lines)


def test_submit_images_without_a_form_prints_a_table(trained, script, tmp_path):
    words, folder = trained
    (folder / "bad.png").write_bytes(b"\x89PNG no")
    before = sorted(tmp_path.rglob("*"))
    done = script("submit.py", *words, "--images", f"{folder}/test*.png", folder / "bad.png")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["file", "class", "probability"] and len(lines) == 1 + 3 * 3 + 1
    assert lines[1].split()[0].endswith("test_image_of_class_0_0.png") and lines[1].endswith("%")
    assert lines[2].split()[0] in ("red", "green", "blue") and lines[2].startswith(" ")
    assert lines[-1].split(maxsplit=1)[1] == "cannot be read"
    assert "bad.png" in done.err and "best.pt" in done.err and "--debug" not in done.err
    few = script("submit.py", *words, "--images", folder, "-b", 1, "--debug")
    assert few.code == 0 and f"warning: --debug: the answers are of {DEBUG_BATCHES} of 22 images." in few.err
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "run_log.txt") == [
        path for path in before if path.name != "run_log.txt"
    ]


def test_submit_images_csv_and_json_hold_the_same(trained, script, tmp_path, monkeypatch):
    words, folder = trained
    names = sorted(folder.glob("val*.png"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"".join(os.fsencode(one) + b"\n" for one in names))))
    done = script("submit.py", *words, "--images", "-", "--format", "csv", "--top_k", 2)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["file"] for row in rows[::2]] == [str(one) for one in names]
    assert [row["rank"] for row in rows] == ["1", "2"] * 6
    again = script("submit.py", *words, "--images", *names, "--format", "json", "--top_k", 2, "--out", "x.json")
    assert again.code == 0 and again.out == ""
    content = json.loads((tmp_path / "x.json").read_text())
    kinds = {"label": int, "class": str, "probability": float}
    from_csv = [{name: kind(row[name]) for name, kind in kinds.items()} for row in rows]
    assert from_csv == [one for image in content for one in image["classes"]]
    own_kind = script("submit.py", *words, "--images", *names, "--format", "json", "--out", "x.json")
    assert own_kind.code == 0
    refused = script("submit.py", *words, "--images", *names, "--out", names[0])
    assert refused.code == 2 and "which is read" in refused.err
    (tmp_path / "notes.txt").write_text("mine")
    refused = script("submit.py", *words, "--images", *names, "--out", "notes.txt")
    assert refused.code == 2 and "does not look like" in refused.err


def test_submit_images_beside_a_list_is_refused(script):
    words = "--load x.pt --images a.jpg --test_list t.txt --labels name --probabilities".split()
    done = script("submit.py", *words)
    assert (
        done.code == 2
        and "--images and --test_list contradict" in done.err
        and "--labels" in done.err
        and "--probabilities" in done.err
    )


def test_answers_align_wide_letters_and_joined_signs():
    from evaluation.answers import Answer, Answers, Likely, table

    dog = Answer("a.jpg", [Likely(0, "狗", 0.9), Likely(1, "👩\u200d🚀", 0.1)])
    lines = table(Answers("single", [dog, Answer("b\x1b.jpg")]))
    assert lines == [
        "file       class           probability",
        "a.jpg      狗                   90.00%",
        "           👩\u200d🚀                 10.00%",
        "b\\x1b.jpg  cannot be read",
    ]
