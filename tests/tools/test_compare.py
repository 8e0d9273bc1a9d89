"""tools.compare: the table, the options that differ, damaged records, and the page in a browser."""

import csv
import html
import json
import re
from types import SimpleNamespace

import pytest

from browser import start_browser
from evaluation.step_points import thinned
from tools.compare import command, page
from tools.compare.runs import differing_options, find_runs, read_run, read_seconds

NASTY = "a'\"<script>alert(1)<b>&amp;"
CHINESE = "产品分类-学习率与权重衰减的搜索-第一次"
LOG = """2026-11-26 01:00:00,000 INFO Tiny: 4,000 parameters, 3 classes, 32 px, fp32 on cpu
12 training and 6 validation images, 2 batches of 6 per epoch, epochs 1 to 4
2026-11-26 01:00:40,500 INFO epoch 1/4  loss 1.0000
2026-11-26 03:00:00,000 INFO Resuming checkpoints/a/last.pt after epoch 1, with its options.
2026-11-26 03:00:05,000 INFO Tiny: 4,000 parameters, 3 classes, 32 px, fp32 on cpu
12 training and 6 validation images, 2 batches of 6 per epoch, epochs {first} to 4
2026-11-26 03:00:30,250 INFO epoch 4/4  loss 0.5000
Next: python eval.py
"""


def write_run(folder, tag, top1=(0.5, 0.7, 0.6), per_epoch=4, **options):
    """A run as train.py leaves one; without `per_epoch`, one without steps.csv."""
    logs = folder / "logs" / tag
    logs.mkdir(parents=True)
    rows = [
        {
            "epoch": k,
            "train_loss": 2 / k,
            "lr": 0.1,
            "images_per_second": 100 * k,
            "val_top1": one,
            "val_loss": 1 / k,
            "val_top5": 1,
        }
        for k, one in enumerate(top1, 1)
    ]
    with open(logs / "metrics.csv", "w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if per_epoch:
        lines = [f"{step},{step / per_epoch},{3 / step},,0.1,1.5,," for step in range(1, per_epoch * len(rows) + 1)]
        (logs / "steps.csv").write_text(
            "step,epoch,train_loss,train_top1,lr,grad_norm,val_loss,val_top1\n" + "\n".join(lines) + "\n"
        )
    options = {"tag": tag, "model": "Tiny", "epochs": 4, "lr": 0.1, "load": "null", **options}
    (logs / "options.yaml").write_text(
        "".join(f"{name}: {value}\n" for name, value in options.items() if name != "tag")
    )
    (logs / "log.txt").write_text(LOG.replace("{first}", "2"))
    return logs


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two runs in the working folder, `second` better; `second` has a checkpoint."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "first")
    write_run(tmp_path, "second", top1=(0.4, 0.9), lr=0.01, smooth=0.1)
    (tmp_path / "checkpoints" / "second").mkdir(parents=True)
    (tmp_path / "checkpoints" / "second" / "last.pt").touch()
    return tmp_path


def compare(capsys, *words):
    capsys.readouterr()
    code = command.main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_compare_prints_table_options_and_checkpoints(two, capsys):
    code, out, _ = compare(capsys)
    assert code == 0
    head, *rows = (line.split() for line in out.splitlines()[:3])
    assert head[:2] == ["run", "model"]
    # 133: of equal epochs, 2 / (1/100 + 1/200)
    assert rows[0] == "second Tiny 2/4 0.9000 2 0.9000 0.5000 71 s 133".split()
    assert rows[1] == ["first", "Tiny", "3/4", "0.7000", "2", "0.6000", "0.3333", "71", "s", "164"]
    assert "  second: lr 0.01, smooth 0.1\n  first: lr 0.1, smooth –\n" in out
    assert "  second: checkpoints/second/last.pt\n  first: none in checkpoints/first/\n" in out
    assert (two / "results" / "compare.html").is_file()
    assert "warning" not in out


def test_compare_by_another_metric_says_which_epoch_the_best_checkpoint_is(two, capsys):
    """The table said "best top1, epoch 2", and beside it stood a best.pt of another epoch."""
    for metric, note in (("top1", ""), ("log_loss", " (epoch 3, the best log_loss)")):
        tag = f"by_{metric}"
        table = write_run(two, tag, metric=metric) / "metrics.csv"
        table.write_text(table.read_text().replace("val_loss", "val_log_loss"))
        folder = two / "checkpoints" / tag
        folder.mkdir()
        (folder / "best.pt").touch()
        assert f"  {tag}: checkpoints/{tag}/best.pt{note}\n" in compare(capsys, tag, "--metric", "top1")[1] + "\n"
        assert f"checkpoints/{tag}/best.pt{note}<" in (two / "results/compare.html").read_text()


def test_compare_sort_and_tags_choose_the_rows(two, capsys):
    write_run(two, "third", top1=(0.1,))

    def order(*words):
        return re.findall(r"^(\w+) +Tiny", compare(capsys, *words)[1], re.M)

    assert order() == ["second", "first", "third"]
    assert order("--sort", "tag", "third", "logs/first/", "third") == ["first", "third"]
    assert order("--sort", "loss") == ["first", "second", "third"]


def test_compare_checkpoint_dir_is_searched(two, capsys):
    assert "  second: none in elsewhere/second/\n" in compare(capsys, "--checkpoint_dir", "elsewhere")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["secnod"], "There is no run 'secnod'. Did you mean second"),
        (["--log_dir", "log"], "There is no folder log"),
        (["--log_dir", "checkpoints"], "checkpoints/ holds no run of train.py"),
        (["--out", "logs/first/metrics.csv"], "which is read"),
        (["--out", "notes.html"], "does not look like a page of tools.compare"),
    ],
)
def test_compare_user_mistake_is_refused(words, message, two, capsys):
    (two / "notes.html").write_text("<p>mine")
    code, _, err = compare(capsys, *words)
    assert code == 2 and message in err
    assert (two / "notes.html").read_text() == "<p>mine"


