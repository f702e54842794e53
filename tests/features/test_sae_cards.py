"""`riebench sae card`: measured figures, densities, scores, licences, and files as the hub reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from leaderboard_runs import add_run, numbers
from markdown_it import MarkdownIt
from sae_files import parts, write_dl_plain
from tiny import CHANNELS, FEATURES, SPARSITY, tiny_folder, tiny_model, tiny_saes
from typer.testing import CliRunner

from riebench.analysis.leaderboard import make_leaderboard
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.features.cards.card import BINS_PER_DECADE, Densities, SaeCard, missing_conditions, model_conditions
from riebench.features.cards.card_text import card_text
from riebench.features.cards.evidence import Licence, benchmark_scores, licence_named, stated_licence
from riebench.features.cards.output import card_files
from riebench.features.inspect import measure_signals
from riebench.models.spec import ModelSpec
from riebench.saes.formats import folder_name, load_saes, save_sdxl_unbox
from riebench.saes.sae import Signal
from riebench.saes.sources import SaeSource

RUNNER = CliRunner()
PROMPTS = ["a red cat", "two dogs"]


def invoke(*words: object, code: int = 0) -> str:
    result = RUNNER.invoke(app, ["sae", "card", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def spec(name: str = "m", steps: int = 4, guidance: float = 0.0) -> ModelSpec:
    return ModelSpec(name=name, source=name, revision="r", steps=steps, guidance=guidance, size=64, dtype="float32")


def many_steps(folder: Path) -> Path:
    """Make a copy of the tiny model that is sampled in 20 steps with guidance."""
    shutil.copytree(tiny_folder(), folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "timestep_spacing": "leading"}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A card of two blocks on a model of few steps and one of many, with another seed, and what lies around it."""
    folder = tmp_path_factory.mktemp("cards")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    many_steps(folder / "many")
    (folder / "none").mkdir()
    other = torch.randn(CHANNELS, FEATURES, generator=torch.Generator().manual_seed(9))
    for block in ("mid.0", "up.0.1"):
        save_sdxl_unbox(
            folder / "other" / folder_name(block, SPARSITY, FEATURES) / "final", encoder=other.T.clone(), decoder=other,
            pre_bias=torch.zeros(CHANNELS), latent_bias=torch.zeros(FEATURES), k=SPARSITY,
        )  # fmt: skip
    before = sorted(str(path) for path in folder.rglob("*"))
    invoke(
        tiny_saes(), "--model", f"{tiny_folder()},{folder / 'many'}", "--blocks", "mid.0,up.0.1", "--prompts",
        folder / "prompts.txt", "--seeds-of", folder / "other", "--results", folder / "none", "--licence", "CC-BY-4.0",
        "--out", folder / "card",
    )  # fmt: skip
    return folder, before


def test_every_cell_is_what_measuring_gives(made: tuple[Path, list[str]]) -> None:
    card = SaeCard.model_validate_json((made[0] / "card" / "card.json").read_bytes())
    few, many = card.models[0].name, card.models[1].name
    runs = list(dict.fromkeys((one.model, one.steps, one.guidance) for one in card.measurements))
    assert runs == [(few, 1, 0), (few, 4, 0), (many, 20, 0), (many, 20, 5)]
    assert len(card.measurements) == 2 * len(runs) and card.not_measured == ()
    saes = load_saes(tiny_saes(), ["mid.0", "up.0.1"])
    update: tuple[Signal, ...] = ("update",)
    wanted = [(block, sae, update) for block, sae in saes.items()]
    expected = measure_signals(wanted, tiny_model(steps=4), PROMPTS, progress=False)
    found = [one.figures for one in card.measurements if (one.model, one.steps) == (few, 4)]
    assert found == [one["update"] for one in expected]
    for one in card.measurements:
        assert one.densities.dead == round(one.figures.dead_share * FEATURES)
        assert one.densities.dead + sum(one.densities.histogram) == FEATURES
    assert len({one.figures.explained_variance for one in card.measurements}) == len(card.measurements)


