"""Editors: end points, levels, injected attention against its definition, and a model that is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor
from tiny import tiny_folder, tiny_model
from transformers import CLIPTokenizer

from riebench.errors import RiebenchError, TaskFileError
from riebench.generation.generator import Generator
from riebench.generation.hooks import Hooks
from riebench.methods.base import get_method
from riebench.methods.check import check_setting
from riebench.methods.editors import Editor, EditorContext, Pictures, unchanged
from riebench.methods.prompting.prompt_to_prompt import (
    Alignment,
    Injection,
    PromptTokens,
    _InjectionProcessor,
    align,
    inject,
    read_tokens,
)
from riebench.models.families.blocks import BatchLayout
from riebench.models.loading import LoadedModel, load_model
from riebench.models.spec import ModelOptions
from riebench.runs.runner import run_benchmark
from riebench.scoring.metrics.clip import ClipScorer
from riebench.tasks.schema import EditExample, EditTask, Setting
from riebench.tasks.settings import load_setting_file, setting_names, settings_folder

REPLACED = EditExample(id="same", source="a red house", target="a red mouse")
REFINED = EditExample(id="longer", source="a red house", target="a red boat on it")
NAMES = ("img2img", "p2p", "ledits_pp")
QUICK: dict[str, dict[str, Any]] = {
    "img2img": {}, "p2p": {}, "ledits_pp": {"inversion_steps": 3}, "adversarial": {"scorer": "toy-clip", "rounds": 4},
}  # fmt: skip
NOISE = 5
MADE: dict[Any, tuple[Generator, np.ndarray[Any, Any]]] = {}
TASK = EditTask(name="t", version=1, category="change_object", suite="tiny", examples=(REPLACED, REFINED))


def editor(name: str) -> Editor:
    """A registered editor."""
    found = get_method(name)
    assert isinstance(found, Editor)
    return found


def pictures(model: LoadedModel, *prompts: str) -> tuple[Generator, np.ndarray[Any, Any]]:
    """Pictures from one noise, made once."""
    key = (id(model), prompts)
    if key not in MADE:
        generator = Generator(model)
        MADE[key] = generator, generator.generate(prompts, [NOISE] * len(prompts)).images
    return MADE[key]


def context(model: LoadedModel, *strengths: float, example: EditExample = REFINED) -> EditorContext:
    """An example with its source and target picture."""
    generator, (source, target) = pictures(model, example.source, example.target)
    return EditorContext(generator, example, NOISE, {"source": source, "target": target}, strengths)


def paint(name: str, ctx: EditorContext, **params: Any) -> np.ndarray[Any, Any]:
    """An editor's pictures as integers."""
    return editor(name).edit_pictures(ctx, {**QUICK[name], **params}).astype(int)


@contextmanager
def counted(model: LoadedModel) -> Iterator[list[int]]:
    """Batch sizes of all U-Net calls."""
    seen: list[int] = []
    handle = model.denoiser.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[0]))
    yield seen
    handle.remove()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_end_points_are_exact_and_other_levels_differ(name: str, guidance: float) -> None:
    model = tiny_model(2, guidance)
    ctx = context(model, 0.0, 1.0)
    made = paint(name, ctx)
    end = ctx.pictures["target" if name == "p2p" else "source"].astype(int)
    assert np.array_equal(made[0], end)
    for picture in made[1:]:
        assert np.abs(picture - end).mean() > 0.1
    with counted(model) as calls:
        assert np.array_equal(paint(name, EditorContext(ctx.generator, REFINED, NOISE, ctx.pictures, (0.0,)))[0], end)
    assert calls == []


