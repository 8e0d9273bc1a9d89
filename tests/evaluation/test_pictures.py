"""Pictures with the names that people give: long ones, alike ones, Chinese ones, formulas."""

import re
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.classes import Classes
from dataloader.targets import LabelSets, joined
from evaluation import results, target_results
from evaluation.metrics import Predictions
from evaluation.report import figures as report_figures
from evaluation.report import fonts, plots, tool_plots
from evaluation.report.curves import draw_curves, running_mean
from evaluation.report.page import Extra
from evaluation.report.pictures import Pictures, error_cards
from evaluation.scored import TargetScored
from evaluation.targets import TargetPredictions
from inference.report_extra import NO_ISSUES
from utils.names import columns, padded, shorten, shorten_all

pytestmark = pytest.mark.pictures

LONG = [
    f"Premium cotton crew-neck T-shirt, {colour}, size {size}, men"
    for colour in ("red", "blue", "green")
    for size in "SML"
]
LONG += [f"Whole-grain breakfast cereal {grams} g family pack" for grams in range(100, 700, 100)]
LONG += ["costs $5 to $9", r"$\frac{$", "W" * 40, "i" * 50, "Mug"]


def scored_set(names, label, first):
    """Predictions of 5 classes an image; every image is a small grey one."""
    label, first = np.array(label), np.array(first)
    top = np.stack([first, *((first + k) % len(names) for k in range(1, 5))], axis=1)
    probability = np.tile(np.array([0.93, 0.03, 0.02, 0.01, 0.01], np.float32), (len(label), 1))
    predictions = Predictions(
        np.arange(len(label)), label, top, probability, probability[:, 1], np.ones(len(label), bool)
    )
    files = SimpleNamespace(path=str, thumbnail=lambda index, side: np.full((40 + index % 3 * 30, 60, 3), 90, np.uint8))
    return results.Scored(predictions, files, Classes(len(names), list(names)))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, each after its picture was written."""
    saved = []
    save = report_figures.save
    monkeypatch.setattr(report_figures, "save", lambda figure, path: (save(figure, path), saved.append(figure)))
    return saved


def confusion(path, scored):
    plots.confusion(path, scored.predictions, scored.classes)


def boxes(texts):
    return [text.get_window_extent() for text in texts if text.get_text()]


def assert_apart_and_inside(figure, texts):
    """None of the texts touches another, or leaves the picture."""
    found = boxes(texts)
    edge = figure.bbox
    for k, box in enumerate(found):
        assert edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1, texts[k]
        assert not any(box.overlaps(other) for other in found[:k]), texts[k]


# ------------------------------------------------------------------------ names


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=8, unique=True), st.integers(1, 30))
def test_shorten_all_fits_and_keeps_names_distinct(names, room):
    found = shorten_all(dict(enumerate(names)), room)
    assert len(set(found.values())) == len(names)
    for name in names:
        short = shorten(name, room)
        assert columns(short) <= room
        assert short == name if columns(name) <= room else name.startswith(short.split("…")[0][:1])


def test_shorten_keeps_both_ends():
    assert shorten("Whole-grain breakfast cereal 100 g", 12) == "Whole-…100 g"
    assert shorten_all({3: "shirt, red, small", 7: "shirt, tan, small", 9: "shoe"}, 11) == {
        3: "3: shir…all",
        7: "7: shir…all",
        9: "shoe",
    }
    assert shorten("男士纯棉短袖圆领T恤", 9) == "男士…T恤" and columns("男士…T恤") == 8
    assert shorten("e\u0301" * 9, 5) == "e\u0301e\u0301…e\u0301e\u0301"  # an accent stays with its letter


def test_padded_counts_columns_of_a_terminal():
    for text, width in (("shoe", 4), ("鞋子", 4), ("e\u0301te\u0301", 3), ("👩\u200d🚀", 4)):
        assert padded(text, 6) == text + " " * (6 - width) and padded(text, 6, left=False) == " " * (6 - width) + text
    assert padded("shoes", 4) == "shoes"


# ------------------------------------------------------------------------ fonts


@pytest.fixture
def only_default(monkeypatch):
    """A machine with matplotlib's own font only; cached answers of other tests are cleared, before and afterwards."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [entry for entry in manager.ttflist if entry.name == fonts.DEFAULT])
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    monkeypatch.setattr(fonts, "_warned", set())

    def forget():
        for cached in (fonts._covering, fonts._fonts, fonts._characters):
            cached.cache_clear()
        manager._find_fonts_by_props.cache_clear() if hasattr(manager._find_fonts_by_props, "cache_clear") else None

    forget()
    yield font_manager
    forget()


