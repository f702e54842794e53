"""Which SAEs are found deeper than usual, which are not taken, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_files import parts, put, saelens, write_dl_topk, write_unbox

from riebench.errors import RiebenchError
from riebench.saes import search
from riebench.saes.files import SaeOptions
from riebench.saes.formats import choose_checkpoints, find_checkpoints, load_sae, load_saes
from riebench.saes.sources import load_sources, parse_sources

P = parts()


def write_trainer(folder: Path, *, finished: bool = True, steps: tuple[int, ...] = (500, 1000)) -> None:
    """The folder of one trainer as dictionary_learning leaves it."""
    write_dl_topk(folder, P)
    state = torch.load(folder / "ae.pt", weights_only=True)
    for step in steps:
        put(folder / "checkpoints", f"ae_{step}.pt", state)
    if not finished:
        (folder / "ae.pt").unlink()


def write_saelens(folder: Path) -> None:
    saelens(folder, P, {"architecture": "standard"})
    put(folder, "trainer_state.pt", {"step": torch.zeros(1)})


def refusal(root: Path, *blocks: str) -> str:
    with pytest.raises(RiebenchError) as caught:
        choose_checkpoints(root, blocks or ["mid.0"])
    return str(caught.value)


def test_a_trainers_folder_below_a_blocks_folder_is_taken_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trainer(tmp_path / "mid.0" / "trainer_0")
    for root in (tmp_path, tmp_path / "mid.0"):
        sae = load_saes(root, ["mid.0"], options=SaeOptions(signal="update"))["mid.0"]
        assert sae.format == "dictionary_learning"
    said = capsys.readouterr().err.splitlines()
    assert said == [f"SAE for mid.0: took {tmp_path / 'mid.0' / 'trainer_0'}, found deeper than a block's own folder"]
    assert find_checkpoints(tmp_path, SaeOptions()) == [tmp_path / "mid.0" / "trainer_0"]


def test_what_lies_where_it_usually_does_is_not_spoken_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_unbox(tmp_path / "mid.0", P)
    write_unbox(tmp_path / "up.0.1_k2_x" / "final", P)
    write_unbox(tmp_path / "up.0.1_k2_x" / "5000", P)
    chosen = choose_checkpoints(tmp_path, ["mid.0", "up.0.1"])
    assert chosen == {"mid.0": tmp_path / "mid.0", "up.0.1": tmp_path / "up.0.1_k2_x" / "final"}
    assert capsys.readouterr().err == ""


def test_the_state_in_the_middle_of_a_training_is_read_with_the_trainings_configuration(tmp_path: Path) -> None:
    write_trainer(tmp_path / "whole" / "mid.0" / "trainer_0")
    write_trainer(tmp_path / "part" / "mid.0" / "trainer_0", finished=False, steps=(500,))
    whole, part = (load_saes(tmp_path / name, ["mid.0"])["mid.0"] for name in ("whole", "part"))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert part.k == whole.k and torch.equal(part.encode(x), whole.encode(x))
    # Nothing says what it is without that configuration.
    (tmp_path / "part" / "mid.0" / "trainer_0" / "config.json").unlink()
    assert "has no SAE for mid.0; seen in it: " in refusal(tmp_path / "part")


@pytest.mark.parametrize("inner", ["checkpoints/mid.0/final", "checkpoints/mid.0", "a/b/unet.mid_block.attentions.0/7"])
def test_a_root_one_or_more_folders_below_is_found(tmp_path: Path, inner: str) -> None:
    write_unbox(tmp_path / inner, P)
    assert choose_checkpoints(tmp_path, ["mid.0"]) == {"mid.0": tmp_path / inner}
    assert find_checkpoints(tmp_path, SaeOptions(), "mid.0") == [tmp_path / inner]


def test_the_final_state_is_taken_before_the_steps_beside_it(tmp_path: Path) -> None:
    for name in ("500", "1000", "final_2000"):
        write_saelens(tmp_path / "mid.0" / "x4k2" / name)
    assert choose_checkpoints(tmp_path, ["mid.0"]) == {"mid.0": tmp_path / "mid.0" / "x4k2" / "final_2000"}


def test_of_several_steps_none_is_taken_but_all_are_listed_in_order(tmp_path: Path) -> None:
    for step in (10000, 500, 2000):
        write_unbox(tmp_path / "mid.0" / str(step), P)
    places = [str(tmp_path / "mid.0" / step) for step in ("500", "2000", "10000")]
    assert f"several SAEs for mid.0: {', '.join(places)}; say which, such as mid.0={places[-1]}" in refusal(tmp_path)
    # What the message says to write is what works.
    assert load_sources(parse_sources(f"mid.0={places[-1]}"), ["mid.0"])["mid.0"].k == 2
    assert [str(path) for path in find_checkpoints(tmp_path, SaeOptions())] == places


def test_steps_of_another_k_are_told_apart_by_it(tmp_path: Path) -> None:
    for k in (1, 2):
        write_unbox(tmp_path / "mid.0" / f"run{k}", P, k=k)
    assert "several SAEs for mid.0 (k = 1, 2); add #k=NUMBER" in refusal(tmp_path)
    assert load_saes(tmp_path, ["mid.0"], k=1)["mid.0"].k == 1


def test_one_sae_without_a_name_serves_the_block_that_is_asked_for(tmp_path: Path) -> None:
    write_trainer(tmp_path / "run" / "trainer_0")
    assert choose_checkpoints(tmp_path, ["up.0.1"]) == {"up.0.1": tmp_path / "run" / "trainer_0"}
    message = refusal(tmp_path, "up.0.1", "mid.0")
    assert f"no name ties to a block: {tmp_path}/run/trainer_0; write BLOCK=PLACE, such as up.0.1={tmp_path}" in message


def test_blocks_are_suggested_when_only_one_has_an_sae(tmp_path: Path) -> None:
    write_unbox(tmp_path / "mid.0", P)
    assert "has no SAE for up.0.0, up.0.1; it has SAEs for: mid.0; to use it alone, add --blocks mid.0" in refusal(
        tmp_path, "mid.0", "up.0.0", "up.0.1"
    )
    assert "name its root, or take it alone with --blocks mid.0" in refusal(tmp_path / "mid.0", "mid.0", "up.0.0")
    assert "--blocks" not in refusal(tmp_path / "mid.0", "up.0.1", "up.0.0")
    with pytest.raises(RiebenchError, match=r"add up.0.1=PLACE, or take these alone with --blocks mid.0$"):
        load_sources(parse_sources(f"mid.0={tmp_path}"), ["mid.0", "up.0.1"])
    write_unbox(tmp_path / "up.0.0", P)
    assert "--blocks" not in refusal(tmp_path, "mid.0", "up.0.1")


def test_where_there_is_none_the_message_lists_what_was_seen(tmp_path: Path) -> None:
    write_saelens(tmp_path / "checkpoints" / "mid.0")
    (tmp_path / "checkpoints" / "mid.0" / "cfg.json").unlink()
    (tmp_path / "notes.txt").write_text("")
    message = refusal(tmp_path)
    assert "checkpoints/, checkpoints/mid.0/, notes.txt, checkpoints/mid.0/sae_weights.safetensors" in message
    assert "blocks that its folders are named for: mid.0" in message
    assert f"{tmp_path}/checkpoints/mid.0 looks like an SAELens SAE, but cfg.json is missing" in message
    with pytest.raises(RiebenchError, match=r"holds no SAE that riebench can read: .*notes.txt"):
        find_checkpoints(tmp_path, SaeOptions())
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").endswith("has no SAE for mid.0; it is empty")
    for number in range(20):
        (tmp_path / "empty" / f"{number}.txt").touch()
    assert "6.txt, 7.txt and 12 more" in refusal(tmp_path / "empty")


def test_a_file_that_cannot_be_read_hides_no_sae_beside_it(tmp_path: Path) -> None:
    write_unbox(tmp_path / "mid.0" / "run", P)
    (tmp_path / "mid.0" / "weights.pt").write_bytes(b"no torch file")
    assert choose_checkpoints(tmp_path, ["mid.0"]) == {"mid.0": tmp_path / "mid.0" / "run"}
    (tmp_path / "mid.0" / "run" / "state_dict.pth").unlink()
    assert "weights.pt is damaged" in refusal(tmp_path)


def test_the_one_that_holds_others_is_told_what_they_are(tmp_path: Path) -> None:
    write_trainer(tmp_path / "trainer_0")
    with pytest.raises(RiebenchError, match=r"holds no SAE itself; deeper inside it has: .*trainer_0; name one of"):
        load_sae(tmp_path)


def test_nothing_outside_the_named_folder_is_found(tmp_path: Path) -> None:
    write_trainer(tmp_path / "elsewhere" / "trainer_0")
    (tmp_path / "root" / "mid.0").mkdir(parents=True)
    (tmp_path / "root" / "mid.0" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "mid.0" / "loop").symlink_to(tmp_path / "root")
    assert "has no SAE for mid.0; seen in it: mid.0/;" in refusal(tmp_path / "root")


def test_the_search_ends_and_takes_nothing_where_more_may_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trainer(tmp_path / "mid.0" / "a" / "trainer_0")
    for number in range(12):
        (tmp_path / "mid.0" / f"b{number}").mkdir()
    assert choose_checkpoints(tmp_path, ["mid.0"])["mid.0"].name == "trainer_0"
    with monkeypatch.context() as patch:
        patch.setattr(search, "MAX_FOLDERS", 15)
        assert choose_checkpoints(tmp_path, ["mid.0"])["mid.0"].name == "trainer_0"
        # One more than is searched, and it may hold another SAE.
        (tmp_path / "mid.0" / "a" / "z").mkdir()
        message = refusal(tmp_path)
    assert "more files and folders than are searched for SAEs; found so far: " in message
    with monkeypatch.context() as patch:
        patch.setattr(search, "MAX_ENTRIES", 5)
        assert "folders were looked into, as there are too many" in refusal(tmp_path, "up.0.1")
    deep = tmp_path.joinpath("deep", *"abcdef")
    write_unbox(deep, P)
    assert "has no SAE for mid.0" in refusal(tmp_path / "deep")
    assert choose_checkpoints(tmp_path / "deep" / "a" / "b", ["mid.0"]) == {"mid.0": deep}
