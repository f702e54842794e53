"""What --regions may say, and what of it enters a run's identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from riebench.errors import RiebenchError
from riebench.generation.regions.options import (
    DEFAULT_REGIONS,
    GroundedSamOptions,
    RegionOptions,
    check_model_folder,
    parse_regions,
)
from riebench.scoring.profiles import PAPER_REGIONS


def model_folder(path: Path, weights: bytes = b"weights") -> Path:
    """A folder with the files of a region model."""
    path.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        (path / name).write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_the_default_is_one_word_so_that_old_runs_keep_their_identity() -> None:
    assert parse_regions(DEFAULT_REGIONS).identity == "attention"
    assert parse_regions("attention").models == {}


def test_the_paper_has_the_published_thresholds_and_pinned_models() -> None:
    spec = parse_regions(PAPER_REGIONS)
    options = spec.options
    assert isinstance(options, GroundedSamOptions)
    assert (options.box, options.widen, options.cell) == (0.25, 31, 32)
    assert spec.identity == (
        "grounded-sam:box=0.25,cell=32,"
        "detector=IDEA-Research/grounding-dino-tiny@a2bb814dd30d776dcf7e30523b00659f4f141c71,"
        "segmenter=facebook/sam2.1-hiera-large@665f8e2ad61cf5f53d65644ff27c8ee525124610,text=0.0,widen=31"
    )


def test_every_option_is_part_of_the_identity_and_its_order_is_not() -> None:
    texts = ["grounded-sam", *(f"grounded-sam:{change}" for change in
             ("box=0.3", "text=0.25", "widen=1", "cell=0", "detector=A/b", "segmenter=A/b@v1"))]  # fmt: skip
    assert len({parse_regions(text).identity for text in texts}) == len(texts)
    one, other = parse_regions("grounded-sam: box=0.30, cell=16"), parse_regions("grounded-sam:cell=16,box=.3")
    assert one.identity == other.identity
    assert parse_regions("clipseg:threshold=0.4").identity != parse_regions("clipseg").identity


def test_a_folder_counts_by_its_files_not_by_its_name(tmp_path: Path) -> None:
    same = [model_folder(tmp_path / name) for name in ("one", "two")]
    other = model_folder(tmp_path / "three", b"other weights")
    identities = [parse_regions(f"clipseg:model={folder}").identity for folder in (*same, other)]
    assert identities[0] == identities[1] != identities[2]
    assert str(tmp_path) not in identities[0] and identities[0].startswith("clipseg:model=sha256-")
    (same[0] / "README.md").write_text("not read by anything")
    assert parse_regions(f"clipseg:model={same[0]}").identity == identities[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grounded_sam", "unknown region provider 'grounded_sam' .did you mean 'grounded-sam'"),
        ("attention:box=1", "attention has no options; leave out ':box=1'"),
        ("grounded-sam:bx=0.3", "unknown option 'bx' .did you mean 'box'"),
        ("grounded-sam:box", "'box' is no key=value"),
        ("grounded-sam:", "'' is no key=value"),
        ("grounded-sam:box=", "'box=' is no key=value"),
        ("grounded-sam:box=0.3,box=0.4", "box is given twice"),
        ("grounded-sam:box=1.5", "box=1.5: Input should be less than 1"),
        ("grounded-sam:widen=30", "widen=30: 30 is even"),
        ("clipseg:threshold=high", "threshold=high: Input should be a valid number"),
        ("clipseg:model=/no/such/folder", "'/no/such/folder' is neither a folder here nor a hub id"),
        ("clipseg:model=nothing", "'nothing' is neither a folder here nor a hub id"),
    ],
)
def test_slips_are_named_in_one_line(text: str, message: str) -> None:
    with pytest.raises(RiebenchError, match=message) as caught:
        parse_regions(text)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    check_model_folder(folder, "x=")
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    check_model_folder(folder, "x=")
    (folder / "processor_config.json").unlink()
    with pytest.raises(RiebenchError, match=r"model=.*/m: preprocessor_config.json missing; fetch .*hf download"):
        parse_regions(f"clipseg:model={folder}").folders()
    (folder / "model.safetensors").unlink()
    with pytest.raises(RiebenchError, match=r"preprocessor_config.json and weights .model.safetensors. missing"):
        parse_regions(f"clipseg:model={folder}").folders()


def test_a_git_lfs_pointer_is_no_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(RiebenchError, match=r"model.safetensors is a Git-LFS pointer"):
        parse_regions(f"clipseg:model={folder}").folders()


def test_cells_must_divide_the_picture() -> None:
    GroundedSamOptions().check_side(1024)
    GroundedSamOptions(cell=0).check_side(72)
    RegionOptions().check_side(72)
    with pytest.raises(RiebenchError, match=r"cells of 32 pixels do not divide a picture side of 72"):
        GroundedSamOptions().check_side(72)
