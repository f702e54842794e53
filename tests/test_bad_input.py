"""Bad input through the command line: exit code 2, one line that says how to mend it, and nothing computed is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import parts, write_saeuron
from sdxl_files import change_tensors, fake_hub, refusal, unreachable
from tiny import tiny_folder, tiny_model, tiny_saes
from typer.testing import CliRunner

from riebench.cli import app
from riebench.generate import Generator
from riebench.runner import run_benchmark
from riebench.saes.formats import save_sdxl_unbox
from riebench.schema import BLOCKS
from riebench.suites import load_settings, load_suite

TASK = """\
category: change_color
version: 1
examples:
  - {id: one, source: a red cat, target: a blue cat, source_region: whole, target_region: whole}
"""
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
UNET = "unet/diffusion_pytorch_model.safetensors"


class Payload:
    """Unpickled without care it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "it ran")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite, a setting of SAE features, and the results of an earlier run of another setting."""
    folder = tmp_path_factory.mktemp("earlier")
    (folder / "mine").mkdir()
    (folder / "mine" / "change_color.yaml").write_text(TASK)
    (folder / "features.yaml").write_text("method: sae\nparams: {n_features: 3}\naccess: PAM\n")
    tasks = load_suite(str(folder / "mine"))
    run_benchmark(
        tasks, load_settings("sdxl", ["no_edit"]), tiny_model(2), results_root=folder / "out", progress=False
    )  # fmt: skip
    return folder


@pytest.fixture
def place(earlier: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return shutil.copytree(earlier, tmp_path / "place")


def refused(place: Path, *more: str, model: str | Path | None = None, sae: str | Path | None = None) -> str:
    """The line of a `riebench run` that must fail, after making sure that it is the only one and nothing was lost."""
    before = {path: path.read_bytes() for path in sorted((place / "out").rglob("*")) if path.is_file()}
    line = ["run", str(place / "features.yaml"), "--suite", str(place / "mine"), "--results", str(place / "out")]
    line += ["--model", str(model or tiny_folder()), "--sae", str(sae or tiny_saes()), "--steps", "2", "--guidance"]
    scorer = () if "--scorer" in more else ("--scorer", "toy-clip")
    return only_line(CliRunner().invoke(app, [*line, "0", "--device", "cpu", *scorer, *more]), before)


def only_line(result: Any, before: dict[Path, bytes]) -> str:
    """The one line that a failed command says beside what it was about to load and how far it was."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    bars = [line for line in result.stderr.splitlines() if "image/s]" in line or not line]
    (text,) = (line for line in result.stderr.splitlines() if line not in bars and not line.startswith("loading "))
    assert text.startswith("riebench: ")
    assert {path: path.read_bytes() for path in before} == before
    return str(text)


def sae_copy(place: Path) -> Path:
    """SAEs that a test may spoil."""
    return shutil.copytree(tiny_saes(), place / "saes")


def weights_of(saes: Path) -> Path:
    """The weights of one of them."""
    return next(saes.rglob("state_dict.pth"))


def change_sae(file: Path, **tensors: torch.Tensor) -> None:
    """Sets tensors of a stored SAE."""
    state = torch.load(file, weights_only=True)
    torch.save({"state_dict": {**state["state_dict"], **tensors}}, file)


def pointer_model(place: Path) -> str:
    folder = shutil.copytree(tiny_folder(), place / "model")
    (folder / UNET).write_text(POINTER)
    return refused(place, model=folder)


def pointer_model_counted(place: Path) -> str:
    folder = shutil.copytree(tiny_folder(), place / "model")
    (folder / UNET).write_text(POINTER)
    return refused(place, "--dry-run", model=folder)


def pointer_sae(place: Path) -> str:
    saes = sae_copy(place)
    weights_of(saes).write_text(POINTER)
    return refused(place, sae=saes)


def code_in_sae(place: Path) -> str:
    saes = sae_copy(place)
    torch.save({"state_dict": Payload(place / "trap")}, weights_of(saes))
    return refused(place, sae=saes)


