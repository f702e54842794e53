"""Operations and activation memory of one evaluation of SDXL.

They are counted on the true architecture without any memory.
Activations are the tensors alive at the same time, attention counted as a kernel that stores no weights. What a device
adds (workspaces of convolutions, unused parts of its memory pool) is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sdxl.architecture import POOLED_WIDTH, TEXT_WIDTH, TOKENS, build_unet, build_vae
from riebench.blocks import module_path
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.families.unet.network import text_projections

PIXELS_PER_LATENT = 8


@dataclass(frozen=True)
class Cost:
    """Cost of one call.

    Attributes:
        operations: floating-point operations, a multiplication and an addition counted as two.
        activation_bytes: most bytes of tensors alive at once, weights not among them.
    """

    operations: int
    activation_bytes: int


def unet_cost(size: int, rows: int = 1, dtype: torch.dtype = torch.float16) -> Cost:
    """Count the cost of one evaluation of the U-Net.

    Args:
        size: picture side in pixels.
        rows: pictures at once; under guidance each counts twice.
        dtype: of weights and activations.
    """
    unet = nn.Module.to(build_unet(), dtype)
    return _cost(lambda: _evaluate(unet, size, rows, dtype))


def _evaluate(unet: Any, size: int, rows: int, dtype: torch.dtype) -> Any:
    side = size // PIXELS_PER_LATENT
    with torch.device("meta"):
        latents = torch.empty(rows, 4, side, side, dtype=dtype)
        text = torch.empty(rows, TOKENS, TEXT_WIDTH, dtype=dtype)
        added = {
            "text_embeds": torch.empty(rows, POOLED_WIDTH, dtype=dtype),
            "time_ids": torch.empty(rows, 6, dtype=dtype),
        }
        step = torch.empty((), dtype=torch.float32)
    return unet(latents, step, text, added_cond_kwargs=added, return_dict=False)


@dataclass(frozen=True)
class Share:
    """Shares of the operations of an evaluation that are done at some place of the U-Net, in [0, 1].

    Attributes:
        all: of all operations.
        text: of them the keys and values of the text, which follow from the prompt alone.
    """

    all: float
    text: float


@lru_cache(maxsize=2)
def shares(size: int) -> dict[str, Share]:
    """Count the shares that are done at the beginning of each block, at its update, and at the end.

    An edit of a block's update in the first step leaves so much as it was in the source run; an edit of its
    feed-forward units leaves what precedes the block (`riebench.generation.prefix`).

    Args:
        size: picture side in pixels.

    Returns:
        Share by "BLOCK begins", "BLOCK" and "end".
    """
    unet = build_unet()
    counter, attention = FlopCounterMode(display=False), _Attention()
    text, done = 0, dict[str, tuple[int, int]]()

    def note(name: str, *_: Any) -> None:
        done[name] = counter.get_total_flops() + attention.operations, text

    def add(layer: Any, args: Any, output: Tensor) -> None:
        nonlocal text
        text += 2 * output.numel() * int(layer.in_features)

    with ExitStack() as stack:
        for block in BLOCKS:
            module = unet.get_submodule(module_path(block))
            projection = unet.get_submodule(f"{module_path(block)}.proj_out")
            stack.callback(module.register_forward_pre_hook(partial(note, f"{block} begins")).remove)
            stack.callback(projection.register_forward_hook(partial(note, block)).remove)
        for layer in text_projections(unet):
            stack.callback(layer.register_forward_hook(add).remove)
        with torch.no_grad(), attention, counter:
            _evaluate(unet, size, 1, torch.float32)
            note("end")
    whole = done["end"][0]
    return {name: Share(operations / whole, of_text / whole) for name, (operations, of_text) in done.items()}


def shares_before(size: int) -> dict[str, float]:
    """Return the share of an evaluation that is done when each block adds its update."""
    found = shares(size)
    return {block: found[block].all for block in BLOCKS}


def whole_evaluations(size: int, rows: int, resumed: Mapping[str, int], texts: int) -> float:
    """Count how many whole evaluations of the U-Net some rows cost, by their operations.

    Args:
        size: picture side in pixels.
        rows: all rows that are evaluated.
        resumed: place, as `shares` names it -> how many of them go on from there.
        texts: how many rows' keys and values of the text are computed; all others share them.
    """
    found = shares(size)
    saved = sum(count * (found[place].all - found[place].text) for place, count in resumed.items())
    return rows - saved - (rows - texts) * found["end"].text


def decode_cost(size: int, rows: int = 1, dtype: torch.dtype = torch.float32) -> Cost:
    """Count the cost of decoding with the autoencoder; arguments as `unet_cost`."""
    vae = nn.Module.to(build_vae(), dtype)
    side = size // PIXELS_PER_LATENT
    return _cost(lambda: vae.decode(torch.empty(rows, 4, side, side, dtype=dtype, device="meta"), return_dict=False))


def _cost(run: Callable[[], Any]) -> Cost:
    counter, alive, attention = FlopCounterMode(display=False), _Alive(), _Attention()
    # Not in inference mode, where operations are no longer seen one by one.
    with torch.no_grad(), attention, counter, alive:
        run()
    return Cost(counter.get_total_flops() + attention.operations, alive.most)


class _Attention(TorchFunctionMode):
    """Substitute for attention that counts its operations.

    Without a device attention would be taken apart into steps that store all weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key = (args[0], args[1]) if len(args) > 1 else (kwargs["query"], kwargs["key"])
        # Queries times keys, and weights times values.
        self.operations += 4 * query.numel() * key.shape[-2]
        return torch.empty_like(query)


class _Alive(TorchDispatchMode):
    """Sum of the bytes of tensors made inside it, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            # A view shares its input's storage, which is counted already or belongs to a weight.
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in inputs:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size
