"""--like for several labels per image, and for numbers: every form that a sample has, and refusals that name flags."""

from dataclasses import replace

import numpy as np
import pytest

from dataloader import Classes
from dataloader.file_list import read_list
from evaluation import target_submission
from evaluation.sample_submission import open_sample
from evaluation.scored import TargetScored
from evaluation.targets import TargetPredictions
from options import parse_submit
from utils.errors import UserError
from utils.logger import start_logging

NAMES = ["cat", "big dog", "old, fox"]
VALUES = np.array([[0.75, 0.625, 0.125], [0.25, 0.125, 0.875], [1, 1, 1], [0.25, 0.375, 0.125]], np.float32)


def scored_images(folder, classes, values=VALUES) -> TargetScored:
    """Four images, the third unreadable."""
    (folder / "test.txt").write_text("".join(f"p/{name}.jpg\n" for name in "abcd"))
    files = read_list(folder / "test.txt", labelled=False)
    readable = np.arange(4) != 2
    return TargetScored(TargetPredictions(np.arange(4), values, readable, None), files, classes)


def written(folder, classes, text, *flags, values=VALUES) -> str:
    """Return the submission like a sample of this text."""
    (folder / "sample.csv").write_text(text)
    opt = parse_submit(["--load", "x.pt", "--like", str(folder / "sample.csv"), *flags])
    if opt.threshold is not None:
        classes = replace(classes, thresholds=opt.threshold * classes.count)
    scored = scored_images(folder, classes, values)
    sample = open_sample(opt, scored.files, scored.classes)
    target_submission.write(folder / "s.csv", scored, opt, sample)
    return (folder / "s.csv").read_text()


def labels(names=NAMES) -> Classes:
    return Classes(3, names, task="multilabel")


def test_sample_with_label_numbers_in_one_cell_gives_its_separator_order_and_header(tmp_path):
    text = "Id,Tags\nd,0;2\nb,1\nc,\na,0;1;2\n"
    assert written(tmp_path, labels(), text) == "Id,Tags\nd,\nb,2\nc,\na,0;1\n"
    assert written(tmp_path, labels(None), text) == "Id,Tags\nd,\nb,2\nc,\na,0;1\n"


def test_sample_with_label_names_that_hold_a_space_or_a_comma_is_quoted(tmp_path):
    text = 'Id|Tags\na|"old, fox;cat"\nb|big dog\nc|-\nd|-\n'
    assert written(tmp_path, labels(), text) == "Id|Tags\na|cat;big dog\nb|old, fox\nc|-\nd|-\n"


def test_sample_with_a_column_per_label_gets_probabilities_in_its_order(tmp_path):
    text = '"old, fox",Id,big dog,cat\n' + "".join(f"0.5,{name},0.5,0.5\n" for name in "abcd")
    assert written(tmp_path, labels(), text).splitlines() == [
        '"old, fox",Id,big dog,cat',
        "0.125,a,0.625,0.75",
        "0.875,b,0.125,0.25",
        "0,c,0,0",
        "0.125,d,0.375,0.25",
    ]


@pytest.mark.parametrize(("no", "yes"), [("0", "1"), ("False", "True"), ("0.0", "1.0")])
def test_sample_with_two_words_per_label_gets_them_at_the_threshold(tmp_path, no, yes):
    text = f"Id,0,1,2\na,{no},{no},{yes}\n" + "".join(f"{name},{no},{no},{no}\n" for name in "bcd")
    found = written(tmp_path, labels(None), text).replace(yes, "y").replace(no, "n").splitlines()
    assert found[1:] == ["a,y,y,n", "b,n,n,y", "c,n,n,n", "d,n,n,n"]
    found = written(tmp_path, labels(None), text, "--threshold", "0.2").replace(yes, "y").replace(no, "n").splitlines()
    assert found[1:] == ["a,y,y,n", "b,y,n,y", "c,n,n,n", "d,y,y,n"]


def test_sample_with_zeros_alone_is_refused_and_either_flag_decides(tmp_path):
    text = 'Id,cat,big dog,"old, fox"\n' + "".join(f"{name},0,0,0\n" for name in "abcd")
    with pytest.raises(UserError, match=r"all values are 0(.|\n)*--probabilities, or --threshold 0.5 for 0 or 1"):
        written(tmp_path, labels(), text)
    assert written(tmp_path, labels(), text, "--probabilities").splitlines()[1] == "a,0.75,0.625,0.125"
    assert written(tmp_path, labels(), text, "--threshold", "0.5").splitlines()[1] == "a,1,1,0"


