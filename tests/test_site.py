"""The site of the documents: it builds, needs nothing from elsewhere, and its search works from disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from chromium import Page, chromium
from filelock import FileLock
from paths import ROOT

BUILD = """
import sys
from mkdocs.__main__ import cli
try:
    cli(["build", "--strict", "--site-dir", sys.argv[1]])
except SystemExit as ended:
    if ended.code:
        raise
heavy = {"torch", "diffusers", "riebench"} & sys.modules.keys()
sys.exit(f"building has imported {heavy}" if heavy else 0)
"""
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""Tag -> attribute whose address a browser fetches by itself."""


class Addresses(HTMLParser):
    """What a page loads, what it links to, and the places in it that links may name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses and the id of a tag."""
        values = {name: value or "" for name, value in attrs}
        if tag in LOADED and LOADED[tag] in values:
            self.loaded.append(values[LOADED[tag]])
        if tag == "a" and "href" in values:
            self.linked.append(values["href"])
        self.places |= {values[name] for name in ("id", "name") if name in values}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Build the site once for all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "built-site"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            done = subprocess.run(
                [sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, capture_output=True, text=True,
                env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def pages(site: Path) -> dict[Path, Addresses]:
    """Return every page of the site with its addresses."""
    return {path: Addresses(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_document_is_a_page_that_the_menu_leads_to(site: Path) -> None:
    menu = str(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["nav"])
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert f"'{name}'" in menu, f"{name} is not in the menu of mkdocs.yml"
        page = name.replace("README.md", "index.md").removesuffix(".md") + ".html"
        assert (site / page).is_file(), page


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Addresses]) -> None:
    for path, page in pages.items():
        elsewhere = [url for url in page.loaded if urlsplit(url).netloc or urlsplit(url).scheme not in ("", "data")]
        assert not elsewhere, f"{path.relative_to(site)} loads {elsewhere}"
    for path in site.rglob("*.css"):
        assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", path.read_text(encoding="utf-8")), path


def test_all_links_inside_the_site_lead_somewhere(site: Path, pages: dict[Path, Addresses]) -> None:
    for path, page in pages.items():
        for link in [*page.linked, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_relative_to(site) and target.exists(), f"{path.relative_to(site)}: {link}"
            if target in pages and parts.fragment and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].places, f"{path.relative_to(site)}: {link}"


def test_files_outside_the_documents_are_pages(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    # The text of the README, whose links begin at the repository's root.
    assert 'id="what-you-get"' in start and 'href="new-method.html"' in start
    assert "Submitting a result" in (site / "repository/CONTRIBUTING.html").read_text(encoding="utf-8")
    code = (site / "repository/riebench/methods/editors.py.html").read_text(encoding="utf-8")
    assert "EditorContext" in code
    folder = (site / "repository/riebench/methods/index.html").read_text(encoding="utf-8")
    assert "<code>editors.py</code>" in folder


def test_the_reference_has_what_guides_speak_of(site: Path) -> None:
    names = {
        "methods": ("riebench.methods.base.EditContext.sae", "riebench.generation.edits.StaticEdit"),
        "tasks": ("riebench.tasks.schema.Setting.edit_steps", "riebench.tasks.schema.EditTask"),
        "metrics": ("riebench.scoring.metrics.base.Sample", "riebench.scoring.metrics.networks.Networks.get"),
        "saes": ("riebench.saes.sae.SparseAutoencoder.encode",),
        "models": ("riebench.models.families.base.Family.sites", "riebench.models.spec.Preset"),
        "results": ("riebench.store.records.EditRecord", "riebench.store.folder.RunFolder.records"),
        "errors": ("riebench.errors.RiebenchError",),
    }
    for page, wanted in names.items():
        text = (site / "api" / f"{page}.html").read_text(encoding="utf-8")
        for name in wanted:
            assert f'id="{name}"' in text, f"{page} lacks {name}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Open a browser."""
    yield from chromium()


@pytest.mark.browser
def test_the_search_finds_pages_opened_from_disk(site: Path, browser: Any) -> None:
    page = Page(browser, site / "index.html")
    browser.get(page.file.as_uri())
    page.find("[data-md-component=search-query]").send_keys("prompt-to-prompt")
    found = "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
    page.wait(lambda: any("configurations.html" in link for link in page.js(found)))
    assert all(url.startswith("file:") for url in page.requests()), page.requests()
