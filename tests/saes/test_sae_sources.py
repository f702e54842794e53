"""SAEs as users name them, on this machine and on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sae_files import OVERCOMPLETE, WRITERS, openai, overcomplete, parts, saelens, write_dl_topk, write_unbox
from sdxl_files import COMMIT, REPO, fake_hub, refusal, serve, unreachable
from tiny import CHANNELS, tiny_model, tiny_saes

from riebench.errors import RiebenchError
from riebench.models.families.sdxl.names import BLOCKS
from riebench.saes.files import SaeOptions
from riebench.saes.formats import checkpoints_by_block, folder_name, load_saes
from riebench.saes.sources import HubPlace, SaeSource, load_sources, model_saes, parse_place, parse_sources

P = parts()


def places(text: str) -> list[tuple[str | None, str, SaeOptions]]:
    return [(source.block, source.place, source.options) for source in parse_sources(text)]


def test_sources_as_the_user_writes_them(tmp_path: Path) -> None:
    plain = SaeOptions()
    assert places("runs/saes") == [(None, "runs/saes", plain)]
    assert places("runs/a,b#k=7,signal=update") == [(None, "runs/a,b", SaeOptions(k=7, signal="update"))]
    assert places("down.2.1=x#k=4,signed=yes,mid_block.attentions.0=hf://o/n@v1/sub#input_scale=0.5") == [
        ("down.2.1", "x", SaeOptions(k=4, signed=True)), ("mid.0", "hf://o/n@v1/sub", SaeOptions(input_scale=0.5)),
    ]  # fmt: skip
    (tmp_path / "list.yaml").write_text("down.2.1: sub/one#k=3\nunet.mid_block.attentions.0: hf://o/n\n")
    assert places(str(tmp_path / "list.yaml")) == [
        ("down.2.1", str(tmp_path / "sub/one"), SaeOptions(k=3)), ("mid.0", "hf://o/n", plain),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x#k=two", "k is a number, not 'two'"),
        ("x#k=0", "k must be above 0"),
        ("x#kk=2", "unknown option 'kk' (did you mean 'k'?)"),
        ("x#signal=residual", "signal is update or output"),
        ("x#mapping=nowhere.yaml", "there is no mapping file nowhere.yaml"),
        ("x#signed=maybe", "signed is yes or no"),
        ("mid.o=x", "unknown block 'mid.o' (did you mean 'mid.0'?)"),
        ("mid.0=x,mid_block.attentions.0=y", "a block is named twice"),
    ],
)
def test_sources_that_mean_nothing(text: str, message: str) -> None:
    with pytest.raises(RiebenchError) as caught:
        parse_sources(text)
    assert message in str(caught.value)


def test_lists_that_mean_nothing(tmp_path: Path) -> None:
    for content, message in (
        ("mid.0: 3\n", "write 'BLOCK: PLACE', not 3"),
        ("7: x\n", "7: write 'BLOCK: PLACE'"),
        ("mid.o: x\n", "did you mean 'mid.0'?"),
    ):
        (tmp_path / "list.yaml").write_text(content)
        with pytest.raises(RiebenchError) as caught:
            parse_sources(str(tmp_path / "list.yaml"))
        assert message in str(caught.value)


def test_each_block_from_a_place_of_its_own(tmp_path: Path) -> None:
    saelens(tmp_path / "first", P, {})
    write_unbox(tmp_path / "root" / "up.0.1" / "final", P)
    sources = parse_sources(f"mid.0={tmp_path}/first,up.0.1={tmp_path}/root")
    saes = load_sources(sources, ["mid.0", "up.0.1"])
    assert {block: sae.format for block, sae in saes.items()} == {"mid.0": "SAELens", "up.0.1": "sdxl-unbox"}
    with pytest.raises(RiebenchError, match=r"no SAE for down.2.1 is named; named are: mid.0, up.0.1; add down.2.1="):
        load_sources(sources, ["down.2.1"])
    with pytest.raises(RiebenchError, match="no SAE folder nowhere"):
        load_sources(parse_sources("nowhere"), ["mid.0"])


@pytest.mark.parametrize("inner", ["", "final"])
@pytest.mark.parametrize("name", [folder_name("down.2.1", 2, 6), "down.2.1", "unet.down_blocks.2.attentions.1"])
def test_layouts_of_a_root(tmp_path: Path, name: str, inner: str) -> None:
    write_unbox(tmp_path / name / inner, P)
    write_unbox(tmp_path / name / "5000", parts(seed=1))  # an earlier step beside it
    write_unbox(tmp_path / "notes", P)  # named for no block
    assert checkpoints_by_block(tmp_path) == {"down.2.1": [tmp_path / name / inner]}
    expected = load_saes(tmp_path / name / inner, ["down.2.1"])["down.2.1"]
    assert torch.equal(load_saes(tmp_path, ["down.2.1"])["down.2.1"].encoder, expected.encoder)
    assert torch.equal(load_saes(tmp_path / name, ["down.2.1"])["down.2.1"].encoder, expected.encoder)
    assert expected.block == "down.2.1"
    with pytest.raises(RiebenchError, match=r"no SAE for mid.0; it has SAEs for: down.2.1"):
        load_saes(tmp_path, ["mid.0"])


def test_the_configuration_is_trusted_more_than_the_folders_name(tmp_path: Path) -> None:
    write_unbox(tmp_path / folder_name("mid.0", 160, 5120), P, k=3)
    assert load_saes(tmp_path, ["mid.0"])["mid.0"].k == 3


def test_a_root_of_another_format_and_of_files(tmp_path: Path) -> None:
    for seed, block in enumerate(("mid_block.attentions.0", "up.0.1")):
        write_dl_topk(tmp_path / block, parts(seed=seed))
        (tmp_path / block / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoderTopK", "k": 2}}')
    openai(tmp_path, P, activation="ReLU")
    (tmp_path / "autoencoder.pt").rename(tmp_path / "down.2.1.pt")
    saes = load_saes(tmp_path, ["mid.0", "up.0.1", "down.2.1"], options=SaeOptions(signal="update"))
    assert [sae.format for sae in saes.values()] == ["dictionary_learning", "dictionary_learning", "openai"]
    assert [sae.block for sae in saes.values()] == ["mid.0", "up.0.1", "down.2.1"]
    assert load_saes(tmp_path, ["mid.0"], k=2)["mid.0"].k == 2


def test_what_no_reader_foresaw_is_one_line_while_one_of_several_is_chosen(tmp_path: Path) -> None:
    for name in ("mid.0", "mid.0_k2"):
        openai(tmp_path / name, P, activation="TopK", activation_state_dict={"k": "many"})
    with pytest.raises(RiebenchError, match="is no SAE that can be read"):
        load_saes(tmp_path, ["mid.0"])


def test_one_mapping_serves_every_child_of_a_root(tmp_path: Path) -> None:
    for block in ("mid.0", "up.0.1"):
        overcomplete(tmp_path / "root" / block, P, OVERCOMPLETE)
        (tmp_path / "root" / block / "mapping.yaml").unlink()
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({**OVERCOMPLETE, "block": None}))
    saes = load_sources(parse_sources(f"{tmp_path}/root#mapping={tmp_path}/my.yaml"), ["mid.0", "up.0.1"])
    assert [sae.k for sae in saes.values()] == [2, 2]


def tiny_wide(block: str, name: str, root: Path) -> str:
    """An SAE of the tiny model's width in any format."""
    WRITERS[name][1](root, parts(n=96, d=CHANNELS))
    return f"{block}={root}"