def test_compare_replaces_its_own_page(two, capsys):
    assert [compare(capsys)[0], compare(capsys, "first")[0]] == [0, 0]
    assert "Comparison of 1 runs" in (two / "results" / "compare.html").read_text()


def damage_line(logs):
    text = (logs / "metrics.csv").read_text().splitlines()
    (logs / "metrics.csv").write_text("\n".join([*text[:2], text[2][:9], text[3]]))


DAMAGES = {  # what happens to a run's records: (what is said, epochs that are left)
    "a cut line": (damage_line, "metrics.csv: line 3 is damaged and left out", 3),
    "no metrics": (lambda logs: (logs / "metrics.csv").unlink(), "metrics.csv is missing: no epoch has ended", 0),
    "other columns": (
        lambda logs: (logs / "metrics.csv").write_text("a,b\n1,2\n"),
        "its first line must name epoch",
        0,
    ),
    "an empty file": (lambda logs: (logs / "metrics.csv").write_text(""), "it holds 'nothing'", 0),
    "no text": (lambda logs: (logs / "metrics.csv").write_bytes(b"epoch\n\0\xff\x80\n"), "metrics.csv", 0),
    "rows twice": (
        lambda logs: (logs / "metrics.csv").write_text((logs / "metrics.csv").read_text() + "1,2,3,4,5,6,7\n"),
        "metrics.csv: 1 row(s) out of order",
        3,
    ),
    "no options": (lambda logs: (logs / "options.yaml").unlink(), "options.yaml is missing", 3),
    "no YAML": (lambda logs: (logs / "options.yaml").write_text("a: [b"), "options.yaml cannot be read", 3),
    "a YAML list": (lambda logs: (logs / "options.yaml").write_text("- a"), "no lines of `option: value`", 3),
    "no log": (lambda logs: (logs / "log.txt").unlink(), "log.txt cannot be read", 3),
    "steps cut": (
        lambda logs: (logs / "steps.csv").write_text("step,epoch\n1,0.1\n2"),
        "steps.csv: line 3 is damaged",
        3,
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_compare_damaged_records_are_warned_and_rest_is_shown(kind, two, capsys):
    damage, message, epochs = DAMAGES[kind]
    damage(two / "logs" / "first")
    code, out, _ = compare(capsys)
    assert code == 0
    (warning,) = (line for line in out.splitlines() if line.startswith("warning: first: "))
    assert message in warning
    assert re.search(rf"^first .* {epochs}(/4)? ", out, re.M)
    note = warning.removeprefix("warning: first: ").removesuffix(".")
    assert note in html.unescape((two / "results" / "compare.html").read_text())


def test_compare_folders_without_records_are_named(two, capsys):
    (two / "logs" / "sweep").mkdir()
    (two / "logs" / ".first.lock").touch()
    out = compare(capsys)[1]
    assert "left out: logs/sweep/\n" in out and out.count("sweep") == 1
    assert find_runs(two / "logs", ["first"]) == (["first"], [])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (LOG.replace("{first}", "2"), 40.5 + 30.25),  # two hours lay between
        (LOG.replace("{first}", "1"), 40.5 + 30.25),  # resumed within epoch 1
        (LOG.replace("Resuming", "warning:").replace("{first}", "1"), 25.25),  # a new run under the same tag
        ("no times\n", None),
        ("2026-99-99 01:00:00,000 INFO x\n", None),
    ],
)
def test_read_seconds_ignores_pauses_and_earlier_runs(text, seconds, tmp_path):
    (tmp_path / "log.txt").write_text(text)
    assert read_seconds(tmp_path / "log.txt") == seconds


