"""The contract of a model family, held against the pipeline and the network themselves.

Each case says by hand where its network takes and gives the picture and in which call and rows each half comes. What a
family says is compared with that, never with itself. A new family adds a case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from case_pixart import pixart_cases
from case_qwen import qwen_cases
from case_sana import sana_cases
from case_sd import sd_cases
from case_sd3 import sd3_cases
from case_zimage import zimage_cases
from configuration_flips import INDEX, FlipCheck, flips
from numpy.typing import NDArray
from outside_cases import outside_cases, wrong_families
from tiny import tiny_model
from tiny_flux import TOKENS, tiny_flux
from tiny_runs import picture, task
from torch import Tensor, nn
from typer.testing import CliRunner

from riebench.api.models import load_saes
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.generator import Capture, Generator
from riebench.generation.hooks import known_sites
from riebench.generation.prefix import PrefixPlan
from riebench.generation.transfers import PatchReplacement
from riebench.models.families.base import Family, families
from riebench.models.families.blocks import BatchLayout, Half, Site
from riebench.models.families.flux.family import FluxFamily
from riebench.models.families.tokens.streams import TokenSite, place_of
from riebench.models.loading import LoadedModel
from riebench.registry import MODEL_FAMILIES
from riebench.runs.runner import run_benchmark
from riebench.tasks.schema import Setting

PROMPTS, SEEDS, STEPS = ("a red house", "two dogs on a hill", "snow"), (3, 5, 7), 2
PIXEL = 1 / 255 + 1e-6
"""One step of a stored picture."""
Reader = Callable[[tuple[Any, ...], Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Case:
    """A tiny model of a family, and what is true of its network.

    Attributes:
        name: of the case.
        load: loads the model.
        block: a block late in the network, and its module.
        hidden: the picture that enters the block.
        given: the picture that a block gives, any one of the network.
        text: the text that the block gives; None if it gives none.
        together: whether guidance is one batch, its unconditional half first, or two calls, the conditional one first.
        arguments: of the pipeline's own call.
        first: the half that comes first, where it is not the usual one of `together`.
        blind: blocks that see no text, so that they give the same for all prompts in the first step.
    """

    name: str
    load: Callable[[], LoadedModel]
    block: tuple[str, str]
    hidden: Reader
    given: Callable[[Any], Tensor]
    text: Callable[[Any], Tensor] | None
    together: bool
    arguments: Mapping[str, Any] = field(default_factory=dict)
    first: Half | None = None
    blind: tuple[str, ...] = ()

    def place(self, step: int, half: Half, batch: int, *, guided: bool) -> tuple[int, slice]:
        """The call of the block in which a half of a step comes, and its rows."""
        first = half == (self.first or ("unconditional" if self.together else "conditional"))
        if not guided:
            return step, slice(0, batch)
        if self.together:
            return step, slice(0, batch) if first else slice(batch, 2 * batch)
        return 2 * step + (not first), slice(0, batch)


def flux_case(name: str, guidance: float, dev: bool) -> Case:
    guided = guidance > 1 and not dev
    return Case(
        name,
        lambda: tiny_flux(STEPS, guidance, dev=dev),
        ("single.1", "single_transformer_blocks.1"),
        hidden=lambda args, kwargs: kwargs["hidden_states"],
        given=lambda output: output[1],
        text=lambda output: output[0],
        together=False,
        arguments={
            "guidance_scale": guidance, "max_sequence_length": TOKENS,
            **({"true_cfg_scale": guidance, "negative_prompt": ""} if guided else {}),
        },
    )  # fmt: skip


def sdxl_case(name: str, guidance: float) -> Case:
    return Case(
        name,
        lambda: tiny_model(STEPS, guidance),
        ("up.0.1", "up_blocks.0.attentions.1"),
        hidden=lambda args, kwargs: args[0],
        given=lambda output: output if isinstance(output, Tensor) else output[0],
        text=None,
        together=True,
        arguments={"guidance_scale": guidance},
    )


CASES = (
    sdxl_case("sdxl", 0.0), sdxl_case("sdxl guided", 3.0), flux_case("flux schnell", 0.0, False),
    flux_case("flux with true guidance", 3.0, False), flux_case("flux dev", 3.5, True),
    *sd3_cases(Case),
    *zimage_cases(Case),
    *sana_cases(Case, STEPS), *pixart_cases(Case, STEPS),
    *sd_cases(Case),
    *qwen_cases(Case),
    *outside_cases(Case, STEPS),
)  # fmt: skip
everywhere = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LAST_OF_FAMILY = {case.name.split()[0]: case for case in CASES}
"""Family -> its last case; what takes long is tried on this one every time, and on the others where slow tests run."""
mostly_once = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in LAST_OF_FAMILY.values() else pytest.mark.slow, id=case.name)
        for case in CASES
    ],
)


@contextmanager
def outputs_of(model: LoadedModel, modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Any]]]:
    """What modules hand on, call by call, with every change that is made to it."""
    found: dict[str, list[Any]] = {}
    handles: list[Any] = []

    def renew(_module: nn.Module, _args: Any) -> None:
        # Hooks run in the order in which they were made: these come last.
        for handle in handles:
            handle.remove()
        handles[:] = [
            module.register_forward_hook(lambda _m, _a, output, name=name: found.setdefault(name, []).append(output))
            for name, module in modules.items()
        ]

    begin = model.denoiser.register_forward_pre_hook(renew)
    try:
        yield found
    finally:
        for handle in (begin, *handles):
            handle.remove()


@contextmanager
def watched(model: LoadedModel, case: Case) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """What a case's block gives in each of its calls: pictures, and texts if it gives them."""
    pictures: list[Tensor] = []
    texts: list[Tensor] = []
    with outputs_of(model, {"block": model.denoiser.get_submodule(case.block[1])}) as found:
        yield pictures, texts
    pictures += [case.given(output) for output in found["block"]]
    texts += [] if case.text is None else [case.text(output) for output in found["block"]]