def test_an_sae_says_what_it_was_trained_on(tmp_path: Path) -> None:
    named = tiny_wide("up.0.1", "dl plain", tmp_path / "a")
    with pytest.raises(RiebenchError, match=r"up.0.1 does not say what it was .* add #signal=update"):
        model_saes(named, tiny_model(), ["up.0.1"])
    assert model_saes(f"{named}#signal=update", tiny_model(), ["up.0.1"])["up.0.1"].signal == "update"
    named = tiny_wide("up.0.1", "saeuron", tmp_path / "b")
    assert model_saes(named, tiny_model(), ["up.0.1"])["up.0.1"].reads == "output"
    named = tiny_wide("up.0.1", "overcomplete", tmp_path / "c")
    with pytest.raises(RiebenchError, match=r"was trained on block mid.0, not on up.0.1"):
        model_saes(named, tiny_model(), ["up.0.1"])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hf://o/n", HubPlace("o/n")),
        ("hf://o/n/", HubPlace("o/n")),
        ("hf://o/n@v1", HubPlace("o/n", "v1")),
        ("hf://o/n/a/b", HubPlace("o/n", None, "a/b")),
        ("hf://o/n@refs/pr/3/a", HubPlace("o/n", "refs/pr/3", "a")),
        ("hf://o/n@v1/unet.mid_block.attentions.0/final", HubPlace("o/n", "v1", "unet.mid_block.attentions.0/final")),
    ],
)  # fmt: skip
def test_places_on_the_hub(text: str, place: HubPlace) -> None:
    assert parse_place(text) == place


def test_no_place_on_the_hub() -> None:
    for text in ("hf://", "hf://name", "hf://o/n@"):
        with pytest.raises(RiebenchError, match="write hf://OWNER/NAME"):
            parse_place(text)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sent(asked: list[str]) -> set[str]:
    """The files that were asked for."""
    return {path.split(f"/resolve/{COMMIT}/")[1] for path in asked if "/resolve/" in path}


