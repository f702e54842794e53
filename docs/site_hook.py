"""Hook of MkDocs: files outside `docs/` that the documents link to become pages of the site.

A link such as `../leaderboard.md` is right in the repository and would lead out of the site. Each such file gets a
page below `repository/`: Markdown as it is, other text as a code block, a folder as a list of names. Links to the
README lead to the start page, which includes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS, README, START = "docs", "README.md", "index.md"
REPOSITORY = "repository"
"""Folder of the site with the pages of files outside `docs/`."""
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md", "leaderboard.md")
"""Files that get a page whether or not a document links to them."""
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"(^```.*?^```[ ]*$)", re.DOTALL | re.MULTILINE)
INCLUDE = re.compile(r"^<!-- include: (opening|sections) of the README -->$", re.MULTILINE)
LANGUAGES = {".py": "python", ".json": "json", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside `docs/` that a document, or such a file, links to."""
    texts = {
        f"{DOCS}/{file.src_uri}": Path(file.abs_src_path).read_text(encoding="utf-8")
        for file in files.documentation_pages()
        if file.abs_src_path
    }
    texts[README] = (ROOT / README).read_text(encoding="utf-8")
    waiting = [*ALWAYS, *(target for name, text in texts.items() for target in _targets(name, text))]
    done: set[str] = set()
    while waiting:
        target = waiting.pop()
        if target in done or target == README or target.startswith(f"{DOCS}/") or not (ROOT / target).exists():
            continue
        done.add(target)
        text = _page_text(target)
        files.append(File.generated(config, _site_path(target), content=text))
        waiting += _targets(target, text) if target.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Include the README where a page asks for it, and point links to the site's own pages."""
    uri = page.file.src_uri
    source = uri.removeprefix(f"{REPOSITORY}/") if uri.startswith(f"{REPOSITORY}/") else f"{DOCS}/{uri}"
    if source.endswith(".md.md"):
        source = source.removesuffix(".md")
    return INCLUDE.sub(lambda match: _mapped(README, _readme_part(match[1]), uri), _mapped(source, markdown, uri))


def _readme_part(part: str) -> str:
    """Return the README between its title and its first section, or from there on."""
    text = (ROOT / README).read_text(encoding="utf-8")
    _, _, body = text.partition("\n")
    opening, heading, sections = body.partition("\n## ")
    return opening.strip() if part == "opening" else (heading + sections).strip()


def _mapped(source: str, text: str, uri: str) -> str:
    """Return a text whose links lead to pages of the site.

    Args:
        source: the file that the text is from, from the repository's root.
        text: Markdown.
        uri: the page that shows it, from the site's root.
    """

    def mapped(match: re.Match[str]) -> str:
        link, hash_mark, anchor = match[2].partition("#")
        target = _target(source, link)
        if target is None:
            return match[0]
        path = posixpath.relpath(_site_path(target), posixpath.dirname(uri) or ".")
        return f"{match[1]}{path}{hash_mark}{anchor}{match[3]}"

    return "".join(part if part.startswith("```") else LINK.sub(mapped, part) for part in FENCE.split(text))


def _targets(source: str, text: str) -> list[str]:
    """Return the files of the repository that a text links to."""
    found = (_target(source, match[2].partition("#")[0]) for match in LINK.finditer(FENCE.sub("", text)))
    return [target for target in found if target is not None]


def _target(source: str, link: str) -> str | None:
    """Return the file that a link leads to, from the repository's root; None for addresses and anchors."""
    if not link or "://" in link or link.startswith(("/", "mailto:")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return None if target.startswith("..") else target


def _site_path(target: str) -> str:
    """Return where a file of the repository is in the site, as a path from its root."""
    if target == README:
        return START
    if target.startswith(f"{DOCS}/"):
        return target.removeprefix(f"{DOCS}/")
    if target.endswith(".md"):
        return f"{REPOSITORY}/{target}"
    return f"{REPOSITORY}/{target}/index.md" if (ROOT / target).is_dir() else f"{REPOSITORY}/{target}.md"


def _page_text(target: str) -> str:
    """Return the Markdown of the page of a file or folder of the repository."""
    path = ROOT / target
    if path.is_dir():
        listed = [one for one in path.iterdir() if one.name[0] not in "._"]
        names = sorted(f"{one.name}/" if one.is_dir() else one.name for one in listed)
        lines = [f"# {target}\n", "A folder of the repository. It holds:\n", *(f"- `{name}`" for name in names)]
        return "\n".join(lines)
    text = path.read_text(encoding="utf-8")
    if target.endswith(".md"):
        return text
    return f"# {target}\n\n```{LANGUAGES.get(path.suffix, '')}\n{text.rstrip()}\n```\n"