def test_another_seed_is_compared_by_the_features_that_are_active_on_the_model(made: tuple[Path, list[str]]) -> None:
    card = SaeCard.model_validate_json((made[0] / "card" / "card.json").read_bytes())
    assert [one.block for one in card.stability] == ["mid.0", "up.0.1"]
    for block, entry in zip(card.stability, card.saes, strict=True):
        own = next(one for one in card.measurements if card.saes[one.sae] == entry and one.steps == 4)
        assert block.saes[0].alive == FEATURES - own.densities.dead
        assert (block.saes[0].activity, block.measured) == ("measured", f"{card.models[0].name}, 4 steps")
        assert block.saes[0].sha256 == entry.sha256 and block.saes[1].place == "other"


def test_the_hub_reads_the_card_and_nothing_lies_outside_its_folder(made: tuple[Path, list[str]]) -> None:
    folder, before = made
    text = (folder / "card" / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "riebench" and data["license"] == "cc-by-4.0"
    assert {"sparse-autoencoder", "sae-topk"} <= set(data["tags"])
    assert "model-index" not in data and "base_model" not in data
    for words in (
        "## Reconstruction",
        "20 steps, guidance 5",
        "none of the runs in `none`",
        "found again",
        "cc-by-4.0",
    ):
        assert words in text
    assert str(folder) not in text + (folder / "card" / "card.json").read_text()
    pictures = [token.attrs["src"] for token in tokens(text) if token.type == "image"]
    assert pictures == ["densities.png", "stability.png"]
    assert all((folder / "card" / str(name)).is_file() for name in pictures)
    after = sorted(str(path) for path in folder.rglob("*") if "/card" not in str(path)[len(str(folder)) :])
    assert after == before


def tokens(text: str) -> list[Any]:
    found = MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)
    return [child for token in found for child in (token, *(token.children or []))]


