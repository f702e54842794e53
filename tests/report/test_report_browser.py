"""The report in a real Chromium, opened from disk without a network."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

import numpy as np
import pytest
from chromium import NARROW, WIDE, Page, chromium
from report_runs import HOSTILE, NASTY, make_hostile, make_results, make_run, tasks

from riebench.report import write_report
from riebench.utils.images import encode_png
from riebench.utils.markup import Document, Heading, MarkupTable, Name

pytestmark = pytest.mark.browser

BOARD = Document(
    (
        Heading(1, ("Leaderboard",)),
        Heading(2, (Name("mine"), " on ", Name("toy-turbo"))),
        MarkupTable(("rank", "setting", "area"), (("1", "sae", "0.5"),)),
    )
)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """One headless Chromium for all tests of this file."""
    yield from chromium()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two settings; one picture of it is not there."""
    results = make_results(tmp_path_factory.mktemp("made") / "results")
    next((results / "mine" / "toy-turbo" / "sae" / "images").glob("change_object-2.all.x2.1.*")).unlink()
    return write_report(results, tmp_path_factory.mktemp("out") / "report", tasks(), board=BOARD).page


@pytest.fixture
def page(driver: Any, report: Path) -> Page:
    return Page(driver, report)


def test_clicks_choose_what_is_shown_and_nothing_leaves_the_folder(page: Page, report: Path) -> None:
    page.open()
    assert page.state == {"run": "mine/toy-turbo", "category": "change_object", "example": "change_object-0",
                          "setting": "sae", "blocks": "all", "strength": "1", "seed": "0"}  # fmt: skip
    page.choose("category", "change_color")
    page.choose("blocks", "mid.0")
    page.choose("seed", "1")
    page.find("#next").click()
    page.wait(lambda: page.state["example"] == "change_color-1")
    assert (page.state["blocks"], page.state["seed"]) == ("mid.0", "1")
    page.js("arguments[0].click()", page.find("#all li:nth-child(3) button"))
    page.wait(lambda: page.state["example"] == "change_color-2")
    assert page.find("#next").get_attribute("disabled")
    page.find("#gallery").click()
    page.wait(lambda: page.loaded)
    assert page.find("#show-difference [role=img]").get_attribute("aria-label")
    asked = page.requests()
    assert len(asked) > 6
    assert all(unquote(urlparse(url).path).startswith(f"{report.parent}/") and url.startswith("file:") for url in asked)
    assert page.complaints() == []


def test_the_slider_goes_through_strengths_by_keyboard(page: Page) -> None:
    page.open()
    slider = page.find("#choose-strength")
    shown = [page.picture("edited")]
    slider.send_keys("\ue014")  # arrow right
    page.wait(lambda: page.state["strength"] == "2")
    assert slider.get_attribute("aria-valuetext") == "strength 2"
    assert page.text("live") == "Strength 2: clip gain +4.00, lpips 0.200, psnr bg 31.25"
    shown.append(page.picture("edited"))
    slider.send_keys("\ue011")  # home
    page.wait(lambda: page.state["strength"] == "0.5")
    assert "clip gain +1.00" in page.text("live")
    shown.append(page.picture("edited"))
    assert len(set(shown)) == 3
    assert page.find("#strengths tr[aria-current] th").text == "0.5"
    assert page.js("return document.activeElement.id") == "choose-strength"


def test_a_link_opens_the_very_same_edit(page: Page) -> None:
    page.open()
    page.choose("category", "change_color")
    page.choose("blocks", "up.0.1")
    wanted, link = page.state, page.find("#this-link").get_attribute("href")
    assert page.driver.current_url == link
    picture = page.picture("edited")
    page.open("#" + urlparse(link).fragment)
    assert page.state == wanted and page.picture("edited") == picture
    top = page.js("return document.getElementById('gallery').getBoundingClientRect().top")
    assert top < WIDE[1] / 2
    page.js("location.hash = arguments[0]", urlparse(link).fragment.replace("up.0.1", "mid.0"))
    page.wait(lambda: page.state["blocks"] == "mid.0")


