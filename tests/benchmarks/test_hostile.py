"""Untrusted files: each is read or refused in one line, whatever it holds; their words are only ever shown."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from latex import check_latex
from markdown_it import MarkdownIt
from PIL import Image
from records import make_key, make_record
from report_runs import NASTY, make_hostile, read_data

from riebench.errors import MAX_MESSAGE_LENGTH, RiebenchError, TaskFileError, near_match
from riebench.generation.regions.masks import View, find_region
from riebench.report import write_report
from riebench.saes.files import load_tensors
from riebench.saes.formats import load_sae
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord, UnitKey
from riebench.tasks.importers.datasets import import_dataset
from riebench.tasks.importers.examples import column_region
from riebench.tasks.importers.published import import_piebench
from riebench.tasks.importers.rows import DatasetSource
from riebench.tasks.masks import RegionMasks
from riebench.tasks.prompts import without_negations
from riebench.tasks.suites import load_task
from riebench.utils import yaml_files
from riebench.utils.files import file_inside, file_sha256, parse_json
from riebench.utils.images import MAX_PIXELS, read_image
from riebench.utils.markup import Document, Heading, MarkupTable, Name, latex_table, markdown_table
from riebench.utils.yaml_files import load_yaml

fuzz: Any = pytest.importorskip("benchmarks.fuzz.fuzz", reason="the benchmarks are in the checkout only")
attempts: Any = pytest.importorskip("benchmarks.fuzz.attempts")
READERS = fuzz.READERS

SLOW = {"data set", "page of records", "page of a run file"}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_or_refuses_everything_in_one_line(name: str, tmp_path: Path) -> None:
    found = fuzz.fuzz(READERS[name], 3 if name in SLOW else 25, tmp_path)
    assert dict(found.wrong) == {}
    assert found.read + found.refused >= 3


FOREIGN = {"mask file": ("EPS", "PPM", "ICO"), "picture": ("EPS",)}
"""Reader -> formats among its valid files that are refused."""


@pytest.mark.parametrize("name", READERS)
def test_variants_begin_from_files_that_are_read(name: str, tmp_path: Path) -> None:
    found = attempts.Findings()
    for files in READERS[name].valid(tmp_path / "valid"):
        attempts.attempt(READERS[name], files, tmp_path, found)
    assert found.wrong == {} and found.refused == len(FOREIGN.get(name, ())) < found.inputs


def findings_of(read: Callable[[Path], object], tmp_path: Path) -> list[str]:
    """What is found wrong with a reader."""
    found = attempts.Findings()
    attempts.attempt(replace(READERS["task"], read=read), {"x/a.txt": b"a"}, tmp_path, found)
    return list(found.wrong)


def test_the_fuzzer_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files touched elsewhere, however they are named; time that a reader hides; panics."""

    def hide(_: Path) -> None:
        try:
            while True:
                pass
        except Exception as error:
            raise RiebenchError("no") from error

    def panic(_: Path) -> None:
        raise BaseException("panic")

    monkeypatch.setattr(attempts, "SECONDS", 0.05)
    outside = tmp_path / "outside"
    for read in (
        lambda place: (place / ".." / "outside" / "secret.png").read_bytes(), lambda _: list(outside.iterdir()),
        lambda _: (tmp_path / "new").mkdir(), lambda place: (place / "x" / "a.txt").rename(outside / "b"),
        lambda _: Path("/etc/passwd").read_bytes(),
    ):  # fmt: skip
        assert [text[:6] for text in findings_of(read, tmp_path)] == ["opened"]
    assert findings_of(hide, tmp_path) == ["TooLongError: more than 0.05 s"]
    assert findings_of(panic, tmp_path) == ["BaseException: panic"]
    assert findings_of(lambda place: (place / "x" / "a.txt").read_bytes(), tmp_path) == []