@contextmanager
def entering(model: LoadedModel, case: Case) -> Iterator[list[Tensor]]:
    """What pictures enter a case's block, call by call."""
    pictures: list[Tensor] = []
    handle = model.denoiser.get_submodule(case.block[1]).register_forward_pre_hook(
        lambda _, args, kwargs: pictures.append(case.hidden(args, kwargs)), with_kwargs=True
    )
    try:
        yield pictures
    finally:
        handle.remove()


@contextmanager
def all_outputs(model: LoadedModel, case: Case) -> Iterator[dict[str, list[Tensor]]]:
    """The pictures that every block gives, call by call."""
    pictures: dict[str, list[Tensor]] = {}
    names = model.family.names
    modules = {name: model.denoiser.get_submodule(names.module_path(name)) for name in known_sites(model.denoiser)}
    with outputs_of(model, modules) as found:
        yield pictures
    pictures |= {name: [case.given(output) for output in outputs] for name, outputs in found.items()}


def rows_of(values: Tensor, model: LoadedModel) -> Tensor:
    """A block's pictures as [B, positions, C]."""
    return values.flatten(2).transpose(1, 2) if values.dim() == 4 else values


def push(model: LoadedModel, block: str, scale: float = 1.0) -> StaticEdit:
    """A change of other size at each step, position and channel."""
    shape = model.family.shape_of_pipeline(model.pipe)
    positions = shape.positions(block, model.spec.size)
    values = torch.randn(STEPS, positions, shape.width(block), generator=torch.Generator().manual_seed(2))
    return StaticEdit((Term(torch.arange(positions), scale * values),))


def own_pictures(model: LoadedModel, case: Case, count: int) -> NDArray[np.float32]:
    """The pictures of diffusers' own call, in 0 to 1."""
    arguments = dict(case.arguments)
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * count
    found: NDArray[np.float32] = model.pipe(
        list(PROMPTS[:count]), num_inference_steps=STEPS, height=model.spec.size, width=model.spec.size,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS[:count]], output_type="np", **arguments,
    ).images  # fmt: skip
    return found


