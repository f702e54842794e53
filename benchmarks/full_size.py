"""One block-edited denoising step of a whole denoiser on the processor, with random weights in bfloat16.

    python -m benchmarks.full_size                    measures every model that fits, keeps figures, fills the document
    python -m benchmarks.full_size sd15 --size 256    prints one model's figures and keeps nothing
    python -m benchmarks.full_size --table [--check]  only fills the document from the kept figures

No download is needed: networks are built from diffusers' classes with the published configurations. Each model is
measured in a process of its own, so that its peak of memory is its own and one that does not fit ends alone. Pictures
are noise; times and memory are those of the real network. Text encoders and autoencoder are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riebench.analysis.tables import fill_parts
from riebench.errors import RiebenchError
from riebench.utils.files import write_atomic
from riebench.utils.machine import free_ram, peak_ram
from riebench.utils.markup import markdown_table

RESULTS = Path(__file__).parent / "results" / "full_size.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
COMMAND = "python -m benchmarks.full_size"
PART = re.compile(r"(<!-- full-size: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SIZE, NONE = 512, "–"
RESERVE = 2 * 10**9
"""Bytes that Python's libraries and activations take beside the weights."""
HALF = 2
"""Bytes of a number in bfloat16."""
Inputs = Callable[[int, str], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Network:
    """A denoiser of a published model.

    Attributes:
        title: what people call the model.
        class_name: of diffusers.
        block: path of the block that is edited.
        inputs: picture side in pixels, device -> arguments of one call on one picture.
        config: what differs from the class's defaults.
        presets: names that a preset of the model may have, whose planned work is stated beside.
    """

    title: str
    class_name: str
    block: str
    inputs: Inputs
    config: Mapping[str, Any] = field(default_factory=dict)
    presets: tuple[str, ...] = ()


def _random(shape: Sequence[int], device: str) -> Any:
    import torch

    if device == "meta":
        return torch.empty(*shape, dtype=torch.bfloat16, device=device)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(torch.bfloat16)


def _time(device: str) -> Any:
    import torch

    return torch.full((1,), 500.0, device=device)


def _unet_inputs(text: int) -> Inputs:
    def inputs(size: int, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        side = size // 8
        return (_random((1, 4, side, side), device), _time(device), _random((1, 77, text), device)), {}

    return inputs


def _sdxl_inputs(size: int, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, _ = _unet_inputs(2048)(size, device)
    return args, {"added_cond_kwargs": {"text_embeds": _random((1, 1280), device), "time_ids": _random((1, 6), device)}}


def _sana_inputs(size: int, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    side = size // 32
    return (_random((1, 32, side, side), device), _random((1, 300, 2304), device), _time(device)), {}


def _sdxl_config() -> Mapping[str, Any]:
    from benchmarks.sdxl.architecture import UNET

    return UNET


def networks() -> dict[str, Network]:
    """Return the denoisers that are measured, by name."""
    unet = "UNet2DConditionModel"
    return {
        "sd15": Network("Stable Diffusion 1.5", unet, "up_blocks.1.attentions.1", _unet_inputs(768),
                        {"sample_size": 64, "cross_attention_dim": 768}, ("sd15",)),
        "sana": Network("SANA 1.6B", "SanaTransformer2DModel", "transformer_blocks.10", _sana_inputs,
                        presets=("sana-512", "sana-1.6b-512", "sana")),
        "sdxl": Network("SDXL", unet, "up_blocks.0.attentions.1", _sdxl_inputs, _sdxl_config(), ("sdxl-turbo",)),
    }  # fmt: skip


def build(one: Network, device: str = "cpu") -> Any:
    """Build a denoiser with random weights in bfloat16.

    They are made in that format from the start, so that no copy in float32 is ever in memory. On the device "meta" the
    network takes none.
    """
    import diffusers
    import torch

    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            network = getattr(diffusers, one.class_name)(**one.config)
    finally:
        torch.set_default_dtype(usual)
    return torch.nn.Module.to(network, torch.bfloat16).eval().requires_grad_(False)


def planned_teraflop(one: Network, size: int) -> float | None:
    """Return the work of a call that the model's family plans with; None if no preset is there."""
    from riebench.models.presets import PRESETS
    from riebench.registry import MODEL_FAMILIES

    name = next((name for name in one.presets if name in PRESETS), None)
    if name is None:
        return None
    shape = MODEL_FAMILIES.get(PRESETS[name].family).shape_of_preset(name)
    return float(shape.evaluation_teraflop(size))


def counted(one: Network, size: int) -> dict[str, Any]:
    """Count parameters and operations of a call, without any memory."""
    from benchmarks.sdxl.counting import _cost
    from riebench.generation.hooks import find_site

    network = build(one, "meta")
    # A family that does not know the network is found before minutes are spent.
    find_site(network, one.block)
    args, kwargs = one.inputs(size, "meta")
    cost = _cost(lambda: network(*args, **kwargs, return_dict=False))
    return {
        "parameters": sum(value.numel() for value in network.parameters()),
        "teraflop": cost.operations / 1e12,
        "planned_teraflop": planned_teraflop(one, size),
    }


def measure(one: Network, size: int) -> dict[str, Any]:
    """Run one plain and one edited call, and return their times and the peak of memory.

    The update of one block is changed by noise of its own size, through the sites that riebench's edits use.

    Raises:
        RiebenchError: if the network is of no known family, gives numbers that are not finite, or the edit changes
            nothing.
    """
    import torch

    from riebench.generation.hooks import find_site

    torch.set_num_threads(os.cpu_count() or 1)
    start = time.perf_counter()
    network = build(one)
    site = find_site(network, one.block)
    found: dict[str, Any] = {"build_seconds": time.perf_counter() - start}
    args, kwargs = one.inputs(size, "cpu")

    def change(_module: Any, arguments: Any, named: Any, output: Any) -> Any:
        stream = site.stream(output)
        scale = site.update(arguments, named, output).float().std().item()
        return site.with_stream(output, stream + scale * _random(stream.shape, "cpu").to(stream.dtype))

    def call() -> Any:
        began, worked = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            answer = network(*args, **kwargs, return_dict=False)[0]
        return answer, time.perf_counter() - began, time.process_time() - worked

    plain, found["plain_seconds"], found["plain_processor_seconds"] = call()
    handle = site.point.register_forward_hook(change, with_kwargs=True)
    try:
        edited, found["seconds"], found["processor_seconds"] = call()
    finally:
        handle.remove()
    if not bool(torch.isfinite(edited.float()).all()):
        raise RiebenchError(f"{one.title}: numbers that are not finite")
    if torch.equal(plain, edited):
        raise RiebenchError(f"{one.title}: the edit of {one.block} changed nothing")
    return {**found, "peak_bytes": peak_ram(), "threads": torch.get_num_threads()}


def figures(name: str, size: int) -> dict[str, Any]:
    """Return all figures of a model, measured in a process of its own.

    What cannot be measured has its reason under "error".
    """
    one = networks()[name]
    known: dict[str, Any] = {"model": one.title, "class": one.class_name, "block": one.block, "size": size}
    try:
        known |= counted(one, size)
    except RiebenchError as error:
        return {**known, "error": str(error)}
    needed = HALF * int(known["parameters"]) + RESERVE
    if free_ram() < needed:
        return {**known, "error": f"needs {needed / 1e9:.1f} GB, {free_ram() / 1e9:.1f} GB are free"}
    line = [sys.executable, "-m", "benchmarks.full_size", name, "--size", str(size), "--alone"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
        return {**known, "error": last[:200]}
    return {**known, **json.loads(done.stdout.splitlines()[-1])}


def _row(one: Mapping[str, Any]) -> list[str]:
    size = f"{one['parameters'] / 1e6:,.0f} M" if "parameters" in one else NONE
    work = [NONE if one.get(name) is None else f"{one[name]:.3f}" for name in ("teraflop", "planned_teraflop")]
    head = [one["model"], size, f"{one['size']} px", one["block"], *work]
    if "error" in one:
        return [*head, f"not measured: {one['error']}", "", ""]
    return [*head, f"{one['seconds']:.2f} ({one['processor_seconds']:.2f})",
            f"{one['plain_seconds']:.2f} ({one['plain_processor_seconds']:.2f})",
            f"{one['peak_bytes'] / 1e9:.1f} GB"]  # fmt: skip


HEADER = ("model", "denoiser", "picture", "edited block", "TFLOP counted", "TFLOP planned", "edited step, s",
          "plain step, s", "peak memory")  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """Return the table of the document."""
    return markdown_table(HEADER, (_row(one) for one in found["measures"]))


def setting(found: Mapping[str, Any]) -> str:
    """Return a sentence on machine and versions."""
    there = found["machine"]
    versions = there["versions"]
    return (
        f"Measured with {there['threads']} threads on {there['cores']} cores of an {there['cpu']} with "
        f"{there['memory_bytes'] / 1e9:.0f} GB of memory, without a GPU, with PyTorch {versions['torch']} and "
        f"diffusers {versions['diffusers']}; other programs kept {found['load']:.1f} cores busy when it began.\n"
    )


PARTS = {"setting": setting, "table": table}


def fill(*, check: bool = False, document: Path = DOCUMENT, results: Path = RESULTS) -> None:
    """Bring the document up to date.

    Args:
        check: only compares, and writes nothing.
        document: the Markdown file.
        results: the kept figures.

    Raises:
        RiebenchError: with `check`, if it is out of date.
    """
    found = json.loads(results.read_text(encoding="utf-8"))
    fill_parts(
        document, PART, lambda match: PARTS[match[2]](found), mark="<!-- full-size:", command=f"{COMMAND} --table",
        check=check,
    )  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Run one of the forms in the text of this module."""
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("names", nargs="*", choices=[[], *networks()], help="models; all if none is named")
    parser.add_argument("--size", type=int, default=SIZE, help="picture side in pixels")
    parser.add_argument("--alone", action="store_true", help="measure one model in this process")
    parser.add_argument("--table", action="store_true", help="only fill the document")
    parser.add_argument("--check", action="store_true", help="with --table: only compare")
    given = parser.parse_args(words)
    if given.table:
        fill(check=given.check)
    elif given.alone:
        print(json.dumps(measure(networks()[given.names[0]], given.size)))
    else:
        load, measures = os.getloadavg()[0], list[dict[str, Any]]()
        for name in given.names or networks():
            measures.append(figures(name, given.size))
            print(json.dumps(measures[-1]), flush=True)
            if not given.names and given.size == SIZE:
                _keep(measures, load)


def _keep(measures: Sequence[Mapping[str, Any]], load: float) -> None:
    """Keep the figures so far, and bring the document up to date."""
    from benchmarks.sdxl.measure import machine

    whole = {"machine": machine("cpu"), "load": round(load, 2), "measures": [_rounded(one) for one in measures]}
    write_atomic(RESULTS, f"{json.dumps(whole, indent=1)}\n".encode())
    fill()


def _rounded(one: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value
            for name, value in one.items()}  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except RiebenchError as error:
        sys.exit(str(error))