def test_compare_puts_the_metric_of_the_runs_first(two, capsys):
    for tag, losses in (("first", (0.3, 0.2, 0.4)), ("second", (0.5, 0.1))):
        write_run(two, f"{tag}-by-loss", top1=losses, metric="log_loss")
        path = two / "logs" / f"{tag}-by-loss" / "metrics.csv"
        path.write_text(path.read_text().replace("val_top1", "val_log_loss"))
    tags = ["first-by-loss", "second-by-loss"]
    out = compare(capsys, *tags)[1]
    assert "best log_loss" in out and "last log_loss" in out
    assert re.findall(r"^(\w+)-by-loss +Tiny +\S+ +(\S+) +(\d) +(\S+)", out, re.M) == [
        ("second", "0.1000", "2", "0.1000"),
        ("first", "0.2000", "2", "0.4000"),
    ]
    text = (two / "results/compare.html").read_text()
    assert ">best log_loss<" in text and 'class="number" scope="col"><button type="button">best log_loss' in text
    assert ">0.2000</td>" in text and "val_log_loss" not in text
    out = compare(capsys, *tags, "first")[1]  # trained for different metrics
    assert re.findall(r"^(\S+) +Tiny", out, re.M)[0] == "first" and "best top1" in out
    assert "best top5" in compare(capsys, *tags, "first", "--metric", "top5")[1]
    text = (two / "results/compare.html").read_text()
    assert "validation top5" in text and ">last top1<" in text and "100.00 %" in text


def test_differing_options_ignore_folders_and_equal_values(two):
    write_run(two, "third", checkpoint_dir="elsewhere", lr=0.1, resume="true", teacher="null")
    runs = [read_run(two / "logs", tag) for tag in ("first", "third")]
    assert differing_options(runs) == []
    assert differing_options([*runs, read_run(two / "logs", "second")]) == ["lr", "smooth"]


def test_runs_of_other_lists_under_one_name_are_told_apart(two, capsys):
    """Their scores were ranked, and "The runs have the same options" stood below. Runs of earlier versions noted no
    lists, and are not compared by them."""
    write_run(two, "third")
    tags, digest = ("first", "third"), {"first": "a" * 64, "third": "b" * 64}
    for tag in tags:
        lists = {"train": {"images": 36, "fingerprint": "c" * 64}, "val": {"images": 12, "fingerprint": digest[tag]}}
        (two / "logs" / tag / "lists.json").write_text(json.dumps(lists))
    write_run(two, "old")
    runs = [read_run(two / "logs", tag) for tag in (*tags, "old")]
    assert differing_options(runs) == ["validation list"] and differing_options(runs[1:]) == []
    out, text = compare(capsys, *tags)[1], (two / "results/compare.html").read_text()
    assert "first: validation list 12 images (aaaaaaaa)" in out
    assert "different validation lists, so their scores cannot be compared" in out
    assert "12 images (bbbbbbbb)" in text and "so their scores cannot be compared" in text
    assert "cannot be compared" not in compare(capsys, "third", "old")[1]
    (two / "logs/old/lists.json").write_text('{"val": []}')
    assert any("lists.json cannot be read" in note for note in read_run(two / "logs", "old").notes)


def test_runs_of_equally_named_images_in_other_folders_are_told_apart(two, capsys):
    """Such lists have one fingerprint, so the runs were compared as if scored on one list. A record of a version
    without paths is compared by the fingerprint alone."""
    tags = ("first", "second", "third", "old")
    for tag in ("third", "old"):
        write_run(two, tag)
    for tag, paths in zip(tags, ("d" * 64, "e" * 64, "e" * 64, None), strict=True):
        val = {"images": 12, "fingerprint": "a" * 64} | ({} if paths is None else {"paths": paths})
        (two / "logs" / tag / "lists.json").write_text(json.dumps({"val": val}))
    runs = [read_run(two / "logs", tag) for tag in tags]
    assert "validation list" in differing_options(runs[:2])
    assert "validation list" not in differing_options(runs[1:3]) + differing_options([runs[0], runs[3]])
    out, text = compare(capsys, "first", "second")[1], (two / "results/compare.html").read_text()
    assert "validation list 12 images (aaaaaaaa, paths dddddddd)" in out
    assert "in different folders. Their scores can be compared only if the images are the same" in out
    assert "paths eeeeeeee" in text and "only if the images are the same" in text
    assert "only if the images" not in compare(capsys, "second", "third")[1]
    assert "only if the images" not in compare(capsys, "first", "old")[1]


