"""The benchmark of whole denoisers: its networks are the published ones, its steps are edited, its table is kept."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import full_size
from benchmarks.full_size import Network, build, counted, figures, fill, measure, networks
from riebench.errors import RiebenchError

TINY = Network(
    "tiny", "UNet2DConditionModel", "up_blocks.1.attentions.1", networks()["sd15"].inputs,
    {
        "sample_size": 8, "block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 768, "attention_head_dim": 4,
    },
)  # fmt: skip


def test_networks_are_of_the_published_sizes() -> None:
    sizes = {"sd15": 859_520_964, "sana": 1_604_462_752, "sdxl": 2_567_463_684}
    found = {name: sum(value.numel() for value in build(one, "meta").parameters()) for name, one in networks().items()}
    assert found == sizes
    for one in networks().values():
        build(one, "meta").get_submodule(one.block)


def test_one_step_is_edited_and_measured() -> None:
    found = measure(TINY, 64)
    assert found["seconds"] > 0 and found["processor_seconds"] > 0 and found["peak_bytes"] > 10**8
    work = counted(TINY, 64)
    assert 0 < work["teraflop"] < 0.01 and work["planned_teraflop"] is None
    with pytest.raises(RiebenchError, match=r"has no block up_blocks\.5"):
        counted(replace(TINY, block="up_blocks.5.attentions.0"), 64)


def test_what_does_not_fit_or_fails_has_its_reason_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = replace(TINY, class_name="Transformer2DModel", config={"in_channels": 32, "norm_num_groups": 8})
    monkeypatch.setattr(full_size, "networks", lambda: {"sd15": TINY, "sana": foreign})
    monkeypatch.setattr(full_size, "free_ram", lambda: 10**9)
    found = [figures(name, 64) for name in ("sd15", "sana")]
    assert "needs 2.0 GB, 1.0 GB are free" in found[0]["error"]
    assert "no model family has a denoiser of class" in found[1]["error"]
    whole = json.loads(full_size.RESULTS.read_text())
    whole["measures"] = found
    (tmp_path / "found.json").write_text(json.dumps(whole))
    (tmp_path / "page.md").write_text("<!-- full-size: table -->\n<!-- end -->\n")
    with pytest.raises(RiebenchError, match=r"is out of date; run `python -m benchmarks\.full_size --table`"):
        fill(check=True, document=tmp_path / "page.md", results=tmp_path / "found.json")
    fill(document=tmp_path / "page.md", results=tmp_path / "found.json")
    text = (tmp_path / "page.md").read_text()
    assert re.search(r"\| tiny \| \d+ M \| 64 px \|", text) and "not measured: needs" in text


def test_the_document_shows_what_was_measured() -> None:
    fill(check=True)
    found: dict[str, Any] = json.loads(full_size.RESULTS.read_text())
    assert {one["model"] for one in found["measures"]} == {one.title for one in networks().values()}