def check_edit_lands(model: LoadedModel, case: Case) -> None:
    """An edit is added to the picture of its row, at its step, and to no text; "both" takes it off the other half."""
    generator, name = Generator(model), case.block[0]
    wanted = push(model, name)
    edit = Edit({name: wanted}, branch="both", window=(1, 2))
    with watched(model, case) as (plain, plain_texts):
        generator.generate(PROMPTS, SEEDS)
    with watched(model, case) as (edited, texts):
        generator.generate(PROMPTS, SEEDS, edits=[None, edit, None])
    halves: tuple[Half, ...] = ("conditional", "unconditional") if model.guided else ("conditional",)
    shape = model.family.shape_of_pipeline(model.pipe)
    values = wanted.dense(STEPS, shape.positions(name, model.spec.size), shape.width(name))
    for step in range(STEPS):
        for half in halves:
            call, rows = case.place(step, half, len(PROMPTS), guided=model.guided)
            changed = rows_of(edited[call][rows] - plain[call][rows], model)
            expected = torch.zeros_like(changed)
            if step == 1:
                expected[1] = values[step] * (1 if half == "conditional" else -1)
            assert torch.allclose(changed, expected, atol=1e-4), (step, half)
    assert all(torch.equal(one, other) for one, other in zip(plain_texts, texts, strict=True))


def check_target_updates(model: LoadedModel, case: Case) -> None:
    """With the target run's updates in every block, every block gives what it gives in the target run."""
    one_step = replace(model, spec=model.spec.model_copy(update={"steps": 1}))
    generator, sites = Generator(one_step), known_sites(model.denoiser)
    with all_outputs(one_step, case) as target:
        trace = generator.generate([PROMPTS[1]], [SEEDS[0]], capture=Capture(sites)).trace
    with all_outputs(one_step, case) as source:
        generator.generate([PROMPTS[0]], [SEEDS[0]])
    changes = {}
    for site in sites:
        update = trace.row(site, 0)
        changes[site] = PatchReplacement(torch.arange(update.shape[1]), update)
    with all_outputs(one_step, case) as patched:
        generator.generate([PROMPTS[0]], [SEEDS[0]], edits=[Edit(changes, branch="conditional")])
    call, rows = case.place(0, "conditional", 1, guided=model.guided)
    # Before the first block that reads the text, a network that is given no other text does the same in both runs.
    order, names = model.family.names.pass_order(sites), model.family.names
    differing = order[next(index for index, site in enumerate(order) if names.reads_text(site)) :]
    for site in sites:
        there, here, before = (found[site][call][rows] for found in (target, patched, source))
        assert float((here - there).abs().max()) < 1e-4 * float(there.abs().max()), site
        if site in differing and site not in case.blind:
            assert not torch.allclose(before, there, atol=1e-3), site


def check_first_block(model: LoadedModel, case: Case) -> None:
    """Added to the first block that sees text, the difference of two runs' updates gives the target run's output."""
    one_step = replace(model, spec=model.spec.model_copy(update={"steps": 1}))
    generator = Generator(one_step)
    block = next(site for site in known_sites(model.denoiser) if site not in case.blind)
    trace = generator.generate(PROMPTS[:2], [SEEDS[0]] * 2, capture=Capture((block,))).trace
    difference = trace.row(block, 1) - trace.row(block, 0)
    edit = Edit({block: StaticEdit((Term(torch.arange(difference.shape[1]), difference),))}, branch="conditional")
    with all_outputs(one_step, case) as target:
        generator.generate([PROMPTS[1]], [SEEDS[0]])
    with all_outputs(one_step, case) as patched:
        generator.generate([PROMPTS[0]], [SEEDS[0]], edits=[edit])
    call, rows = case.place(0, "conditional", 1, guided=model.guided)
    there, here = target[block][call][rows], patched[block][call][rows]
    assert torch.allclose(here, there, atol=1e-4 * float(there.abs().max()))


CHECKS = (check_edit_lands, check_target_updates, check_first_block)


@everywhere
@pytest.mark.parametrize("count", [1, 3])
def test_pictures_are_those_of_the_pipelines_own_call(case: Case, count: int) -> None:
    model = case.load()
    own = own_pictures(model, case, count)
    made = Generator(model).generate(PROMPTS[:count], SEEDS[:count]).images
    assert np.abs(made / 255 - own).max() <= PIXEL
    assert made.std() > 5


