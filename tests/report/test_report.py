"""The report's folder: what is in it, that it says what is missing, and that it stays inside itself."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from report_runs import HOSTILE, STRENGTHS, make_results, read_data, tasks
from typer.testing import CliRunner

from riebench.analysis.tradeoff import BUDGETS
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.jobs.run import say_page
from riebench.report import write_report
from riebench.report.data import read_groups
from riebench.report.examples import NO_VERDICT, VERDICTS
from riebench.report.heat_maps import block_views
from riebench.report.page import board_html
from riebench.report.plots import plot_points
from riebench.store.folder import RunFolder
from riebench.store.records import BlockFeatures
from riebench.utils.markup import BulletList, Code, Document, Heading, MarkupTable, Name, Paragraph

BOARD = Document(
    (
        Heading(1, ("Leaderboard",)), Heading(2, (Name("mine"), " on ", Name("toy-turbo"))),
        MarkupTable(("rank", "area"), (("1", "0.5"),)), Paragraph((Code("area"), ": area & more.")),
    ),
    "made by X",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("made") / "results")


@pytest.fixture(scope="module")
def report(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "report"
    write_report(results, out, tasks(), board=BOARD)
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_call_writes_the_same_bytes_and_nothing_else(results: Path, report: Path) -> None:
    before = bytes_of(report)
    write_report(results, report, tasks(), board=BOARD)
    assert bytes_of(report) == before
    assert sorted(json.loads(before["files.json"])) == sorted(set(before) - {"files.json"})


def test_two_folders_are_alike(results: Path, report: Path, tmp_path: Path) -> None:
    write_report(results, tmp_path / "other", tasks(), board=BOARD)
    assert bytes_of(tmp_path / "other") == bytes_of(report)


def test_data_names_pictures_that_are_there_with_the_stored_scores(results: Path, report: Path) -> None:
    data = read_data(report, "mine.toy-turbo.change_color.sae")
    assert data["metrics"][:2] == ["clip_gain", "lpips"]
    assert len(data["units"]) == 3 * 3 * 3 * 2
    run = RunFolder(results / "mine" / "toy-turbo" / "sae")
    by_key = {(r.key.example_id, r.key.block_set, r.key.strength, r.key.seed): r for r in run.records()}
    for example, _, blocks, strength, seed, picture, note, values, verdict in data["units"]:
        record = by_key[example, blocks, strength, seed]
        assert (report / picture).read_bytes() == (run.path / str(record.image)).read_bytes()
        assert note == "" and VERDICTS[verdict] == "gain above 0"
        assert values[:2] == pytest.approx([0.02 * strength, 0.1 * strength])


def test_prompts_and_masks_go_with_the_example_they_were_made_from(report: Path) -> None:
    shared = read_data(report, "mine.toy-turbo.change_object.examples")
    assert len(shared["pairs"]) == 6
    assert all(source == HOSTILE for source, _ in shared["prompts"].values())
    masks = next(iter(read_data(report, "mine.toy-turbo.change_object.masks").values()))
    assert masks["size"] == [16, 16] and masks["source"][:2] == [4 * 16 + 4, 8]


def test_prompts_of_an_example_that_has_changed_are_not_shown(results: Path, tmp_path: Path) -> None:
    changed = [
        task.model_copy(update={"examples": tuple(e.model_copy(update={"target": "a tree"}) for e in task.examples)})
        for task in tasks()
    ]
    write_report(results, tmp_path / "out", changed, board=BOARD)
    assert read_data(tmp_path / "out", "mine.toy-turbo.change_object.examples")["prompts"] == {}


def test_untrusted_words_are_never_markup(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "<b>bold</b>" not in page and "&lt;b&gt;bold&lt;/b&gt;" in page
    assert page.count("<script") == 2 and " onerror=" not in page
    words = (Name("<script>x</script>"), Code("<b onclick=x>"))
    table = MarkupTable(('"><script>',), (("<img src=x> [l](javascript:x)",),))
    html = board_html(Document((Heading(2, words), Paragraph(words), BulletList((words,)), table)))
    assert "<script" not in html and "<img" not in html and 'href="javascript' not in html
    assert "<b" not in html and '"">' not in html and html.count("&lt;script&gt;") == 5


def test_the_page_asks_for_nothing_outside_its_folder(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    asked = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert all(name == "data:," or (report / name).is_file() for name in asked)
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)


def test_the_leaderboard_is_the_text_of_the_file() -> None:
    html = board_html(BOARD)
    assert "made by X" not in html
    assert "<h3>mine on toy-turbo</h3>" in html
    assert '<th scope="col">rank</th>' in html and "<td>0.5</td>" in html
    assert 'aria-label="mine on toy-turbo"' in html and "Leaderboard" not in html
    assert "<p><code>area</code>: area &amp; more.</p>" in html


def test_every_configuration_is_a_point_with_words_and_a_row(results: Path, report: Path) -> None:
    (group,) = read_groups(results)
    points, unscored = plot_points(group.configurations)
    assert unscored == 0 and len(points) == 1 + 3 * len(STRENGTHS)
    assert {(p.block_set, p.whole) for p in points if p.setting == "sae"} == {
        ("mid.0", False),
        ("up.0.1", False),
        ("all", True),
    }
    strong = next(p for p in points if p.block_set == "all" and p.strength == 2.0)
    assert (strong.gain, strong.distance) == pytest.approx((0.04, 0.2))
    assert [p.end for p in points if p.setting == "no_edit"] == [True]
    page = (report / "index.html").read_text(encoding="utf-8")
    for point in points:
        assert not point.whole or f"<title>{point.words}</title>" in page
    assert page.count('<th scope="row">sae</th>') == 9
    assert page.count("stroke-dasharray: 0.8,2.4") >= len(BUDGETS)
    # Single blocks are in the table and in the heat maps, not in the drawing.
    assert page.count("<title>sae, blocks all") == len(STRENGTHS) and "<title>sae, blocks mid.0" not in page
    assert "These results lack target_prompt" in page


def test_heat_maps_put_effect_beside_feature_share(results: Path) -> None:
    (group,) = read_groups(results)
    (view,) = (view for view in block_views(group) if view.label == "sae")
    gain, added, distance, removed = view.maps
    assert gain.columns == ("object", "color", "all") and len(gain.rows) == 9
    cells = dict(gain.rows)
    assert [cell.text for cell in cells["all x2"]] == ["+4.00"] * 3
    assert cells["all x2"][0].heat == 1 and cells["mid.0 x1"][0].heat == 0.5
    assert cells["all x2"][2].title == "12/12 scored"
    assert {name: [cell.text for cell in row] for name, row in added.rows} == {
        "mid.0": ["0.75"] * 2,
        "up.0.1": ["0.25"] * 2,
    }
    assert dict(removed.rows)["up.0.1"][0].text == "0.50"
    assert dict(distance.rows)["all x0.5"][0].text == "0.050"


def test_edits_that_switched_nothing_say_none(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    run = RunFolder(copy / "mine" / "toy-turbo" / "sae")
    first = next(record for record in run.records() if record.features and record.key.strength == min(STRENGTHS))
    with run.open_for_writing():
        run.append(first.model_copy(update={"features": {block: BlockFeatures() for block in first.features}}))
    page = write_report(copy, tmp_path / "report", tasks(), board=Document(())).page.read_text(encoding="utf-8")
    assert 'none<span class="aside">: 1 edit</span>' in page
    before = write_report(results, tmp_path / "before", tasks(), board=Document(())).page.read_text(encoding="utf-8")
    assert "none<span" not in before


def test_missing_and_altered_pictures_are_marked(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    run = RunFolder(copy / "mine" / "toy-turbo" / "sae")
    first, second = run.records()[:2]
    (run.path / str(first.image)).unlink()
    (run.path / str(second.image)).write_bytes((run.path / str(run.records()[5].image)).read_bytes())
    shutil.rmtree(copy / "mine" / "toy-turbo" / "no_edit" / "images")
    written = write_report(copy, tmp_path / "out", tasks(), board=BOARD)
    assert written.missing == 2 + 12
    rows = read_data(tmp_path / "out", "mine.toy-turbo.change_object.sae")["units"]
    assert rows[0][5] is None and rows[0][6] == "" and rows[0][7][0] is not None
    assert rows[1][5] is None and "not the one that was recorded" in rows[1][6]
    assert rows[2][5] is not None
    assert (tmp_path / "out" / "index.html").read_text().count("14 of 120 edited pictures are not in") == 1


def test_failed_units_say_why(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    run = RunFolder(copy / "mine" / "toy-turbo" / "no_edit")
    failed = run.records()[0].model_copy(update={"status": "error", "reason": "out of <memory>", "image": None})
    run.append(failed)
    write_report(copy, tmp_path / "out", board=BOARD)
    row = read_data(tmp_path / "out", "mine.toy-turbo.change_object.no_edit")["units"][0]
    assert row[5:] == [None, "error: out of <memory>", [None, None, None], VERDICTS.index(NO_VERDICT)]


def test_a_folder_with_something_else_is_left_alone(results: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RiebenchError, match="--out"):
        write_report(results, tmp_path, board=BOARD)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_only_own_stale_files_go(results: Path, report: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(report, out)
    (out / "data" / "mine.txt").write_text("kept")
    outside = tmp_path / "outside.txt"
    outside.write_text("kept")
    names = json.loads((out / "files.json").read_text())
    (out / "files.json").write_text(json.dumps([*names, "../outside.txt", "data/old.js", "data"]))
    (out / "data" / "old.js").write_text("stale")
    less = tmp_path / "results"
    shutil.copytree(results, less)
    shutil.rmtree(less / "mine" / "toy-turbo" / "no_edit")
    write_report(less, out, tasks(), board=BOARD)
    assert outside.exists() and (out / "data" / "mine.txt").exists()
    assert not (out / "data" / "old.js").exists()
    assert not list((out / "data").glob("*no_edit*"))


def test_a_link_that_leads_out_is_refused(results: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "files.json").write_text("[]")
    (out / "pictures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RiebenchError, match="leads out of"):
        write_report(results, out, board=BOARD)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_list_of_files_deletes_nothing_behind_a_link(results: Path, tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (outside / "thesis.txt").write_text("mine")
    (out / "link").symlink_to(outside)
    (out / "files.json").write_text('["link/thesis.txt"]')
    write_report(results, out, board=BOARD)
    assert (outside / "thesis.txt").read_text() == "mine"


def test_a_picture_is_one_whatever_its_file_was_called(results: Path, tmp_path: Path) -> None:
    """A browser that is sent to the file itself must not take it for a page."""
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    run = RunFolder(copy / "mine" / "toy-turbo" / "no_edit")
    record = run.records()[0]
    page = b"<script>window.hit = 1</script>"
    (run.path / "images" / "x.html").write_bytes(page)
    digest = hashlib.sha256(page).hexdigest()
    run.append(record.model_copy(update={"image": "images/x.html", "image_sha256": digest}))
    write_report(copy, tmp_path / "out", board=BOARD)
    assert {path.suffix for path in (tmp_path / "out" / "pictures").iterdir()} == {".png"}


def test_a_record_that_names_a_file_outside_its_run_is_refused(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    run = RunFolder(copy / "mine" / "toy-turbo" / "no_edit")
    run.append(run.records()[0].model_copy(update={"image": "../../../../secret.png"}))
    (tmp_path / "secret.png").write_bytes(b"secret")
    with pytest.raises(RiebenchError, match="outside itself"):
        write_report(copy, tmp_path / "out", board=BOARD)


def test_pictures_can_be_shared_instead_of_copied(results: Path, tmp_path: Path) -> None:
    write_report(results, tmp_path / "out", board=BOARD, link=True)
    data = read_data(tmp_path / "out", "mine.toy-turbo.change_object.sae")["units"]
    assert (tmp_path / "out" / data[0][5]).stat().st_nlink > 1


def test_no_results_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match="holds no runs"):
        write_report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_page_that_cannot_be_written_does_not_fail_the_run(results: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "out", list[str]()
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    say_page(results, out, tuple(tasks()), BOARD, lines.append)
    assert len(lines) == 1 and "no page" in lines[0] and "--out" in lines[0]
    say_page(results, tmp_path / "page", tuple(tasks()), BOARD, lines.append)
    assert str(tmp_path / "page" / "index.html") in lines[1]


def test_the_verb_writes_beside_the_results_it_was_given(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "results")
    done = CliRunner().invoke(app, ["report", "--results", str(tmp_path / "results")])
    assert done.exit_code == 0
    page = tmp_path / "results" / "report" / "index.html"
    assert str(page) in done.output and "no_edit" in page.read_text(encoding="utf-8")
    assert len(read_groups(tmp_path / "results")) == 1


def test_the_page_uses_the_fields_words(results: Path, tmp_path: Path) -> None:
    page = write_report(results, tmp_path / "out", tasks(), board=Document(())).page.read_text(encoding="utf-8")
    words = re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).lower()
    assert re.findall(r"\b(?:settings?|knobs?|sees|areas?)\b", words) == []
    assert "method configuration" in words
