"""Work of the speed measurements, and a clock inside the model.

The work is a sample of the toy sweep and the bare calls of the networks that score.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import open_clip
import torch

from riebench.generation.hooks import Hooks
from riebench.models.clip import LoadedClip
from riebench.models.loading import LoadedModel
from riebench.tasks.schema import EditTask, Setting
from riebench.tasks.settings import load_settings
from riebench.tasks.suites import load_suite

Timer = Callable[[], float]
"""Seconds since some moment."""
LEARNERS = ("lora_slider", "reft_r1", "mean_direction", "probe_direction", "text_direction", "sae_fixed")
"""Methods that are fitted to other examples, some of them by gradients of the denoiser."""


@dataclass
class Clock:
    """Seconds spent inside the model, and the work it did.

    Attributes:
        model: seconds inside U-Net, autoencoder, text encoders and the CLIP that an editor uses, what hooks do there
            not counted.
        hooks: seconds inside hooks.
        unet: the U-Net's part of `model`.
        calls: calls of "unet", "decoder", "encoder" (of pictures), "text" and "text 2" (the two text encoders), "clip"
            (a gradient of the embedding of pictures) and "clip text".
        rows: the rows of those calls; those of "unet" are the U-Net evaluations.
        batches: rows of each U-Net call.
    """

    model: float = 0.0
    hooks: float = 0.0
    unet: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)


@contextmanager
def clocked(
    model: LoadedModel, timer: Timer = time.perf_counter, done: Callable[[str, int, float], None] | None = None
) -> Iterator[Clock]:
    """Measure the time of the networks' own code inside the `with` block.

    Args:
        model: whose calls are timed.
        timer: takes the times.
        done: gets the name, the rows and the seconds of every call that is over.
    """
    clock, depth = Clock(), 0
    # Seconds of the CLIP's forward pass, which its gradient takes with it.
    forward = 0.0

    def count(label: str, rows: int, spent: float) -> None:
        clock.calls[label] += 1
        clock.rows[label] += rows
        if label == "unet":
            clock.unet += spent
            clock.batches.append(rows)
        if depth == 0:
            clock.model += spent
            if done is not None:
                done(label, rows, spent)

    def timed(function: Callable[..., Any], label: str, of: int = 0) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth, forward
            depth += 1
            before, start = clock.hooks, timer()
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                spent = timer() - start - (clock.hooks - before)
                if label == "clip forward":
                    forward = spent
                else:
                    count(label, len(args[of] if args else next(iter(kwargs.values()))), spent)

        return call

    def gradient(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal forward
            start = timer()
            found = function(outputs, inputs, *args, **kwargs)
            spent, forward = forward + timer() - start, 0.0
            count("clip", len(inputs), spent)
            return found

        return call

    def as_hook(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = timer()
            try:
                return function(*args)
            finally:
                clock.hooks += timer() - start

        return call

    plain_before, plain_after = Hooks.before, Hooks.after
    pipe = model.pipe
    parts = [(pipe.unet, "forward", "unet"), (pipe.vae, "decode", "decoder"), (pipe.vae, "encode", "encoder")]
    texts = (("text", pipe.text_encoder), ("text 2", pipe.text_encoder_2))
    parts += [(part, "forward", label) for label, part in texts if part is not None]
    clip = open_clip.CLIP
    with (
        patch.object(Hooks, "before", lambda self, module, function: plain_before(self, module, as_hook(function))),
        patch.object(Hooks, "after", lambda self, module, function: plain_after(self, module, as_hook(function))),
        patch.object(clip, "encode_image", timed(clip.encode_image, "clip forward", 1)),
        patch.object(clip, "encode_text", timed(clip.encode_text, "clip text", 1)),
        patch.object(torch.autograd, "grad", gradient(torch.autograd.grad)),
    ):
        for part, name, label in parts:
            part.__dict__[name] = timed(getattr(part, name), label)
        try:
            yield clock
        finally:
            for part, name, _ in parts:
                del part.__dict__[name]


@contextmanager
def network_calls() -> Iterator[list[Callable[[], Any]]]:
    """Collect the calls of networks by scoring inside the `with` block.

    Each call is ready to be made again, by the network's own code: LPIPS then computes the features of every picture,
    also of those that are equal.
    """
    import lpips

    from riebench.scoring.metrics.judge_network import JudgeNetwork

    calls: list[Callable[[], Any]] = []

    def plain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        trunk = getattr(args[0], "net", None)
        with patch.object(trunk, "forward", type(trunk).forward.__get__(trunk)) if trunk is not None else nullcontext():
            return function(*args, **kwargs)

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(lambda: plain(function, *args, **kwargs))
            return function(*args, **kwargs)

        return call

    places = [(open_clip.CLIP, "encode_image"), (open_clip.CLIP, "encode_text"), (lpips.LPIPS, "forward")]
    with ExitStack() as stack:
        for kind, name in [*places, (JudgeNetwork, "forward")]:
            stack.enter_context(patch.object(kind, name, noted(getattr(kind, name))))
        yield calls


def random_clip(name: str) -> LoadedClip:
    """Build a CLIP of a built-in architecture of open_clip.

    Its weights are random, so its numbers mean nothing.
    """
    network, _, transform = open_clip.create_model_and_transforms(name, pretrained=None)
    return LoadedClip(network.eval().requires_grad_(False), transform, open_clip.get_tokenizer(name), "random", {})


def sample(examples: int, names: Sequence[str] = ()) -> tuple[list[EditTask], tuple[Setting, ...]]:
    """Return examples of the toy suite and settings of its sweep.

    They are the first so many examples, spread over the categories. Methods that are fitted to other examples are left
    out: fitting is no call of a network, or one with gradients, and a sample of few examples pays for all of it.
    """
    tasks = load_suite("toy")
    each, more = divmod(examples, len(tasks))
    counts = [each + (number < more) for number in range(len(tasks))]
    chosen = [
        task.model_copy(update={"examples": task.examples[:count]})
        for task, count in zip(tasks, counts, strict=True)
        if count
    ]
    settings = load_settings("toy", names, "sweep")
    return chosen, tuple(setting for setting in settings if setting.method not in LEARNERS)
