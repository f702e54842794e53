"""Shipped files: intact as committed, and any damage is named with what to do about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from riebench.models import assets
from riebench.models.assets import AssetError, asset_folder, check_folder, compute_manifest, write_manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("one/a.bin", "one/deep/b.bin", "two/c.bin", "two/.hidden", "two/__pycache__/x.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path)
    return tmp_path


def test_manifest_lists_what_ships(root: Path) -> None:
    assert list(compute_manifest(root)) == ["one/a.bin", "one/deep/b.bin", "two/c.bin"]
    # sha256 of the nine bytes "one/a.bin"
    digest = "338d8dcfcb27ace07830dd706554d867ee63b8123972bf44cea0c9cc845880d8"
    assert compute_manifest(root)["one/a.bin"] == {"sha256": digest, "size": 9}
    assert check_folder("one", root) == root / "one"


def test_committed_manifest_is_current() -> None:
    assert assets.read_manifest() == compute_manifest()
    assert (asset_folder("lpips") / "alexnet_features.safetensors").is_file()


def test_damage_is_named(root: Path) -> None:
    good = compute_manifest(root)["one/deep/b.bin"]["sha256"]
    (root / "one/deep/b.bin").write_bytes(b"one/deep/B.bin")
    found = compute_manifest(root)["one/deep/b.bin"]["sha256"]
    with pytest.raises(AssetError) as caught:
        check_folder("one", root)
    message = str(caught.value)
    assert all(part in message for part in ("b.bin", good, found, "git checkout -- riebench/toyworld/assets"))
    assert "\n" not in message
    assert check_folder("two", root) == root / "two", "another folder's damage is not this folder's"


def test_a_missing_file_is_named(root: Path) -> None:
    (root / "one/a.bin").unlink()
    with pytest.raises(AssetError, match=r"a\.bin is damaged: expected sha256 [0-9a-f]{64}, found no file"):
        check_folder("one", root)


def test_unknown_folder_and_broken_manifest(root: Path) -> None:
    with pytest.raises(AssetError, match="ships no 'three'; shipped: one, two"):
        check_folder("three", root)
    (root / assets.MANIFEST).write_text("{")
    with pytest.raises(AssetError, match="cannot be read"):
        check_folder("one", root)


def test_checked_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asset_folder("lpips")

    def refuse(path: Path) -> str:
        raise AssertionError(f"hashed {path} again")

    monkeypatch.setattr(assets, "file_sha256", refuse)
    asset_folder("lpips")


def test_the_module_wins_over_the_folder_of_the_same_name_and_is_light() -> None:
    code = "import sys, riebench.models.assets as a; print(a.__file__.endswith('assets.py'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
    assert not (assets.ASSETS / "__init__.py").exists()
