"""A headless Chromium for tests of pages (Debian's chromium and chromium-driver)."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest


def start_browser(downloads: Path) -> Any:
    """Return the driver of a new browser; without one the test is skipped, but in CI, which installs one, it fails."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        if os.environ.get("CI_CHROMIUM"):
            pytest.fail("chromium or chromedriver is missing: apt-get install chromium chromium-driver")
        pytest.skip("no chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
