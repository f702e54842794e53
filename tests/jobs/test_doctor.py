"""`riebench doctor`: it finds what a run would find, names the line that gets the rest, and asks no network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from sdxl_files import COMMIT, REPO, fake_hub, hub_cache, unreachable
from tiny import tiny_folder, tiny_saes
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.memory import free_bytes
from riebench.jobs import inventory
from riebench.jobs.doctor import examine, is_ready, smaller
from riebench.jobs.dry_run import prepare_forecast
from riebench.jobs.forecast import forecast
from riebench.jobs.inventory import Check, presence_check
from riebench.jobs.request import RunRequest
from riebench.models.families.sdxl.family import FAMILY
from riebench.models.spec import ModelOptions
from riebench.utils import machine
from riebench.utils.files import file_sha256
from riebench.utils.machine import Gpu

GB = 10**9


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with nothing in it, and a working directory without results."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def small(**changes: Any) -> RunRequest:
    """A job on the tiny model that lacks nothing."""
    values = {"settings": ("sae",), "model": str(tiny_folder()), "sae": str(tiny_saes()), "device": "cpu",
              "scorers": ("toy-clip",), "limit": 1}  # fmt: skip
    return RunRequest(**{**values, **changes})


def bad(job: RunRequest) -> dict[str, Check]:
    """What a job lacks, by name."""
    return {check.what: check for check in examine(job) if check.state == "missing"}


def test_the_toy_world_lacks_nothing() -> None:
    done = CliRunner().invoke(app, ["doctor", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1] == "ready"
    for name in ("toy-turbo", "saes", "toy-clip", "lpips", "judge"):
        assert any(line.startswith(f"ok        shipped {name}: ") for line in lines)
    assert any("units to make, about" in line for line in lines)


def test_a_damaged_shipped_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(path: Path) -> str:
        return "0" if path.parent.name == "judge" else file_sha256(path)

    monkeypatch.setattr("riebench.models.assets.file_sha256", hashed)
    monkeypatch.setattr("riebench.jobs.downloads.sae_checks", lambda *_: [])
    (check,) = bad(RunRequest(device="cpu", settings=("no_edit",))).values()
    assert check.what == "shipped judge" and "is damaged" in check.found
    assert check.mend.startswith("git checkout -- ")


def test_what_sdxl_lacks_comes_with_the_lines_that_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["doctor", "sae_k160", "--suite", "sdxl", "--model", "sdxl-turbo", "--device", "cpu", "--vae", "fp16-fix"]
    with fake_hub(monkeypatch, unreachable) as asked:
        done = CliRunner().invoke(app, [*line, "--sae", "hf://some/saes@v2/turbo", "--regions", "grounded-sam"])
    assert done.exit_code == 1
    assert not asked
    found, commands = done.stdout.split("To get what is missing:\n")
    assert "MISSING   model sdxl-turbo-vae-fp16-fix: not on this machine (6.9 GB to download)" in found
    assert "left out  metric structure: not on this machine" in found
    expected = [
        "hf download stabilityai/sdxl-turbo --revision 71153311d3dbb46851df1931d3ca6e939de83304 ",
        "--include 'unet/diffusion_pytorch_model.fp16.safetensors'",
        "hf download madebyollin/sdxl-vae-fp16-fix --revision 207b116dae70ace3637169f1ddd2434b91b3a8cd ",
        "hf download some/saes --revision v2 --include 'turbo/",
        "hf download IDEA-Research/grounding-dino-tiny --revision a2bb814d",
        "hf download facebook/sam2.1-hiera-large --revision 665f8e2a",
        "hf download facebook/dino-vitb8 config.json model.safetensors",
    ]
    assert [text for text in expected if text not in commands] == []
    assert commands.endswith("not ready\n")


def test_a_cached_model_is_found_and_half_a_download_is_not(empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub_cache(empty_hub, monkeypatch, full=False)
    # Without its weights the model is taken for an SDXL, which other programs here may leave no room for.
    monkeypatch.setattr(machine, "free_ram", lambda: 64 * GB)
    job = small(model=REPO, dtype="float16")
    checks = examine(job)
    assert is_ready(checks)
    (model,) = (check for check in checks if check.what.startswith("model "))
    assert COMMIT in model.found and "fp16 files" in model.found
    next((snapshot / "unet").glob("*.safetensors")).unlink()
    (lacking,) = bad(job).values()
    assert "no .safetensors file in unet/" in lacking.found
    assert lacking.mend.startswith(f"hf download {REPO} --include 'model_index.json'")
    assert "--include 'unet/*.fp16.safetensors'" in lacking.mend


def test_folders_are_looked_into(tmp_path: Path) -> None:
    assert not bad(small())
    saes = shutil.copytree(tiny_saes(), tmp_path / "saes")
    shutil.rmtree(next(path for path in saes.iterdir() if "mid_block" in path.name))
    assert "no SAE for mid.0" in bad(small(sae=str(saes)))[f"SAEs {saes}"].found
    weights = next(tiny_saes().rglob("state_dict.pth"))
    pointer = shutil.copytree(tiny_saes(), tmp_path / "pointer") / weights.relative_to(tiny_saes())
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    check = bad(small(sae=str(tmp_path / "pointer")))[f"SAEs {tmp_path / 'pointer'}"]
    assert "Git-LFS pointer" in check.found and check.mend == "git lfs pull"
    assert bad(small(sae=None))["SAEs"].mend == "--sae FOLDER or --sae hf://OWNER/NAME"
    check = bad(small(sae=f"mid.0={tiny_saes()}"))["SAEs"]
    assert check.found.startswith("no SAE for down.2.1, up.0.0, up.0.1")
    assert check.mend == "--sae down.2.1=PLACE or --blocks mid.0"


def test_an_unknown_option_is_no_missing_thing() -> None:
    with pytest.raises(RiebenchError, match="did you mean 'clip-l14'"):
        examine(small(scorers=("clip-l41",)))


def test_memory_and_disk_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_ram", lambda: 10**6)
    monkeypatch.setattr(machine, "free_disk", lambda folder: 10)
    found = bad(small())
    assert set(found) == {"memory (cpu)", "disk for results"}
    assert found["memory (cpu)"].mend == "a device with more memory, or a smaller --size"
    assert "--results FOLDER" in found["disk for results"].mend


def test_a_gpu_and_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    job = small(device="cuda", dtype="bfloat16")
    monkeypatch.setattr(machine, "find_gpu", lambda device: None)
    assert "nvidia-smi" in bad(job)["GPU"].mend
    old = Gpu("Tesla T4", 16 * GB, 15 * GB, "550.1", bfloat16=False)
    monkeypatch.setattr(machine, "find_gpu", lambda device: old)
    assert bad(job)["GPU format"].mend == "--dtype float16"
    monkeypatch.setattr(machine, "find_gpu", lambda device: replace(old, bfloat16=True))
    checks = {check.what: check for check in examine(job)}
    assert is_ready([*checks.values()])
    assert checks["GPU"].found == "Tesla T4, 16.0 GB, 15.0 GB free, driver 550.1"


@pytest.mark.parametrize(
    ("limit", "options"),
    [
        (24, "--batch-size 4"),
        (14, "--batch-size 4 --dtype float16"),
        (10, "--batch-size 4 --dtype float16 --offload model"),
        (5, "--batch-size 4 --offload sequential"),
        (3, "--batch-size 2 --offload sequential --vae-tiling"),
        (1, "a device with more memory, or a smaller --size"),
    ],
)
def test_what_is_advised_fits_and_costs_no_more_than_needed(limit: int, options: str) -> None:
    job = RunRequest(
        suite="sdxl", model="sdxl-base", settings=("sae_k160",), blocks="together", device="cuda", batch_size=32,
        dtype="float32", limit=1,
    )  # fmt: skip
    request = prepare_forecast(job).planned
    assert forecast(request).memory.total > limit * GB
    assert smaller(request, limit * GB) == options
    words = options.split()
    given = dict(zip(words, [*words[1:], ""], strict=True))
    placed = ModelOptions(offload=given.get("--offload", "none"), vae_tiling="--vae-tiling" in given)
    advised = replace(
        job, batch_size=int(given.get("--batch-size", 32)), dtype=given.get("--dtype", "float32"), options=placed
    )
    fits = forecast(prepare_forecast(advised).planned).memory.total <= limit * GB
    assert fits == options.startswith("--")


def test_packages_that_are_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {one.name for one in machine.package_requirements()}
    assert {"torch", "diffusers", "psutil", "packaging"} <= names
    needed = [Requirement("torch>=1.0"), Requirement("numpy>=99"), Requirement("no-such-package-here>=2")]
    monkeypatch.setattr(machine, "package_requirements", lambda: needed)
    check = bad(small())["packages"]
    assert "no-such-package-here missing (needs >=2)" in check.found and "torch" not in check.found
    assert check.mend == "pip install 'numpy>=99' 'no-such-package-here>=2'"


def test_json_holds_all_checks() -> None:
    line = ["doctor", "sae", "--model", str(tiny_folder()), "--device", "cpu", "--scorer", "toy-clip", "--json"]
    done = CliRunner().invoke(app, [*line, "--sae", "nowhere"])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["ready"] is False
    (lacking,) = (check for check in report["checks"] if check["state"] == "missing")
    assert (lacking["what"], lacking["found"].startswith("no SAE folder nowhere")) == ("SAEs nowhere", True)


def test_a_single_file_needs_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    found = bad(small(model=str(tmp_path / "model.safetensors"), options=ModelOptions(config="sdxl-base")))
    assert found["configuration for model.safetensors"].mend.startswith("hf download stabilityai/stable-diffusion-xl")
    assert "damaged" in next(check.found for name, check in found.items() if name.startswith("model "))


def test_a_message_without_a_command_is_shown_whole() -> None:
    def look() -> str:
        raise RiebenchError("two\nlines")

    assert presence_check("it", look) == Check("it", "missing", "two lines")
    assert presence_check("it", look, needed=False).state == "optional"
    assert inventory.hub_command(FAMILY, "a/b", None, "float32").startswith(
        "hf download a/b --include 'model_index.json'"
    )


def test_small_pictures_may_be_decoded_one_by_one() -> None:
    job = RunRequest(suite="sdxl", settings=("sae_k160",), device="cuda", limit=1)
    assert smaller(prepare_forecast(job).planned, 9 * GB) == "--vae-slicing"


def test_memory_is_what_the_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    unlimited = machine.free_ram()
    assert unlimited > 10**6
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 150000\nactive_file 50000\n")
    for limit, room in (("1000000\n", 450_000), ("100000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        # What was only read from files is given up for what needs its room.
        assert machine.free_ram() == room
        assert free_bytes(torch.device("cpu")) == room
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_ram() > 10**6
