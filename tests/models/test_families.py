"""The contract of a model family: SDXL fills it, and a transformer that is unlike SDXL in every way fits it too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from paths import ROOT
from tiny import tiny_model
from torch import Tensor, nn

from riebench import blocks
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.hooks import known_sites
from riebench.generation.prefix import Cut, PrefixPlan, changes, record, resume, shared_cut
from riebench.generation.trace import capture, intervene
from riebench.models.families.base import Family, family_of_denoiser, family_of_pipeline
from riebench.models.families.blocks import BatchLayout, BlockNames, Site
from riebench.models.families.sdxl.family import FAMILY, SdxlFamily
from riebench.registry import MODEL_FAMILIES

WIDTH, TEXT_WIDTH, TOKENS, SIDE = 6, 6, 3, 2
POSITIONS = SIDE * SIDE
Branch = Literal["both", "conditional", "all"]


class PairBlock(nn.Module):
    """A block of a transformer with two streams: keywords only, text and image out, on a token axis."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, WIDTH), nn.Linear(TEXT_WIDTH, TEXT_WIDTH)

    def forward(self, *, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        image = hidden_states + self.image(hidden_states) + encoder_hidden_states.mean(1, keepdim=True)
        return encoder_hidden_states + self.text(encoder_hidden_states), image


class PairTransformer(nn.Module):
    """Two such blocks one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pairs = nn.ModuleList([PairBlock(), PairBlock()])

    def forward(self, *, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        for layer in self.pairs:
            encoder_hidden_states, hidden_states = layer(
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states
            )
        return (hidden_states,)


class PairNames(BlockNames):
    known = ("pair.0", "pair.1")
    default = ("pair.1",)
    prefixes = ("pair",)

    def short_name(self, name: str) -> str | None:
        match = re.fullmatch(r"(?:pair|pairs)\.(\d+)", name)
        return None if match is None else f"pair.{match[1]}"

    def module_path(self, short: str) -> str:
        return short.replace("pair", "pairs")

    def long_name(self, short: str) -> str:
        return f"transformer.{self.module_path(short)}"

    def update_path(self, short: str) -> str:
        return self.module_path(short)

    def update_block(self, path: str) -> str | None:
        return None

    def kind(self, short: str) -> str:
        return blocks.ATTENTION

    def pass_order(self, shorts: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted(shorts))

    def unit_site(self, block: str, layer: int) -> str:
        raise blocks.unknown_block(f"{block}.ff.{layer}")

    def block_of(self, site: str) -> str:
        return site


@dataclass(frozen=True)
class PairSite(Site):
    module: nn.Module
    point: nn.Module

    def hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        hidden: Tensor = kwargs["hidden_states"]
        return hidden

    def stream(self, output: Any) -> Tensor:
        image: Tensor = output[1]
        return image

    def update(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        return self.stream(output).float() - self.hidden(args, kwargs).float()

    def with_stream(self, output: Any, changed: Tensor) -> Any:
        return output[0], changed

    def bypass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        return output[0], self.hidden(args, kwargs)

    def grid(self, hidden: Tensor) -> tuple[int, int]:
        return SIDE, hidden.shape[1] // SIDE

    def as_picture(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        return values.transpose(1, 2).unflatten(2, grid)


class PairFamily(SdxlFamily):
    """Only what hooks need is another family's."""

    name = "pair"
    pipeline_class = "PairPipeline"
    denoiser_class = "PairTransformer"
    names = PairNames()
    conditional_first = True

    def sites(self, denoiser: nn.Module) -> tuple[str, ...]:
        return tuple(f"pair.{index}" for index in range(len(denoiser.get_submodule("pairs")._modules)))

    def site(self, denoiser: nn.Module, name: str) -> Site:
        module = denoiser.get_submodule(self.names.module_path(name))
        return PairSite(module, module)

    def text_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        return ()

    def layout(self, guided: bool) -> BatchLayout:
        if self.conditional_first:
            return BatchLayout(guided, ("conditional", "unconditional"), together=False)
        return BatchLayout(guided, ("unconditional", "conditional"), together=False)

    def stages(self, denoiser: nn.Module) -> tuple[Any, ...]:
        return ()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[PairFamily]:
    """The family, registered beside SDXL for one test."""
    family = PairFamily()
    monkeypatch.setitem(MODEL_FAMILIES._objects, "pair", family)
    blocks._find.cache_clear()
    yield family
    blocks._find.cache_clear()


def run(network: PairTransformer, guided: bool, steps: int = 2, rows: int = 2) -> list[Tensor]:
    """Calls a network as a pipeline does; under guidance twice a step, conditional text first."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, POSITIONS, WIDTH, generator=generator)
    texts = [torch.randn(rows, TOKENS, TEXT_WIDTH, generator=generator) for _ in range(2)]
    found = []
    for _ in range(steps):
        for text in texts if guided else texts[:1]:
            found.append(network(hidden_states=hidden, encoder_hidden_states=text)[0])
    return found


def push(steps: int = 2) -> StaticEdit:
    values = torch.randn(steps, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(2))
    return StaticEdit((Term(torch.arange(POSITIONS), values),))


def test_names_of_another_family_are_understood_beside_sdxls(pair: PairFamily) -> None:
    network = PairTransformer()
    assert family_of_denoiser(network) is pair and known_sites(network) == ("pair.0", "pair.1")
    assert blocks.short_name("pairs.1") == "pair.1" and blocks.module_path("pair.1") == "pairs.1"
    assert blocks.default_blocks("pair") == ("pair.1",) and blocks.block_set_name(("pair.1",)) == "all"
    assert blocks.block_set_blocks("all", "pair") == ("pair.1",)
    assert blocks.short_name("mid_block.attentions.0") == "mid.0"
    with pytest.raises(RiebenchError, match=r"unknown block 'pair.x' \(did you mean 'pair\.[01]'"):
        blocks.short_name("pair.x")


@pytest.mark.parametrize("guided", [False, True])
def test_observing_changes_no_bit_and_reads_the_image_stream(pair: PairFamily, guided: bool) -> None:
    network = PairTransformer()
    plain = run(network, guided)
    with capture(network, ["pair.0", "pair.1"], keep=("input", "output", "update"), steps=2, guided=guided,
                 unconditional=True) as trace:  # fmt: skip
        seen = run(network, guided)
    assert all(torch.equal(one, other) for one, other in zip(plain, seen, strict=True))
    assert trace.steps == 2 and trace.grids["pair.1"] == (SIDE, SIDE)
    for half in ("conditional", "unconditional") if guided else ("conditional",):
        last = trace.get("pair.1", "output", half)
        wanted = plain[1::2] if half == "unconditional" else plain[:: 2 if guided else 1]
        assert torch.equal(last.flatten(3).transpose(2, 3), torch.stack(wanted, 1))
        update = trace.get("pair.1", "update", half)
        assert torch.allclose(update, last - trace.get("pair.1", "input", half))


@pytest.mark.parametrize("guided", [False, True])
def test_an_edit_of_zero_changes_no_bit(pair: PairFamily, guided: bool) -> None:
    network = PairTransformer()
    plain = run(network, guided)
    edits = [Edit({"pair.0": push()}, strength=0.0), None]
    with intervene(network, edits, guided=guided, steps=2):
        same = run(network, guided)
    assert all(torch.equal(one, other) for one, other in zip(plain, same, strict=True))


@pytest.mark.parametrize("branch", ["both", "conditional", "all"])
def test_an_edit_lands_on_the_image_of_its_row_step_and_half(pair: PairFamily, branch: Branch) -> None:
    network = PairTransformer()
    plain = run(network, True)
    wanted = push()
    with intervene(network, [None, Edit({"pair.1": wanted}, branch=branch)], guided=True, steps=2):
        edited = run(network, True)
    dense = wanted.dense(2, POSITIONS, WIDTH)
    sign = {"both": -1.0, "conditional": 0.0, "all": 1.0}[branch]
    for step in range(2):
        conditional, unconditional = edited[2 * step], edited[2 * step + 1]
        assert torch.equal(conditional[0], plain[2 * step][0]) and torch.equal(unconditional[0], plain[2 * step + 1][0])
        assert torch.allclose(conditional[1], plain[2 * step][1] + dense[step], atol=1e-6)
        assert torch.allclose(unconditional[1], plain[2 * step + 1][1] + sign * dense[step], atol=1e-6)


def test_what_is_not_known_yet_is_not_taken_off(pair: PairFamily) -> None:
    pair.conditional_first = False
    network = PairTransformer()
    with (
        pytest.raises(RiebenchError, match="for the unconditional half first"),
        intervene(network, [Edit({"pair.1": push()}), None], guided=True),
    ):
        run(network, True)


def test_calls_are_counted_by_steps(pair: PairFamily) -> None:
    network = PairTransformer()
    with (
        pytest.raises(RiebenchError, match="expected 6 U-Net calls, saw 4"),
        capture(network, [], steps=3, guided=True),
    ):
        run(network, True)


@pytest.mark.parametrize("guided", [False, True])
def test_whole_steps_are_shared_where_there_are_no_stages(pair: PairFamily, guided: bool) -> None:
    network = PairTransformer()
    runs = [("a", 0), ("b", 1)]
    late = Edit({"pair.0": push()}, window=(1, 2))
    with record(network, runs, PrefixPlan(2, ("pair.0",), (1,)), guided=guided) as prefix:
        plain = run(network, guided)
    assert prefix.steps == 2 and Cut(1, "pair.0", True) in changes(late, 2)
    cut = shared_cut([prefix], runs, [late, None])
    assert cut == Cut(1)
    with intervene(network, [late, None], guided=guided):
        wanted = run(network, guided)
    with (
        intervene(network, [late, None], guided=guided, absent_steps=lambda _: 1),
        resume(network, [prefix], runs, cut, guided=guided),
    ):
        found = run(network, guided)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
    assert not torch.equal(plain[-1], found[-1]) or not guided


def test_a_network_or_pipeline_of_no_family_is_refused() -> None:
    with pytest.raises(RiebenchError, match="no model family has a denoiser of class Linear"):
        family_of_denoiser(nn.Linear(1, 1))
    with pytest.raises(RiebenchError, match="no model family has a pipeline of class object"):
        family_of_pipeline(object())


def test_sdxl_fills_the_contract() -> None:
    model = tiny_model()
    assert isinstance(FAMILY, Family) and model.family is FAMILY and MODEL_FAMILIES.get("sdxl") is FAMILY
    assert model.denoiser is model.pipe.unet and FAMILY.networks(model.pipe)[0] is model.denoiser
    shape = FAMILY.shape_of_pipeline(model.pipe)
    assert all(shape.width(block) == FAMILY.update_width(model.denoiser, block) for block in FAMILY.names.default)
    missing = [name for name in Family.__annotations__ if not hasattr(FAMILY, name)]
    assert missing == []


NAMES = re.compile(r"(down|mid|up)\.\d|(down|up)_blocks\.|mid_block\.")


def test_nobody_outside_the_families_names_sdxls_pipelines_or_blocks() -> None:
    """Docstrings may give examples; code and messages may not know them."""
    import ast

    found = []
    for file in sorted((ROOT / "riebench").rglob("*.py")):
        inside = file.relative_to(ROOT / "riebench").parts
        if inside[0] == "toyworld" or inside[:2] == ("models", "families"):
            continue
        text = file.read_text(encoding="utf-8")
        found += [f"{file}: {name}" for name in re.findall(r"\w*StableDiffusion\w*", text)]
        tree = ast.parse(text)
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found += [
            f"{file}:{node.lineno}: {node.value}" for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
            and NAMES.search(node.value)
        ]  # fmt: skip
    assert found == []


def test_the_pattern_finds_names(tmp_path: Path) -> None:
    assert NAMES.search("mid.0") and NAMES.search("unet.down_blocks.2.attentions.1") and not NAMES.search("mid.toto")