@everywhere
def test_observing_changes_no_bit(case: Case) -> None:
    model = case.load()
    generator = Generator(model)
    plain = generator.generate(PROMPTS, SEEDS, keep_latents=True)
    sites = known_sites(model.denoiser)
    readable = tuple(site for site in sites if model.family.names.reads_text(site))
    wanted = [Capture(sites, ("input", "output", "update")), Capture(readable, ("attention",))]
    seen = generator.generate(PROMPTS, SEEDS, capture=wanted, keep_latents=True)
    assert plain.latents is not None and seen.latents is not None
    assert torch.equal(plain.latents, seen.latents) and np.array_equal(plain.images, seen.images)
    trace, block = seen.traces[0], case.block[0]
    with watched(model, case) as (pictures, _), entering(model, case) as entered:
        generator.generate(PROMPTS, SEEDS)
    for step in range(STEPS):
        call, rows = case.place(step, "conditional", len(PROMPTS), guided=model.guided)
        before = trace.get(block, "input")[:, step].flatten(2).transpose(1, 2)
        assert torch.equal(before, rows_of(entered[call][rows], model))
        output = trace.get(block, "output")[:, step].flatten(2).transpose(1, 2)
        assert torch.equal(output, rows_of(pictures[call][rows], model))
        difference = trace.get(block, "output")[:, step] - trace.get(block, "input")[:, step]
        assert torch.allclose(trace.get(block)[:, step], difference, atol=1e-4)
    attention = seen.traces[1].get(readable[0], "attention")
    assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-4) and attention.std() > 0


@everywhere
def test_an_edit_of_zero_changes_no_bit(case: Case) -> None:
    model = case.load()
    generator, sites = Generator(model), known_sites(model.denoiser)
    plain = generator.generate(PROMPTS, SEEDS, keep_latents=True)
    edit = Edit({site: push(model, site, 0.0) for site in sites if model.family.names.kind(site) == "attention"})
    assert not edit.empty
    same = generator.generate(PROMPTS, SEEDS, edits=[edit, None, edit], keep_latents=True)
    assert plain.latents is not None and same.latents is not None and torch.equal(plain.latents, same.latents)


@everywhere
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_updates_and_edits_are_where_the_network_has_them(case: Case, check: Callable[[Any, Case], None]) -> None:
    check(case.load(), case)


@everywhere
def test_calls_are_as_planned_and_counted_together(case: Case) -> None:
    model = case.load()
    calls: list[int] = []
    handle = model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    try:
        Generator(model).generate(PROMPTS[:2], SEEDS[:2])
    finally:
        handle.remove()
    shape = model.family.shape_of_pipeline(model.pipe)
    assert len(calls) == STEPS * model.layout.calls
    rows = 2 if model.guided and case.together else 1
    assert shape.calls(model.spec.guidance) * STEPS == len(calls) * rows


@everywhere
def test_pictures_depend_on_no_batch_and_shared_beginnings_change_nothing(case: Case) -> None:
    model = case.load()
    generator = Generator(model)
    runs = generator.generate(PROMPTS, SEEDS, keep_latents=True, keep_prefix=PrefixPlan(3, (case.block[0],), (1,)))
    alone = generator.generate(PROMPTS[1:2], SEEDS[1:2], keep_latents=True)
    assert runs.latents is not None and alone.latents is not None and runs.prefix is not None
    assert torch.allclose(runs.latents[1:2], alone.latents, atol=1e-3)
    late = Edit({case.block[0]: push(model, case.block[0])}, window=(1, 2), branch="conditional")
    whole = generator.generate(PROMPTS, SEEDS, edits=[late, None, None])
    shared = generator.generate(PROMPTS, SEEDS, edits=[late, None, None], prefixes=[runs.prefix])
    assert np.array_equal(whole.images, shared.images) and not np.array_equal(whole.images[0], runs.images[0])


def family_of(case: Case) -> str:
    """Name of the family that a case is of: the first word of its own."""
    return case.name.split()[0]


def made_pictures(case: Case, place: Path, **options: Any) -> dict[str, NDArray[np.int_]]:
    """Pictures of a run of two examples at two strengths through the real runner, by unit."""
    setting = Setting(name="patch", method="activation_patch", blocks=(case.block[0],), strengths=(1.0, 2.0))
    (folder,) = run_benchmark([task(2)], [setting], case.load(), results_root=place, progress=False, **options)
    return {one.key.digest: picture(folder, one) for one in folder.records() if one.status == "ok"}


