"""Bare model calls that a run is measured against.

They are calls of U-Net and decoder with as many rows, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.speed.workload import Timer
from riebench.generation.generator import Generator
from riebench.models.loading import LoadedModel


class BareCalls:
    """Calls of a model's U-Net and decoder on nothing in particular.

    Args:
        model: as loaded.
        batch: pictures decoded at once.
    """

    def __init__(self, model: LoadedModel, batch: int) -> None:
        self.model, self.batch = model, batch
        self._prompt, self._pooled = Generator(model).embed("a red house").parts

    @torch.inference_mode()
    def make(self, evaluations: Sequence[int], decoded: int) -> None:
        """Make the calls, one after the other.

        Args:
            evaluations: rows of each U-Net call.
            decoded: pictures.
        """
        unet, vae, prompt = self.model.pipe.unet, self.model.pipe.vae, self._prompt
        side = self.model.spec.size // self.model.pipe.vae_scale_factor
        like: dict[str, Any] = {"device": self.model.device, "dtype": prompt.dtype}
        for rows in evaluations:
            latents = torch.zeros(rows, unet.config.in_channels, side, side, **like)
            added = {"text_embeds": self._pooled.expand(rows, -1), "time_ids": torch.zeros(rows, 6, **like)}
            unet(latents, 500, prompt.expand(rows, -1, -1), added_cond_kwargs=added, return_dict=False)
        for start in range(0, decoded, self.batch):
            rows = min(self.batch, decoded - start)
            latents = torch.zeros(rows, vae.config.latent_channels, side, side, device=self.model.device)
            vae.decode(latents, return_dict=False)


class Beside:
    """Bare calls of a run, made and timed beside it.

    As soon as the run has spent some seconds in its model, the bare calls for those are made, before it goes on. So a
    machine whose speed changes over minutes weighs on both alike.

    Args:
        calls: on a model of its own: the run's has hooks.
        timer: takes the times.
        every: seconds in the run's model after which it is held up.

    Attributes:
        seconds: spent on the bare calls, which the run's own time contains.
        rows: rows of the U-Net calls made.
        decoded: pictures decoded.
    """

    def __init__(self, calls: BareCalls, timer: Timer, every: float = 2.0) -> None:
        self.calls, self.timer, self.every = calls, timer, every
        self.seconds, self.rows, self.decoded = 0.0, 0, 0
        self._due: list[int] = []
        self._undecoded = 0
        self._spent = 0.0

    def note(self, name: str, rows: int, spent: float) -> None:
        """Note one of the run's calls (see `clocked`), and make bare calls if due."""
        if name == "unet":
            self._due.append(rows)
        elif name == "decoder":
            self._undecoded += rows
        self._spent += spent
        if self._spent >= self.every:
            self._catch_up(self._undecoded - self._undecoded % self.calls.batch)

    def finish(self) -> None:
        """Make the calls that are left; to be called when the run is over."""
        self._catch_up(self._undecoded)

    def _catch_up(self, decoded: int) -> None:
        start = self.timer()
        self.calls.make(self._due, decoded)
        self.seconds += self.timer() - start
        self.rows += sum(self._due)
        self.decoded += decoded
        self._undecoded -= decoded
        self._due.clear()
        self._spent = 0.0