@pytest.mark.parametrize(
    ("cells", "names", "said"),
    [
        (["0", "1", "2", "1"], NAMES, "no cell has two labels"),
        (["", "", "", ""], NAMES, "no cell holds a label"),
        (["cat", "bear", "", ""], NAMES, "these values are no labels of the checkpoint.*'cat', 'bear'"),
        (["0 1", "2", "", ""], ["1", "0", "2"], "--labels number --joiner ' ' and --labels name --joiner ' '"),
        (["a b", "a", "", ""], ["a", "b", "a b"], "--labels name --joiner ' ' and --labels name --joiner ','"),
        (["0 0", "1", "", ""], NAMES, "these values are no labels"),
        (["0 1", "2", "", ""], ["5", "7", "9"], "these values are no labels"),
        (["0 1", "2", "", ""], ["0.5", "-1", "9"], "these values are no labels"),
    ],
)
def test_sample_whose_cell_of_labels_is_not_clear_is_refused(tmp_path, cells, names, said):
    text = "Id,Tags\n" + "".join(f"{name},{cell}\n" for name, cell in zip("abcd", cells, strict=True))
    with pytest.raises(UserError, match=f"does not show how column 'Tags' holds the labels: .*{said}(.|\n)*--joiner"):
        written(tmp_path, labels(names), text)


@pytest.mark.parametrize("cells", [["", "", "-", ""], ["0", "1", "2", "1"]])
def test_sample_cell_of_labels_is_decided_by_both_flags(tmp_path, cells, capfd):
    start_logging()
    text = "Id,Tags\n" + "".join(f"{name},{cell}\n" for name, cell in zip("abcd", cells, strict=True))
    found = written(tmp_path, labels(), text, "--labels", "name", "--joiner", "+")
    empty = "-" if "-" in cells else ""
    assert found == f'Id,Tags\na,cat+big dog\nb,"old, fox"\nc,{empty}\nd,{empty}\n'
    warned = "3 value(s) of column 'Tags' are the name of no class" in "".join(capfd.readouterr())
    assert warned == ("1" in cells)


def test_sample_cell_of_labels_with_one_flag_is_told_the_other(tmp_path):
    text = "Id,Tags\n" + "".join(f"{name},x\n" for name in "abcd")
    with pytest.raises(UserError, match="Try: --labels name --joiner TEXT, what is between two labels$"):
        written(tmp_path, labels(), text, "--labels", "name")


@pytest.mark.parametrize(
    ("header", "row", "flags", "said"),
    [
        ("cat,big dog", "0.5,0.5", [], "1 of 3 labels have no column: old, fox"),
        ("cat,big dog,bear", "0.5,0.5,0.5", [], "1 of its columns are named after no label: bear"),
        ("cat", "0.5", [], "2 of 3 labels have no column"),
        ("0,1,2", "0.5,0.5,0.5", ["--labels", "name"], "--labels and --like .* contradict"),
        ("Tags", "0 1", ["--probabilities"], "--probabilities and --like .* contradict"),
        ("0,1,2", "no,0,1", [], "it holds no"),
    ],
)
def test_sample_columns_that_do_not_fit_the_labels_are_refused(tmp_path, header, row, flags, said):
    with pytest.raises(UserError, match=said):
        written(tmp_path, labels(), f"Id,{header}\n" + "".join(f"{name},{row}\n" for name in "abcd"), *flags)


def numbers(*names) -> Classes:
    return Classes(len(names), list(names), task="regression", mean=[1.5] * len(names), std=[1.0] * len(names))


def test_sample_of_numbers_gives_its_columns_by_name_and_the_mean_to_an_unreadable_image(tmp_path):
    text = "height,Id,width\n" + "".join(f"0,{name},\n" for name in "badc")
    found = written(tmp_path, numbers("width", "height"), text, values=VALUES[:, :2])
    assert found == "height,Id,width\n0.125,b,0.25\n0.625,a,0.75\n0.375,d,0.25\n1.5,c,1.5\n"


def test_sample_of_one_number_gives_it_whatever_its_column_is_called(tmp_path):
    text = "Id,target\n" + "".join(f"{name},0\n" for name in "abcd")
    assert written(tmp_path, numbers("width"), text, values=VALUES[:, :1]).splitlines()[1:3] == ["a,0.75", "b,0.25"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Id,width,depth", "1 of its columns are named after no number: depth"),
        ("Id,width", "1 of 2 numbers have no column: height"),
        ("Id,width,height\na,cat,0", "hold 'cat', and the checkpoint predicts numbers"),
    ],
)
def test_sample_that_does_not_fit_the_numbers_is_refused(tmp_path, text, said):
    header = text.split("\n")[0]
    rows = {name: f"{name}{',0' * header.count(',')}" for name in "abcd"} | {
        line[0]: line for line in text.split("\n")[1:]
    }
    with pytest.raises(UserError, match=said):
        written(tmp_path, numbers("width", "height"), "\n".join([header, *rows.values()]), values=VALUES[:, :2])