def assert_same(found: Mapping[str, NDArray[np.int_]], wanted: Mapping[str, NDArray[np.int_]]) -> None:
    """Assert that pictures are the same up to one step of 255, which is what other batches may move."""
    assert found.keys() == wanted.keys()
    assert all(np.abs(found[unit] - wanted[unit]).max() <= 1 for unit in wanted)


@mostly_once
def test_runs_go_on_after_a_stop_and_come_in_shards_and_batches_of_any_size(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made_pictures(case, tmp_path / "whole", batch_size=2)
    assert len(whole) == 4 and len({found.tobytes() for found in whole.values()}) == 4
    rows: list[int] = []
    original = Generator.generate

    def counted(self: Generator, prompts: Any, *args: Any, **options: Any) -> Any:
        edits = [one for one in options.get("edits") or () if one is not None]
        if edits and rows and stopping:
            raise KeyboardInterrupt
        rows.extend(len(edits) for _ in edits[:1])
        return original(self, prompts, *args, **options)

    monkeypatch.setattr(Generator, "generate", counted)
    stopping = True
    with pytest.raises(KeyboardInterrupt):
        made_pictures(case, tmp_path / "stopped", batch_size=2)
    assert sum(rows) == 2
    stopping = False
    assert_same(made_pictures(case, tmp_path / "stopped", batch_size=2), whole)
    assert sum(rows) == len(whole), "what was recorded before the stop is made again"
    parts = [made_pictures(case, tmp_path / "shards", shard=(part, 2)) for part in (1, 2)]
    assert 0 < len(parts[0]) < len(whole)
    assert_same(parts[1], whole)
    assert_same(made_pictures(case, tmp_path / "alone", batch_size=1), whole)


@pytest.mark.parametrize("case", {family_of(one): one for one in CASES}.values(), ids=family_of)
def test_updates_are_collected_and_an_sae_is_trained_on_them(case: Case, tmp_path: Path) -> None:
    model, updates, saes = case.load(), tmp_path / "updates", tmp_path / "saes"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    folder = str(model.pipe.config["_name_or_path"])
    for line in (
        ["collect", "--model", folder, "--prompts", str(prompts), "--out", str(updates),
         "--blocks", case.block[0], "--size", str(model.spec.size), "--steps", str(model.spec.steps), "--offline"],
        ["train", str(updates), "--out", str(saes), "--k", "2", "--width", "8", "--steps", "1", "--batch-size", "32"],
    ):  # fmt: skip
        done = CliRunner().invoke(app, ["sae", *line])
        assert done.exit_code == 0, done.stderr
    found = load_saes(saes, model=model, blocks=case.block[:1], prompts=PROMPTS, progress=False)
    made = Generator(model).generate(PROMPTS[:1], SEEDS[:1], capture=Capture(case.block[:1]))
    assert found[case.block[0]].d == made.trace.get(case.block[0]).shape[2]


KEYS_ELSEWHERE = ("sdxl",)
"""Families whose keys are tried in a module of their own."""
ALL_BUT_TEXT = ("flux",)
"""Families of which half of the keys, text encoders' apart, are tried every time; of others fewer, all where slow."""
QUICK_PARTS = (INDEX, "transformer", "unet", "scheduler")
QUICK_SHARE = 4
"""Of those fewer, each so many-th is tried every time."""


def key_failures(case: Case, place: Path, *, quick: bool) -> list[str]:
    """Keys of a case's model folder that are neither obeyed nor refused; its family's cases share them."""
    check = FlipCheck(case.load(), case.arguments, PROMPTS[:1], SEEDS[:1])
    others = [one for one in CASES if family_of(one) == family_of(case)]
    found = flips(check.folder)
    every = len(others)
    if quick and family_of(case) in ALL_BUT_TEXT:
        found, every = [one for one in found if not one.component.startswith("text_encoder")], 2 * every
    elif quick:
        found, every = [one for one in found if one.component in QUICK_PARTS], QUICK_SHARE * every
    if quick:
        found = found[others.index(case) :: every]
    assert len(found) > 1
    return list(check.failures(found, place))


with_keys = pytest.mark.parametrize(
    "case", [one for one in CASES if family_of(one) not in KEYS_ELSEWHERE], ids=lambda case: case.name
)


@with_keys
def test_every_key_of_a_model_folder_is_obeyed_or_refused(case: Case, tmp_path: Path) -> None:
    assert key_failures(case, tmp_path, quick=True) == []


@pytest.mark.slow
@with_keys
def test_every_key_of_every_case_is_obeyed_or_refused(case: Case, tmp_path: Path) -> None:
    assert key_failures(case, tmp_path, quick=False) == []


def test_keys_that_are_not_obeyed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[2]
    check = FlipCheck(case.load(), case.arguments, PROMPTS[:1], SEEDS[:1])
    shift, patch = (next(one for one in flips(check.folder) if one.key == key) for key in ("shift", "patch_size"))
    own = case.load().pipe.scheduler
    usual = type(own).from_config(own.config)
    monkeypatch.setattr(FluxFamily, "loading_options", lambda self: {"scheduler": usual})
    monkeypatch.setattr(FlipCheck, "_options", lambda self, model: {})
    (found,) = check.failures([shift], tmp_path / "ignored")
    assert "scheduler: shift=" in found and "of 255 apart" in found
    monkeypatch.setattr(FluxFamily, "check_config", lambda *_: None)
    monkeypatch.setattr(FluxFamily, "check_weights", lambda *_: None)
    (found,) = check.failures([patch], tmp_path / "unchecked")
    assert "transformer: patch_size=" in found


FOUND = (AssertionError, RiebenchError, RuntimeError, IndexError)
"""How the checks end on a wrong family."""


class TextForImage(FluxFamily):
    """Takes the text stream for the image stream in its blocks."""

    def site(self, denoiser: nn.Module, name: str) -> Site:
        module = denoiser.get_submodule(self.names.module_path(name))
        return TokenSite(module, module, place_of(module, "text"), "text")


class HalvesSwapped(FluxFamily):
    """Takes the first call of a step for the unconditional one."""

    def layout(self, guided: bool) -> BatchLayout:
        return BatchLayout(guided, ("unconditional", "conditional"), together=False)


class OneBatch(FluxFamily):
    """Takes the two calls of a step for two halves of a batch."""

    def layout(self, guided: bool) -> BatchLayout:
        return BatchLayout(guided)


def family_label(wrong: Any) -> str:
    """Return the label of a test case; older versions of pytest ask for one where there are no cases, too."""
    return f"{wrong.name} {wrong.__name__}" if isinstance(wrong, type) and issubclass(wrong, Family) else "none"


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (TextForImage, check_edit_lands), (TextForImage, check_target_updates), (TextForImage, check_first_block),
        (HalvesSwapped, check_edit_lands), (HalvesSwapped, check_target_updates), (HalvesSwapped, check_first_block),
        (OneBatch, check_edit_lands),
    ],
    ids=lambda one: one.__name__,
)  # fmt: skip
def test_wrong_adapters_are_found(
    wrong: type[Family], check: Callable[[Any, Case], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[3]
    model = replace(case.load())
    monkeypatch.setitem(MODEL_FAMILIES._objects, "flux", wrong())
    assert isinstance(model.family, wrong)
    with pytest.raises(FOUND):
        check(model, case)


@pytest.mark.parametrize("wrong", wrong_families(), ids=family_label)
def test_a_wrong_family_of_a_package_is_found(wrong: type[Family], monkeypatch: pytest.MonkeyPatch) -> None:
    case = LAST_OF_FAMILY[wrong.name]
    model = replace(case.load())
    monkeypatch.setitem(MODEL_FAMILIES._objects, wrong.name, wrong())
    assert isinstance(model.family, wrong)
    found = []
    for check in CHECKS:
        try:
            check(model, case)
        except FOUND as error:
            found.append(error)
    assert found


def test_every_family_has_cases_under_its_name() -> None:
    assert set(MODEL_FAMILIES.shipped()) <= LAST_OF_FAMILY.keys() <= set(MODEL_FAMILIES.names())


def test_a_word_stands_for_one_path_in_all_families() -> None:
    """Names are read without a model: a word that is a list at two paths would mean two blocks."""
    paths: dict[str, dict[str, str]] = {}
    for family in families():
        for name in family.names.known:
            paths.setdefault(name, {})[family.names.module_path(name)] = family.name
    assert {name: found for name, found in paths.items() if len(found) > 1} == {}