@pytest.mark.usefixtures("cache")
def test_only_what_saes_need_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {block: f"{folder_name(block, 2, 6)}/final" for block in ("mid.0", "up.0.1")}
    for name in names.values():
        write_unbox(tmp_path / "up" / name, P)
        for other in ("topk_heatmaps.pt", "act_rate.pt", "mean.pt", "picture.png", "optimizer.pt", "README.md"):
            (tmp_path / "up" / name / other).write_bytes(other.encode())
    with fake_hub(monkeypatch, serve(tmp_path / "up")) as asked:
        saes = load_sources(parse_sources(f"hf://{REPO}"), names)
        assert {block: (sae.n, sae.block) for block, sae in saes.items()} == {block: (6, block) for block in names}
        wanted = {f"{name}/{file}" for name in names.values() for file in ("state_dict.pth", "config.json", "mean.pt")}
        assert sent(asked) == wanted
    # What was fetched once is used without the network, too.
    assert load_sources([SaeSource(f"hf://{REPO}")], names, offline=True).keys() == names.keys()


@pytest.mark.usefixtures("cache")
def test_a_part_of_a_repository_and_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in ("mid.0", "up.0.1"):
        write_unbox(tmp_path / "up" / "deep" / block, P)
    with fake_hub(monkeypatch, serve(tmp_path / "up")) as asked:
        source = SaeSource(f"hf://{REPO}@v1/deep/mid.0")
        assert load_sources([source], ["mid.0"])["mid.0"].n == 6
        assert sent(asked) == {"deep/mid.0/state_dict.pth", "deep/mid.0/config.json"}
        assert any("/revision/v1" in path for path in asked)
        with pytest.raises(RiebenchError, match="absent"):
            SaeSource(f"hf://{REPO}/absent").locate()
    with fake_hub(monkeypatch, serve(tmp_path / "up")):
        SaeSource(f"hf://{REPO}/deep/mid.0").locate()
    # A part is enough where there is no network, if it is the part that is asked for.
    root = SaeSource(f"hf://{REPO}/deep")
    assert load_sources([root], ["mid.0"], offline=True)["mid.0"].n == 6
    with pytest.raises(RiebenchError, match=r"has no SAE for up.0.1; it has SAEs for: mid.0"):
        load_sources([root], ["up.0.1"], offline=True)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("own", [True, False])
def test_a_mapping_brings_the_weights_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    overcomplete(tmp_path / "up", P, {**OVERCOMPLETE, "weights": "step_9.ckpt"})
    (tmp_path / "up" / "weights.pt").rename(tmp_path / "up" / "step_9.ckpt")
    (tmp_path / "up" / "step_1.ckpt").write_bytes(b"old")
    source = f"hf://{REPO}"
    if not own:
        (tmp_path / "up" / "mapping.yaml").rename(tmp_path / "my.yaml")
        source += f"#mapping={tmp_path}/my.yaml"
    with fake_hub(monkeypatch, serve(tmp_path / "up")) as asked:
        assert load_sources(parse_sources(source), ["mid.0"])["mid.0"].format == "mapping"
        assert sent(asked) - {"mapping.yaml"} == {"step_9.ckpt"}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("source", "answer", "message"),
    [
        ("hf://a/b", refusal(404, "RepoNotFound"), "SAEs: the hub has no a/b, or it is private"),
        ("hf://a/b@v9", refusal(404, "RevisionNotFound"), "a/b has no revision 'v9'"),
        ("hf://a/b", refusal(403, "GatedRepo"), "a/b is gated: accept its terms at"),
        ("hf://a..b/c", refusal(404, ""), "is no hub id; write OWNER/NAME"),
        ("hf://a/b", unreachable, "the hub cannot be reached, and a/b is not on this machine"),
        ("hf://a/b", refusal(500, ""), "a/b"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, source: str, answer: Any, message: str
) -> None:
    with fake_hub(monkeypatch, answer), pytest.raises(RiebenchError) as caught:
        parse_sources(source)[0].locate()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub(monkeypatch, unreachable) as asked:
        with pytest.raises(
            RiebenchError,
            match=r"a/b is not on this machine: leave --offline out, or fetch .*state_dict",
        ):
            SaeSource("hf://a/b").locate(offline=True)
        assert asked == []


def test_a_cache_in_the_hubs_layout_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = cache / "models--someone--saes"
    write_unbox(repo / "snapshots" / COMMIT / "mid.0" / "final", P)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    with fake_hub(monkeypatch, unreachable) as asked:
        for place in ("hf://someone/saes", "hf://someone/saes/mid.0", f"hf://someone/saes@{COMMIT}"):
            assert load_sources([SaeSource(place)], ["mid.0"], offline=True)["mid.0"].n == 6
        with pytest.raises(RiebenchError, match=r"someone/saes has no up.0.1 with SAE files"):
            SaeSource("hf://someone/saes/up.0.1").locate(offline=True)
        assert asked == []


def test_saes_of_every_block_come_on_the_models_device() -> None:
    saes = model_saes(str(tiny_saes()), tiny_model(), BLOCKS)
    assert tuple(saes) == BLOCKS and all(sae.encoder.device == tiny_model().device for sae in saes.values())
