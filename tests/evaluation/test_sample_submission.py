"""Submissions in the form of a competition's sample: header, order, ids, predictions, or a refusal with names."""

import csv
import shlex
from pathlib import Path

import numpy as np
import pytest

from dataloader import Classes
from dataloader.file_list import read_list
from evaluation import submission
from evaluation.metrics import Predictions, ProbabilityRows
from evaluation.sample_submission import open_sample
from evaluation.scored import Scored
from options import parse_submit
from utils.errors import UserError
from utils.logger import start_logging

PATHS = ("photos/a/one.jpg", "photos/a/two words.jpg", "photos/b/three,x.jpg", "photos/b/été.v2.jpg")
NAMES = ["cat", 'big "dog"', "old, fox"]


def scored_images(folder, paths=PATHS, names=NAMES) -> Scored:
    """Four images, the third unreadable; three classes, of which the second is the commonest."""
    (folder / "test.txt").write_bytes("".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape"))
    files = read_list(folder / "test.txt", labelled=False)
    rows = np.array([[0.125, 0.125, 0.75], [0.5, 0.25, 0.25], [0, 0, 1], [0.25, 0.625, 0.125]], np.float32)
    rows = np.resize(rows, (len(paths), 3))
    top = np.argsort(-rows, axis=1, kind="stable")
    probability = np.take_along_axis(rows, top, axis=1)
    readable = np.arange(len(paths)) != 2
    predictions = Predictions(
        np.arange(len(paths)), np.full(len(paths), -1), top, probability, probability[:, 0], readable
    )
    predictions.rows = ProbabilityRows(np.arange(len(paths)), rows)
    return Scored(predictions, files, Classes(3, names, [5, 10, 5]))


@pytest.fixture
def scored(tmp_path):
    return scored_images(tmp_path)


def written(scored, folder, text, *flags, encoding="utf-8") -> str:
    """Return the submission like a sample of this text."""
    (folder / "sample.csv").write_bytes(text.encode(encoding, "surrogateescape"))
    opt = parse_submit(["--load", "x.pt", "--like", str(folder / "sample.csv"), *flags])
    sample = open_sample(opt, scored.files, scored.classes)
    submission.write(folder / "s.csv", scored, opt, sample)
    return (folder / "s.csv").read_bytes().decode(encoding, "surrogateescape")


def test_sample_with_names_gives_its_order_header_and_quoted_names(scored, tmp_path):
    text = 'Image Id,"the, label"\ntwo words.jpg,cat\n"three,x.jpg",cat\none.jpg,"old, fox"\nété.v2.jpg,cat\n'
    assert written(scored, tmp_path, text) == (
        'Image Id,"the, label"\ntwo words.jpg,cat\n"three,x.jpg","big ""dog"""\none.jpg,"old, fox"\n'
        'été.v2.jpg,"big ""dog"""\n'
    )


@pytest.mark.parametrize(
    "ids",
    [
        [path.rpartition("/")[2] for path in PATHS],
        [path.rpartition("/")[2].removesuffix(".jpg") for path in PATHS],
        [path.removeprefix("photos/") for path in PATHS],
        [path.removesuffix(".jpg") for path in PATHS],
        [f"./{path}" for path in PATHS],
        ["one.jpg", "a/two words.jpg", "three,x.jpg", "e\u0301te\u0301.v2.jpg"],
        [path.replace("/", "\\") for path in PATHS],
        [".\\" + path.replace("/", "\\").removesuffix(".jpg") for path in PATHS],
    ],
    ids=["file", "stem", "folder", "path stem", "dot", "mixed", "Windows", "Windows stem"],
)
def test_sample_ids_of_any_form_are_matched_and_kept(scored, tmp_path, ids):
    text = "".join(f'"{one}";0\n' for one in reversed(ids))
    rows = list(csv.reader(written(scored, tmp_path, f"id;label\n{text}").splitlines(), delimiter=";"))
    assert rows == [["id", "label"], *([one, label] for one, label in zip(reversed(ids), "1102", strict=True))]


def test_sample_ids_whose_first_rows_have_no_ending_are_matched_with_endings(tmp_path):
    """Half of the names end in two endings, so that either form fits some."""
    scored = scored_images(tmp_path, ("a", "a.jpg", "b.jpg", "c.jpg"))
    assert written(scored, tmp_path, "id,label\na,0\na.jpg,0\nb.jpg,0\nc.jpg,0\n").startswith(
        "id,label\na,2\na.jpg,0\n"
    )


def test_sample_ids_whose_first_row_fits_both_forms_are_matched_by_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.sample_submission.table.ROWS_TO_GUESS_FROM", 1)
    scored = scored_images(tmp_path, ("a.jpg", "a.jpg.png", "b.jpg", "c.jpg"))
    text = written(scored, tmp_path, "id,label\na.jpg,0\na,0\nb,0\nc,0\n")
    assert text == "id,label\na.jpg,0\na,2\nb,1\nc,1\n"


def test_sample_id_of_the_root_is_not_that_of_a_folder(tmp_path):
    scored = scored_images(tmp_path, ("t/one.jpg", "t/x/one.jpg", "t/y/one.jpg", "t/two.jpg"))
    text = "id,label\nx/one,0\none,0\ny/one,0\ntwo,0\n"
    assert written(scored, tmp_path, text) == "id,label\nx/one,0\none,2\ny/one,1\ntwo,1\n"


def test_sample_id_with_a_backslash_in_a_name_is_that_file(tmp_path):
    """A name may hold a backslash: only where there is no such file is it the slash of another system."""
    scored = scored_images(tmp_path, ("a\\one.jpg", "a/one.jpg"))
    assert written(scored, tmp_path, "id,label\na/one.jpg,0\na\\one.jpg,0\n") == "id,label\na/one.jpg,0\na\\one.jpg,2\n"


def test_sample_ids_with_equal_hashes_are_told_apart(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.sample_submission.ids.hash", lambda text: 7, raising=False)
    text = 'id,label\ntwo words,0\nété.v2,0\none,0\n"three,x",0\n'
    assert written(scored, tmp_path, text) == 'id,label\ntwo words,0\nété.v2,1\none,2\n"three,x",1\n'


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_sample_with_byte_order_mark_gives_one(scored, tmp_path, encoding):
    text = '"été\t1"\tlabel\r\n' + "".join(f"{path}\t0\r\n" for path in PATHS)
    assert written(scored, tmp_path, text, encoding=encoding).splitlines()[::4] == ['"été\t1"\tlabel', f"{PATHS[3]}\t1"]
    assert (tmp_path / "s.csv").read_bytes()[:2] == (tmp_path / "sample.csv").read_bytes()[:2]


def test_sample_id_that_is_not_utf8_is_matched_by_its_bytes(tmp_path):
    scored = scored_images(tmp_path, ("a.jpg", "b.jpg", "c.jpg", "d\udcff.jpg"))
    assert written(scored, tmp_path, "id,label\nd\udcff,0\na,0\nb,0\nc,0\n").splitlines()[1] == "d\udcff,1"


def test_sample_with_column_per_class_gets_probabilities(scored, tmp_path):
    text = '"old, fox",id,cat,"big ""dog"""\n' + "".join(f'0,"{path}",0,0\n' for path in PATHS)
    assert written(scored, tmp_path, text).splitlines() == [
        '"old, fox",id,cat,"big ""dog"""',
        "0.75,photos/a/one.jpg,0.125,0.125",
        "0.25,photos/a/two words.jpg,0.5,0.25",
        '0.25,"photos/b/three,x.jpg",0.25,0.5',
        "0.125,photos/b/été.v2.jpg,0.25,0.625",
    ]


def test_sample_with_numbered_columns_gets_probabilities(scored, tmp_path):
    text = "id,2,0,1\n" + "".join(f'"{path}",0,0,0\n' for path in PATHS)
    assert written(scored, tmp_path, text).splitlines()[1] == "photos/a/one.jpg,0.75,0.125,0.125"


def test_sample_with_one_column_named_after_one_of_two_classes_gets_its_probability(scored, tmp_path):
    rows = scored.predictions.rows.probability[:, :2]
    scored.predictions.rows = ProbabilityRows(np.arange(4), rows)
    two = scored._replace(classes=Classes(2, ["cat", "dog"], [1, 3]))
    text = "id,dog\n" + "".join(f'"{path}",0\n' for path in PATHS)
    assert [line[-5:] for line in written(two, tmp_path, text).splitlines()[1:]] == ["0.125", ",0.25", ",0.75", "0.625"]
    assert written(two, tmp_path, text, "--labels", "number").splitlines()[1] == "photos/a/one.jpg,2"


def test_sample_of_probabilities_whose_column_names_no_class_says_how_to_name_it(scored, tmp_path):
    """It advised --labels alone, which writes classes into a column of probabilities."""
    two = scored._replace(classes=Classes(2, ["cat", "dog"], [1, 3]))
    text = f"id,target\n{ROWS.format('0.5')}"
    with pytest.raises(UserError, match=r"(?s)name the column after that class .*\(cat or dog\).*Try: --labels name"):
        written(two, tmp_path, text)
    for one, shown in ((scored, text), (two, text.replace("0.5", "1.5"))):
        with pytest.raises(UserError) as error:
            written(one, tmp_path, shown)
        assert "neither names nor numbers" in str(error.value) and "probability of a class" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "value", "warned"),
    [("name", "purple", "are the name of no class of the checkpoint"), ("name", "cat", ""), ("number", "1", "")],
)
def test_sample_whose_values_name_no_class_warns_where_a_flag_decides(scored, tmp_path, capfd, kind, value, warned):
    text = "id,label\n" + "".join(f'"{path}",{value}\n' for path in PATHS)
    start_logging()
    written(scored, tmp_path, text, "--labels", kind)
    said = "".join(capfd.readouterr())
    assert ("placeholders" in said) == bool(warned) and warned in said and (not warned or f": {value}. Is the" in said)


