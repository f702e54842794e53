"""Bare network calls that a run is measured against.

They are calls of the same networks with as many rows, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from open_clip import CLIP
from torch.autograd import grad

from benchmarks.speed.workload import Timer
from riebench.generation.generator import Generator
from riebench.models.clip import ClipSpec, LoadedClip, load_open_clip
from riebench.models.loading import LoadedModel
from riebench.models.presets import scorer_for

# Taken before any clock is put in their place: bare calls are none of the run's.
ENCODE_IMAGE, ENCODE_TEXT = CLIP.encode_image, CLIP.encode_text

Call = tuple[str, int]
"""A network as `clocked` names it, and the rows of its call."""


class BareCalls:
    """Calls of a model's networks on nothing in particular.

    Args:
        model: as loaded.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._prompt, self._pooled = Generator(model).embed("a red house").parts
        self._made: dict[str, Callable[[int], Any]] = {
            "unet": self._denoise, "decoder": self._decode, "encoder": self._encode,
            "text": lambda rows: self._embed_text(model.pipe.text_encoder, rows),
            "text 2": lambda rows: self._embed_text(model.pipe.text_encoder_2, rows),
            "clip": self._gradient, "clip text": self._embed_clip_text,
        }  # fmt: skip

    def make(self, calls: Sequence[Call]) -> None:
        """Make some calls, one after the other."""
        for name, rows in calls:
            # Gradients of the scorer's CLIP are taken outside of it, as in the run.
            with torch.inference_mode(name != "clip"):
                self._made[name](rows)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device=self.model.device, dtype=self._prompt.dtype)

    def _denoise(self, rows: int) -> None:
        unet = self.model.pipe.unet
        side = self.model.spec.size // self.model.pipe.vae_scale_factor
        added = {"text_embeds": self._pooled.expand(rows, -1), "time_ids": self._zeros(rows, 6)}
        latents = self._zeros(rows, unet.config.in_channels, side, side)
        unet(latents, 500, self._prompt.expand(rows, -1, -1), added_cond_kwargs=added, return_dict=False)

    def _decode(self, rows: int) -> None:
        vae, side = self.model.pipe.vae, self.model.spec.size // self.model.pipe.vae_scale_factor
        vae.decode(self._zeros(rows, vae.config.latent_channels, side, side).to(vae.dtype), return_dict=False)

    def _encode(self, rows: int) -> None:
        vae, size = self.model.pipe.vae, self.model.spec.size
        vae.encode(self._zeros(rows, 3, size, size).to(vae.dtype))

    def _embed_text(self, encoder: Any, rows: int) -> None:
        length = self.model.pipe.tokenizer.model_max_length
        encoder(torch.zeros(rows, length, device=self.model.device, dtype=torch.long), output_hidden_states=True)

    @cached_property
    def _clip(self) -> LoadedClip:
        with torch.inference_mode(False):
            return load_open_clip(ClipSpec.parse(scorer_for(self.model.spec)), str(self.model.device))

    def _gradient(self, rows: int) -> None:
        size = self._clip.model.visual.image_size
        pictures = torch.zeros(rows, 3, *(size if isinstance(size, tuple) else (size, size)), requires_grad=True)
        with torch.enable_grad():
            grad(ENCODE_IMAGE(self._clip.model, pictures.to(self.model.device)).sum(), pictures)

    def _embed_clip_text(self, rows: int) -> None:
        ENCODE_TEXT(self._clip.model, self._clip.tokenizer(["a red house"] * rows).to(self.model.device))


class Beside:
    """Bare calls of a run, made and timed beside it.

    As soon as the run has spent some seconds in its networks, the bare calls for those are made, before it goes on. So
    a machine whose speed changes over minutes weighs on both alike.

    Args:
        calls: on a model of its own: the run's has hooks.
        timer: takes the times.
        every: seconds in the run's networks after which it is held up.

    Attributes:
        seconds: spent on the bare calls, which the run's own time contains.
        rows: network -> rows of the calls made.
    """

    def __init__(self, calls: BareCalls, timer: Timer, every: float = 2.0) -> None:
        self.calls, self.timer, self.every = calls, timer, every
        self.seconds = 0.0
        self.rows: Counter[str] = Counter()
        self._due: list[Call] = []
        self._spent = 0.0

    def note(self, name: str, rows: int, spent: float) -> None:
        """Note one of the run's calls (see `clocked`), and make bare calls if due."""
        self._due.append((name, rows))
        self._spent += spent
        if self._spent >= self.every:
            self.finish()

    def finish(self) -> None:
        """Make the calls that are left; to be called when the run is over."""
        start = self.timer()
        self.calls.make(self._due)
        self.seconds += self.timer() - start
        for name, rows in self._due:
            self.rows[name] += rows
        self._due.clear()
        self._spent = 0.0
