"""The document of the published scripts' switches says what methods and setting files do, and nothing else."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT

from riebench.errors import RiebenchError
from riebench.methods.base import get_method
from riebench.paper import published
from riebench.paper.artefact import INDEX, Artefact, Column, Table
from riebench.paper.output import PROFILE, SHOWS_SWITCHES, check, text_files, write_index
from riebench.paper.published import SWITCHES, official_settings, official_values, profile_text
from riebench.tasks.settings import load_settings, settings_sets
from riebench.utils.plots import KINDS


def test_the_shipped_document_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "paper" / PROFILE).read_text(encoding="utf-8") == profile_text()


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: f"{switch.parameter}-{switch.methods[0]}")
def test_every_stated_value_is_one_that_the_methods_take(switch: published.Switch) -> None:
    for name in switch.methods:
        method = get_method(name)
        assert inspect.signature(method.function).parameters[switch.parameter].default == switch.default
        for value in (switch.newer, switch.older, switch.turned):
            method.check({} if value is None else {switch.parameter: value})


def test_neuron_settings_are_published_in_the_published_sweep_alone() -> None:
    """One truth: the document, the defaults and the setting files."""
    shares = next(one for one in SWITCHES if one.parameter == "shares" and one.methods == ("neurons",))
    assert not shares.follows
    for folder, values in official_values(shares, official_settings()).items():
        assert set(values.values()) == {shares.newer if folder == "baselines/sdxl/" else shares.default}, folder
    for suite in ("sdxl", "toy"):
        for name in settings_sets(suite):
            for one in (s for s in load_settings(suite, settings_set=name) if s.method == "neurons"):
                theirs = one.params.get("shares") == shares.newer
                assert theirs == ("Published sweep" in one.description) == ((suite, name) == ("sdxl", "main")), one.name
    text = profile_text()
    assert "by default" not in text and "- `shares` of `neurons` is `magnitude`, and theirs is `published`." in text


def test_the_text_follows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(SWITCHES)
    assert (
        f"The defaults of {count - 1} of the {count} rows below are what the newer scripts do. Not so:"
        in profile_text()
    )
    same = tuple(replace(one, newer=one.default) for one in SWITCHES)
    monkeypatch.setattr(published, "SWITCHES", same)
    text = profile_text()
    assert "All defaults below are what the newer scripts do." in text and "not theirs" not in text
    monkeypatch.setattr(published, "SWITCHES", (replace(same[0], newer=True), *same[1:]))
    text = profile_text()
    assert "- `add_only` of `sae` is `false`, and theirs is `true`." in text and text.count("not theirs") == 1


def test_it_is_written_with_the_index_and_checked(tmp_path: Path) -> None:
    artefact = Artefact(
        name=SHOWS_SWITCHES, title="t", shows="", tables=(Table(title="T", columns=(Column(name="a"),), rows=()),),
        settings={}, alt="",
    )  # fmt: skip
    files = {"data/trade-off.json": artefact.model_dump_json(), **text_files(artefact)}
    files |= {f"figures/{artefact.name}.{kind}": artefact.digest for kind in KINDS}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    write_index(tmp_path)
    assert f"[{PROFILE}]({PROFILE})" in (tmp_path / INDEX).read_text()
    assert tmp_path / PROFILE in check(tmp_path, [SHOWS_SWITCHES])
    (tmp_path / PROFILE).write_text(profile_text().replace("magnitude", "published"))
    with pytest.raises(RiebenchError, match=r"profile\.md is out of date"):
        check(tmp_path, [SHOWS_SWITCHES])
    (tmp_path / "data" / "trade-off.json").unlink()
    (tmp_path / PROFILE).unlink()
    write_index(tmp_path)
    assert not (tmp_path / PROFILE).exists(), "nothing stored shows what the switches change"
