"""report.html in a real browser (Debian's chromium, chromium-driver): from disk, by mouse and by keys."""

import csv
import functools
import itertools
import json
import re
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from browser import start_browser
from conftest import wait_for
from dataloader.classes import Classes
from dataloader.decode import thumbnail
from evaluation import label_issues, results
from evaluation.bootstrap import intervals
from evaluation.metrics import Predictions, ProbabilityRows, extended_scores, score
from evaluation.report import page, page_plots, pictures
from utils.names import shorten_all

CLASSES, IMAGES = 130, 1300
NASTY = '</script><b onmouseover="x">Émile & "co"'


def scored_set(folder):
    """1300 predictions of 130 classes: file names that are not UTF-8, a class without images, a name that is markup."""
    rng = np.random.default_rng(0)
    label = np.arange(IMAGES) % (CLASSES - 1)
    logits = rng.normal(size=(IMAGES, CLASSES)) * 1.5
    logits[np.arange(IMAGES), label] += 4
    probability = np.exp(logits)
    probability = (probability / probability.sum(axis=1, keepdims=True)).astype(np.float32)
    top = np.argsort(-probability, axis=1)[:, :5]
    columns = (
        np.arange(IMAGES),
        label,
        top,
        np.take_along_axis(probability, top, 1),
        probability[np.arange(IMAGES), label],
    )
    predictions = Predictions(*columns, np.ones(IMAGES, bool), ProbabilityRows(np.arange(IMAGES), probability))
    path = lambda index: str(folder / f'a, "{index % 8}"\udce9.jpg')  # noqa: E731
    for k in range(8):
        with open(path(k), "wb") as file:
            file.write(cv2.imencode(".jpg", rng.integers(0, 256, (40 + 9 * k, 60, 3), dtype=np.uint8))[1])
    files = SimpleNamespace(
        path=path, thumbnail=lambda index, side: thumbnail(path(index), side), __len__=lambda: IMAGES, file_label=int
    )
    names = [f"thing {k}" for k in range(CLASSES)]
    names[7] = NASTY
    return results.Scored(predictions, files, Classes(CLASSES, names, [1 + k for k in range(CLASSES)]))


def write_page(folder, scored):
    predictions, classes = scored.predictions, scored.classes
    metrics = {**score(predictions, classes.count), **extended_scores(predictions, classes.count, classes.train_counts)}
    metrics["intervals"] = intervals(predictions, classes, 0, 20)
    metrics["options"] = {"resamples": 20, "temperature": "none", "tta": "none", "load": ["a.pt"]}
    rows = pictures.most_confident_errors(predictions)
    seen = np.full((24, 24, 3), 90, np.uint8), np.linspace(0, 1, 4, dtype=np.float32).reshape(2, 2)
    maps = {int(index): seen for index in predictions.index[rows]}
    history = [{"epoch": k, "train_loss": 1 / k, "val_loss": 1.2 / k, "val_top1": 1 - 1 / k} for k in (1, 2, 3)]
    path = folder / "tag" / "3" / "report.html"
    issues = label_issues.find(predictions, classes.count)
    shown = predictions.index[np.union1d(rows, issues.row)]
    near = {int(index): [(int(index + CLASSES - 1) % IMAGES, 0.987), (5, 0.5)] for index in shown}
    page.write(
        path,
        scored,
        metrics,
        page.Extra(issues, maps, near=near, history=history),
    )
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    scored = scored_set(folder)
    return folder, scored, write_page(folder, scored)


@pytest.fixture(scope="module")
def browser(made):
    driver = start_browser(made[0] / "downloads")
    yield driver
    driver.quit()


@pytest.fixture
def at(browser, made):
    """The page, freshly opened; afterwards nothing may stand in the console."""
    browser.get(made[2].as_uri())
    yield SimpleNamespace(
        browser=browser,
        find=lambda css: browser.find_element("css selector", css),
        all=lambda css: browser.find_elements("css selector", css),
        texts=lambda css: browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(x => x.textContent)", css
        ),
    )
    assert browser.get_log("browser") == []


def click(at, css):
    node = at.find(css)
    at.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
    node.click()