def test_a_link_to_what_there_is_not_shows_what_there_is(page: Page) -> None:
    page.open("#show&run=x&category=change_color&example=<b>&setting=nobody&blocks=q&strength=abc&seed=9")
    assert page.state["category"] == "change_color" and page.state["setting"] == "sae"
    assert page.complaints() == []


def test_untrusted_words_stay_words(page: Page) -> None:
    page.open()
    assert page.text("source-prompt") == HOSTILE
    assert page.text("setting-about") == "sae <b>bold</b>"
    assert page.js("return window.hit ?? null") is None


def test_no_word_of_a_result_becomes_part_of_the_page(driver: Any, tmp_path: Path) -> None:
    given = make_hostile(tmp_path / "results")
    page = Page(driver, write_report(tmp_path / "results", tmp_path / "report", given).page).open()
    assert page.text("source-prompt") == NASTY and page.text("setting-about") == NASTY
    for category in ("change_color", "change_object"):
        page.choose("category", category)
        page.js("for (const one of document.querySelectorAll('details')) one.open = true")
    page.open(f"#show&category={quote(NASTY)}&example={quote(NASTY)}&setting={quote(NASTY)}&strength={quote(NASTY)}")
    assert page.js("return window.hit ?? null") is None
    made = "return document.querySelectorAll('#trap, img[onerror], svg[onload], a[href^=\"javascript:\"]').length"
    assert page.js(made) == 0
    assert page.js("return document.scripts.length") == page.js(
        "return [...document.scripts].filter(one => one.src.startsWith('file:')).length"
    )
    assert page.complaints() == []


def test_a_model_may_be_called_what_means_something_in_an_address(driver: Any, tmp_path: Path) -> None:
    results = make_results(tmp_path / "results")
    (results / "mine" / "toy-turbo").rename(results / "mine" / "a#b %41?")
    page = Page(driver, write_report(results, tmp_path / "report", tasks(), board=BOARD).page).open()
    assert page.state["run"] == "mine/a#b %41?" and page.picture("edited") is not None


def test_a_mask_that_is_none_hides_nothing_else(driver: Any, tmp_path: Path) -> None:
    results = make_results(tmp_path / "results")
    for file in (results / "mine" / "toy-turbo" / "shared" / "masks").iterdir():
        file.write_text(json.dumps({"size": [10**9, 10**9], "source": [0, 5], "target": "x"}))
    page = Page(driver, write_report(results, tmp_path / "report", tasks(), board=BOARD).page).open()
    assert page.text("show-source-mask") == page.text("show-target-mask") == "no mask"
    assert "clip_gain" in page.text("scores") and page.complaints() == []


def test_a_missing_picture_is_marked_and_keeps_its_scores(page: Page) -> None:
    page.open("#show&category=change_object&example=change_object-2&setting=sae&blocks=all&strength=2&seed=1")
    assert "not in the results folder" in page.find("#note").text
    assert page.picture("edited") is None and page.picture("source") is not None
    assert page.find("#scores tbody td").text == "+4.00"
    page.find("#choose-strength").send_keys("\ue011")
    page.wait(lambda: page.picture("edited") is not None)
    assert not page.find("#note").is_displayed()
    assert page.complaints() == []


def test_difference_and_mask_are_what_the_pictures_give(page: Page) -> None:
    page.open("#show&category=change_object&example=change_object-0&setting=sae&blocks=all&strength=2&seed=0")
    page.js("document.getElementById('pictures').scrollIntoView()")
    page.wait(lambda: page.loaded)
    page.find("#brightness option[value='1']").click()
    pixels = {name: _pixel(page, name) for name in ("show-difference", "show-source-mask")}
    # Source 10, edited 2 * 40 + 20 = 100; the mask covers the middle of the picture.
    assert pixels["show-difference"] == pytest.approx([90, 90, 90], abs=2)
    red, green, blue = pixels["show-source-mask"]
    assert red > 100 and green < red - 60 and blue < red - 60


