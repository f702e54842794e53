"""The document about a made-up ladder: its sentences follow the numbers, and an old one is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ladders import BLOCKS, RUNGS, levels, made_results
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.sae_validity.document.parts import PARTS, fill_documents
from riebench.sae_validity.document.plots import FIGURES
from riebench.sae_validity.document.sentences import can_sentences, cannot_sentences, failures, passing_sentence
from riebench.sae_validity.results import ABOUT_FILE, VALUES_FILE, LadderResults
from riebench.sae_validity.study.bars import MeasureStudy, Study

REPLICATES = 200
OVERVIEW = "# Scores\n\n<!-- sae-validity: conclusions -->\n<!-- end -->\n"


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(made_results(), REPLICATES)


def measured(study: Study, key: str) -> MeasureStudy:
    return next(one for one in study.measures if one.key == key)


def test_a_failed_bar_is_said_plainly_and_with_its_numbers(study: Study) -> None:
    text = ". ".join(failures(measured(study, "at_20:area")))
    assert "order: Kendall's tau is 0.00" in text
    assert "`frozen_decoder` (all blocks together, `down.2.1`, `mid.0` and `up.0.1`)" in text
    assert "`random_init` to `steps_2`" in text and "in the first rank group" in text
    assert failures(measured(study, "selectivity_few")) == []
    lines = PARTS["short"](study, {})
    assert (
        "`selectivity_few`" in lines and "passes all four bars; its Kendall's tau with the known order is 1.00" in lines
    )
    assert "fails 4 of 4 bars as a score of SAEs" in lines


def test_the_conclusions_turn_round_when_the_numbers_do(study: Study) -> None:
    assert passing_sentence(study) == "Of 5 measures 1 passes all four bars: `selectivity_few` on any model."
    assert "by `selectivity_few`" in can_sentences(study)[0]
    assert not any("rank of SAEs by what their features do" in line for line in cannot_sentences(study))
    flat = Study(made_results(lambda rung, _: -levels()[rung]), REPLICATES)
    assert passing_sentence(flat) == "**None of the 5 measures passes all four bars.**"
    assert any("comes nearest" in line for line in can_sentences(flat))
    assert any("rank of SAEs by what their features do" in line for line in cannot_sentences(flat))
    assert "**fails 4 of 4 bars**" in PARTS["conclusions"](flat, {})


def test_every_part_has_a_text_and_every_figure_its_numbers(study: Study) -> None:
    for name, maker in PARTS.items():
        assert maker(study, {}).strip(), name
    assert all(block in PARTS["twins"](study, {}) for block in BLOCKS)
    assert all(f"| {rung.name} |" in PARTS["rungs"](study, {}) for rung in RUNGS)
    panel = FIGURES["ladder"](study).numbers["panels"][0]
    assert panel["name"] == "truth" and panel["means"][5][0] == pytest.approx(5 / 6, abs=0.01)
    assert {tuple(row[:1]) for row in FIGURES["order"](study).numbers["rows"]} >= {("selectivity_few",), ("truth",)}


def test_an_incomplete_ladder_says_so(study: Study) -> None:
    results = made_results(rungs=[rung for rung in RUNGS if rung.family == "training"])
    about = results.about.model_copy(update={"missing": ("frozen_decoder", "k_4")})
    few = Study(LadderResults(about, results.values), REPLICATES)
    assert "Not measured, or not completely: `frozen_decoder` and `k_4`." in PARTS["about"](few, {})
    assert measured(few, "selectivity_few").bars.twins is None and not measured(few, "selectivity_few").bars.passed
    assert "twins: not measured in single blocks" in failures(measured(few, "selectivity_few"))
    for maker in PARTS.values():
        assert maker(few, {}).strip()


def test_documents_are_filled_checked_and_found_out_of_date(tmp_path: Path, study: Study) -> None:
    document, overview = tmp_path / "validity-saes.md", tmp_path / "validity.md"
    overview.write_text(OVERVIEW)
    with pytest.raises(RiebenchError, match="is missing"):
        fill_documents(study, document, overview, check=True)
    files = fill_documents(study, document, overview)
    assert [file.name for file in files][:2] == ["validity-saes.md", "validity.md"] and len(files) == 3
    assert files == fill_documents(study, document, overview, check=True)
    assert "by `selectivity_few`" in overview.read_text()
    other = Study(made_results(lambda rung, _: -levels()[rung]), REPLICATES)
    with pytest.raises(RiebenchError, match="out of date"):
        fill_documents(other, document, overview, check=True)
    document.write_text("# Saes\n\n<!-- sae-validity: barz -->\n<!-- end -->\n")
    with pytest.raises(RiebenchError, match=r"no part 'barz' on SAEs \(did you mean 'bars'"):
        fill_documents(study, document, overview)


def test_stored_results_are_read_back_and_damage_is_one_line(tmp_path: Path) -> None:
    made = made_results()
    made.write(tmp_path)
    found = LadderResults.read(tmp_path)
    assert found.about == made.about and len(found.values) == len(made.values)
    first, again = (one.values.sort_values([*one.values.columns])["value"].tolist() for one in (made, found))
    assert first == pytest.approx(again, rel=1e-5)
    assert (
        made.write(tmp_path / "again")
        and (tmp_path / VALUES_FILE).read_bytes() == (tmp_path / "again" / VALUES_FILE).read_bytes()
    )
    about = json.loads((tmp_path / ABOUT_FILE).read_text())
    changes: list[dict[str, object]] = [{"pictures": -1}, {"unknown": 1}, {"rungs": []}, {"seconds": "long"}]
    for change in changes:
        (tmp_path / ABOUT_FILE).write_text(json.dumps({**about, **change}))
        with pytest.raises(RiebenchError, match=rf"{ABOUT_FILE} is damaged \({next(iter(change))}"):
            LadderResults.read(tmp_path)
    (tmp_path / ABOUT_FILE).write_text(json.dumps(about))
    (tmp_path / VALUES_FILE).write_bytes(b"PAR1 nothing")
    with pytest.raises(RiebenchError, match=f"{VALUES_FILE} is damaged"):
        LadderResults.read(tmp_path)
    made.values.rename(columns={"value": "number"}).to_parquet(tmp_path / VALUES_FILE)
    with pytest.raises(RiebenchError, match=r"another type: .*number, .*value"):
        LadderResults.read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["validity", "saes", "--stored", "nowhere"],
            "saes.parquet is missing; `riebench validity saes --work FOLDER`",
        ),
        (["validity", "saes", "--check", "--work", "w"], "leave --work out"),
        (["validity", "saes", "--only-measure"], "needs the folder: --work"),
        (["validity", "--check", "saes"], "write options after the word saes"),
    ],
)
def test_wrong_lines_are_refused_in_one_line(line: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2 and message in done.output and done.output.count("\n") == 1


def test_the_command_writes_and_checks_from_stored_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.sae_validity.study.bars.REPLICATES", REPLICATES)
    made_results().write(tmp_path / "stored")
    options = ["validity", "saes", "--stored", str(tmp_path / "stored"), "--out", str(tmp_path / "saes.md")]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0 and str(tmp_path / "saes.md") in done.output
    assert CliRunner().invoke(app, [*options, "--check"]).exit_code == 0
    made_results(lambda rung, _: -levels()[rung]).write(tmp_path / "stored")
    stale = CliRunner().invoke(app, [*options, "--check"])
    assert stale.exit_code == 2 and "is out of date; run `riebench validity saes`" in stale.output