def test_sample_with_several_classes_per_row_takes_top_k(scored, tmp_path):
    text = "id,labels\n" + "".join(f'"{path}",0 1\n' for path in PATHS)
    assert written(scored, tmp_path, text, "--top_k", "2").splitlines()[1] == "photos/a/one.jpg,2 0"
    with pytest.raises(UserError, match=r"neither names nor numbers of the 3 classes: 0 1"):
        written(scored, tmp_path, text)


def test_sample_whose_numbers_are_names_gets_names_where_another_class_has_another_number(tmp_path):
    scored = scored_images(tmp_path, names=["0", "1", "3"])
    text = 'id,label\none,0\ntwo words,0\n"three,x",0\nété.v2,0\n'
    assert [line[-1] for line in written(scored, tmp_path, text).splitlines()[1:]] == ["3", "0", "1", "1"]


ROWS = 'one,{0}\ntwo words,{0}\n"three,x",{0}\nété.v2,{0}\n'


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ('id,label\none,0\n"three,x",0\nété.v2,0\n', NAMES, "1 of 4 images of the list have no row: photos/a/two"),
        (f"id,label\n{ROWS.format(0)}x,0\ny,0\n", NAMES, "2 of 6 ids have no image in the list: x, y."),
        (f"id,label\n{ROWS.format(0)}one,0\n", NAMES, "2 rows are of 1 image with another row: one, one.(?s:.)*FILE"),
        ("id,label\n" + "".join(f"x{k},0\n" for k in range(5)), NAMES, "5 of 5 ids have no image .*: x0, x1, x2, …"),
        (f"id,label\n{ROWS.format(3)}", NAMES, "neither names nor numbers of the 3 classes: 3"),
        (f"id,label\n{ROWS.format('')}", NAMES, "does not show what column 'label' holds: it is empty"),
        (f"id,label\n{ROWS.format(1)}", ["1", "2", "3"], "its values are names of classes as well as numbers"),
        (f"id,label\n{ROWS.format(0)}", ["5", "7", "9"], "are names of no class, .* other numbers .*class 0 is 5"),
        (f"id,label\n{ROWS.format(1)}", ["-1", "0.5", "2"], "are names of no class, .* other numbers .*class 0 is -1"),
        ("id,label\none,1\ntwo words,cat\n\"three,x\",1\nété.v2,1\n", NAMES, "some of its values are names, others"),
        (f"id,a,b\n{ROWS.format('0,0')}", NAMES, "2 of its columns are named after no class: a, b."),
        (f"id,cat,cat\n{ROWS.format('0,0')}", NAMES, "1 class with several columns: cat"),
        (f"id,cat,{'old'}\n{ROWS.format('0,0')}", NAMES, '2 of 3 classes have no column: big "dog", old, fox.'),
        (f"id\n{ROWS.format(0)[:4]}\n", NAMES, "has 1 fields|has 2 fields|one column"),
        ("id,label\none,0\ntwo,0,0\n", NAMES, "line 3 has 3 fields, the header 2"),
        ('id,label\none,0\n"two,0\nthree,0\n', NAMES, "line 3 is not CSV: a quoted field that begins there"),
        ("id,label\n", NAMES, "no row below its header"),
        ("", NAMES, "no row below its header"),
    ],
)  # fmt: skip
def test_sample_that_does_not_fit_is_refused(tmp_path, text, names, said):
    scored = scored_images(tmp_path, names=names)
    (tmp_path / "s.csv").write_text("old")
    with pytest.raises(UserError, match=said):
        written(scored, tmp_path, text)
    assert (tmp_path / "s.csv").read_text() == "old"