def test_the_same_numbers_give_the_same_bytes(made: tuple[Path, list[str]]) -> None:
    folder = made[0] / "card"
    card = SaeCard.model_validate_json((folder / "card.json").read_bytes())
    assert card_files(card) == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_with_files_of_others_is_refused_before_anything_is_measured(
    tmp_path: Path, made: tuple[Path, list[str]]
) -> None:
    words = (tiny_saes(), "--model", tiny_folder(), "--limit", 1)
    (tmp_path / "README.md").write_text("# mine\n")
    for name in ("README.md", "card.json"):
        assert f"{name} was not written by `riebench sae card`" in invoke(*words, "--out", tmp_path, code=2)
        (tmp_path / "README.md").unlink(missing_ok=True)
        (tmp_path / "card.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]
    (tmp_path / "card.json").unlink()
    # A link would lead out of the folder.
    (tmp_path / "README.md").symlink_to(made[0] / "card" / "README.md")
    assert "was not written by" in invoke(*words, "--out", tmp_path, code=2)
    assert "there is a file of that name" in invoke(*words, "--out", made[0] / "prompts.txt", code=2)


def test_a_card_may_be_written_again_and_says_why_a_cell_is_empty(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    words = (tiny_saes(), "--model", tiny_folder(), "--blocks", "mid.0", "--prompts", tmp_path / "prompts.txt")
    for steps in ("1", "2"):
        printed = invoke(*words, "--steps", steps, "--out", tmp_path / "card", "--results", tmp_path)
    assert "not measured, 20 steps:" in printed and "licence not stated" in printed
    card = SaeCard.model_validate_json((tmp_path / "card" / "card.json").read_bytes())
    assert [one.steps for one in card.measurements] == [2]
    assert [one.condition for one in card.not_measured] == ["1 step", "4 steps", "20 steps", "under guidance"]
    text = (tmp_path / "card" / "README.md").read_text()
    assert "| all | – | – | – | 20 steps | – | – | – |" in text and "made for 4 steps at most" in text
    assert "Not stated: neither" in text and "license" not in ModelCard(text).data.to_dict()
    assert "step counts go from 1 on" in invoke(*words, "--steps", "0,4", code=2)
    assert "there is no such folder" in invoke(*words, "--results", tmp_path / "nope", code=2)


def test_models_are_measured_at_the_steps_that_they_are_made_for() -> None:
    few, many = spec("toy-turbo", 4, 0), spec("toy-base", 20, 2)
    assert model_conditions(few, None, None) == [(1, 0), (4, 0)]
    assert model_conditions(many, None, None) == [(20, 0), (20, 2)]
    assert model_conditions(many, (2, 8), None) == [(2, 0), (8, 0), (8, 2)]
    assert model_conditions(few, None, 3.0) == [(1, 0), (4, 0), (4, 3)]
    everything = [*model_conditions(few, None, None), *model_conditions(many, None, None)]
    assert missing_conditions([few, many], everything) == []
    for one, conditions, partner in (
        (few, ["20 steps", "under guidance"], "--model toy-turbo,toy-base"),
        (many, ["1 step", "4 steps"], "--model toy-base,toy-turbo"),
    ):
        missing = missing_conditions([one], model_conditions(one, None, None))
        assert [(entry.condition, entry.remedy) for entry in missing] == [(name, partner) for name in conditions]
        assert all(one.name in entry.reason for entry in missing)


def test_densities_are_counted_by_powers_of_ten() -> None:
    found = Densities.of(torch.tensor([0, 0, 1e-9, 2e-3, 2e-3, 0.05, 0.5, 1.0]))
    assert (found.dead, found.dense) == (2, 2)
    places = {place: count for place, count in enumerate(found.histogram) if count}
    bins = len(found.histogram)
    by_hand = {0: 1, bins - 3 * BINS_PER_DECADE + 1: 2, bins - 2 * BINS_PER_DECADE + 2: 1}
    assert places == {**by_hand, bins - 2: 1, bins - 1: 1}
    assert found.median == pytest.approx(2e-3)
    assert Densities.of(torch.zeros(4)).median is None


def test_scores_are_those_of_the_leaderboard_for_runs_with_the_same_weights(tmp_path: Path) -> None:
    for name, gain, sae in (("sae_sweep", 0.2, "aa"), ("sae_other", 0.3, "bb"), ("random", 0.05, "aa")):
        add_run(tmp_path, name, gain, sae=sae, method="random_features" if name == "random" else "sae")
    add_run(tmp_path, "mean", 0.1, method="mean_steering")
    found = benchmark_scores(tmp_path, {("mid.0", "aa")})
    rows = numbers(make_leaderboard(tmp_path))
    assert [one.method for one in found] == ["sae_sweep", "random"]
    for one in found:
        row = rows[one.method]
        stated = [f"{value:.9g}" for value in (one.score, one.low, one.high) if value is not None]
        assert stated == [row["score"], row["score_low"], row["score_high"]]
        assert str(one.rank) == row["rank"] and " ".join(one.runs) == row["runs"]
    assert found[1].notes.startswith("control of sae")
    assert benchmark_scores(tmp_path, {("up.0.1", "aa"), ("mid.0", "cc")}) == ()
    assert benchmark_scores(tmp_path / "nothing", {("mid.0", "aa")}) == ()


def test_scores_stand_in_the_header_and_the_text(tmp_path: Path, made: tuple[Path, list[str]]) -> None:
    add_run(tmp_path, "sae_sweep", 0.2, sae="aa")
    card = SaeCard.model_validate_json((made[0] / "card" / "card.json").read_bytes())
    scores = benchmark_scores(tmp_path, {("mid.0", "aa")})
    control = scores[0].model_copy(update={"control_of": "sae", "score": -0.00001, "low": -0.1})
    other = scores[0].model_copy(update={"other_blocks": ("up.0.0",)})
    models = (card.models[0].model_copy(update={"source": "owner/model", "on_hub": True}), card.models[1])
    text = card_text(card.model_copy(update={"scores": (other, control), "models": models}))
    assert ModelCard(text).data.to_dict()["base_model"] == ["owner/model"]
    _, (result,) = model_index_to_eval_results(ModelCard(text).data.to_dict()["model-index"])
    assert scores[0].score is not None and scores[0].low is not None
    assert result.metric_value == round(100 * scores[0].score, 2)
    assert result.metric_args is not None and result.metric_args["interval_95"][0] == round(100 * scores[0].low, 2)
    assert f"{100 * scores[0].score:.2f}" in text and "-0.00" not in text
    assert "edited together with other SAEs of up.0.0" in text


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Licence()),
        ({"README.md": "---\nlicense: mit\n---\n"}, Licence(identifier="mit", stated_in="README.md")),
        (
            {"README.md": "---\nlicense: other\nlicense_name: own-1\nlicense_link: LICENSE.md\n---\n"},
            Licence(identifier="other", name="own-1", link="LICENSE.md", stated_in="README.md"),
        ),
        ({"README.md": "---\nlicense: [\n---\n", "LICENSE": "\n MIT License\n\nCopyright"},
         Licence(identifier="mit", link="LICENSE", stated_in="LICENSE")),
        ({"README.md": "no header", "config.json": '{"license": "Own\\nterms"}'},
         Licence(identifier="other", name="Own terms", stated_in="config.json")),
        ({"config.json": "[1", "LICENSE.txt": "Terms of Use\n"},
         Licence(identifier="other", name="Terms of Use", link="LICENSE.txt", stated_in="LICENSE.txt")),
    ],
)  # fmt: skip
def test_a_licence_is_what_the_files_state(tmp_path: Path, files: dict[str, str], expected: Licence) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    root = tmp_path / "root"
    final = root / "mid.0" / "final"
    final.mkdir(parents=True)
    for name, text in files.items():
        (root / name).write_text(text)
    # What lies around the place that the user named says nothing about it.
    assert stated_licence([SaeSource(str(root))], [final]) == expected