def _pixel(page: Page, name: str) -> list[int]:
    """The colour that is on the screen a little above the middle of a frame."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(page.find(f"#{name}").screenshot_as_png)) as shot:
        found = np.asarray(shot.convert("RGB"))
    return [int(value) for value in found[int(found.shape[0] * 0.4), found.shape[1] // 2]]


def test_the_legend_hides_a_setting(page: Page) -> None:
    page.open()
    marks = "return [...document.querySelectorAll('svg [id^=\"plot0-s1-\"]')].map(e => getComputedStyle(e).display)"
    before = page.js(marks)
    assert before and "none" not in before
    page.find("fieldset[data-plot=plot0] input[data-series='1']").click()
    assert set(page.js(marks)) == {"none"}
    page.find("fieldset[data-plot=plot0] input[data-series='1']").click()
    assert page.js(marks) == before


def test_nothing_scrolls_sideways_on_a_phone(page: Page) -> None:
    page.open(size=NARROW)
    page.js("for (const one of document.querySelectorAll('details')) one.open = true")
    wide, screen = page.js("return [document.documentElement.scrollWidth, innerWidth]")
    assert screen == NARROW[0] and wide <= screen


def test_dark_and_light_are_readable(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.open(scheme=scheme)
        pairs = page.js(
            "document.querySelectorAll('details').forEach(one => one.open = true);"
            "const colour = text => { const c = document.createElement('canvas').getContext('2d');"
            " c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); };"
            "const page = getComputedStyle(document.body);"
            "const found = [['body', colour(page.color), colour(page.backgroundColor)]];"
            "for (const cell of document.querySelectorAll('.heat td, .note, thead th, nav a, .aside')) {"
            " const own = getComputedStyle(cell); let under = own.backgroundColor;"
            " if (under === 'rgba(0, 0, 0, 0)') under = page.backgroundColor;"
            " found.push([cell.className || cell.tagName, colour(own.color), colour(under)]); } return found;"
        )
        assert len(pairs) > 40
        light = _luminance(pairs[0][2])
        assert light > 0.9 if scheme == "light" else light < 0.1
        assert [(name, a, b) for name, a, b in pairs if _contrast(a, b) < 4.5] == []


def _luminance(colour: list[int]) -> float:
    parts = [c / 255 for c in colour]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: list[int], other: list[int]) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_everything_one_can_use_has_a_name_and_is_reached_by_tab(page: Page) -> None:
    page.open()
    nameless = page.js(
        "return [...document.querySelectorAll('select, input, button, a[href], [tabindex=\"0\"], svg[role=img]')]"
        ".filter(e => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label')))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []
    page.find("body").send_keys("\ue004")  # tab
    assert page.js("return document.activeElement.className") == "skip"
    script = "return [...document.querySelectorAll('h1, h2, h3, h4')].map(e => Number(e.tagName[1]))"
    levels = page.js(script)
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.js("return document.querySelectorAll('#live[aria-live=polite]').length") == 1


@pytest.mark.slow
def test_five_thousand_pictures_do_not_make_it_slow(
    driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Waiting for the disk fifteen thousand times is no part of what is measured.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    results = tmp_path / "results"
    run = make_run(results, "sae", "sae", ("all",), (1.0,), examples=1250)
    for number, path in enumerate(sorted((run.path / "images").iterdir())):
        value = np.full((16, 16, 3), (number % 256, number // 256, 7), np.uint8)
        path.write_bytes(encode_png(value))
    _take_as_recorded(run)
    file = write_report(results, tmp_path / "report", tasks(1250), board=BOARD).page
    assert len(list((file.parent / "pictures").iterdir())) >= 5000
    page = Page(driver, file).open()
    paints = page.js("return performance.getEntriesByType('paint').map(one => one.startTime)")
    assert paints and max(paints) < 2000
    page.wait(lambda: page.js("return document.querySelectorAll('#all img').length") == 60)
    assert len([url for url in page.requests() if "/pictures/" in url]) < 100
    started = time.monotonic()
    page.choose("category", "change_color")
    page.wait(lambda: page.state["category"] == "change_color")
    assert time.monotonic() - started < 5
    page.js("arguments[0].click()", page.find("#more"))
    assert page.js("return document.querySelectorAll('#all li').length") == 120


def _take_as_recorded(run: Any) -> None:
    """Records the pictures as they are now."""
    from riebench.utils.files import file_sha256

    run.append_many(
        record.model_copy(update={"image_sha256": file_sha256(run.path / record.image)}) for record in run.records()
    )