def refused(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    started = time.process_time()
    with pytest.raises(TaskFileError) as caught:
        load_yaml(path)
    assert time.process_time() - started < 2
    return str(caught.value)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
LISTS = "[" * 20
CHAIN = f"a: &a {LISTS}{LISTS.replace(chr(91), chr(93))}\n" + "".join(
    f"{new}: &{new} {LISTS}*{old}{LISTS.replace(chr(91), chr(93))}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
"""No list here is deep, but the last holds the one before it, and so on."""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "its aliases stand for too much"),
        ("a: " + "[" * 200_000, "nested too deeply"),
        ("a: " + "{a: " * 100_000, "nested too deeply"),
        ("\n".join(" " * n + "a:" for n in range(200)), "nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        (CHAIN, "nested too deeply"),
        ("\n" * 5000 + "a:\tb", "line 5001: a tab"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("a: 1" + ":10" * 3000, "a number of"),
        ("a: " + "x" * 200_000, "a text of 200000 characters"),
        ('a: "\\0"', "control character"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 2001-99-99", "cannot be understood"),
        ("a: !!timestamp x", "cannot be understood"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_yaml_that_costs_the_reader_more_than_the_writer(tmp_path: Path, text: str | bytes, words: str) -> None:
    assert words in refused(tmp_path / "x.yaml", text)


def test_nesting_is_refused_in_our_words_when_the_parser_stops_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(text: str, Loader: object) -> None:
        mark = yaml.Mark("", 203, 0, 203, None, 0)
        raise yaml.scanner.ScannerError("while increasing flow level", mark, "words of another package", mark)

    path = tmp_path / "task.yaml"
    monkeypatch.setattr(yaml, "parse", parse)
    path.write_text("a: " + "[" * 300)
    with pytest.raises(TaskFileError, match=r"task\.yaml, line 1: nested too deeply$"):
        load_yaml(path)
    path.write_text("a: " + "[]" * 300)
    with pytest.raises(TaskFileError, match="words of another package"):
        load_yaml(path)


def test_yaml_of_many_short_values_is_refused_before_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 10 * 10_000 < yaml_files.MAX_VALUES < yaml_files.MAX_FILE_SIZE / 50
    monkeypatch.setattr(yaml_files, "MAX_VALUES", 1000)
    monkeypatch.setattr(yaml, "compose", lambda *_, **__: pytest.fail("it was kept"))
    mapping = "".join(f"a{n}: 1\n" for n in range(500))
    for text in ("a: [" + "1," * 1000 + "]", mapping, "a: &a 1\nb: [" + "*a," * 1000 + "]"):
        assert "more than 1000 values; split it" in refused(tmp_path / "x.yaml", text)


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(TaskFileError, match="is no file"):
            load_yaml(path)
        with pytest.raises(OSError, match="no regular file"):
            file_sha256(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ud800"])
def test_json_complains_in_one_way(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text.encode("utf-8", "surrogatepass"))


def test_messages_are_one_printable_line() -> None:
    message = str(RiebenchError("a\nb\x1b[2J\u202e\ud800\tc" + "x" * 10_000))
    assert message.startswith(r"a b\x1b[2J\u202e\ud800 c") and len(message) <= MAX_MESSAGE_LENGTH + 4
    assert near_match("x" * 10**6, ["xy"]) == ""
    assert near_match("xy", [f"x{n}" for n in range(2000)]) == ""
    assert without_negations("not: " * 100_000 + "whole") == "whole"
    assert column_region("not:" * 990 + "cat", "a cat") == "not: " * 990 + "cat"
    for count in (990, 991):
        assert find_region("not:" * count + "whole", view(), lambda words, view: np.ones((8, 8), bool)).all() == (
            count == 990
        )


def view(side: int = 8) -> View:
    return View("a cat", np.zeros((side, side, 3), np.uint8), None, (1, 1), lambda _: ())


def big_png(path: Path, side: int) -> None:
    """A few kilobytes that claim side x side pixels."""
    Image.new("1", (side, side)).save(path, optimize=True)


def test_pictures_that_claim_too_much_or_are_something_else(tmp_path: Path) -> None:
    big_png(tmp_path / "bomb.png", 12_000)
    assert (tmp_path / "bomb.png").stat().st_size < 100_000 < MAX_PIXELS < 12_000**2
    Image.new("RGB", (8, 8)).save(tmp_path / "program.png", format="EPS")
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:90])
    (tmp_path / "folder.png").mkdir()
    for name, words in (("bomb.png", "claims 12000 x 12000"), ("program.png", "no whole picture|its end is missing"),
                        ("half.png", "no whole picture|its end is missing"), ("folder.png", "no file")):  # fmt: skip
        with pytest.raises(RiebenchError, match=words):
            find_region(f"file: {name}", view(), lambda words, view: np.ones((8, 8), bool), tmp_path)
        with pytest.raises(RiebenchError, match=words):
            read_image(tmp_path, name)


@pytest.mark.parametrize(
    "stored",
    [
        {"size": [10**9, 10**9], "source": [], "target": []},
        {"size": [-4, -4], "source": [], "target": []},
        {"size": [4, 4], "source": [0, 10**30], "target": []},
        {"size": [4, 4], "source": [0, float("nan")], "target": []},
        {"size": [4, 4], "source": "0 1", "target": {}},
        [],
        None,
    ],
)
def test_stored_masks_that_claim_too_much(stored: Any) -> None:
    with pytest.raises(RiebenchError, match="a stored mask is damaged"):
        RegionMasks.from_json(stored)


TASK = """\
category: change_color
version: 1
examples:
  - {{id: one, source: a cat, target: a dog, source_region: "file: {0}", target_region: whole}}
"""


@pytest.mark.parametrize("climb", ["../secret.png", "{root}/secret.png", "link.png", "folder/secret.png", "a/../../x"])
def test_mask_files_lie_in_the_suites_folder(tmp_path: Path, climb: str) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "link.png").symlink_to(tmp_path / "secret.png")
    (suite / "folder").symlink_to(tmp_path)
    (suite / "change_color.yaml").write_text(TASK.format(climb.format(root=tmp_path)))
    with pytest.raises(TaskFileError, match="leaves the suite's folder; put it beside the task files"):
        load_task(suite / "change_color.yaml")


def test_pictures_of_an_import_lie_in_its_folder(tmp_path: Path) -> None:
    from benchmarks.fuzz.given import PIEBENCH, new_intake

    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    images = tmp_path / "images"
    images.mkdir()
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "a\x00b"):
        (tmp_path / "in.json").write_text(json.dumps({"000": {**PIEBENCH["000"], "image_path": name}}))
        intake = new_intake()
        import_piebench(tmp_path / "in.json", images, tmp_path / "out", intake)
        assert [
            reason for _, reason in intake.skipped if "leaves the folder of pictures" in reason or "no path" in reason
        ]
    assert file_inside(images, "a/b.png", "x", "y") == images / "a" / "b.png"


def test_pictures_of_a_data_set_are_opened_with_care(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a column claims to hold: programs, too many pixels, files of others."""
    import datasets

    from benchmarks.fuzz.given import new_intake

    def content(kind: str, side: int = 8) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB" if kind == "EPS" else "1", (side, side), 1).save(buffer, format=kind)
        return buffer.getvalue()

    def taken(name: str, **cells: Any) -> Any:
        pictures = datasets.Features({name: datasets.Image() for name in cells})
        row = {"source": "a cat", "target": "a dog", "category": "1"}
        features = datasets.Features({**{name: datasets.Value("string") for name in row}, **pictures})
        made = datasets.Dataset.from_list([{**row, **cells}], features=features)
        made.to_parquet(str(tmp_path / f"{name}.parquet"))
        intake = new_intake()
        import_dataset(DatasetSource(str(tmp_path / f"{name}.parquet"), offline=True), intake)
        return intake

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    (tmp_path.parent / "secret.png").write_bytes(content("PNG"))
    os.mkfifo(tmp_path / "pipe.png")
    program, whole = {"bytes": content("EPS"), "path": None}, {"bytes": content("PNG"), "path": None}
    # What nobody asks for is not even looked at.
    assert taken("beside", preview=program, mask=whole).n_examples == 1
    for name, cell, words in (
        ("program", program, "no whole picture of a known format"),
        ("bomb", {"bytes": content("PNG", 12_000), "path": None}, "claims 12000 x 12000"),
        ("away", {"bytes": None, "path": str(tmp_path.parent / "secret.png")}, "lies outside the data set"),
        ("pipe", {"bytes": None, "path": str(tmp_path / "pipe.png")}, "is no file"),
        ("link", {"bytes": None, "path": f"{tmp_path}/../secret.png"}, "lies outside the data set"),
    ):
        with pytest.raises(RiebenchError, match=words):
            taken(name, mask=cell)
    (tmp_path / "near.png").write_bytes(content("PNG"))
    assert taken("near", mask={"bytes": None, "path": str(tmp_path / "near.png")}).n_examples == 1


@pytest.mark.parametrize(
    "change",
    [
        {"image": "../../../../secret.png"}, {"image": "/etc/passwd"}, {"source_image": "images/../../x.png"},
        {"image": "a\\..\\b"}, {"image": ""}, {"image": "x" * 300}, {"image": "a\x00"},
        {"key": {"example_id": "../../x"}}, {"key": {"example_hash": "/x"}}, {"key": {"category": "none"}},
        {"key": {"block_set": "mid.0/.."}}, {"key": {"seed": 10**30}}, {"key": {"strength": 1e999}},
    ],
)  # fmt: skip
def test_records_name_nothing_outside_their_folder(folder: RunFolder, change: dict[str, Any]) -> None:
    record = make_record(make_key(), "images/a.png", "0" * 64).model_dump(mode="json")
    record |= {**change, "key": {**record["key"], **change.get("key", {})}}
    folder.path.mkdir(parents=True)
    (folder.path / "records.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(RiebenchError, match=r"records\.jsonl, line 1"):
        folder.records()


class Payload:
    """Unpickled without care it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "it ran")


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_no_checkpoint_runs_code(tmp_path: Path, ending: str, how: str) -> None:
    trap, file = tmp_path / "trap", tmp_path / f"sae{ending}"
    content = {"encoder.weight": torch.ones(3, 2), "activation": Payload(trap)}
    file.write_bytes(pickle.dumps(content)) if how == "pickle" else torch.save(content, file)
    for path in (file, tmp_path):
        with pytest.raises(RiebenchError):
            load_sae(path)
    assert not trap.exists()


def test_no_numpy_archive_is_opened_with_pickles() -> None:
    package = Path(sys.modules["riebench"].__file__ or "").parent
    # Messages of processes that riebench itself started are no files.
    own = package / "runs" / "engines" / "processes.py"
    text = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py") if path != own)
    assert not re.search(
        r"allow_pickle\s*=\s*True|pickle\.loads?\(|weights_only\s*=\s*False|trust_remote_code=True", text
    )


def test_checkpoints_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(1).expand(10**11)}, tmp_path / "claims.pt")
    torch.save({"encoder.weight": torch.zeros(10**5)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    torch.save({((((),),),): torch.zeros(2)}, tmp_path / "named.pt")
    (tmp_path / "head.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (tmp_path / "deep.pt").write_bytes(b"\x80\x02" + b"(" * 10**5 + b"l" * 10**5 + b".")
    for name, words in (("claims.pt", "claims more numbers than the file has"), ("packed.pt", "compressed archive"),
                        ("deep.pt", "damaged")):  # fmt: skip
        with pytest.raises(RiebenchError, match=words):
            load_tensors(tmp_path / name)
    for name in ("named.pt", "head.safetensors"):
        with pytest.raises(RiebenchError):
            load_sae(tmp_path / name)


WORDS = st.text(max_size=40) | st.sampled_from(
    ["a|b", "a\\|b", "a\\", "`x`", "<script>x</script>", "<!-- x", "[x](javascript:y)", "[x][y]", "![x](y)", "a\r\nb",
     "| a | b |", "\u2028", "&lt;", "\\input{/etc/passwd}", "$x_1^2$", "%", "#&~^{}", "\\\\", "\\begin{x}", "–",
     "日本語"]
)  # fmt: skip


@given(st.lists(st.lists(WORDS, min_size=2, max_size=2), min_size=1, max_size=3))
@example([["a|b", "`c` <img src=x onerror=y> [l](javascript:z)"]])
def test_markdown_and_latex_tables_keep_their_cells(cells: list[list[str]]) -> None:
    text = markdown_table(["name", "value"], cells)
    assert len(text.splitlines()) == 2 + len(cells)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    shown = Cells()
    shown.feed(html)
    assert shown.tags <= {"table", "thead", "tbody", "tr", "th", "td", "em", "strong"}
    assert len(shown.cells) == 2 + 2 * len(cells)
    check_html_and_latex(cells)
    check_latex(latex_table(["name", "value"], cells, cells[0][0]))


def check_html_and_latex(cells: list[list[str]]) -> None:
    document = Document((Heading(2, (Name(cells[0][0]),)), MarkupTable.of(["name", "value"], cells)))
    shown = Cells()
    shown.feed(str(document.html(shift=1)))
    shown.close()
    assert shown.tags == {"h3", "div", "table", "thead", "tbody", "tr", "th", "td"}
    given = [" ".join(cell.split()) for row in cells for cell in row]
    assert [cell.strip() for cell in shown.cells] == ["name", "value", *(cell.strip() for cell in given)]
    check_latex(document.latex())


class Cells(HTMLParser):
    """The cells of a table and the tags that were used."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_a_table_cell_says_what_it_was_given() -> None:
    html = MarkdownIt("commonmark").enable("table").render(markdown_table(["a|b"], [["`c` <i> [l](javascript:z) \\"]]))
    shown = Cells()
    shown.feed(html)
    assert [cell.strip() for cell in shown.cells] == ["a|b", "`c` <i> [l](javascript:z) \\"]


class Active(HTMLParser):
    """What a page would run."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str | None] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "script":
            self.scripts.append(values.get("src"))
        self.found += [f"{tag} {name}" for name, value in attrs
                       if name.startswith("on") or (value or "").strip().lower().startswith("javascript:")]  # fmt: skip


def test_no_word_of_a_result_becomes_part_of_the_page(tmp_path: Path) -> None:
    results = tmp_path / "results"
    given = make_hostile(results)
    page = write_report(results, tmp_path / "out", given).page
    active = Active()
    active.feed(page.read_text(encoding="utf-8"))
    assert active.found == []
    prompts = read_data(page.parent, "mine.toy-turbo.change_object.examples")["prompts"]
    assert prompts and all(source == NASTY for source, _ in prompts.values())
    assert len(active.scripts) == 2 and all(src is not None and (page.parent / src).is_file() for src in active.scripts)
    for script in (page.parent / "data").glob("*.js"):
        # A call with two JSON values and nothing else.
        call = re.fullmatch(r"riebench\.add\((\"[^\"]*\"),(.*)\);\n", script.read_text(encoding="utf-8"), re.DOTALL)
        assert call is not None and json.loads(call[2]) is not None and script.read_bytes().isascii()


def test_names_that_become_files_are_checked_where_they_are_made() -> None:
    key = {"task": "t", "task_version": 1, "category": "change_color", "example_id": "a/b", "example_hash": "0",
           "block_set": "all", "strength": 1.0, "seed": 0}  # fmt: skip
    with pytest.raises(ValueError, match="example_id"):
        UnitKey.model_validate(key)
    with pytest.raises(ValueError, match="outside itself"):
        EditRecord.model_validate(
            {"key": {**key, "example_id": "a"}, "status": "ok", "image": "../x", "image_sha256": "0"}
        )
