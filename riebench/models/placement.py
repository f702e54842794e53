"""Placement of a loaded pipeline, and the way in which it computes.

Device, offloading, attention kernels, and decoding in parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from riebench.errors import DeviceLostError, RiebenchError, reason
from riebench.models.families.base import Family
from riebench.models.spec import TILE, ModelOptions
from riebench.utils.machine import is_memory_shortage

KERNELS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}


MAX_WEIGHT = 1e12
"""Largest weight of a model, by its size; those of trained models stay below some thousands."""


def place(pipe: Any, family: Family, device: str, options: ModelOptions, shown: str) -> None:
    """Move a pipeline to a device in the way the options say.

    Args:
        pipe: a pipeline on the CPU.
        family: its model family.
        device: "cpu", "cuda", ...
        options: how.
        shown: what the user called the model.

    Raises:
        RiebenchError: if the device cannot be used, memory does not suffice, or weights are not finite.
    """
    denoiser: Any = family.denoiser(pipe)
    _check_kernel(options.attention, device, denoiser.dtype, family.head_width)
    if options.attention == "sliced":
        if not hasattr(denoiser, "set_attention_slice"):
            raise RiebenchError(
                f"--attention sliced is for U-Nets; the {family.denoiser_title} of {shown} has no slices"
            )
        denoiser.set_attention_slice("max")
    if options.channels_last:
        if any(value.dim() == 5 for value in pipe.vae.parameters()):
            raise RiebenchError(
                f"--channels-last is for pictures; the autoencoder of {shown} is one of films; leave it out"
            )
        for part in (denoiser, pipe.vae):
            part.to(memory_format=torch.channels_last)
    if options.vae_slicing:
        pipe.vae.enable_slicing()
    if options.vae_tiling:
        family.set_tiling(pipe, TILE)
    networks = family.networks(pipe)
    _check_finite(networks, shown)
    problem = _move(pipe, networks, device, options.offload)
    if problem is not None:
        raise RiebenchError(problem)
    use_denoiser_device(pipe, family, options)


def use_denoiser_device(pipe: Any, family: Family, options: ModelOptions) -> None:
    """Let a pipeline take its device from its denoiser.

    diffusers' pipelines search all modules of all their networks for it, several times a call. On small models that
    takes 3 % of a run. Pipelines whose networks are kept off the device go on searching.

    Args:
        pipe: a pipeline with all of its networks on one device.
        family: its model family.
        options: how it was placed.
    """
    if options.offload == "none":
        plain: Any = type(pipe)
        pipe.__class__ = _with_device_of(plain, family.denoiser_part)


@lru_cache
def _with_device_of(plain: Any, part: str) -> type:
    """Return a class of pipelines that take their device from one network.

    One that somebody offloads later, with accelerate's hooks, searches as before.
    """

    def of(name: str) -> property:
        search = getattr(plain, name).fget

        def device(pipe: Any) -> torch.device:
            network = getattr(pipe, part)
            found: torch.device = next(network.parameters()).device
            return search(pipe) if found.type == "meta" or hasattr(network, "_hf_hook") else found

        return property(device)

    names = ("device", "_execution_device")
    return type(plain.__name__, (plain,), {**{name: of(name) for name in names}, "__module__": plain.__module__})


def _move(pipe: Any, networks: Sequence[nn.Module], device: str, offload: str) -> str | None:
    """Move the pipeline; return a message if that fails, else None.

    The error is not raised here, so that no traceback keeps half of the pipeline in memory.
    """
    try:
        if offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        elif torch.device(device).type != "cpu":
            # The pipeline is on the CPU already; moving it there again would only warn of float16.
            pipe.to(device)
    except (RuntimeError, AssertionError, MemoryError) as error:
        if not out_of_memory(error):
            return f"device {device!r} cannot be used: {str(error).splitlines()[0]}"
        size = sum(value.numel() * value.element_size() for part in networks for value in part.parameters())
        steps = {"none": "--offload model (one part at a time), or --dtype float16 if it is not yet", "model":
                 "--offload sequential (slow, but fits nearly everywhere)"}  # fmt: skip
        return (
            f"not enough memory on {device}: the weights alone are {size / 1e9:.1f} GB; use "
            f"{steps.get(offload, 'a device with more memory')}, and end other programs there"
        )
    return None


def _check_finite(networks: Sequence[nn.Module], shown: str) -> None:
    for part in networks:
        named = list(part.named_parameters())
        if any(value.is_meta for _, value in named):
            lacking = [name for name, value in named if value.is_meta]
            raise RiebenchError(
                f"{shown} lacks {len(lacking)} tensors of its {type(part).__name__}, such as {lacking[0]}; "
                "it is not whole, or its configuration (--single-file-config) is another model's"
            )
        # The smallest and largest number of a tensor are NaN or infinite if any of its numbers is, and need no copy.
        ends = torch.stack([torch.stack(value.aminmax()).float().cpu() for _, value in named])
        finite = torch.isfinite(ends).all(1)
        if not bool(finite.all()):
            bad = named[int((~finite).nonzero()[0])][0]
            raise RiebenchError(
                f"{shown} holds numbers that are not finite ({type(part).__name__}, {bad}); download it again, or use "
                "--dtype float32 or bfloat16 if it was stored in a wider format"
            )
        largest = ends.abs().amax(1)
        if bool((largest > MAX_WEIGHT).any()):
            bad, value = named[int(largest.argmax())][0], float(largest.max())
            raise RiebenchError(
                f"{shown} holds {value:g} in {bad} of its {type(part).__name__}, with which no picture stays finite; "
                "download it again"
            )


def _check_kernel(attention: str, device: str, dtype: torch.dtype, head_width: int) -> None:
    if attention not in KERNELS:
        return
    try:
        probe = torch.zeros(1, 1, 8, head_width, device=device, dtype=dtype)
        with sdpa_kernel(KERNELS[attention]):
            nn.functional.scaled_dot_product_attention(probe, probe, probe)
    except (RuntimeError, AssertionError) as error:
        raise RiebenchError(
            f"--attention {attention} cannot be used on {device} in {str(dtype).removeprefix('torch.')}; "
            "use --attention default, which takes the fastest that can"
        ) from error


@contextmanager
def attention_kernel(options: ModelOptions) -> Iterator[None]:
    """Restrict PyTorch's attention to the kernel that the options name, if any."""
    if options.attention not in KERNELS:
        yield
        return
    with sdpa_kernel(KERNELS[options.attention]):
        yield


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a shortage of memory, on the device or here."""
    return isinstance(error, torch.OutOfMemoryError) or is_memory_shortage(error)


def refuse_lost(device: torch.device, error: Exception) -> None:
    """Raise an error if a device computes no more.

    After some errors a GPU fails everything until its process ends.

    Args:
        device: where a generation failed.
        error: how.

    Raises:
        DeviceLostError: if it is lost.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        raise DeviceLostError(
            f"{device} computes no more ({reason(error)}); what is done is kept: repeat the same command"
        ) from error
