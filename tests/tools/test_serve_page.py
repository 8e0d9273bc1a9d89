"""The page of the server in a real browser (Debian's chromium, chromium-driver): its answers, and how they look."""

import base64
import signal

import pytest

from browser import start_browser
from conftest import wait_for
from serving import CLASSES, Server, httpx, picture, save

pytest.importorskip("selenium")
MODELS = ["best", "一个名字很长的模型，看看它会不会撑破页面"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    paths = [save(folder), save(folder, "other", seed=1)]
    server = Server("--load", *paths, "--names", *MODELS, "--gpu", -1, "--precision", "fp32")
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start_browser(tmp_path_factory.mktemp("downloads"))
    yield driver
    driver.quit()


@pytest.fixture
def page(server, browser):
    """The page, in English, as it is before an image comes."""
    return opened(server, browser, "en-US")


def opened(server, browser, language):
    agent = browser.execute_script("return navigator.userAgent")
    browser.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": language})
    browser.get(server.url)
    wait_for(lambda: browser.execute_script("return document.body.dataset.ready"))
    return browser


# A file of the image in base64 `arguments[0]`, in a DataTransfer, as the browser makes one for a drop or a paste.
TRANSFER = """
const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0)), transfer = new DataTransfer();
transfer.items.add(new File([bytes], "照片 <i>1</i>.png", {type: "image/png"}));
"""
DROP = TRANSFER + 'document.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));'
PASTE = TRANSFER + 'document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer}));'


def give(page, data, how=DROP):
    page.execute_script(how, base64.b64encode(data).decode())


def lines(page):
    """Return, for each answer, its lines: the name, the number, and the share of the bar's track."""
    return page.execute_script("""
        const wide = (row, name) => row.querySelector(name).getBoundingClientRect().width;
        const words = (row, name) => row.querySelector(name).textContent;
        const line = (row) => [words(row, ".name"), words(row, ".number"), wide(row, ".bar") / wide(row, ".track")];
        return [...document.querySelectorAll(".answer")].map((one) => [...one.querySelectorAll(".row")].map(line));
    """)


def answered(page, count):
    wait_for(lambda: [len(one) for one in lines(page)] == [4] * count)


@pytest.mark.parametrize("how", [DROP, PASTE], ids=["drop", "paste"])
def test_page_dropped_and_pasted_image_shows_the_answers_as_bars(how, page, server):
    give(page, picture(1), how)
    answered(page, 2)
    for name, shown in zip(MODELS, lines(page), strict=True):
        expected = server.predict(picture(1), model=name).json()["answers"][0]["top"]
        assert [one[0] for one in shown] == [one["name"] for one in expected]  # markup in a name stays text
        assert [one[1] for one in shown] == [f"{one['probability']:.1%}" for one in expected]
        for one, choice in zip(shown, expected, strict=True):
            assert one[2] == pytest.approx(choice["probability"], abs=0.02)
    titles = page.execute_script('return [...document.querySelectorAll(".answer h2")].map((one) => one.textContent)')
    assert titles == MODELS
    assert page.execute_script('return document.querySelector("figcaption").textContent') == "照片 <i>1</i>.png"


def test_page_chosen_files_are_answered_each_the_newest_first(page, tmp_path):
    for k in range(2):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
    page.find_element("id", "choose").send_keys("\n".join(str(tmp_path / f"{k}.png") for k in range(2)))
    answered(page, 4)
    shown = page.execute_script('return [...document.querySelectorAll("figcaption")].map((one) => one.textContent)')
    assert shown == ["1.png", "0.png"]
    assert page.find_element("id", "photograph").get_attribute("capture") == "environment"


def test_page_gradcam_of_the_first_and_of_a_clicked_class(page, server):
    give(page, picture(2))
    answered(page, 2)
    heat = 'const one = document.querySelector(".heat img"); return one && one.naturalWidth && one.alt'
    page.find_element("css selector", ".look").click()
    wait_for(lambda: page.execute_script(heat))
    top = server.predict(picture(2)).json()["answers"][0]["top"]
    assert top[0]["name"] in page.execute_script(heat)
    page.find_elements("css selector", ".row")[2].click()
    wait_for(lambda: top[2]["name"] in (page.execute_script(heat) or ""))
    assert page.execute_script('return document.querySelector(".heat img").naturalWidth') == 224


def test_page_model_that_is_not_chosen_is_not_asked(page):
    boxes = page.find_elements("css selector", "#models input")
    boxes[0].click()
    give(page, picture(3))
    answered(page, 1)
    boxes[1].click()
    give(page, picture(3))
    wait_for(lambda: page.find_element("id", "problem").text == "Choose at least one model.")


@pytest.mark.parametrize(
    ("language", "title", "said"),
    [("en-US", "Try the model", "is no image"), ("zh-CN", "试一试模型", "不是支持的图片格式")],
)
def test_page_speaks_the_browsers_language_and_shows_errors(language, title, said, server, browser):
    page = opened(server, browser, language)
    assert page.title == title and page.find_element("tag name", "h1").text == title
    give(page, b"no image")
    wait_for(lambda: len(page.find_elements("css selector", ".answer .wrong")) == 2)
    assert said in page.find_element("css selector", ".answer .wrong").text


@pytest.mark.parametrize("width", [320, 700, 1280])
def test_page_long_and_chinese_names_fit_any_width(width, server, browser):
    page = opened(server, browser, "zh-CN")
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    give(page, picture(4))
    answered(page, 2)
    assert {one[0] for one in lines(page)[0]} == set(CLASSES)
    too_wide = """
        const outside = (box) => box.right > innerWidth + 1 || box.left < -1;
        const all = [...document.querySelectorAll("body *")];
        return all.filter((one) => outside(one.getBoundingClientRect())).map((one) => one.className);
    """
    assert page.execute_script(too_wide) == []
    over = 'return [...document.querySelectorAll(".name")].some((one) => one.scrollWidth > one.clientWidth + 1)'
    assert not page.execute_script(over)
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_asks_nothing_but_its_server_and_logs_no_error(page, server):
    page.get_log("browser")
    give(page, picture(5))
    answered(page, 2)
    asked = page.execute_script('return performance.getEntriesByType("resource").map((one) => one.name)')
    assert asked and all(one.startswith((server.url, "blob:", "data:")) for one in asked)
    assert [one for one in page.get_log("browser") if one["level"] == "SEVERE"] == []
    policy = httpx.get(server.url).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