def test_training_curves_of_one_epoch_are_by_step():
    history = [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_top1": 0.5}]
    points = [{"step": k, "epoch": k / 900, "train_loss": k * 7919 % 101, "lr": 0.1} for k in range(1, 901)]
    drawn = [page_plots.training_curves(history, rows) for rows in ([], points)]
    segments = [max(path.count("L ") for path in re.findall(r' d="([^"]*)"', svg)) for svg in drawn]
    assert segments[0] < 20 and 100 < segments[1] <= page_plots.MAX_POINTS
    assert all("train_loss" in svg and "val_top1" in svg for svg in drawn)
    assert page_plots.training_curves([{"epoch": 1}]) == ""


def test_report_is_one_file_without_outside_links(made):
    text = made[2].read_text()
    for word in ("http://", "https://", "@import", '<link rel="stylesheet'):
        assert word not in text.replace("http://www.w3.org/", "")
    assert "<b onmouseover" not in text
    assert len(text) < 20_000_000


def test_report_class_table_sorts_filters_and_pages(at, made):
    scored = made[1]
    counts = results.per_class(scored.predictions, CLASSES)
    name = "#class-table tbody tr td:nth-child(2)"
    worst = np.lexsort((np.arange(CLASSES), np.where(counts["count"] > 0, counts["accuracy"], 9)))
    assert at.texts(name) == [scored.classes.name(k) for k in worst[:50]]
    click(at, "#class-table th:nth-child(5) button")  # images
    head = at.find("#class-table th:nth-child(5)")
    assert head.get_attribute("aria-sort") == "descending"
    column = [int(text) for text in at.texts("#class-table tbody tr td:nth-child(5)")]
    assert column == sorted(column, reverse=True) and len(set(column)) > 1
    at.find("#class-table th:nth-child(5) button").send_keys("\ue007")  # Enter
    assert at.find("#class-table th:nth-child(5)").get_attribute("aria-sort") == "ascending"
    assert at.texts("#class-table tbody tr td:nth-child(5)")[0] == "0"
    click(at, "#class-table th:nth-child(2) button")  # names, as people count
    assert at.texts(name)[1:4] == ["thing 0", "thing 1", "thing 2"]
    assert len(at.all("#class-table th[aria-sort]")) == 1
    assert not at.find("#class-pager button:first-child").is_enabled()
    click(at, "#class-pager button:last-child")
    assert at.texts("#class-pager span") == ["page 2 of 3"]
    assert at.find("#class-pager button:first-child").is_enabled()
    click(at, "#class-pager button:last-child")
    assert at.texts("#class-pager span") == ["page 3 of 3"]
    assert not at.find("#class-pager button:last-child").is_enabled()
    # accuracy: the worst first, then the best; without images last, either way
    click(at, "#class-table th:nth-child(3) button")
    assert at.texts(name)[0] == scored.classes.name(worst[0])
    click(at, "#class-table th:nth-child(3) button")
    assert at.texts("#class-table tbody tr td:nth-child(3)")[0] == f"{100 * np.nanmax(counts['accuracy']):.1f} %"
    click(at, "#class-pager button:last-child")
    click(at, "#class-pager button:last-child")
    assert at.texts(name)[-1] == f"thing {CLASSES - 1}"
    click(at, "#class-table th:nth-child(2) button")
    at.find("#class-filter").send_keys("thing 12")
    assert at.texts(name) == ["thing 12", "thing 112", *(f"thing {k}" for k in range(120, 130))]
    assert at.texts("#class-count") == ["12 of 130"]
    click(at, "#class-seen")
    assert at.texts("#class-count") == ["11 of 130"]
    at.find("#class-filter").clear()
    at.find("#class-filter").send_keys("émile")
    assert at.texts(name) == [NASTY]


def test_report_confusions_can_be_searched_and_zoomed(at, made):
    from evaluation.metrics import confused_pairs

    scored = made[1]
    pairs = confused_pairs(scored.predictions, CLASSES, 100_000).tolist()
    shown = at.texts("#pairs tbody tr")
    assert len(shown) == 50 and len(pairs) > 50
    assert shown[0].startswith(scored.classes.name(pairs[0][0]) + scored.classes.name(pairs[0][1]))
    at.find("#pair-search").send_keys("thing 128")
    rows = at.texts("#pairs tbody tr")
    assert len(rows) == sum(128 in pair[:2] for pair in pairs) > 0
    assert all("thing 128" in row for row in rows)
    assert at.texts("#window") == ["rows 110–129, columns 110–129"]  # the matrix goes where the search does
    click(at, "#zoom-all")
    assert at.texts("#window") == ["rows 0–129, columns 0–129"]
    at.find("#matrix").send_keys("+")
    near = at.texts("#window")
    assert near == ["rows 32–97, columns 32–97"]
    at.find("#matrix").send_keys("\ue014")  # the right arrow
    assert at.texts("#window") == ["rows 32–97, columns 45–110"]
    click(at, "#zoom-out")
    assert at.texts("#window") == ["rows 0–129, columns 0–129"]
    painted = (
        "const c = document.getElementById('matrix');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(x => x)"
    )
    assert at.browser.execute_script(painted)


def mouse(at, kind, x, y, **more):
    """An event over the matrix, at (x, y) of its width and height."""
    at.browser.execute_script(
        "const [kind, x, y, more] = arguments, c = document.getElementById('matrix'), box = c.getBoundingClientRect();"
        "const Kind = kind === 'wheel' ? WheelEvent : PointerEvent;"
        "const at = {clientX: box.left + x * box.width, clientY: box.top + y * box.height};"
        "c.dispatchEvent(new Kind(kind, {...at, bubbles: true, cancelable: true, ...more}))",
        kind,
        x,
        y,
        more,
    )


def test_report_matrix_shows_counts_in_place(at, made):
    from evaluation.metrics import confused_pairs

    scored = made[1]
    pairs = confused_pairs(scored.predictions, CLASSES, 100_000).tolist()
    both = {(a, b) for a, b, _ in pairs}
    true, called, count = next(pair for pair in pairs if (pair[1], pair[0]) not in both)
    alpha = (
        "const c = document.getElementById('matrix');"
        "const all = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const at = (x, y) => Math.floor(y * c.height) * c.width + Math.floor(x * c.width);"
        "return arguments[0].map(([x, y]) => all[4 * at(x, y) + 3])"
    )
    row, column = (true + 0.5) / CLASSES, (called + 0.5) / CLASSES
    here, mirrored = at.browser.execute_script(alpha, [[column, row], [row, column]])
    assert here > 0 and mirrored == 0  # painted without a click; rows are true classes
    mouse(at, "pointermove", column, row)
    images = results.per_class(scored.predictions, CLASSES)["count"]
    name = scored.classes.name
    assert at.texts("#cell") == [f"True {name(true)}, predicted {name(called)}: {count} of {images[true]} images."]
    shown = [f"{name(a)}{name(b)}{n}{100 * n / images[a]:.1f} %" for a, b, n in pairs[:50]]
    assert at.texts("#pairs tbody tr") == shown and any(images[a] != images[b] for a, b, _ in pairs[:50])


def test_report_matrix_moves_by_keys_wheel_and_touch(at):
    window = lambda: at.texts("#window")[0]  # noqa: E731
    mouse(at, "wheel", 0.5, 0.5, deltaY=-1)
    assert window() == "rows 0–129, columns 0–129"  # the page is scrolled, until the matrix is chosen
    matrix = at.find("#matrix")
    matrix.send_keys("++")
    assert window() == "rows 48–81, columns 48–81"
    matrix.send_keys("\ue012\ue013")  # left, up
    assert window() == "rows 42–74, columns 42–74"
    matrix.send_keys("\ue014\ue015")
    assert window() == "rows 48–81, columns 48–81"
    matrix.send_keys("-")
    assert window() == "rows 32–97, columns 32–97"
    mouse(at, "wheel", 0, 0, deltaY=-1)
    assert window() == "rows 32–84, columns 32–84"  # what is under the pointer stays
    mouse(at, "pointerdown", 0.5, 0.5, pointerType="touch")
    mouse(at, "pointermove", 0.75, 0.25, pointerType="touch")
    assert window() == "rows 45–97, columns 19–71"  # pulled right and up
    mouse(at, "pointerup", 0.75, 0.25)
    mouse(at, "pointermove", 0.2, 0.2)
    assert window() == "rows 45–97, columns 19–71"
    matrix.send_keys("0")
    assert window() == "rows 0–129, columns 0–129"


def test_report_errors_page_by_click_and_key(at, made):
    first = at.texts("#gallery .item")
    assert len(first) == 12
    assert len(at.all("#gallery .pair img")) == 24  # a picture and its Grad-CAM each
    assert len(at.all("#gallery .near img")) == 24
    captions = at.texts("#gallery .near figcaption")
    assert all(
        text.endswith(end) for text, end in zip(captions, itertools.cycle((" 0.99", "thing 5 0.50")), strict=False)
    )
    click(at, "#error-pager button:last-child")
    second = at.texts("#gallery .item")
    assert at.texts("#error-pager span") == ["page 2 of 4"] and second != first
    at.find("#gallery").send_keys("\ue014")
    assert at.texts("#error-pager span") == ["page 3 of 4"]
    at.find("#gallery").send_keys("\ue014\ue014\ue014\ue012\ue012")  # the last page is the last
    assert at.texts("#gallery .item") == second
    sure = [float(text.split()[0]) for text in at.texts("#gallery .item .top span:nth-child(2)")]
    assert sure == sorted(sure, reverse=True)
    at.find("#error-order").send_keys("least")
    sure = [float(text.split()[0]) for text in at.texts("#gallery .item .top span:nth-child(2)")]
    assert sure == sorted(sure)
    label = at.texts("#gallery .item strong")[0]
    at.find("#error-filter").send_keys(label)
    assert at.texts("#error-count")[0].endswith("of 48") and all(label in text for text in at.texts("#gallery .item"))
    assert at.browser.execute_script("return [...document.images].every(x => !x.complete || x.naturalWidth > 0)")


def test_report_error_shows_true_class_and_neighbours(at, made):
    predictions, classes = made[1].predictions, made[1].classes
    rows = pictures.most_confident_errors(predictions)[:12]
    names = [[classes.name(k) for k in (predictions.label[row], *predictions.top[row])] for row in rows]
    assert at.texts("#gallery .item strong") == [name for one in names for name in one[:2]]
    assert at.texts("#gallery .top .good") == [one[0] if one[0] in one[1:] else f"{one[0]} (true)" for one in names]
    assert {one[0] in one[1:] for one in names} == {True, False}
    labels = at.browser.execute_script(
        "return [...document.querySelectorAll('#gallery .item')].map(item => ["
        "...[...item.querySelectorAll('strong')].map(x => x.textContent),"
        "[...item.querySelectorAll('figcaption')].map(x => [x.textContent.replace(/ [\\d.]+$/, ''), x.className])])"
    )
    kinds = set()
    for true, called, near in labels:
        for label, kind in near:
            kinds.add(kind)
            assert kind == ("good" if label == true else "error" if label == called else "")
    assert kinds >= {"good", ""}
    called = names[0][1]
    at.find("#error-filter").send_keys(called)
    assert any(text == called for text in at.texts("#gallery .item strong.error"))
    true_alone = [true for true, other, _ in labels if called not in (true, other)]
    assert (
        not set(true_alone) & set(at.texts("#gallery .item strong:first-child")) or len(at.all("#gallery .item")) < 12
    )


def test_report_label_error_shows_neighbours_of_label_and_suggestion(at, made):
    scored = made[1]
    issues = label_issues.find(scored.predictions, CLASSES)
    shown = at.browser.execute_script(
        "return [...document.querySelectorAll('#issues .item')].map(item => "
        "[...item.querySelectorAll('.near figcaption')].map(x => [x.textContent, x.className]))"
    )
    assert len(shown) == min(12, len(issues.row)) and len(at.all("#issues .near img")) == 2 * len(shown)
    kinds = set()
    for row, other, near in zip(issues.row.tolist(), issues.suggested.tolist(), shown, strict=False):
        label = int(scored.predictions.label[row])
        beside = [int(scored.predictions.label[(row + CLASSES - 1) % IMAGES]), int(scored.predictions.label[5])]
        marks = ["good" if k == label else "error" if k == other else "" for k in beside]
        assert [kind for _, kind in near] == marks
        kinds |= set(marks)
    assert "" in kinds and kinds & {"good", "error"}


def test_report_marks_are_exported_for_clean(at, made):
    issues = label_issues.find(made[1].predictions, CLASSES)
    assert not at.find("#export").is_enabled()
    click(at, "#issues .item:nth-child(1) [value=drop]")
    click(at, "#issues .item:nth-child(2) [value=relabel]")
    choice = "const s = document.querySelector('#issues .item:nth-child(3) select');"
    other = at.browser.execute_script(
        choice + "s.selectedIndex = 1; s.dispatchEvent(new Event('change')); return s.value"
    )
    assert at.find("#issues .item:nth-child(3) [value=relabel]").is_selected()
    click(at, "#issue-pager button:last-child")
    click(at, "#issues .item:nth-child(1) [value=keep]")
    click(at, "#issue-pager button:first-child")
    assert at.find("#issues .item:nth-child(1) [value=drop]").is_selected()  # a mark outlives the page it is on
    assert at.browser.execute_script(choice + "return s.value") == other != str(issues.suggested[2])
    assert at.texts("#marked") == [f"4 of {min(60, len(issues.row))} marked"]
    click(at, "#export")
    path = made[0] / "downloads" / "label_decisions.csv"
    wait_for(lambda: path.is_file() and path.stat().st_size)
    with open(path, newline="", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    # shown so that it can be read, exported byte for byte
    assert at.texts("#issues .item .path")[0].endswith(r"\xe9.jpg")
    label = made[1].predictions.label[issues.row]
    wanted = [
        ("drop", label[0], ""),
        ("relabel", label[1], str(issues.suggested[1])),
        ("relabel", label[2], other),
        ("keep", label[12], ""),
    ]
    path = made[1].files.path
    assert [row["path"] for row in rows] == [path(int(made[1].predictions.index[issues.row[k]])) for k in (0, 1, 2, 12)]
    assert [(row["action"], int(row["label"]), row["new_label"]) for row in rows] == wanted


LONG = [
    f"Premium cotton crew-neck T-shirt, {colour}, size {size}, men"
    for colour in ("red", "blue", "green", "black")
    for size in "SML"
]
LONG += [f"Whole-grain breakfast cereal {grams} g family pack" for grams in range(100, 1300, 100)]
LONG += ["男士纯棉短袖圆领T恤 白色 大号", "衬衫", "Mug", "W" * 30, "a_name_without_any_space_" * 3, "x" * 9, "y", "z"]


def long_set():
    """32 classes of long names; all images of the last class, the only ones of few training images, are wrong."""
    label = np.repeat(np.arange(32), 4)
    first = np.where(np.arange(128) % 4 == 0, (label + 5) % 32, label)
    first[-4:] = 0
    top = np.stack([(first + k) % 32 for k in range(5)], axis=1)
    probability = np.tile(np.array([0.6, 0.2, 0.1, 0.05, 0.01], np.float32), (128, 1))
    predictions = Predictions(np.arange(128), label, top, probability, probability[:, 0], np.ones(128, bool))
    files = SimpleNamespace(path=lambda index: f"/none/{index}.jpg", thumbnail=lambda index, side: None, file_label=int)
    return results.Scored(predictions, files, Classes(32, LONG, [50] * 31 + [3]))


def test_report_matrix_of_long_names_is_labelled(browser, tmp_path):
    scored = long_set()
    metrics = {**score(scored.predictions, 32), **extended_scores(scored.predictions, 32, scored.classes.train_counts)}
    metrics["intervals"] = intervals(scored.predictions, scored.classes, 0, 20)
    metrics["options"] = {"resamples": 20, "temperature": "none", "tta": "none", "load": ["a.pt"]}
    extra = page.Extra(
        label_issues.find(scored.predictions, 32), title="ResNet18, epoch 2 of shirts", about="a.pt on val.txt"
    )
    page.write(tmp_path / "report.html", scored, metrics, extra)
    keep = """
        window.drawn = [];
        const pen = CanvasRenderingContext2D.prototype, fill = pen.fillText;
        pen.fillText = function (text, x, y) {
            drawn.push([text, this.measureText(text).width, x, this.font, this.getTransform().b !== 0]);
            fill.call(this, text, x, y);
        }
    """
    hook = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": keep})["identifier"]
    try:
        browser.get((tmp_path / "report.html").as_uri())
        look = lambda script, *words: browser.execute_script("return " + script, *words)  # noqa: E731
        assert look("document.querySelector('h1').textContent") == "Evaluation of ResNet18, epoch 2 of shirts"
        wait_for(lambda: look("drawn.length"))
        drawn = [one for one in look("drawn.splice(0)") if not one[0].isdigit()]
        down, across = (
            {text: width for text, width, _, _, turned in drawn if turned is side} for side in (False, True)
        )
        assert len(down) == len(across) == 32 and down.keys() == across.keys()
        margin = next(x for _, _, x, _, turned in drawn if not turned)
        assert max(down.values()) <= margin and max(across.values()) <= margin  # none is clipped
        font = json.dumps(next(one[3] for one in drawn))
        room = look("arguments[0].clientWidth * 0.34 - 10", browser.find_element("id", "matrix"))
        ruler = f"(pen => {{ pen.font = {font}; return pen.measureText(arguments[0]).width }})"
        ruler += "(new OffscreenCanvas(1, 1).getContext('2d'))"
        width = functools.cache(lambda text: look(ruler, text))
        cut = shorten_all(dict(enumerate(LONG)), room, width)
        assert set(cut.values()) == down.keys()  # the page's function is Python's
        at = SimpleNamespace(browser=browser)
        mouse(at, "pointermove", 0.99, 0.99)
        tip = "document.getElementById('tip')"
        assert not look(f"{tip}.hidden") and look(f"{tip}.textContent") == "True z, predicted z: 0 of 4 images."
        assert look("document.documentElement.scrollWidth <= innerWidth")
        mouse(at, "pointerleave", 0, 0)
        assert look(f"{tip}.hidden")
        tile = look("[...document.querySelectorAll('.tile')].map(x => x.textContent).find(x => x.startsWith('Tail'))")
        assert tile == "Tail (< 20)0.00 %no interval1 class, 4 images"
        options = look("[...document.querySelectorAll('#issues select')].map(x => [...x.options].map(y => y.text))")
        assert options and all(len(set(texts)) == len(texts) for texts in options)
        assert browser.get_log("browser") == []
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": hook})


@pytest.mark.parametrize("dark", [False, True])
def test_report_on_phone_fits_and_has_contrast(at, dark):
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    at.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    time.sleep(0.2)
    # after the size, so that the colours alone call for painting
    at.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    try:
        painted = (
            "const c = document.getElementById('matrix');"
            "return [...c.getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3).join()"
        )
        heat = at.browser.execute_script(
            "return getComputedStyle(document.documentElement).getPropertyValue('--heat').trim()"
        )
        wanted = [int(part) for part in heat.split(",")]
        wait_for(
            lambda: (
                max(abs(int(a) - b) for a, b in zip(at.browser.execute_script(painted).split(","), wanted, strict=True))
                <= 3
            )
        )
        assert at.browser.execute_script("return document.documentElement.scrollWidth") == 390
        for css in ("h1", ".soft", "#class-table td", ".error"):
            colour, ground = (
                at.browser.execute_script(f"return getComputedStyle(document.querySelector({css!r})).color"),
                at.browser.execute_script("return getComputedStyle(document.querySelector('.card')).backgroundColor"),
            )
            assert contrast(colour, ground) >= 4.5, css
        assert at.browser.execute_script("return getComputedStyle(document.body).backgroundColor") == (
            "rgb(22, 22, 21)" if dark else "rgb(246, 246, 244)"
        )
    finally:
        at.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        at.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(one, other):
    """WCAG 2's ratio of two colours of the form rgb(r, g, b)."""
    lights = []
    for text in (one, other):
        channels = np.array([int(part) for part in text[4:-1].split(",")]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)