def test_best_score_is_first_of_equals_and_never_nan(two):
    run = read_run(two / "logs", "first")
    for row, top1 in zip(run.history, (float("nan"), 0.7, 0.7), strict=True):
        row["val_top1"] = top1
    assert run.best("top1") == (0.7, 2)
    assert run.best("top5") == (1, 1)
    assert run.best("macro_f1") is None


def test_curves_of_long_run_are_by_step_and_bounded(two):
    write_run(two, "long", top1=[0.5] * 3, per_epoch=700)
    found = page.curves(read_run(two / "logs", "long"))
    train, val = found["train"], found["val"]
    assert page.MAX_POINTS / 2 <= len(train["step"]) <= page.MAX_POINTS and train["step"][-1] == 2100
    assert (val["step"], val["epoch"]) == ([700, 1400, 2100], [1, 2, 3])
    assert train["train_top1"] == [None] * len(train["step"])
    pair = read_run(two / "logs", "long").steps[:2]
    assert thinned(pair, 1)[0] == {
        "step": 2,
        "epoch": pair[1]["epoch"],
        "train_loss": (3 + 1.5) / 2,
        "lr": 0.1,
        "grad_norm": 1.5,
    }


def test_curves_without_steps_are_by_epoch(two):
    steps = two / "logs" / "first" / "steps.csv"
    lines = steps.read_text().splitlines()
    steps.write_text("\n".join([lines[0], *lines[6:]]))  # from step 6, in epoch 2, on
    train = page.curves(read_run(two / "logs", "first"))["train"]
    assert train["epoch"][:2] == [1, 1.5] and train["step"][:2] == [4, 6]
    steps.unlink()
    train = page.curves(read_run(two / "logs", "first"))["train"]
    assert train["epoch"] == [1, 2, 3] and train["step"] == [None] * 3


def test_curves_with_infinity_have_null(two):
    run = read_run(two / "logs", "first")
    run.steps[0]["train_loss"] = float("inf")
    assert json.loads(json.dumps(page.curves(run), allow_nan=False))["train"]["train_loss"][0] is None