def code_in_model(place: Path) -> str:
    folder = shutil.copytree(tiny_folder(), place / "model")
    (folder / UNET).unlink()
    torch.save(Payload(place / "trap"), folder / "unet" / "diffusion_pytorch_model.bin")
    return refused(place, model=folder)


def code_in_single_file(place: Path) -> str:
    torch.save(Payload(place / "trap"), place / "model.ckpt")
    return refused(place, "--config", str(tiny_folder()), model=place / "model.ckpt")


def nan_model(place: Path) -> str:
    folder = shutil.copytree(tiny_folder(), place / "model")
    change_tensors(folder / UNET, conv_out__bias=torch.full((4,), float("nan")))
    return refused(place, model=folder)


def nan_sae(place: Path) -> str:
    saes = sae_copy(place)
    change_sae(weights_of(saes), pre_bias=torch.full((64,), float("nan")))
    return refused(place, sae=saes)


def sae_on_outputs(place: Path) -> str:
    for block in BLOCKS:
        write_saeuron(place / "outputs" / block, parts(d=64))
    return refused(place, sae=place / "outputs")


def narrow_sae(place: Path) -> str:
    for block in BLOCKS:
        save_sdxl_unbox(
            place / "narrow" / block, encoder=torch.ones(6, 5), decoder=torch.ones(5, 6) / 5**0.5,
            pre_bias=torch.zeros(5), latent_bias=torch.zeros(6), k=2,
        )  # fmt: skip
    return refused(place, sae=place / "narrow")


def no_sae_for_block(place: Path) -> str:
    return refused(place, "--blocks", "up.0.2")


def no_such_block(place: Path) -> str:
    return refused(place, "--blocks", "down.1.0")


def no_weights_at_all(place: Path) -> str:
    return refused(place, "--offline", model="someone/else")


def bad_task(place: Path) -> str:
    (place / "mine" / "change_color.yaml").write_text(TASK.replace("target_region", "target_regoin"))
    return refused(place, "--dry-run")


def bad_yaml(place: Path) -> str:
    (place / "mine" / "change_color.yaml").write_text(TASK + "  - {id: two, source: [")
    return refused(place, "--dry-run")


def bad_setting(place: Path) -> str:
    (place / "features.yaml").write_text("method: sae\nparams: {n_feature: 3}\naccess: PAM\n")
    return refused(place, "--dry-run")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (pointer_model, "is a Git-LFS pointer, not the file; run `git lfs pull`"),
        (pointer_model_counted, "is a Git-LFS pointer, not the file; run `git lfs pull`"),
        (pointer_sae, "is a Git-LFS pointer, not the file; run `git lfs pull`"),
        (code_in_sae, "would run its code, which riebench never does"),
        (code_in_model, "no .safetensors file in unet/"),
        (code_in_single_file, "only .safetensors files are read, since others can run code"),
        (nan_model, "holds numbers that are not finite (UNet2DConditionModel, conv_out.bias)"),
        (nan_sae, "pre_bias holds a number that is not finite; the file is damaged"),
        (sae_on_outputs, "was trained on block outputs; edits need one trained on updates"),
        (narrow_sae, "has width 5, but tiny-steps2-guidance0 has 64 channels there"),
        (no_sae_for_block, "has no SAE for up.0.2; it has SAEs for: down.2.1, mid.0, up.0.0, up.0.1"),
        (no_such_block, "tiny-steps2-guidance0 has no block down.1.0"),
        (no_weights_at_all, "someone/else is not on this machine: leave --offline out, or fetch it first with `hf"),
        (bad_task, "target_regoin"),
        (bad_yaml, "change_color.yaml"),
        (bad_setting, "has no parameter 'n_feature' (did you mean 'n_features'?)"),
    ],
)
def test_one_line_and_nothing_lost(
    place: Path, monkeypatch: pytest.MonkeyPatch, case: Callable[[Path], str], message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    assert message in case(place)
    assert not (place / "trap").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--regions", "grounded-sma"), "(did you mean 'grounded-sam'?)"),
        (("--regions", "clipseg:treshold=0.4"), "(did you mean 'threshold'?)"),
        (("--regions", "clipseg:model=/nowhere/at/all"), "/nowhere/at/all"),
        (("--scorer", "clip-l41"), "(did you mean 'clip-l14'?)"),
        (("--scorer", "local-dir:/nowhere"), "there is no folder /nowhere"),
        (("--weights", "dino=/nowhere"), "there is no /nowhere"),
        (("--profile", "papre"), "(did you mean 'paper'?)"),
        (("--offload", "modle"), "(did you mean 'model'?)"),
        (("--offload", "model"), "the device is cpu; leave it out"),
        (("--attention", "flsh"), "(did you mean 'flash'?)"),
        (("--vae", "fp16-fxi"), "give fp16-fix, a folder or a hub id"),
        (("--blocks", "mid.o"), "mid.o"),
        (("--edit-steps", "0.5:0.1"), "0.1"),
        (("--sae", "nowhere"), "no SAE folder nowhere"),
        (("--sae", "hf://half"), "write hf://OWNER/NAME"),
    ],
)
def test_misspelt_options_name_what_was_meant(place: Path, options: tuple[str, ...], message: str) -> None:
    assert message in refused(place, *options)