def font_with(path, character):
    """A font whose only letter is a filled square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(character): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Square Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def sheet(path, name):
    plots.gallery(path, [np.full((30, 30, 3), 200, np.uint8)], [name], "title")
    return np.asarray(PIL.Image.open(path).convert("L"))


def test_missing_font_is_warned_once_and_used_once_installed(only_default, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("utils.logger.log.propagate", True)
    without = sheet(tmp_path / "a.png", "衬衬衬")
    sheet(tmp_path / "a.png", "裙")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and "衬" in warnings[0] and warnings[0].endswith("Try: apt-get install fonts-noto-cjk")
    sheet(tmp_path / "a.png", "ok")
    assert len(caplog.records) == 1
    font_with(tmp_path / "new.ttf", "衬")
    for cached in (fonts._covering, fonts._fonts):
        cached.cache_clear()
    # newer than matplotlib's list
    monkeypatch.setattr(only_default, "findSystemFonts", lambda: [str(tmp_path / "new.ttf")])
    assert fonts.families("ok 衬") == [fonts.DEFAULT, "Square Test"]
    drawn = sheet(tmp_path / "b.png", "衬衬衬")
    assert (drawn < 50).sum() > (without < 50).sum() + 100  # squares, filled
    assert len(caplog.records) == 1


# ------------------------------------------------------------------------ sheets and plots


def test_captions_of_long_names_stay_apart_and_inside(figures, tmp_path):
    label = np.arange(8) + 8
    plots.errors(tmp_path / "errors.png", scored_set(LONG, label, (label + 1) % len(LONG)))
    names = report_figures.class_names(Classes(len(LONG), LONG), label)
    plots.gallery(
        tmp_path / "batch.png",
        [np.zeros((32, 32, 3), np.uint8)] * 8,
        [names[k] for k in label],
        "The first training batch",
    )
    plots.errors(tmp_path / "one.png", scored_set(LONG, [1], [2]))
    for figure in figures:
        assert_apart_and_inside(figure, [axis.title for axis in figure.axes] + [figure._suptitle])
    captions = [axis.get_title() for axis in figures[0].axes[:8]]
    assert all(
        caption.startswith("true ") and "\npredicted " in caption and caption.endswith("93 % confident")
        for caption in captions
    )
    assert len({caption.split("\n")[0] for caption in captions}) == 8


def write_targets(folder, classes, targets, value):
    """Write what eval.py leaves of predicted labels or numbers, of small grey images; return report.html."""
    files = scored_set(["a", "b"] * 3, [0], [1]).files
    files.source, files.hashes = "val.txt", dict
    opt = Namespace(**dict.fromkeys(results.SETTINGS, 0), compare=None)
    opt.load, opt.seed = [], 0
    folder.mkdir()
    metric = "mae" if classes.task == "regression" else "mAP"
    predictions = TargetPredictions(
        np.arange(len(value)), np.array(value, np.float32), np.ones(len(value), bool), targets
    )
    target_results.write(
        folder, TargetScored(predictions, files, classes), opt, [], extra=Extra(NO_ISSUES, metric=metric)
    )
    return (folder / "report.html").read_text()


def label_sets(rows, count):
    found = joined("multilabel", rows)
    return LabelSets(found.start, found.label, count)


def captions(figure):
    return [axis.get_title().split("\n") for axis in figure.axes if axis.get_title()]


def test_errors_picture_of_labels_shows_wrong_images_and_each_wrong_label(figures, tmp_path):
    names = [*LONG, *(f"男士纯棉短袖圆领T恤夏季新款宽松休闲打底衫{colour}色加大码" for colour in "红蓝")]
    count = len(names)
    rows = [[0], [1, 2], [20, 21], [3], [4]]
    value = np.full((5, count), 0.03)
    for image, labels in enumerate(rows):
        value[image, labels] = 0.97
    value[1, [1, 3]] = 0.2, 0.9  # one missed, one invented
    value[2, [20, 21]] = 0.4, 0.01
    value[3, 4:12] = np.linspace(0.99, 0.6, 8)
    classes = Classes(count, names, task="multilabel", thresholds=[0.5] * 4 + [0.98] + [0.5] * (count - 5))
    page = write_targets(tmp_path / "new", classes, label_sets(rows, count), value)
    shown = captions(figures[0])
    assert [len(lines) for lines in shown] == [4, 2, 2, 1]  # image 4 by its own threshold; image 0 is right
    assert shown[0][3] == "and 5 more" and shown[3][0].startswith("missed ")
    assert [(line.split()[0], line[-4:]) for line in shown[1] + shown[2]] == [
        ("missed", " 1 %"),
        ("missed", "40 %"),
        ("invented", "90 %"),
        ("missed", "20 %"),
    ]
    named = [line.split(" ", 1)[1].rsplit(" ", 2)[0] for lines in shown for line in lines if " more" not in line]
    assert len(set(named)) == len({4, 5, 6, 20, 21, 1, 3})
    assert_apart_and_inside(figures[0], [axis.title for axis in figures[0].axes] + [figures[0]._suptitle])
    assert page.count('class="item"') == 4 and "Images with a wrong label, the worst first" in page


def test_errors_picture_of_targets_without_a_wrong_image_says_none(figures, tmp_path):
    classes = Classes(3, task="multilabel")
    page = write_targets(tmp_path / "labels", classes, label_sets([[0], [2]], 3), [[0.9, 0.4, 0.1], [0.2, 0.3, 0.6]])
    assert figures[0]._suptitle.get_text() == "Images with a wrong label, the worst first: none"
    assert '<td class="number">100.00 %</td>' in page and '<td class="number">0.5000</td>' in page  # F1, threshold
    assert 'class="item"' not in page and re.search('None.</p>\\s*<div class="gallery">', page)
    page = write_targets(tmp_path / "numbers", Classes(1, task="regression"), np.ones((2, 1)), [[1], [1]])
    assert figures[2]._suptitle.get_text() == "The worst predictions: none"


def test_captions_of_many_numbers_or_labels_are_not_cut(figures, tmp_path):
    true = np.arange(40).reshape(2, 20) * 1000.5
    write_targets(tmp_path / "numbers", Classes(20, task="regression"), true, true + 1)
    for lines in captions(figures[0]):
        for line, before in zip(lines, ("true ", "predicted "), strict=True):
            numbers, more = line.removeprefix(before).split(" and ")
            shown = numbers.split(", ")
            assert line.startswith(before) and more == f"{20 - len(shown)} more" and all(map(float, shown[1:]))
    assert_apart_and_inside(figures[0], [axis.title for axis in figures[0].axes])
    found = report_figures.captions_of(
        Classes(len(LONG), LONG), label_sets([[0, 1], [], [1]], len(LONG)).rows(np.arange(3))
    )
    assert len(found[0].split("\n")) == len(set(found[0].split("\n"))) == 2
    assert found[1] == "–" and found[2] == found[0].split("\n")[1]


def test_examples_beside_an_error_are_distinct_images_and_not_the_image_itself():
    scored = scored_set(LONG, [0, 1, 1, 1, 1], [1, 1, 1, 1, 1])
    scored.files.path = lambda index: ("a", "b", "./a", "b", "c")[index]
    (card,) = error_cards(scored, Pictures(scored.files), {}, {})
    assert card["path"] == "a" and len(card["near"]) == 2, "b and c"


def test_confusion_picture_colours_errors_and_skips_empty_rows(figures, tmp_path):
    label, first = [0, 0, 0, 0, 5, 5, 16], [0, 0, 0, 1, 5, 6, 17]
    confusion(tmp_path / "confusion.png", scored_set(LONG, label, first))
    axis = figures[0].axes[0]
    rows = [text.get_text() for text in axis.get_yticklabels()]
    columns = [text.get_text() for text in axis.get_xticklabels()]
    assert [row.rsplit(" ", 1)[1] for row in rows] == ["(4)", "(2)", "(1)"]
    assert len(columns) == len(set(columns)) == 6 and rows[2] == r"$\frac{$ (1)"  # a name is no formula
    painted = axis.images[0].get_array().astype(int)
    red, blue = painted[..., 0], painted[..., 2]
    wanted = np.array([[75, 25, 0, 0, 0, 0], [0, 0, 50, 50, 0, 0], [0, 0, 0, 0, 0, 100]])
    hit = np.zeros_like(wanted, bool)
    hit[0, 0] = hit[1, 2] = True
    assert (blue[hit] > red[hit]).all()
    assert (red > blue)[(wanted > 0) & ~hit].all()
    assert (painted[wanted == 0] == 255).all()
    shown = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axis.texts}
    assert shown == {(y, x): str(wanted[y, x]) for y, x in zip(*np.nonzero(wanted), strict=True)}
    assert f"{len(LONG) - 3} of {len(LONG)} classes have no image and no row" in figures[0]._suptitle.get_text()
    assert len(figures[0].axes) == 1  # no bar of 0 to 1 beside per cents
    assert_apart_and_inside(figures[0], [*axis.get_yticklabels(), axis.yaxis.label, figures[0]._suptitle])


def test_confusion_picture_of_cut_names_has_a_bar_each(figures, tmp_path):
    names = [f"{k} a very long beginning of a name that is the same {'x' * 30} {k % 2} and its end" for k in range(50)]
    names = [name.replace(f"{k} a", "a", 1) for k, name in enumerate(names)]  # 50 names of two kinds
    confusion(tmp_path / "pairs.png", scored_set(names, [0, 2, 4, 4], [1, 3, 5, 5]))
    axis = figures[0].axes[0]
    assert [bar.get_width() for bar in axis.patches] == [1, 1, 2]
    assert [text.get_text() for text in axis.texts] == ["1 of 1", "1 of 1", "2 of 2"]
    assert len({text.get_text() for text in axis.get_yticklabels()}) == 3
    confusion(tmp_path / "none.png", scored_set(names, [0], [0]))
    assert figures[1].axes[0].get_title() == "Confusions: none, all are correct"


def test_curves_of_one_epoch_are_lines_by_step(figures, tmp_path):
    steps = [
        {"step": k, "epoch": k / 500, "train_loss": 500 / k, "train_top1": k / 500, "lr": 0.1, "grad_norm": 1.0 + k % 2}
        for k in range(1, 501)
    ]
    history = [{"epoch": 1, "train_loss": 3.0, "val_loss": 2.0, "lr": 0.1, "images_per_second": 90.0, "data_wait": 0.1}]
    draw_curves(tmp_path / "one.png", history, steps)
    loss, top1, rate, norm, speed, _ = figures[0].axes
    lines = {line.get_label(): line.get_xydata() for line in loss.lines}
    assert len(lines["train_loss"]) == 500 and lines["val_loss"].tolist() == [[1, 2]]
    assert loss.lines[-2].get_ydata().tolist() == [500 / k for k in range(1, 501)]  # the background is as it is
    assert [len(line.get_xdata()) for line in (*top1.lines[:1], *rate.lines)] == [500, 500]
    assert set(rate.lines[0].get_ydata()) == {0.1}
    assert norm.lines[0].get_ydata()[100:400] == pytest.approx(1.5, abs=0.05)
    assert speed.collections[0].get_segments()[0].tolist() == [[0, 90], [1, 90]]
    assert "0.5\n250" in [label.get_text() for label in loss.get_xticklabels()] or "0.4\n200" in [
        label.get_text() for label in loss.get_xticklabels()
    ]


def test_curves_before_the_first_step_are_by_epoch(figures, tmp_path):
    history = [{"epoch": k, "train_loss": 1 / k, "val_loss": 1 / k, "lr": 0.1} for k in (1, 2, 3, 4)]
    steps = [{"step": k, "epoch": k / 10, "train_loss": 1.0, "lr": 0.1} for k in range(25, 41)]
    draw_curves(tmp_path / "cut.png", history, steps)
    loss = figures[0].axes[0]
    assert [line.get_xdata().tolist() for line in loss.lines if line.get_label() != "val_loss"][:2] == [
        [0.5, 1.5],
        [k / 10 for k in range(25, 41)],
    ]
    assert len({line.get_color() for line in loss.lines if line.get_label() != "val_loss"}) == 1
    assert len(loss.get_legend().get_texts()) == 2


def test_curves_show_best_epoch_by_the_metric(figures, tmp_path):
    history = [{"epoch": k, "val_top1": k / 9, "val_macro_f1": 1 / k, "val_log_loss": (k - 2) ** 2} for k in (1, 2, 3)]
    draw_curves(tmp_path / "f1.png", history, metric="macro_f1")
    draw_curves(tmp_path / "loss.png", history, metric="log_loss")
    assert figures[0].axes[1].get_title() == "accuracy; best macro_f1 1.0000, epoch 1"
    assert "val_macro_f1" in [line.get_label() for line in figures[0].axes[1].lines]
    assert figures[1].axes[0].get_title() == "loss; best log_loss 0.0000, epoch 2"
    assert figures[1].axes[1].get_title() == "accuracy"


def test_curves_of_numbers_without_validation_show_no_accuracy(figures, tmp_path):
    history = [{"epoch": 1, "train_loss": 1.0, "lr": 0.1}]
    draw_curves(tmp_path / "mae.png", history, metric="mae")
    draw_curves(tmp_path / "top1.png", [history[0] | {"train_top1": 0.5}], metric="mae")
    assert [figure.axes[1].get_title() for figure in figures] == ["mae", "accuracy"]


def test_running_mean_leaves_out_what_is_not_finite():
    values = np.array([1.0, 2, np.nan, 4, 5])
    assert running_mean(values, 3).tolist() == [1.5, 1.5, 3, 4.5, 4.5]
    assert running_mean(values[2:3], 1).tolist() == pytest.approx([np.nan], nan_ok=True)
    assert running_mean(values[:2], 5).tolist() == [1.5, 1.5]


def test_curves_legend_covers_no_line(figures, tmp_path):
    scores = dict.fromkeys(
        ("train_top1", "val_top1", "val_top5", "val_mean_class_accuracy", "val_raw_top1", "val_ema_top1"), 0.5
    )
    rows = [
        {
            "epoch": k,
            "train_loss": 1 / k,
            "val_loss": 2 / k,
            "grad_norm": 5 + k / 9,
            "lr": 0.1,
            "data_wait": 0.1,
            **scores,
        }
        for k in (1, 2)
    ]
    history = [{"images_per_second": 90.0, **row} for row in rows]
    draw_curves(tmp_path / "curves.png", history)
    steps = [{"step": 10.0 * k, "epoch": k / 10, "train_loss": 1.0, "train_top1": 0.5, "lr": 0.1} for k in range(1, 21)]
    draw_curves(tmp_path / "steps.png", history, steps)
    rates = np.logspace(-6, 0, 40)
    tool_plots.range_test(
        tmp_path / "lr.png", {"rate": rates, "loss": rates + 3, "smoothed": rates + 3}, 1e-3, "ResNet18"
    )
    tool_plots.trials(tmp_path / "trials.png", [(1, 0.5, {"lr": 0.1}), (2, 0.6, {"lr": 0.2})], {"lr": {"log": True}})
    legends = [(axis, axis.get_legend()) for figure in figures for axis in figure.axes if axis.get_legend()]
    assert len(legends) == 6
    for axis, legend in legends:
        box = legend.get_window_extent()
        assert not any(box.overlaps(other.get_window_extent()) for other in axis.figure.axes), legend.get_texts()
        assert not box.overlaps(axis.xaxis.label.get_window_extent())
        assert axis.figure.bbox.y0 <= box.y0 and axis.figure.bbox.x1 >= box.x1
    assert figures[0].axes[3].get_yscale() == "linear" and figures[0].axes[4].get_ylim()[1] > 90
    assert "$" in figures[2].axes[0].get_xticklabels()[3].get_text()  # the ticks of a log axis are formulas still