# ------------------------------------------------------------------------ the page in a browser


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of 14 runs, with names that are markup, Chinese, or hold a byte that is no UTF-8."""
    folder = tmp_path_factory.mktemp("compare")
    tags = [NASTY, CHINESE, "caf\udce9", *(f"run-{k}" for k in range(11))]
    for k, tag in enumerate(tags):
        write_run(
            folder,
            tag,
            top1=(0.3, 0.5 + k / 100),
            per_epoch=4 if k % 2 else 0,
            lr=10.0**-k,
            optimizer=["sgd", "adamw"][k % 2],
        )
    (folder / "logs" / "run-3" / "log.txt").unlink()
    path = folder / "compare.html"
    page.write_page(path, [read_run(folder / "logs", tag) for tag in tags])
    return path


@pytest.fixture(scope="module")
def browser(made):
    driver = start_browser(made.parent / "downloads")
    yield driver
    driver.quit()


@pytest.fixture
def at(browser, made):
    """The page, freshly opened; afterwards nothing may stand in the console."""
    browser.get(made.as_uri())
    yield SimpleNamespace(
        browser=browser,
        find=lambda css: browser.find_element("css selector", css),
        texts=lambda css: browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(x => x.textContent)", css
        ),
        count=lambda css: browser.execute_script("return document.querySelectorAll(arguments[0]).length", css),
    )
    assert browser.get_log("browser") == []


def test_compare_page_of_numbers_speaks_of_no_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tag in ("a", "b"):
        table = write_run(tmp_path, tag, metric="mae") / "metrics.csv"
        table.write_text(table.read_text().replace("val_top1", "val_mae").replace("val_top5", "val_r2"))
    assert command.main(["a", "b"]) == 0
    text = (tmp_path / "results/compare.html").read_text()
    assert "<figcaption>validation mae</figcaption>" in text and "last mae" in text
    assert not re.search("top-1<|last top1|mean class", text)


@pytest.mark.parametrize(
    ("metric", "shown"),
    [("r2", "-0.2500"), ("spearman", "-0.2500"), ("qwk", "-0.2500"), ("rmse", "-0.2500"), ("mAP", "-25.00 %")],
)
def test_compare_page_shows_shares_alone_in_per_cent(metric, shown, tmp_path):
    table = write_run(tmp_path, "a", top1=(-0.25,), metric=metric) / "metrics.csv"
    table.write_text(table.read_text().replace("val_top1", f"val_{metric}"))
    page.write_page(tmp_path / "compare.html", [read_run(tmp_path / "logs", "a")], metric)
    assert (tmp_path / "compare.html").read_text().count(f'data-value="-0.25">{shown}</td>') == 2, "best and last"


def test_compare_page_is_one_file_and_escapes_names(made):
    text = made.read_text()
    for word in ("http://", "https://", "@import", '<link rel="stylesheet', "src="):
        assert word not in text.replace("http://www.w3.org/", "")
    assert "<script>alert" not in text and "<b>&amp;amp;" not in text
    assert CHINESE in text and "caf\\xe9" in text


def test_compare_page_click_sorts_rows_with_unknown_last(at):
    tags = "#runs tbody td.tag"

    def column(title):
        return at.texts("#runs th").index(title) + 1

    def click(title):
        at.browser.execute_script("arguments[0].click()", at.find(f"#runs th:nth-child({column(title)}) button"))

    click("best top1")
    found = at.texts(f"#runs tbody td:nth-child({column('best top1')})")
    assert found == [f"{50 + k}.00 %" for k in range(13, -1, -1)]
    assert at.find(f"#runs th:nth-child({column('best top1')})").get_attribute("aria-sort") == "descending"
    click("best top1")
    assert at.texts(tags)[0].strip() == NASTY
    click("lr")
    assert [float(text) for text in at.texts(f"#runs tbody td:nth-child({column('lr')})")] == [
        10.0**-k for k in range(13, -1, -1)
    ]
    for _ in range(2):
        click("time")
        assert at.texts(tags)[-1].split() == ["run-3", "!"]


def test_compare_page_curves_follow_boxes_filter_and_axis(at):
    lines = "[data-name=train_loss] g"
    assert at.count(lines) == 14
    at.find("#runs tbody tr:first-child input").click()
    assert at.count(lines) == 13
    at.find("#filter").send_keys("adamw")
    assert at.texts("#count") == ["7 of 14 runs"] and at.count(lines) == 7
    at.find("#none").click()
    assert at.count(lines) == 0 and "nothing to draw" in at.texts("[data-name=train_loss] text")
    at.find("#all").click()
    at.browser.execute_script(
        "let box = document.getElementById('filter'); box.value = ''; box.dispatchEvent(new Event('input'))"
    )
    at.browser.execute_script(
        "let axis = document.getElementById('axis'); axis.value = 'step'; axis.dispatchEvent(new Event('change'))"
    )
    assert at.count(lines) == 7  # the others have no steps.csv; the first is hidden, and would have none
    assert at.count("[data-name=val_top1] circle") == 14


def test_compare_page_pointer_on_curve_names_its_run(at):
    from selenium.webdriver import ActionChains

    spot = at.find("[data-name=val_top1] g:last-child circle:last-child")
    at.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", spot)
    ActionChains(at.browser).move_to_element(spot).perform()
    assert at.texts("#tip") == ["run-10: 0.63 at epoch 2, step 8"]
    assert at.texts("#runs tr.pointed td.tag")[0].strip() == "run-10"
    assert at.count("svg.some .pointed") == 5  # no training top-1


def test_compare_page_says_what_a_logarithmic_axis_leaves_out(tmp_path, browser):
    for tag in "ab":
        write_run(tmp_path, tag)
    table = tmp_path / "logs/a/steps.csv"
    table.write_text(table.read_text().replace(",,0.1,", ",,0,"))
    path = tmp_path / "compare.html"
    page.write_page(path, [read_run(tmp_path / "logs", tag) for tag in "ab"])
    browser.get(path.as_uri())
    words = "return document.querySelector('[data-name=lr]').textContent"
    assert "not shown" not in browser.execute_script(words)
    browser.find_element("css selector", "#log").click()
    zeros = len(read_run(tmp_path / "logs", "a").steps)
    assert f"epoch; {zeros} points at 0 or below not shown" in browser.execute_script(words)
    browser.find_element("css selector", "#runs tbody tr:last-child input").click()
    assert browser.execute_script(words) == f"learning rate{zeros} points at 0 or below not shown"
