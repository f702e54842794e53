"""How many pictures are generated at a time: what memory allows, and half as many whenever it did not."""

from __future__ import annotations

import sys

import psutil
import torch
from tqdm import tqdm

from riebench.estimates import activation_bytes
from riebench.models import LoadedModel
from riebench.planning import usual_batch_size
from riebench.shapes import unet_shape

LARGEST = {"cuda": 32}
"""Kind of device -> pictures that are enough to keep it busy; elsewhere `usual_batch_size` is."""
SHARE = 0.5
"""Of the free memory: the rest is for traces, for what kernels need, and for estimates that are too low."""


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def automatic_batch_size(model: LoadedModel) -> int:
    """A power of two that suits the device and its free memory, at least 1.

    Args:
        model: loaded, so that what its weights take is no longer free.
    """
    spec, kind = model.spec, model.device.type
    shape = unet_shape(model.pipe.unet.config, model.pipe.vae_scale_factor)
    fitting = SHARE * free_bytes(model.device) / activation_bytes(shape, spec, model.options, 1)
    most = max(usual_batch_size(spec.size), LARGEST.get(kind, 1))
    return 1 << max(0, min(most, int(fitting)).bit_length() - 1)


class BatchSize:
    """The batch size of one run, halved whenever memory does not suffice.

    Args:
        size: to begin with.
        quiet: says nothing.

    Attributes:
        size: pictures at a time from now on.
        proven: whether any batch has ever fitted.
    """

    def __init__(self, size: int, *, quiet: bool = False) -> None:
        self.size = size
        self.proven = False
        self._quiet = quiet
        self._failed: int | None = None

    def shrink(self, count: int) -> None:
        """Notes that so many pictures did not fit."""
        self.size = min(self.size, max(1, count // 2))
        self._failed = count if self._failed is None else self._failed

    def fitted(self) -> None:
        """Notes that a batch did fit; after a shortage says so, in one line."""
        self.proven = True
        if self._failed is not None and not self._quiet:
            line = f"memory does not suffice for {self._failed} pictures at a time; going on with {self.size}"
            tqdm.write(line, file=sys.stderr)
            self._quiet = True
