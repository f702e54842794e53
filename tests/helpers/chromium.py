"""A headless Chromium for tests that look at pages as people do."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

CHROMIUM = next((shutil.which(name) for name in ("chromium", "chromium-browser") if shutil.which(name)), None)
CHROMEDRIVER = shutil.which("chromedriver")


def chromium() -> Iterator[Any]:
    """A browser that is closed at the end; skips where there is none."""
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("chromium or chromedriver is not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install riebench[dev]")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield browser
    browser.quit()


NARROW, WIDE = (400, 740), (1400, 900)


class Page:
    """The open report."""

    def __init__(self, driver: Any, file: Path) -> None:
        self.driver, self.file = driver, file

    def open(self, fragment: str = "", size: tuple[int, int] = WIDE, scheme: str = "light") -> Page:
        """Opens the page in a tab of its own history, from disk."""
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get("about:blank")
        self.driver.get(self.file.as_uri() + fragment)
        self.wait(lambda: self.text("count") != "")
        return self.wait(lambda: self.full) if fragment.startswith("#show") else self

    def wait(self, done: Callable[[], bool], seconds: float = 20) -> Page:
        """Waits until something holds."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "the page did not get there in time"
            time.sleep(0.02)
        return self

    def js(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def text(self, name: str) -> str:
        """Text of an element by id."""
        return str(self.js("return document.getElementById(arguments[0]).textContent", name))

    def find(self, css: str) -> Any:
        """The first element of a selector."""
        return self.driver.find_element("css selector", css)

    @property
    def full(self) -> bool:
        """Whether one edit is shown in full."""
        return bool(self.js("return document.getElementById('one').open"))

    def filter(self, name: str, value: str) -> None:
        """Chooses the cards by an option as a person does, and waits until they are there."""
        self._change(lambda: self.find(f"#choose-{name} option[value='{value}']").click())

    def search(self, text: str) -> None:
        """Enters a search in one go, and waits until its cards are there."""
        script = (
            "const one = document.getElementById('search'); one.value = arguments[0];"
            "one.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        self._change(lambda: self.js(script, text))

    def _change(self, act: Callable[[], None]) -> None:
        self.js("document.getElementById('count').textContent = ''")
        act()
        self.wait(lambda: self.text("count") != "")

    def cards(self, css: str = "") -> list[str]:
        """Texts of all cards, or of a part of each.

        Cards near the window are filled when the data of their configuration have come; the first is waited for.
        """
        script = "return [...document.querySelectorAll(`#cards li ${arguments[0]}`)].map(e => e.innerText)"
        self.wait(lambda: not (found := self.js(script, css)) or bool(found[0]) or not css)
        return [str(text) for text in self.js(script, css)]

    def choose(self, name: str, value: str) -> None:
        """Picks an option beside the edit that is shown in full, and waits until the page has followed."""
        before = self.state
        self.find(f"#one-{name} option[value='{value}']").click()
        self.wait(lambda: self.state != before or before.get(name) == value)

    @property
    def state(self) -> dict[str, str]:
        """What the link to the shown edit says."""
        link = urlparse(self.find("#this-link").get_attribute("href")).fragment
        return {name: values[0] for name, values in parse_qs(link.partition("&")[2]).items()}

    def picture(self, name: str) -> str | None:
        """File shown in a frame."""
        return self.js("return document.querySelector(`#show-${arguments[0]} img`)?.getAttribute('src') ?? null", name)

    @property
    def loaded(self) -> bool:
        """Whether all pictures of the shown edit have arrived."""
        script = "return [...document.querySelectorAll('#pictures img')].every(i => i.complete && i.naturalWidth > 0)"
        return bool(self.js(script))

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("about:", "data:"))]

    def complaints(self) -> list[str]:
        """What the console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