@pytest.mark.parametrize(("name", "access"), [("img2img", "P"), ("p2p", "P"), ("ledits_pp", "PV")])
def test_what_editors_see_and_which_settings_are_refused(name: str, access: str) -> None:
    method = editor(name)
    assert method.access == access and not method.reads_blocks and not method.edits and not method.copies
    good = Setting(name="s", method=name, access=access, blocks=(), strengths=(0.0, 1.0))
    check_setting(good, "s.yaml")
    with pytest.raises(TaskFileError, match="edit_steps"):
        check_setting(good.model_copy(update={"edit_steps": (0.0, 0.5)}), "s.yaml")
    with pytest.raises(TaskFileError, match="strengths: -1 is not in 0 to"):
        check_setting(good.model_copy(update={"strengths": (-1.0,)}), "s.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_editors_look_at_what_they_declare_and_need_all_of_it(name: str) -> None:
    ctx = context(tiny_model(2), 0.5)
    for letter in editor(name).access:
        fewer = replace(editor(name), access=editor(name).access.replace(letter, ""))
        with pytest.raises(RiebenchError, match=rf"method '{name}' looks at .* does not declare; add {letter}"):
            fewer.edit_pictures(ctx, QUICK[name])


def test_ledits_makes_all_strengths_at_once_as_it_makes_each_alone() -> None:
    model = tiny_model(2)
    strengths = (4.0, 0.0, 1.0, 0.5, 1.0)
    ctx = context(model, *strengths)
    with counted(model) as calls:
        together = paint("ledits_pp", ctx)
    # Three steps of the inversion, then three with an unconditional and an edited row of each of three levels.
    assert calls == [1] * 3 + [6] * 3
    alone = [paint("ledits_pp", context(model, strength))[0] for strength in strengths]
    assert np.abs(together - np.stack(alone)).max() <= 1
    assert len({picture.tobytes() for picture in together}) == 4


@pytest.mark.parametrize("suite", ["toy", "sdxl"])
def test_the_sweeps_have_the_levels_that_their_steps_allow(suite: str) -> None:
    folder = settings_folder("toy", "sweep").parent / f"{suite}-sweep"
    found = {name: load_setting_file(folder / f"{name}_sweep.yaml") for name in NAMES}
    for setting in found.values():
        check_setting(setting, setting.name)
    assert len(found["ledits_pp"].strengths) == 6
    assert set(found) == {name.removesuffix("_sweep") for name in setting_names("toy", "sweep")} & set(NAMES)


def test_img2img_may_have_a_finer_schedule_than_the_model() -> None:
    model = tiny_model(4)
    ctx = context(model, 0.3, 0.5, 1.0)
    with counted(model) as calls:
        paint("img2img", ctx, steps=6)
    assert calls == [1] * (1 + 3 + 6)
    with pytest.raises(RiebenchError, match="img2img: steps 0; give at least 1"):
        paint("img2img", ctx, steps=0)
    with pytest.raises(RiebenchError, match=r"img2img: steps: 'four' is not of type int or None"):
        paint("img2img", ctx, steps="four")


def test_img2img_runs_the_last_steps_and_shares_equal_levels() -> None:
    model = tiny_model(4)
    ctx = context(model, 0.1, 0.3, 0.49, 0.5, 1.0)
    with counted(model) as calls:
        made = paint("img2img", ctx)
    # int(4 * strength): none, 1, 1 again, 2, 4.
    assert calls == [1] * (1 + 2 + 4)
    assert np.array_equal(made[0], ctx.pictures["source"]) and np.array_equal(made[1], made[2])
    # It is noise of its own: all steps from it do not give the target picture.
    assert np.abs(made[4] - ctx.pictures["target"]).mean() > 1
    assert ctx.other_noise("img2img").initial_seed() not in (NOISE, ctx.other_noise("ledits_pp").initial_seed())


def test_levels_made_together_are_the_levels_made_alone() -> None:
    ctx = context(tiny_model(2, 3.0), 0.5, 1.0)
    together = paint("p2p", ctx)
    assert len({picture.tobytes() for picture in together}) == 2
    for strength, picture in zip(ctx.strengths, together, strict=True):
        alone = EditorContext(ctx.generator, REFINED, NOISE, ctx.pictures, (strength,))
        assert np.abs(paint("p2p", alone)[0] - picture).max() <= 1


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_all_attention_of_the_same_prompt_changes_nothing(guidance: float) -> None:
    same = REPLACED.model_copy(update={"target": REPLACED.source})
    ctx = context(tiny_model(2, guidance), 1.0, example=same)
    for wording in ("replacement", "refinement"):
        made = paint("p2p", ctx, wording=wording, self_share=1.0)
        assert np.abs(made[0] - ctx.pictures["source"]).max() <= 1


def test_self_attention_and_wording_matter() -> None:
    ctx = context(tiny_model(2), 1.0, example=REPLACED)
    made = {
        (share, wording): paint("p2p", ctx, self_share=share, wording=wording)
        for share, wording in ((0.0, "auto"), (0.0, "refinement"), (1.0, "auto"))
    }
    assert not np.array_equal(made[0.0, "auto"], made[0.0, "refinement"])
    assert not np.array_equal(made[0.0, "auto"], made[1.0, "auto"])
    # No layer is that small, so that sharing self-attention shares none.
    assert np.array_equal(made[0.0, "auto"], paint("p2p", ctx, self_share=1.0, self_positions=1))


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("guided", [True, False])
def test_injected_attention_is_what_the_maps_say(text: bool, refined: bool, guided: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(8, cross_attention_dim=6 if text else None, heads=2, dim_head=4)
    pairing = Alignment("refinement", ((0, 0), (1, 2), (2, 1)), 5)
    injection = Injection(
        (1, 0), (1, 0), pairing.moved if refined else None, pairing.kept if refined else None, self_positions=9
    )
    rows = 6 if guided else 3
    hidden, words = torch.randn(rows, 9, 8), torch.randn(rows, 5, 6) if text else None
    hooks = Hooks(layer, BatchLayout(guided))
    hooks.calls = 1
    layer.set_processor(_InjectionProcessor(AttnProcessor(), injection, hooks, text=text))
    found = layer(hidden, words)

    seen = hidden if words is None else words
    query, key, value = (
        layer.head_to_batch_dim(part) for part in (layer.to_q(hidden), layer.to_k(seen), layer.to_v(seen))
    )
    maps = layer.get_attention_scores(query, key).unflatten(0, (rows, 2)).clone()
    source, edited = (3, 4) if guided else (0, 1)
    if text and refined:
        own = maps[edited].clone()
        for token, other in ((0, 0), (1, 2), (2, 1)):
            own[..., other] = maps[source][..., token]
        maps[edited] = own
    else:
        maps[edited] = maps[source]
    mixed = layer.batch_to_head_dim(maps.flatten(0, 1) @ value)
    torch.testing.assert_close(found, layer.to_out[0](mixed), atol=1e-5, rtol=1e-5)
    # Past its steps, a row is not touched: the usual processor runs.
    hooks.calls = 2
    assert torch.equal(layer(hidden, words), AttnProcessor()(layer, hidden, words))


def test_injection_refuses_other_layers_and_batches_and_puts_the_processors_back() -> None:
    model = tiny_model(2)
    before = dict(model.pipe.unet.attn_processors)
    generator = Generator(model)
    injection = Injection((1,), (0,))
    with (
        pytest.raises(RiebenchError, match="2 pictures for a batch of 1"),
        inject(model.denoiser, injection, guided=False),
    ):
        generator.generate(["a"], [0])
    wrong = inject(model.denoiser, injection, guided=False, steps=3)
    with pytest.raises(RiebenchError, match="expected 3 U-Net calls, saw 2"), wrong:
        generator.generate(["a", "b"], [0, 0])
    assert all(model.pipe.unet.attn_processors[name] is one for name, one in before.items())
    odd = Attention(8, heads=2, dim_head=4, residual_connection=True)
    hooks = Hooks(odd, BatchLayout(False))
    hooks.calls = 1
    odd.set_processor(_InjectionProcessor(AttnProcessor(), Injection((1,), (1,)), hooks, text=True))
    with pytest.raises(RiebenchError, match="U-Nets like SDXL's only"):
        odd(torch.randn(2, 9, 8))


def test_words_of_equally_many_tokens_are_replaced_others_refined() -> None:
    pipe = tiny_model(2).pipe
    tokenizers = (pipe.tokenizer, pipe.tokenizer_2)
    source = read_tokens(tokenizers, "a Red house ")
    # One letter is one token here.
    assert source == PromptTokens(("a", "red", "house"), (1, 3, 5), 77)
    assert (source.end, source.positions(1, 2)) == (10, [2, 3, 4])
    replaced = align(source, read_tokens(tokenizers, "a red mouse"))
    assert replaced.kind == "replacement" and torch.equal(replaced.moved, torch.eye(77)) and not replaced.kept.any()
    refined = align(source, read_tokens(tokenizers, "a tall red boat"))
    words = [(0, 0), (1, 1), (2, 6), (3, 7), (4, 8)]
    # The end token and what pads the text follow the last words: at 10 and 13 here.
    assert refined.pairs == (*words, *((10 + i, 13 + i) for i in range(64)))
    assert refined.kept.nonzero().flatten().tolist() == [2, 3, 4, 5, 9, 10, 11, 12]
    shorter = align(read_tokens(tokenizers, "a tall red boat"), source)
    assert shorter.pairs[-1] == (76, 73) and shorter.kept[74:].all()
    # A word moved elsewhere is a word taken out and one put in.
    assert align(source, read_tokens(tokenizers, "red a house")).kind == "refinement"
    with pytest.raises(RiebenchError, match="equally many tokens, not 5 and 4"):
        align(source, read_tokens(tokenizers, "a red boat"), "replacement")
    long = read_tokens(tokenizers, "house " * 30)
    assert long.end <= 76 and sum(long.counts) == 75


def test_prompts_that_the_two_tokenizers_divide_differently_are_refused() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz!,"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "!,</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    first, second = (
        CLIPTokenizer(vocab=vocabulary, merges=[("!", ",</w>")], model_max_length=77, pad_token=pad)
        for pad in ("<|endoftext|>", "!")
    )
    assert read_tokens((first, second), "cube, wow") == read_tokens((first, first), "cube, wow")
    with pytest.raises(RiebenchError, match=r"tokenizers divide 'cube!, wow' differently.*without '!'"):
        read_tokens((first, second), "cube!, wow")
    model = tiny_model(2)
    pipe = copy.copy(model.pipe)
    pipe.tokenizer, pipe.tokenizer_2 = first, second
    example = REFINED.model_copy(update={"target": "cube!, wow"})
    ctx = context(model, 1.0)
    other = EditorContext(Generator(LoadedModel(pipe, model.spec)), example, NOISE, ctx.pictures, (1.0,))
    with pytest.raises(RiebenchError, match="without '!'"):
        paint("p2p", other)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = tiny_model(2, 3.0)
    pipe = model.pipe
    ctx = context(model, 0.5)
    processors, scheduler, config = dict(pipe.unet.attn_processors), pipe.scheduler, dict(pipe.scheduler.config)
    weights = {part: copy.deepcopy(getattr(pipe, part).state_dict()) for part in ("unet", "vae", "text_encoder_2")}
    paint(name, ctx)
    after = pipe.unet.attn_processors
    assert after.keys() == processors.keys() and all(after[key] is one for key, one in processors.items())
    assert pipe.scheduler is scheduler and dict(scheduler.config) == config
    assert isinstance(scheduler, EulerAncestralDiscreteScheduler)
    for part, values in weights.items():
        now = getattr(pipe, part).state_dict()
        assert all(torch.equal(now[key], value) and now[key].dtype == value.dtype for key, value in values.items())
    again = ctx.generator.generate([REFINED.source, REFINED.target], [NOISE, NOISE]).images
    assert np.array_equal(again, np.stack([ctx.pictures["source"], ctx.pictures["target"]]))


def test_a_half_precision_model_keeps_its_exact_autoencoder() -> None:
    model = load_model(str(tiny_folder()), steps=2, guidance=0.0, dtype="bfloat16")
    assert model.pipe.vae.config.force_upcast and model.denoiser.dtype == torch.bfloat16
    before = copy.deepcopy(model.pipe.vae.state_dict())
    for name in NAMES:
        assert paint(name, context(model, 0.5)).shape[0] == 1 and model.pipe.vae.dtype == torch.float32
    assert all(torch.equal(model.pipe.vae.state_dict()[key], value) for key, value in before.items())


def test_half_precision_rounds_no_scale_of_ledits() -> None:
    model = load_model(str(tiny_folder()), steps=2, guidance=0.0, dtype="bfloat16")
    # One and the same number in bfloat16.
    one, other = paint("ledits_pp", context(model, 100.05, 100.2))
    assert not np.array_equal(one, other)


def test_a_scheduler_that_ledits_could_use_itself_is_not_changed() -> None:
    model = tiny_model(2)
    pipe = copy.copy(model.pipe)
    pipe.scheduler = DDIMScheduler.from_config(model.pipe.scheduler.config)
    spacing = pipe.scheduler.config.timestep_spacing
    paint("ledits_pp", context(LoadedModel(pipe, model.spec), 1.0))
    assert isinstance(pipe.scheduler, DDIMScheduler) and pipe.scheduler.config.timestep_spacing == spacing == "trailing"


def test_whatever_an_editor_does_is_undone_or_reported() -> None:
    model = tiny_model(2)
    pipe = model.pipe
    processors, scheduler = dict(pipe.unet.attn_processors), pipe.scheduler

    def careless(ctx: EditorContext) -> Pictures:
        pipe.unet.set_attn_processor(AttnProcessor())
        pipe.scheduler.config.timestep_spacing = "leading"
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Editor("careless", careless, frozenset(), "P").edit_pictures(context(model, 1.0), {})
    assert all(pipe.unet.attn_processors[name] is one for name, one in processors.items())
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    with unchanged(model):
        pipe.scheduler = DDIMScheduler()
    assert pipe.scheduler is scheduler
    rounded = load_model(str(tiny_folder()), steps=2, guidance=0.0)
    with pytest.raises(RiebenchError, match="another number format"), unchanged(rounded):
        rounded.denoiser.half()
    wrong = Editor("wrong", lambda ctx: np.zeros((1, 8, 8, 3)), frozenset(), "P")
    with pytest.raises(RiebenchError, match=r"gave float64 of shape \(1, 8, 8, 3\); it must give uint8"):
        wrong.edit_pictures(context(model, 1.0), {})


def test_ledits_needs_sides_of_32_and_the_whole_model(tmp_path: Path) -> None:
    setting = Setting(name="l", method="ledits_pp", blocks=(), params=QUICK["ledits_pp"])
    odd = load_model(str(tiny_folder()), steps=2, guidance=0.0, options=ModelOptions(size=48))
    with pytest.raises(RiebenchError, match=r"configuration 'l': .*multiples of 32, not 48; use --size 64"):
        run_benchmark([TASK], [setting], odd, results_root=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.png"))
    model = tiny_model(2)
    moved = LoadedModel(model.pipe, model.spec, options=ModelOptions(offload="model"))
    with pytest.raises(RiebenchError, match="use --offload none"):
        paint("ledits_pp", context(moved, 1.0))
    with pytest.raises(RiebenchError, match="inversion_steps of at least 1"):
        paint("ledits_pp", context(model, 1.0), inversion_steps=0)
    with pytest.raises(RiebenchError, match=r"self_share 2; give 0 to 1"):
        paint("p2p", context(model, 1.0), self_share=2.0)


def test_a_run_records_editors_like_any_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [
        Setting(name=name, method=name, params=QUICK[name], blocks=(), strengths=(0.0, 0.5, 1.0)) for name in NAMES
    ]
    no_edit = Setting(name="no_edit", method="no_edit", blocks=())
    steps: list[float] = []
    original = EditorContext.encode

    def encode(self: EditorContext, picture: Any) -> torch.Tensor:
        steps.extend(self.strengths)
        if self.example.id == "longer" and 1.0 in self.strengths:
            raise MemoryError("out of memory")
        return original(self, picture)

    monkeypatch.setattr(EditorContext, "encode", encode)
    options: dict[str, Any] = {"results_root": tmp_path, "progress": False, "batch_size": 3}
    *folders, _ = run_benchmark([TASK], [*settings, no_edit], tiny_model(2), **options)
    for folder, end in zip(folders, ("source_image", "target_image", "source_image"), strict=True):
        records = {(one.key.example_id, one.key.strength): one for one in folder.records()}
        failed = {key for key, one in records.items() if one.status == "error"}
        # What fails together is tried alone, and one strength's failure is its own.
        assert failed == (set() if end == "target_image" else {("longer", 1.0)}) and len(records) == 6
        for (_, strength), record in records.items():
            assert record.status == "error" or (record.image is not None and record.mask_share is not None)
            if strength == 0:
                shared = getattr(record, end)
                assert np.array_equal(folder.read_image(str(record.image)), folder.shared.read_image(shared))
        assert records["same", 1.0].seconds > 0 and records["same", 1.0].key.block_set == "none"
    failure = next(one for one in folders[0].records() if one.status == "error")
    assert failure.reason is not None
    assert failure.reason.startswith("not enough memory on cpu for 1 pictures of 32 px by method 'img2img'; use")
    monkeypatch.setattr(EditorContext, "encode", original)
    run_benchmark([TASK], settings, tiny_model(2), redo="errors", **options)
    assert {one.status for folder in folders for one in folder.records()} == {"ok"}


def test_the_adversarial_control_stays_within_its_reach_and_pleases_the_scorer_that_it_attacks() -> None:
    model = tiny_model(2)
    ctx = context(model, 0.0, 2.0, 8.0)
    source = ctx.pictures["source"]
    with counted(model) as calls:
        made = paint("adversarial", ctx)
    assert calls == []
    assert np.array_equal(made[0], source)
    assert [np.abs(picture - source.astype(int)).max() for picture in made] == [0, 2, 8]
    scorer = ClipScorer.load("toy-clip")
    cosines = scorer.pictures(made.astype(np.uint8)) @ scorer.texts([ctx.example.target])[0]
    assert cosines[0] + 0.02 < cosines[1] < cosines[2]
    assert np.array_equal(paint("adversarial", ctx), made)
    with pytest.raises(RiebenchError, match="adversarial: rounds 0; give at least 1"):
        paint("adversarial", ctx, rounds=0)
    with pytest.raises(RiebenchError, match=r"unknown scorer 'toy-clap' \(did you mean 'toy-clip'\?\)"):
        paint("adversarial", ctx, scorer="toy-clap")
    with pytest.raises(RiebenchError, match="strengths: 9 is not in 0 to 8"):
        paint("adversarial", context(model, 9.0))
