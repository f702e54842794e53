"""The report in a real Chromium, opened from disk without a network."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

import numpy as np
import pytest
from chromium import NARROW, WIDE, Page, chromium
from report_runs import HOSTILE, NASTY, make_block_results, make_hostile, make_results, make_run, tasks

from riebench.report import write_report
from riebench.report.data import read_groups
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


FIRST = "#show&category=change_object&example=change_object-0&setting=sae&blocks=all&strength=1&seed=0"


def test_the_first_screen_holds_finding_heat_map_and_plot(driver: Any, tmp_path: Path) -> None:
    results = make_block_results(tmp_path / "results")
    page = Page(driver, write_report(results, tmp_path / "report", tasks(12), board=BOARD).page).open()
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().bottom)"
    for css in (".findings li", ".found-maps table", ".found-plot svg", ".found-plot .legend"):
        bottoms = page.js(script, css)
        assert bottoms and 0 < max(bottoms) <= WIDE[1], css
    sentence = page.find(".findings li").text
    assert sentence.startswith("mid.0 gains more than each other block in object (+10.")


def test_grey_lines_are_named_when_pointed_at_and_by_keyboard(driver: Any, tmp_path: Path) -> None:
    for number in range(10):
        access = ("P", "PM", "PA", "PAM", "PT", "PV", "PAT", "PMV", "M", "A")[number]
        make_run(
            tmp_path / "results", f"m{number}", f"m{number}", ("none",), (0.5, 1.0), 2, pictures=False, access=access
        )
    page = Page(driver, write_report(tmp_path / "results", tmp_path / "report", tasks(2), board=BOARD).page).open()
    assert len(page.js("return [...document.querySelectorAll('.legend .mark')]")) == 8 + 1
    shown = (
        "return [...document.querySelectorAll('.plot .rest')]"
        ".map(e => [e.getAttribute('aria-label').split(',')[0], getComputedStyle(e.querySelector('text')).visibility])"
    )
    marks = "return [...document.querySelectorAll('.plot .rest use')].map(e => getComputedStyle(e).visibility)"
    assert page.js(marks) == ["visible"] * 4
    names = [name for name, _ in page.js(shown)]
    assert len(names) == 2 and {look for _, look in page.js(shown)} == {"hidden"}
    page.js("document.querySelector('.plot .rest').focus()")
    assert page.js(shown) == [[names[0], "visible"], [names[1], "hidden"]]


def test_the_gallery_opens_on_sae_with_best_median_and_worst(driver: Any, tmp_path: Path) -> None:
    results = make_block_results(tmp_path / "results", judged=True)
    page = Page(driver, write_report(results, tmp_path / "report", tasks(12), board=BOARD).page).open()
    chosen = {name: page.js("return document.getElementById(`choose-${arguments[0]}`).value", name)
              for name in ("setting", "category", "blocks", "strength", "seed")}  # fmt: skip
    assert chosen == {"setting": "sae", "category": "", "blocks": "all", "strength": "1", "seed": ""}
    assert page.text("count") == "6 edits: best, median and worst of 2 categories."
    assert page.cards(".place") == ["best of 24", "median of 24", "worst of 24"] * 2
    (group,) = read_groups(results)
    gains = sorted(
        (value for c in group.configurations if (c.setting, c.block_set) == ("sae", "all")
         for seeds in c.values["clip_gain"]["change_object"].values() for value in seeds), reverse=True)  # fmt: skip
    found = [re.search(r"gain (\S+)", text) for text in page.cards(".facts")[:3]]
    assert [one and one[1] for one in found] == [f"{100 * value:+.2f}" for value in (gains[0], gains[11], gains[-1])]


def test_every_picture_has_its_prompts_block_numbers_and_verdict(page: Page) -> None:
    page.open()
    cards = page.cards()
    assert len(cards) == 6 and len(page.js("return [...document.querySelectorAll('#cards img')]")) == 18
    for text in cards:
        assert HOSTILE in text and re.search(r"Target\s+a boat \d</script>", text)
        assert "blocks all · gain +2.00 · LPIPS 0.100 · seed" in text and "gain above 0" in text
    page.find("#cards button").click()
    page.wait(lambda: page.full)
    assert page.text("edited-caption") == "edited: blocks all · gain +2.00 · LPIPS 0.100 · seed 0 · gain above 0"
    assert page.text("source-prompt") == HOSTILE and page.text("target-prompt") == "a boat 0</script>"


def test_filters_and_search_choose_the_cards(page: Page) -> None:
    page.open()
    page.filter("category", "change_color")
    assert page.text("count") == "6 edits, the best first." and page.cards(".place")[0] == "best of 6"
    page.filter("seed", "1")
    page.filter("blocks", "mid.0")
    page.filter("strength", "2")
    assert [text.startswith("blocks mid.0 · gain +4.00") for text in page.cards(".facts")] == [True] * 3
    page.filter("category", "")
    page.search("BOAT 2")
    assert page.text("count") == "2 edits, the best first."
    assert all("a boat 2" in text for text in page.cards("dl"))
    page.search("change_color-1")
    assert len(page.cards()) == 1
    page.search("nothing like it")
    assert page.text("count") == "No edit fits these choices." and page.cards() == []
    page.search("boat")
    page.filter("setting", "no_edit")
    # Cards near the window are filled when the data of their configuration have come.
    page.wait(lambda: "blocks none" in page.cards(".facts")[0])
    assert page.text("count") == "6 edits, the best first."
    assert page.complaints() == []


def test_missing_pictures_are_noted_exactly_once(driver: Any, tmp_path: Path) -> None:
    results = make_block_results(tmp_path / "results", 3)
    page = Page(driver, write_report(results, tmp_path / "report", tasks(), board=BOARD).page).open()
    text = page.js("return document.body.innerText")
    assert text.count("No edited picture is in this results folder") == 1 and "no picture" not in text
    assert all(re.fullmatch(r"Scores of change_\w+-\d, seed \d", text) for text in page.cards("button"))
    assert len(page.cards("button")) == 6
    page.find("#cards button").click()
    page.wait(lambda: page.full)
    assert not page.find("#pictures").is_displayed() and not page.find("#note").is_displayed()
    assert page.find("#scores tbody td").is_displayed()
    assert page.js("return document.body.innerText").count("results folder") == text.count("results folder")


def test_clicks_choose_what_is_shown_and_nothing_leaves_the_folder(page: Page, report: Path) -> None:
    page.open()
    page.filter("category", "change_color")
    page.filter("seed", "1")
    page.find("#cards button").click()
    page.wait(lambda: page.full)
    assert page.state == {"run": "mine/toy-turbo", "category": "change_color", "example": "change_color-0",
                          "setting": "sae", "blocks": "all", "strength": "1", "seed": "1"}  # fmt: skip
    page.choose("blocks", "mid.0")
    page.find("#next").click()
    page.wait(lambda: page.state["example"] == "change_color-1")
    page.find("#next").click()
    page.wait(lambda: page.state["example"] == "change_color-2")
    assert (page.state["blocks"], page.state["seed"]) == ("mid.0", "1")
    assert page.find("#next").get_attribute("disabled")
    page.js("document.getElementById('pictures').scrollIntoView()")
    page.wait(lambda: page.loaded)
    assert page.find("#show-difference [role=img]").get_attribute("aria-label")
    page.find("#one").send_keys("\ue00c")  # escape
    page.wait(lambda: not page.full)
    assert page.driver.current_url.endswith("#gallery")
    asked = page.requests()
    assert len(asked) > 6
    assert all(unquote(urlparse(url).path).startswith(f"{report.parent}/") and url.startswith("file:") for url in asked)
    assert page.complaints() == []


def test_the_slider_goes_through_strengths_by_keyboard(page: Page) -> None:
    page.open(FIRST)
    slider = page.find("#one-strength")
    shown = [page.picture("edited")]
    slider.send_keys("\ue014")  # arrow right
    page.wait(lambda: page.state["strength"] == "2")
    assert slider.get_attribute("aria-valuetext") == "strength 2"
    assert page.text("live") == "Strength 2: clip gain +4.00, lpips 0.200, psnr bg 31.25; gain above 0"
    shown.append(page.picture("edited"))
    slider.send_keys("\ue011")  # home
    page.wait(lambda: page.state["strength"] == "0.5")
    assert "clip gain +1.00" in page.text("live")
    shown.append(page.picture("edited"))
    assert len(set(shown)) == 3
    assert page.find("#strengths tr[aria-current] th").text == "0.5"
    assert page.js("return document.activeElement.id") == "one-strength"


def test_a_link_opens_the_very_same_edit(page: Page) -> None:
    page.open(FIRST.replace("change_object", "change_color"))
    page.choose("blocks", "up.0.1")
    wanted, link = page.state, page.find("#this-link").get_attribute("href")
    assert page.driver.current_url == link
    picture = page.picture("edited")
    page.open("#" + urlparse(link).fragment)
    assert page.state == wanted and page.picture("edited") == picture
    page.js("location.hash = arguments[0]", urlparse(link).fragment.replace("up.0.1", "mid.0"))
    page.wait(lambda: page.state["blocks"] == "mid.0")


def test_a_link_to_what_there_is_not_shows_what_there_is(page: Page) -> None:
    page.open("#show&run=x&category=change_color&example=<b>&setting=nobody&blocks=q&strength=abc&seed=9")
    assert page.state["category"] == "change_color" and page.state["setting"] == "sae"
    assert page.full and page.complaints() == []


def test_untrusted_words_stay_words(page: Page) -> None:
    page.open(FIRST)
    assert page.text("source-prompt") == HOSTILE and HOSTILE in page.cards()[0]
    assert page.text("setting-about") == "sae <b>bold</b>"
    assert page.js("return window.hit ?? null") is None


def test_no_word_of_a_result_becomes_part_of_the_page(driver: Any, tmp_path: Path) -> None:
    given = make_hostile(tmp_path / "results")
    page = Page(driver, write_report(tmp_path / "results", tmp_path / "report", given).page).open()
    assert page.text("setting-about") == NASTY
    for category in ("change_color", "change_object"):
        page.filter("category", category)
        assert page.cards("dd")[0].split() == NASTY.split()
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
    place = (results / "mine" / "toy-turbo").rename(results / "mine" / "a#b %41?")
    for file in place.glob("*/run.json"):
        meta = json.loads(file.read_text())
        meta["spec"]["model"]["name"] = "a#b %41?"
        file.write_text(json.dumps(meta))
    page = Page(driver, write_report(results, tmp_path / "report", tasks(), board=BOARD).page).open(FIRST)
    assert page.state["run"] == "mine/a#b %41?" and page.picture("edited") is not None


def test_a_mask_that_is_none_hides_nothing_else(driver: Any, tmp_path: Path) -> None:
    results = make_results(tmp_path / "results")
    for file in (results / "mine" / "toy-turbo" / "shared" / "masks").iterdir():
        file.write_text(json.dumps({"size": [10**9, 10**9], "source": [0, 5], "target": "x"}))
    page = Page(driver, write_report(results, tmp_path / "report", tasks(), board=BOARD).page).open(FIRST)
    assert page.text("show-source-mask") == page.text("show-target-mask") == "no mask"
    assert "clip_gain" in page.text("scores") and page.complaints() == []


def test_a_missing_picture_is_marked_and_keeps_its_scores(page: Page) -> None:
    page.open("#show&category=change_object&example=change_object-2&setting=sae&blocks=all&strength=2&seed=1")
    assert page.text("show-edited") == "no picture" and not page.find("#note").is_displayed()
    assert page.text("missing-pictures").count("1 of 120 edited pictures are not in the results folder") == 1
    assert page.picture("edited") is None and page.picture("source") is not None
    assert page.find("#scores tbody td").text == "+4.00"
    page.find("#one-strength").send_keys("\ue011")
    page.wait(lambda: page.picture("edited") is not None)
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
    marks = "return [...document.querySelectorAll('svg [id^=\"plot0-s0-\"]')].map(e => getComputedStyle(e).display)"
    before = page.js(marks)
    assert before and "none" not in before
    page.find("fieldset[data-plot=plot0] input[data-series='0']").click()
    assert set(page.js(marks)) == {"none"}
    page.find("fieldset[data-plot=plot0] input[data-series='0']").click()
    assert page.js(marks) == before


def test_nothing_scrolls_sideways_on_a_phone(page: Page) -> None:
    for fragment in ("", FIRST):
        page.open(fragment, size=NARROW)
        page.js("for (const one of document.querySelectorAll('details')) one.open = true")
        wide, screen = page.js("return [document.documentElement.scrollWidth, innerWidth]")
        assert screen == NARROW[0] and wide <= screen
    wide, room = page.js("const one = document.getElementById('one'); return [one.scrollWidth, one.clientWidth]")
    assert wide <= room


def test_dark_and_light_are_readable(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.open(scheme=scheme)
        pairs = page.js(
            "document.querySelectorAll('details').forEach(one => one.open = true);"
            "const colour = text => { const c = document.createElement('canvas').getContext('2d');"
            " c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); };"
            "const page = getComputedStyle(document.body);"
            "const found = [['body', colour(page.color), colour(page.backgroundColor)]];"
            "const texts = '.heat td, .note, thead th, nav a, .aside, .card p, .card dt, .lead, .small-print, #count';"
            "for (const cell of document.querySelectorAll(texts)) {"
            " const own = getComputedStyle(cell); let under = own.backgroundColor;"
            " const around = getComputedStyle(cell.closest('.card') ?? document.body);"
            " if (under === 'rgba(0, 0, 0, 0)') under = around.backgroundColor;"
            " found.push([cell.className || cell.tagName, colour(own.color), colour(under)]); } return found;"
        )
        assert len(pairs) > 40 and len(page.cards()) == 6
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
        "return [...document.querySelectorAll('select, input, button, a[href], [tabindex=\"0\"], svg, svg [tabindex]')]"
        ".filter(e => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label')))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []
    page.find("body").send_keys("\ue004")  # tab
    assert page.js("return document.activeElement.className") == "skip"
    script = "return [...document.querySelectorAll('h1, h2, h3, h4')].map(e => Number(e.tagName[1]))"
    levels = page.js(script)
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.js("return document.querySelectorAll('[aria-live=polite]').length") == 2


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
    assert len(page.cards()) == 6
    started = time.monotonic()
    page.filter("category", "change_color")
    assert len(page.cards()) == 60 and time.monotonic() - started < 5
    assert len([url for url in page.requests() if "/pictures/" in url]) < 150
    page.js("arguments[0].click()", page.find("#more"))
    assert len(page.cards()) == 120 and "(120 of 2500 are shown)" in page.text("more")
    started = time.monotonic()
    page.search("boat 1249")
    assert len(page.cards()) == 2 and time.monotonic() - started < 5


def _take_as_recorded(run: Any) -> None:
    """Records the pictures as they are now."""
    from riebench.utils.files import file_sha256

    run.append_many(
        record.model_copy(update={"image_sha256": file_sha256(run.path / record.image)}) for record in run.records()
    )
