"""The paper's measured artefacts, end to end on the tiny model, and what they are computed with."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from paths import ROOT
from report_runs import NASTY
from tiny import CHANNELS, SIZE, tiny_folder, tiny_model, tiny_saes
from typer.testing import CliRunner

from riebench.blocks import RESIDUAL, kind
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.generator import Generator
from riebench.generation.hooks import find_module, known_sites
from riebench.models.families.sdxl.family import FAMILY
from riebench.models.families.sdxl.names import BLOCKS, SDXL_BLOCKS
from riebench.paper import measure
from riebench.paper.artefact import Artefact, Column, Row, Table, View, load_artefact, select_rows
from riebench.paper.job import PaperJob, PromptSample, load_block_saes, toy_captions
from riebench.paper.measure import Differences, VarianceMeter, ablate_block, reconstruction_edit
from riebench.paper.output import check, make_artefacts, select_recipes
from riebench.paper.recipes import on_sdxl, sweep
from riebench.paper.recipes import steps as steps_pass
from riebench.paper.recipes import sweep as training
from riebench.paper.recipes.steps import StepSums, mean_cosine
from riebench.paper.registry import RECIPES
from riebench.saes.formats import folder_name, save_sdxl_unbox
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.base import UNREADABLE
from riebench.scoring.metrics.judge import kept_share
from riebench.toyworld.captions import parse
from riebench.toyworld.scenes import is_held_out
from riebench.training.batches import DataPass

MEASURED = ("explained-variance", "explained-variance-steps", "overlap", "block-effect", "reconstruction")
CHOSEN = ("mid.0", "up.0.1")
PROMPTS = ("a red house", "a blue boat", "a cat")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> PaperJob:
    folder = tmp_path_factory.mktemp("paper")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return PaperJob(
        out=folder / "paper", work=folder / "work", suite="sdxl", model=str(tiny_folder()), base=str(tiny_folder()),
        guidance=3.0, sae=str(tiny_saes()), prompts=prompts, steps=(1, 2), blocks=CHOSEN, seeds=(0, 1), offline=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(job: PaperJob) -> PaperJob:
    make_artefacts(job, MEASURED)
    return job


def artefact(job: PaperJob, name: str) -> Artefact:
    found = load_artefact(job.out, name)
    assert found is not None
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_written_and_a_second_run_measures_nothing(
    made: PaperJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(made.out)
    for name in MEASURED:
        for path in (f"{name}.md", f"tables/{name}.csv", f"tables/{name}.tex", f"figures/{name}.png",
                     f"figures/{name}.svg", f"data/{name}.json"):  # fmt: skip
            assert before[path]
    monkeypatch.setattr(Generator, "generate", lambda *_, **__: pytest.fail("generated again"))
    make_artefacts(made, MEASURED)
    assert files(made.out) == before
    # The unconditional half has two files of its own; then there is the document of all.
    assert len(check(made.out, MEASURED)) == 5 * len(MEASURED) + 2 + 1


def test_measured_anew_elsewhere_the_tables_are_the_same_bytes(made: PaperJob, tmp_path: Path) -> None:
    again = replace(made, out=tmp_path / "again")
    make_artefacts(again, ["reconstruction", "overlap"])
    first, second = files(made.out), files(again.out)
    same = [name for name in second if name != "README.md"]
    assert {name: second[name] for name in same} == {name: first[name] for name in same}


def test_rows_are_those_that_were_asked_for(made: PaperJob) -> None:
    rows = artefact(made, "explained-variance-steps").table().rows
    assert {(row["steps"], row["step"]) for row in rows} == {
        (1, 1),
        (2, 1),
        (2, 2),
        *((4, step) for step in (1, 2, 3, 4)),
    }
    assert {row["block"] for row in rows} == set(CHOSEN)
    apart = artefact(made, "explained-variance-steps").table("unconditional").rows
    assert {row["steps"] for row in apart} == {4}
    assert all(row["n"] == len(PROMPTS) and row["tokens"] == len(PROMPTS) * 2 * 16 for row in (*rows, *apart))
    pairs = {(row["steps"], row["pair"]) for row in artefact(made, "overlap").table().rows}
    assert pairs == {(2, "1–2"), (4, "1–2"), (4, "2–3"), (4, "3–4")}
    effect = artefact(made, "block-effect").table().rows
    assert {(row["block"], row["change"], row["steps"]) for row in effect} == {
        (block, "no update", steps) for block in CHOSEN for steps in (1, 2)
    }
    assert all(float(str(row["lpips"])) > 0 for row in effect)
    lost = artefact(made, "reconstruction").table().rows
    assert {(row["block"], row["steps"]) for row in lost} == {(b, s) for b in (*CHOSEN, "all") for s in (1, 2)}
    for row in lost:
        low, value, high = (float(str(row[f"lpips{end}"])) for end in ("_low", "", "_high"))
        assert 0 <= low <= value <= high and value > 0


def test_check_names_what_is_out_of_date(made: PaperJob, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made.out, out)
    table = out / "tables" / "overlap.csv"
    table.write_text(table.read_text().replace("mid.0", "mid.1", 1))
    with pytest.raises(RiebenchError, match=r"overlap\.csv is out of date"):
        check(out, MEASURED)
    shutil.copy(made.out / "tables" / "overlap.csv", table)
    shutil.copy(out / "figures" / "overlap.png", out / "figures" / "reconstruction.png")
    with pytest.raises(RiebenchError, match=r"reconstruction\.png is out of date"):
        check(out, MEASURED)
    with pytest.raises(RiebenchError, match="holds no stored artefact"):
        check(tmp_path / "nowhere", MEASURED)


def test_a_damaged_store_is_named(made: PaperJob, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made.out, out)
    (out / "data" / "overlap.json").write_text("{")
    with pytest.raises(RiebenchError, match=r"overlap\.json is damaged"):
        check(out, MEASURED)
    for path in (out / "data" / "parts" / "block-effect").iterdir():
        path.write_text('{"rows"')
    with pytest.raises(RiebenchError, match=r"is damaged .* delete it"):
        make_artefacts(replace(made, out=out), ["block-effect"])


def test_a_stopped_run_goes_on_with_what_is_missing(
    job: PaperJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(job, out=tmp_path / "paper", steps=(1,), blocks=("mid.0", "mid.res.0", "mid.res.1"))
    done: list[str] = []
    real = measure.generate_pictures

    def counted(job: PaperJob, generator: Generator, runs: Any, label: str, **options: Any) -> Any:
        if "mid.res.1" in label and "mid.res.1" not in str(done):
            done.append(label)
            raise KeyboardInterrupt
        done.append(label)
        return real(job, generator, runs, label, **options)

    monkeypatch.setattr("riebench.paper.recipes.block_effect.generate_pictures", counted)
    with pytest.raises(KeyboardInterrupt):
        make_artefacts(mine, ["block-effect"])
    assert len(list((mine.out / "data" / "parts" / "block-effect").iterdir())) == 2
    done[:] = ["mid.res.1"]
    make_artefacts(mine, ["block-effect"])
    assert [label.split(", ")[1] for label in done[1:]] == ["clean", "without mid.res.1"]
    assert [row["block"] for row in artefact(mine, "block-effect").table().rows] == ["mid.res.0", "mid.0", "mid.res.1"]


def test_one_that_cannot_be_made_does_not_stop_the_others(job: PaperJob, tmp_path: Path) -> None:
    mine = replace(job, out=tmp_path / "paper", sae=str(tmp_path / "none"), steps=(1,), base="none")
    with pytest.raises(RiebenchError, match=r"1 artefacts are made, 1 are not: reconstruction \(no SAE folder"):
        make_artefacts(mine, ["block-effect", "reconstruction"])
    assert (mine.out / "block-effect.md").exists()


@pytest.mark.parametrize("site", ["mid.0", "up.0.res.0", "down.2.res.1"])
def test_a_block_that_is_taken_away_is_away(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    generator = Generator(model)
    with ablate_block(model.denoiser, site, model.spec.steps):
        away = generator.generate(["a house"], [1]).images
    module: Any = find_module(model.denoiser, site)
    if kind(site) == RESIDUAL:
        shortcut = module.conv_shortcut or (lambda hidden: hidden)
        monkeypatch.setattr(module, "forward", lambda hidden, *_, **__: shortcut(hidden))
    else:
        monkeypatch.setattr(module, "forward", lambda hidden, *_, **__: (hidden,))
    same = generator.generate(["a house"], [1]).images
    assert (away == same).all()
    monkeypatch.undo()
    assert (generator.generate(["a house"], [1]).images != away).any()


def test_blocks_come_in_the_order_of_the_pass() -> None:
    assert FAMILY.names.pass_order(sorted(SDXL_BLOCKS)) == SDXL_BLOCKS
    model = tiny_model(steps=1)
    sites = FAMILY.names.pass_order(known_sites(model.denoiser))
    order: list[str] = []
    handles = [
        find_module(model.denoiser, site).register_forward_pre_hook(lambda *_, site=site: order.append(site))
        for site in sites
    ]
    Generator(model).generate(["a house"], [1])
    for handle in handles:
        handle.remove()
    assert tuple(order) == sites


def identity_sae() -> SparseAutoencoder:
    eye, zero = torch.eye(CHANNELS), torch.zeros(CHANNELS)
    return SparseAutoencoder(eye, eye, zero, zero, zero, k=CHANNELS, activation="topk-signed")


def test_a_perfect_reconstruction_changes_nothing_and_explains_everything() -> None:
    model = tiny_model()
    generator = Generator(model)
    clean = generator.generate(["a house"], [3]).images
    edit = reconstruction_edit(dict.fromkeys(BLOCKS, identity_sae()))
    assert np.abs(generator.generate(["a house"], [3], edits=[edit]).images.astype(int) - clean).max() <= 1
    meter = VarianceMeter(2, CHANNELS)
    for prompt in (0, 1):
        meter.add_reconstructed(prompt, torch.randn(20, CHANNELS), identity_sae())
    figures = meter.estimates(["a", "b"])
    assert figures["ev_pooled"] == pytest.approx(1, abs=1e-6) and figures["tokens"] == 40


def test_explained_variance_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 50, 6, generator=generator) * torch.tensor([0.1, 1, 2, 3, 4, 0]) + 5
    left = torch.randn(4, 50, 6, generator=generator) + 1
    meter = VarianceMeter(4, 6)
    for prompt in range(4):
        meter.add(prompt, x[prompt], left[prompt])
    flat, error = x.double().flatten(0, 1).numpy(), left.double().flatten(0, 1).numpy()
    by_dim = (1 - error.var(0) / (flat.var(0) + 1e-8)).mean()
    pooled = 1 - error.var(0).sum() / flat.var(0).sum()
    found = meter.estimates(list("abcd"))
    assert found["ev_dim"] == pytest.approx(by_dim) and found["ev_pooled"] == pytest.approx(pooled)
    low, high = (float(str(found[f"ev_pooled{end}"])) for end in ("_low", "_high"))
    assert low < pooled < high
    assert VarianceMeter(1, 3).estimates(["a"])["ev_pooled"] is None


def test_cosines_leave_out_positions_without_features() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    other = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert mean_cosine(one, other) == pytest.approx((1 + 0.5**0.5) / 2)
    assert mean_cosine(one[1:2], other[1:2]) is None


def test_overlap_of_equal_steps_is_one(job: PaperJob) -> None:
    runs = job.samples(job.named_prompts(tiny_model().spec))
    sums = StepSums(runs, {"mid.0": identity_sae()})
    values = torch.randn(len(runs), 16, CHANNELS)
    for step in (0, 1):
        sums.add("mid.0", measure.SaeStep(step, measure.CONDITIONAL, 0, values, values))
    (row,) = [row for row in sums.rows() if row["kind"] == steps_pass.OVERLAP]
    assert row["cosine"] == pytest.approx(1) and row["cosine_mean_low"] == pytest.approx(1)
    assert (row["step"], row["next"], row["n"]) == (1, 2, len(PROMPTS))


@pytest.fixture
def small_sweep(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    plan = DataPass(batch_size=16, epochs=2, buffer=96, held_out=16)
    for name, value in {"SPARSITIES": (2, 4), "WIDTHS": (16,), "CAPTIONS": 8, "PLAN": plan}.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(sweep, "is_shipped", lambda _spec: True)
    yield


@pytest.mark.usefixtures("small_sweep")
def test_a_sweep_is_trained_once_and_measured_on_other_prompts(
    job: PaperJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(job, sae=None, out=tmp_path / "paper", work=tmp_path / "work")
    make_artefacts(mine, ["explained-variance"])
    first = artefact(mine, "explained-variance")
    rows = first.table().rows
    assert {(row["block"], row["width"], row["k"]) for row in rows} == {(b, 16, k) for b in CHOSEN for k in (2, 4)}
    assert len({row["sae"] for row in rows}) == len(rows)
    monkeypatch.setattr(training, "train_many", lambda *_, **__: pytest.fail("trained again"))
    again = replace(mine, out=tmp_path / "again")
    make_artefacts(again, ["explained-variance"])
    assert artefact(again, "explained-variance") == first
    trained_on = {run.prompt for run in training.training_samples()}
    assert not any(is_held_out(parse(text)) for text in trained_on)


def test_untrusted_text_stays_text() -> None:
    table = Table(title="T", columns=(Column(name="k"),), rows=({"k": NASTY},))
    settings: dict[str, Any] = {"model": {"name": NASTY, NASTY: "x"}, "SAEs": NASTY, "blocks": [NASTY]}
    nasty = Artefact(name="x", title="X", shows="`code`", tables=(table,), settings=settings, notes=(NASTY,), alt="y")
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(nasty.markdown())
    assert {*re.findall(r"<([a-z]\w*)", html)} <= {
        "h1", "h2", "p", "ul", "li", "code", "a", "img", "table", "thead", "tbody", "tr", "th", "td", "em",
    }  # fmt: skip
    links = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert {link.partition("/")[0] for link in links} == {"figures", "tables", "data"}
    plain = nasty.model_copy(update={"notes": ("`sae`: 0.5 [0.4, 0.6]",), "settings": {"model": "m (a @ b)"}})
    assert "- `sae`: 0.5 [0.4, 0.6]\n" in plain.markdown() and "- model: m (a @ b)\n" in plain.markdown()


def test_toy_captions_are_held_out_and_always_the_same() -> None:
    texts = toy_captions(12)
    assert texts[:5] == toy_captions(5) and len({text for _, text in texts}) == 12
    assert all(is_held_out(parse(text)) for _, text in texts)


def test_prompts_of_a_suite_are_one_of_each_cluster(job: PaperJob) -> None:
    texts = replace(job, prompts=None, limit=7).named_prompts(tiny_model().spec)
    assert len(texts) == len({text for _, text in texts}) == 7


def test_several_widths_may_lie_below_one_folder(job: PaperJob, tmp_path: Path) -> None:
    for width in (96, 48):
        place = tmp_path / "saes" / f"topk-n{width}" / folder_name("mid.0", 4, width) / "final"
        decoder = torch.nn.functional.normalize(torch.randn(CHANNELS, width), dim=0)
        save_sdxl_unbox(
            place, encoder=decoder.T.clone(), decoder=decoder, pre_bias=torch.zeros(CHANNELS),
            latent_bias=torch.zeros(width), k=4,
        )  # fmt: skip
    found = load_block_saes(replace(job, sweep=str(tmp_path / "saes")), tiny_model(), ["mid.0"])
    assert [(one.block, one.sae.n, one.sae.k) for one in found] == [("mid.0", 48, 4), ("mid.0", 96, 4)]


def test_what_sdxl_takes_is_counted(job: PaperJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = {"evaluations": 1000, "pictures": 400, "disk": 5_000_000_000}
    monkeypatch.setattr(on_sdxl, "_forecast", lambda _name: [forecast])
    made = on_sdxl.make(replace(job, out=tmp_path))
    rows = {str(row["step"]): row for row in made.table().rows}
    effect = rows["block effect"]
    assert (effect["evaluations"], effect["pictures"]) == (100 * 5 * 29, 100 * 2 * 29)
    # 6.5 and 10.5 TFLOP at 1024 px, at 50 TFLOP/s in half precision and 12 in float32.
    hours = (14_500 * 6.5 / 4 / 50 + 5_800 * 10.5 / 4 / 12) / 3600
    assert effect["hours"] == pytest.approx(hours, rel=1e-4)
    single = rows["single features"]
    edited = 4 * 40 * 4 * 3
    assert (single["evaluations"], single["pictures"]) == ((2 * 300 + edited) * 5, (300 + edited) * 2)
    assert rows["explained variance over steps, feature overlap"]["evaluations_1024"] == 100 * 20 * 2
    assert rows["updates to train on"]["disk"] == pytest.approx(100_000 * 256 * 1280 * 2 * 4 / 1e9)
    assert rows["together"]["evaluations"] == sum(int(str(row["evaluations"])) for row in rows.values()) / 2


def test_the_committed_documents_follow_from_their_data() -> None:
    assert check(ROOT / "docs" / "paper", list(RECIPES))


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["paper", *arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    tiny = ("--model", str(tiny_folder()), "--suite", "sdxl", "--out", str(tmp_path / "out"), "--device", "cpu")
    assert "unknown artefact 'overlpa' (did you mean 'overlap'?)" in refused("overlpa")
    assert "has no block mid.7 (did you mean 'mid.0'?)" in refused("block-effect", *tiny, "--blocks", "mid.7")
    assert "is not measured here" in refused("overlap", *tiny, "--sae", str(tiny_saes()), "--blocks", "mid.res.0")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert "it holds no prompt" in refused("block-effect", *tiny, "--prompts", str(empty))
    assert "--steps '1,x'" in refused("block-effect", *tiny, "--steps", "1,x")
    assert "holds no stored artefact" in refused("all", "--check", "--out", str(tmp_path / "out"))
    assert "has no SAEs of its own" in refused("reconstruction", *tiny)
    root = tmp_path / "saes"
    narrow = torch.nn.functional.normalize(torch.randn(8, 16), dim=0)
    save_sdxl_unbox(
        root / folder_name("mid.0", 2, 16) / "final", encoder=narrow.T.clone(), decoder=narrow,
        pre_bias=torch.zeros(8), latent_bias=torch.zeros(16), k=2,
    )  # fmt: skip
    message = refused("explained-variance", *tiny, "--sae", str(root), "--blocks", "mid.0")
    assert f"has width 8, but {tiny_folder().name} has {CHANNELS} channels" in message
    assert not (tmp_path / "out").exists()


def test_the_list_says_what_each_is_and_needs() -> None:
    result = CliRunner().invoke(app, ["paper"])
    assert result.exit_code == 0
    for recipe in RECIPES.values():
        assert f"{recipe.name}\n    {recipe.paper}\n    needs: {recipe.needs}" in result.stdout
    assert [recipe.name for recipe in select_recipes(["overlap", "explained-variance"])] == [
        "explained-variance",
        "overlap",
    ]
    assert tiny_model().spec.size == SIZE


def test_cells_print_as_documented() -> None:
    column = Column(name="x", decimals=2, interval=True, signed=True)
    assert column.cell({"x": -0.001, "x_low": -0.5, "x_high": 0.25}) == "0.00 [-0.50, +0.25]"
    assert column.cell({"x": None}) == "–"
    assert Column(name="x", scale=100, decimals=1).cell({"x": 0.1234}) == "12.3"
    rows: tuple[Row, ...] = (
        {"k": 4, "block": "a", "ev": 1 / 3},
        {"k": 4, "block": "b", "ev": 0.5},
        {"k": 8, "block": "b", "ev": 0.75},
    )
    table = Table(
        title="T", columns=(Column(name="k"), Column(name="block"), Column(name="ev", decimals=1)), rows=rows,
        views=(View(title="wide", down=("k",), across="block", cell="ev"),),
    )  # fmt: skip
    assert "| k | a | b |\n| --- | --- | --- |\n| 4 | 0.3 | 0.5 |\n| 8 | – | 0.8 |" in table.markdown(2)
    assert table.csv() == "k,block,ev\n4,a,0.333333\n4,b,0.5\n8,b,0.75\n"
    assert select_rows(list(table.rows), k=4, block="a") == [{"k": 4, "block": "a", "ev": 0.333333}]
    again: tuple[Row, ...] = ({"k": 4, "block": "a", "ev": 1 / 3}, {"k": 4, "block": "b", "ev": 0.25}, rows[2])
    twice = table.model_copy(update={"rows": (*table.rows, *again)}).markdown(2)
    assert "| 4 | 0.3 | 0.5 |\n| 4 | 0.3 | 0.2 |\n| 8 | – | 0.8 |\n" in twice, "no number hides another"
    with pytest.raises(ValueError, match="'odd', which is no column"):
        Table(title="T", columns=(Column(name="k"),), rows=({"odd": 1},))


def test_pictures_at_a_time_follow_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [PromptSample("p", "a red cat", index, index) for index in range(3)]

    def sizes(job: PaperJob) -> list[int]:
        return [len(some) for _, some in measure.batches(job, tiny_model(), runs, "test")]

    assert sizes(PaperJob()) == [3]
    monkeypatch.setattr("riebench.generation.memory.free_bytes", lambda device: 0)
    assert sizes(PaperJob()) == [1, 1, 1]
    assert sizes(PaperJob(batch_size=2)) == [2, 1]


def test_a_refusal_alone_is_no_change_of_an_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, edited = np.zeros((2, 64, 64, 3), np.uint8), np.ones((2, 64, 64, 3), np.uint8)
    first = {"color": UNREADABLE, "pose": "upright", "style": "pencil"}
    second = {"color": "red", "pose": "tilted", "style": UNREADABLE}
    unseen = dict.fromkeys(first, UNREADABLE)
    read = {0: [first, unseen], 1: [second, second]}

    def get(_: object, name: str) -> Any:
        if name == "judge":
            return lambda images: read[int(images[0].max())]
        return SimpleNamespace(distance=lambda one, other: np.zeros(len(one)))

    monkeypatch.setattr("riebench.paper.measure.Networks.get", get)
    monkeypatch.setattr("riebench.paper.measure.is_judged", lambda spec: True)
    monkeypatch.setattr("riebench.paper.measure.judge_for", lambda spec: "judge")
    samples = [PromptSample(name, "a prompt", 0, 0) for name in ("a", "b")]
    job: Any = SimpleNamespace(device="cpu")
    spec: Any = None
    row = Differences(job, spec, samples, clean).compare(edited)
    # Pose and style are read otherwise; color, and the second picture, could not be read before.
    assert row["changed"] == 1.0
    assert kept_share(first, second, ("pose", "color")) == 0.0
    assert kept_share(unseen, second, unseen) is None
