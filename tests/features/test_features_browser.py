"""Pages of features as people meet them: in a real Chromium, from disk, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from chromium import NARROW, WIDE, Page, chromium
from feature_commands import BLOCK, active_features, run_feature

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """One headless Chromium for all tests of this file."""
    yield from chromium()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of two features, of prompts that try to be HTML."""
    place = tmp_path_factory.mktemp("pages")
    (place / "prompts.txt").write_text("a red cat\n<script>window.hit = 1</script> 'car' \"boat\"\n", encoding="utf-8")
    run_feature(BLOCK, ",".join(map(str, active_features())), out=place / "features", prompts=place / "prompts.txt")
    return place / "features"


def opened(driver: Any, file: Path, size: tuple[int, int] = WIDE, scheme: str = "light") -> Page:
    """A page, once everything on it has arrived."""
    page = Page(driver, file)
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    driver.get(file.as_uri())
    page.js("document.querySelectorAll('img').forEach(one => { one.loading = 'eager'; })")
    script = "return [...document.querySelectorAll('img')].every(one => one.complete && one.naturalWidth > 0)"
    return page.wait(lambda: bool(page.js(script)))


def test_pages_open_from_disk_and_ask_for_nothing_outside_their_folder(driver: Any, root: Path) -> None:
    page = opened(driver, root / "index.html")
    first = page.find("tbody th a")
    index = first.text
    page.js("arguments[0].click()", first)
    page.wait(lambda: page.find("h1").text == f"Feature {index} of {BLOCK}")
    asked = [unquote(urlparse(url).path) for url in page.requests()]
    assert len(asked) > 10 and all(path.startswith(f"{root}/") for path in asked)
    assert page.complaints() == []
    assert page.js("return window.hit ?? null") is None
    assert page.js("return document.scripts.length") == 0
    assert page.js("return document.querySelectorAll('svg[role=img][aria-label]').length") == 2
    page.find("nav a").click()
    page.wait(lambda: page.find("h1").text == "Features")


def test_they_fit_a_phone_and_are_readable_without_eyes_or_mouse(driver: Any, root: Path) -> None:
    for file in (root / "index.html", next(root.glob("*/*/*/index.html"))):
        for scheme in ("light", "dark"):
            page = opened(driver, file, NARROW, scheme)
            wide, screen = page.js("return [document.documentElement.scrollWidth, innerWidth]")
            assert screen == NARROW[0] and wide <= screen
            back = page.js("return getComputedStyle(document.body).backgroundColor")
            assert back == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
        assert page.js("return [...document.querySelectorAll('img')].every(one => one.alt.length > 3)")
        assert page.js("return new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == page.js(
            "return document.querySelectorAll('[id]').length"
        )
        levels = page.js("return [...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))")
        assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
        page.find("body").send_keys("\ue004")  # tab
        assert page.js("return document.activeElement.className") == "skip"