@pytest.mark.parametrize(
    ("answer", "what", "message"),
    [
        (refusal(404, "RepoNotFound"), "model", "the hub has no someone/else, or it is private: check the spelling"),
        (unreachable, "model", "the hub cannot be reached, and someone/else is not on this machine: check the network"),
        (refusal(404, "RepoNotFound"), "sae", "SAEs: the hub has no someone/else, or it is private"),
        (unreachable, "sae", "SAEs: the hub cannot be reached, and someone/else is not on this machine"),
    ],
)
def test_what_the_hub_does_not_give(
    place: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, what: str, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    source = {"model": "someone/else", "sae": "hf://someone/else"}[what]
    with fake_hub(monkeypatch, answer):
        assert message in refused(place, **{what: source})


def full(*_: Any, **__: Any) -> None:
    """Fails as PyTorch does where memory does not suffice."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 26.00 MiB.")


def test_attempts_to_reach_the_hub_are_not_told_one_by_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    with fake_hub(monkeypatch, unreachable) as asked:
        text = refused(place, model="sdxl-turbo")
    assert len(asked) > 1 and not caplog.records
    assert "--include 'unet/*.fp16.safetensors'" in text


def test_too_little_memory_for_the_weights(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.models.StableDiffusionXLPipeline.from_pretrained", full)
    assert "this machine's memory does not suffice; use --dtype float16" in refused(place)


def test_too_little_memory_for_pictures_stops_and_fails_no_unit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Generator, "decode", full)
        text = refused(place)
    assert "not enough memory on cpu" in text and "--vae-tiling" in text
    assert "Tried to allocate" not in text
    tasks, settings = load_suite(str(place / "mine")), load_settings("sdxl", [str(place / "features.yaml")])
    (folder,) = run_benchmark(
        tasks, settings, tiny_model(2), results_root=place / "out", saes_source=str(tiny_saes()), progress=False
    )
    assert [record.status for record in folder.records()] == ["ok"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("doctor", "--model", "toy-trubo"), "(did you mean 'toy-turbo'?)"),
        (("doctor", "sea"), "(did you mean 'sae'?)"),
        (("sae", "inspect", "nowhere"), "nowhere"),
        (("tasks", "check", "mine/absent"), "mine/absent"),
        (("tasks", "import", "riebench", "absent.json"), "absent.json"),
        (("tasks", "import", "piebench", "absent.json"), "absent.json"),
    ],
)
def test_other_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in only_line(CliRunner().invoke(app, list(line)), {})
    assert list(tmp_path.iterdir()) == []
