"""`riebench sae inspect`, and the figures it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sae_files import parts, write_dl_batch_topk, write_dl_plain, write_saeuron
from tiny import CHANNELS, tiny_folder, tiny_model, tiny_saes
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.features.inspect import Inspection, inspect, load_all, prompts_from
from riebench.generation.generator import Capture, Generator
from riebench.models.sae_quality import Quantity
from riebench.runs.sae_check import Reading, measure
from riebench.saes.figures import Meter
from riebench.saes.formats import load_saes, save_sdxl_unbox
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import parse_sources

RUNNER = CliRunner()
PROMPTS = ["a red cat", "two dogs", "a house"]


def report(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = RUNNER.invoke(app, ["sae", "inspect", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_figures_are_those_of_their_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 8, generator=generator) + 3
    directions = torch.randn(16, 8, generator=generator)
    sae = SparseAutoencoder(directions, directions, torch.zeros(8), x.mean(0), torch.full((16,), -9.0), k=4)
    meter = Meter(sae)
    for part in x.split(77):
        meter.add(part)
    codes = sae.encode(x)
    left_over = (x - sae.decode(codes)).double().square().sum()
    figures = meter.figures()
    assert figures.positions == 500
    assert figures.l0 == pytest.approx(float((codes > 0).sum(1).float().mean()), abs=1e-3)
    expected = 1 - left_over / (x - x.mean(0)).double().square().sum()
    assert figures.explained_variance == pytest.approx(float(expected), abs=1e-3)
    assert figures.dead_share == pytest.approx(float((codes == 0).all(0).float().mean()), abs=1e-4)
    assert 0 < figures.dead_share < 1


def test_an_offset_counts_as_unexplained() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    both = torch.cat([torch.eye(4), -torch.eye(4)])
    good, shifted = (
        SparseAutoencoder(both, both, torch.zeros(4), torch.full((4,), bias), torch.zeros(8), activation="relu")
        for bias in (0.0, 2.0)
    )
    meters = [Meter(good), Meter(shifted)]
    for meter in meters:
        meter.add(x)
    assert meters[0].figures().explained_variance == 1.0
    assert meters[1].figures().explained_variance < -1


@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_what_is_measured_is_what_the_model_computes(guidance: float) -> None:
    model = tiny_model(guidance=guidance)
    sae = load_saes(tiny_saes(), ["mid.0"])["mid.0"]
    signals: tuple[Quantity, ...] = ("update", "output")
    readings = [Reading("mid.0", sae, one, one) for one in signals]
    found = dict(zip(signals, measure(readings, model, PROMPTS, batch_size=2, progress=False), strict=True))
    wanted = Capture(("mid.0",), keep=("update", "output"))
    parts = [Generator(model).generate([p], [i], capture=wanted).trace for i, p in enumerate(PROMPTS)]
    for what, figures in found.items():
        meter = Meter(sae)
        for trace in parts:
            meter.add(trace.get("mid.0", what).movedim(2, -1).flatten(0, 3))
        expected = meter.figures()
        assert figures.positions == expected.positions == 3 * 2 * 16
        assert figures.explained_variance == pytest.approx(expected.explained_variance, abs=2e-3)
        assert figures.l0 == pytest.approx(expected.l0, abs=0.05)
    assert found["update"] != found["output"]


def test_a_root_is_listed_with_all_it_holds(tmp_path: Path) -> None:
    out, _ = report(str(tiny_saes()), "--json", str(tmp_path / "report.json"))
    for words in ("down.2.1", "up.0.1", "sdxl-unbox", "topk", "update", "row norm median"):
        assert words in out
    stored = Inspection.model_validate_json((tmp_path / "report.json").read_text())
    assert [(one.block, one.features, one.width, one.k) for one in stored.saes] == [
        (block, 96, CHANNELS, 8) for block in ("down.2.1", "mid.0", "up.0.0", "up.0.1")
    ]
    assert stored.model is None and all(one.row_norms.median == pytest.approx(1) for one in stored.saes)


def test_a_measured_report(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\n\n two dogs \na house\n")
    out, _ = report(
        f"mid.0={tiny_saes()}", "--model", str(tiny_folder()), "--steps", "1", "--limit", "2",
        "--prompts", str(tmp_path / "prompts.txt"), "--json", str(tmp_path / "report.json"), "--device", "cpu",
    )  # fmt: skip
    stored = json.loads((tmp_path / "report.json").read_text())
    (mid,) = stored["saes"]
    figures = mid["measured"]["update"]
    assert (stored["prompts"], stored["steps"], figures["positions"]) == (2, 1, 32)
    assert f"{figures['explained_variance']:.4f}" in out and "2 prompts, 1 steps: 32 positions of each block" in out


def write_useless(folder: Path) -> Path:
    """An SAE that makes everything worse."""
    eye = torch.eye(CHANNELS)
    save_sdxl_unbox(
        folder, encoder=eye, decoder=-eye, pre_bias=eye[0], latent_bias=torch.full((CHANNELS,), 50.0), k=9
    )  # fmt: skip
    return folder


def test_warnings_say_what_is_wrong(tmp_path: Path) -> None:
    wide = parts(n=96, d=CHANNELS)
    write_dl_plain(tmp_path / "silent", wide)
    write_saeuron(tmp_path / "outputs", wide)
    write_dl_batch_topk(tmp_path / "loose", wide)
    named = {
        "down.2.1": write_useless(tmp_path / "useless"), "mid.0": tmp_path / "silent", "up.0.0": tmp_path / "outputs",
        "up.0.1": f"{tmp_path / 'loose'}#signal=update",
    }  # fmt: skip
    found = load_all(parse_sources(",".join(f"{block}={place}" for block, place in named.items())))
    reports = {one.block: one for one in inspect(found, tiny_model(), PROMPTS[:1], progress=False).saes}
    warnings = {block: " / ".join(one.warnings) for block, one in reports.items()}
    assert "explains nothing" in warnings["down.2.1"]
    assert set(reports["mid.0"].measured) == {"update", "output"}
    assert "does not say what it was trained on; it explains more of the" in warnings["mid.0"]
    assert set(reports["up.0.0"].measured) == {"output"} and reports["up.0.0"].reads == "output"
    assert "active at a position, k is 2: its threshold comes from too short a training" in warnings["up.0.1"]
    unmeasured = inspect(found).saes
    assert [len(one.warnings) for one in unmeasured] == [0, 1, 0, 0]


def test_the_command_prints_warnings_and_needs_a_block_to_measure(tmp_path: Path) -> None:
    write_useless(tmp_path / "mine")
    place = str(tmp_path / "mine")
    out, _ = report(f"mid.0={place}", "--model", str(tiny_folder()), "--steps", "1", "--limit", "1", "--device", "cpu")
    assert "WARNING mid.0: explains nothing" in out
    _, err = report(place, "--model", str(tiny_folder()), "--limit", "1", "--device", "cpu", code=2)
    assert f"write BLOCK={place}, such as mid.0={place}" in err.splitlines()[-1]
    out, _ = report(place)
    assert "not stated" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the SAEs"),
        (["nowhere"], "no SAE folder nowhere"),
        (["nowhere", "--mapping", "no.yaml"], "--mapping no.yaml: cannot be read, there is no such file"),
        (["hf://nobody"], "write hf://OWNER/NAME"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    _, err = report(*arguments, code=2)
    assert message in err and err.startswith("riebench: ") and len(err.splitlines()) == 1


def test_saes_that_do_not_fit_the_model(tmp_path: Path) -> None:
    write_dl_plain(tmp_path / "narrow", parts())
    with pytest.raises(RiebenchError, match=r"has width 4, but .* has 64 channels there"):
        inspect(load_all(parse_sources(f"mid.0={tmp_path}/narrow")), tiny_model(), PROMPTS)
    with pytest.raises(RiebenchError, match=r"is for block up.1.0, which .* does not have"):
        inspect(load_all(parse_sources(f"up.1.0={tmp_path}/narrow")), tiny_model(), PROMPTS)


def test_prompts_of_a_suite_are_drawn_from_all_of_it(tmp_path: Path) -> None:
    some, more = prompts_from("toy", None, 5), prompts_from("toy", None, 100_000)
    assert len(some) == 5 and len(set(more)) == len(more) > 100
    assert some[-1] in more[len(more) // 2 :]
    (tmp_path / "empty.txt").write_text("\n")
    for file, message in ((tmp_path / "empty.txt", "holds no prompt"), (tmp_path / "absent.txt", "cannot be read")):
        with pytest.raises(RiebenchError, match=message):
            prompts_from("toy", file, 3)