@pytest.mark.parametrize("ids", [["a/one.jpg", "b/other.jpg"], ["a\\two words", ".\\a\\one"]], ids=["other", "Windows"])
def test_sample_of_other_images_names_the_command_that_lists_them(scored, prepare, tmp_path, monkeypatch, ids):
    monkeypatch.chdir(tmp_path)
    text = "id,label\n" + "".join(f"{one},0\n" for one in ids)
    with pytest.raises(UserError) as error:
        written(scored, tmp_path, text)
    flag, _, command = str(error.value).partition("Try: ")[2].partition(", after: ")
    for name in ("photos/a/one.jpg", "photos/a/two words.jpg", "photos/b/other.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    prepare.main(shlex.split(command)[2:])
    files = read_list(Path(shlex.split(flag)[1]), labelled=False)
    assert len(files) == 2
    opt = parse_submit(["--load", "x.pt", "--like", "sample.csv"])
    assert open_sample(opt, files, scored.classes).order.tolist() == [0, 1]


def _gbk(text: str) -> str:
    """Return a sample in GBK, as a spreadsheet of a Chinese Windows writes it, but for the ids, as it is read."""
    rows = [line.rsplit(",", 1) for line in text.splitlines()]
    return b"".join(f"{one},".encode() + label.encode("gbk") + b"\n" for one, label in rows).decode(
        "utf-8", "surrogateescape"
    )


@pytest.mark.parametrize("header", ["id,label", "id,红裙"])
def test_sample_whose_names_are_not_utf8_says_so(tmp_path, caplog, header):
    scored = scored_images(tmp_path, names=["红裙", "牛仔裤", "bag"])
    text = _gbk(f"{header}\n{ROWS.format('红裙')}")
    said = r"neither names nor numbers .* These are not UTF-8 text. Save a copy of the sample as UTF-8"
    with pytest.raises(UserError, match=said):
        written(scored, tmp_path, text)
    written(scored, tmp_path, text, "--labels", "name")
    assert "taken for placeholders" in caplog.text and "These are not UTF-8 text. Save a copy" in caplog.text
    with pytest.raises(UserError) as error:
        written(scored, tmp_path, f"id,label\n{ROWS.format('紅')}")
    assert "UTF-8" not in str(error.value)


def test_sample_id_of_two_images_is_refused(tmp_path):
    scored = scored_images(tmp_path, ("a/x.jpg", "b/x.jpg", "b/y.jpg", "b/z.jpg"))
    with pytest.raises(UserError, match="(?s)1 id with several images that fit: x.*Try: --test_list FILE with the"):
        written(scored, tmp_path, "id,label\nx,0\ny,0\nz,0\n")


def test_sample_missing_is_refused(scored, tmp_path):
    opt = parse_submit(["--load", "x.pt", "--like", str(tmp_path / "none.csv")])
    with pytest.raises(UserError, match="cannot be read: No such file"):
        open_sample(opt, scored.files, scored.classes)


@pytest.mark.parametrize("flags", ["--id stem", "--columns a b", "--no-header", "--separator tab", "--format json"])
def test_like_with_flags_of_the_form_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_submit(["--load", "x.pt", "--like", "s.csv", *flags.split()])
    assert stop.value.code == 2
    assert "the sample says how the file must look" in capsys.readouterr().err


def test_submission_like_a_sample_that_loses_a_row_is_not_written(scored, tmp_path, monkeypatch):
    filled, calls = submission._filled_rows, []

    def lossy(*args):
        calls.append(1)
        return list(filled(*args))[len(calls) == 1 :]

    monkeypatch.setattr(submission, "_filled_rows", lossy)
    with pytest.raises(AssertionError, match="does not read back"):
        written(scored, tmp_path, f"id,label\n{ROWS.format(0)}")
    assert len(calls) == 2 and not (tmp_path / "s.csv").exists()


def test_submit_like_a_sample_in_a_whole_run(script, photo_set, small, tmp_path):
    assert script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 1, *small).code == 0
    files = read_list(photo_set / "test.txt", labelled=False)
    names = (photo_set / "classes.txt").read_text().splitlines()
    ids = [files.path(k) for k in reversed(range(len(files)))]
    sample = tmp_path / "sample.csv"
    common = ["--tag", "run", "--load", "checkpoints/run/last.pt", "--gpu", -1, "-w", 0, "--data_root", photo_set]
    sample.write_text("".join(f"{row}\n" for row in [f"id,{','.join(names)}", *(f"{one}{',0' * 3}" for one in ids)]))
    assert script("submit.py", *common, "--like", sample).code == 0
    with open(tmp_path / "results/run/submission.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", *names] and [row[0] for row in rows] == ids
    assert all(abs(sum(map(float, row[1:])) - 1) < 1e-5 for row in rows)
    # the same file again is ours to replace; the sample is not
    assert script("submit.py", *common, "--like", sample).code == 0
    refused = script("submit.py", *common, "--like", sample, "--out", sample)
    assert refused.code == 2 and "--like" in refused.err