def test_the_licence_nearest_to_an_sae_counts_and_a_named_one_has_any_name(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "mid.0").mkdir()
    (tmp_path / "mid.0" / "cfg.json").write_text('{"licence": "apache-2.0"}')
    assert stated_licence([SaeSource(str(tmp_path))], [tmp_path / "mid.0"]).identifier == "apache-2.0"
    assert licence_named("Own terms") == Licence(identifier="other", name="Own terms", stated_in="--licence")
    with pytest.raises(RiebenchError, match="name a licence"):
        licence_named("  ")


@pytest.mark.parametrize("name", ["a: b|c `d` <b>", "- [x](y)", "'\"#%&*!?{}", "ünï", "null"])
def test_any_name_reaches_the_hub_and_the_text_unchanged(name: str, made: tuple[Path, list[str]]) -> None:
    card = SaeCard.model_validate_json((made[0] / "card" / "card.json").read_bytes())
    licence = Licence(identifier="other", name=name, stated_in="--licence")
    saes = (card.saes[0].model_copy(update={"path": name}), *card.saes[1:])
    named = card.model_copy(update={"name": name, "licence": licence, "saes": saes})
    text = card_text(named)
    assert yaml.safe_load(text.split("---")[1])["license_name"] == name
    title = next(token for token in tokens(text) if token.type == "inline")
    assert "".join(child.content for child in title.children or [] if child.type in ("text", "text_special")) == name
    html = [token.content for token in tokens(text) if token.type in ("html_block", "html_inline")]
    assert len(html) == 1 and "made by" in html[0]


def test_an_sae_that_does_not_say_its_signal_is_measured_on_both(tmp_path: Path) -> None:
    write_dl_plain(tmp_path / "loose", parts(FEATURES, CHANNELS))
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    printed = invoke(
        f"mid.0={tmp_path / 'loose'}", "--model", tiny_folder(), "--prompts", tmp_path / "prompts.txt", "--steps", 1,
        "--out", tmp_path / "card", "--results", tmp_path,
    )  # fmt: skip
    card = SaeCard.model_validate_json((tmp_path / "card" / "card.json").read_bytes())
    assert card.name == "loose"
    assert [one.signal for one in card.measurements] == ["update", "output"]
    text = (tmp_path / "card" / "README.md").read_text()
    assert "| not stated | dictionary_learning |" in text
    assert max(one.figures.explained_variance for one in card.measurements) < 0
    assert "WARNING mid.0: explains nothing" in printed and "Warning, SAE 1: explains nothing" in text
