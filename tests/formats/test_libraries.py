"""SAEs that other libraries save by their own code: codes and reconstructions are those of the library.

They need the libraries: `pip install -e '.[formats-test]'` in an environment of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from format_table import LARGEST, Row, installed, relative, tensors
from library_layouts import ALL_LAYOUTS, ALL_WRITERS
from library_saes import Layout, Values
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.saes.formats import load_sae
from riebench.saes.sae import SparseAutoencoder


def need(layout: Layout) -> None:
    if not installed(layout.distribution):
        pytest.skip(f"{layout.distribution} is not installed: pip install -e '.[formats-test]' in an environment")


def difference(sae: SparseAutoencoder, x: Tensor, values: Values) -> float:
    codes = sae.encode(x)
    return max(relative(codes, values.codes), relative(sae.decode(codes, x), values.reconstruction))


@pytest.mark.parametrize("name", ALL_LAYOUTS)
def test_what_a_library_saves_computes_what_the_library_computes(
    tmp_path: Path, name: str, measured: dict[str, Row], computed: dict[str, Tensor]
) -> None:
    layout = ALL_LAYOUTS[name]
    need(layout)
    p, x = tensors()
    values = layout.write(tmp_path / "sae", p, x)
    if layout.how == "refused":
        with pytest.raises(RiebenchError):
            load_sae(tmp_path / "sae", layout.options)
        measured[name] = Row(library=layout.library, version=layout.version, architecture=layout.architecture,
                             signal="", how="refused", difference=None)  # fmt: skip
        return
    sae = load_sae(tmp_path / "sae", layout.options)
    assert (sae.n, sae.d) == (p.n, p.d) and (sae.format == "mapping") == (layout.how == "mapping")
    found = difference(sae, x, values)
    # A silent SAE would agree with everything.
    assert 1 <= float((values.codes != 0).float().sum(1).mean()) < p.n
    assert found <= LARGEST
    measured[name] = Row(library=layout.library, version=layout.version, architecture=layout.architecture,
                         signal=sae.signal or "not stated", how=layout.shown, difference=found)  # fmt: skip
    if layout.own is not None:
        ALL_WRITERS[layout.own][1](tmp_path / "own", p)
        assert difference(load_sae(tmp_path / "own", layout.options), x, values) <= LARGEST
        computed[f"{name}/codes"] = values.codes.contiguous()
        computed[f"{name}/reconstruction"] = values.reconstruction.contiguous()


def test_a_training_of_dictionary_learning_leaves_a_folder_that_is_found(tmp_path: Path) -> None:
    need(ALL_LAYOUTS["dl topk"])
    from library_saes import train_dictionary

    from riebench.saes.formats import choose_checkpoints

    model = train_dictionary(tmp_path / "mid.0", steps=4, save=(1, 2))
    folder = tmp_path / "mid.0" / "trainer_0"
    assert choose_checkpoints(tmp_path, ["mid.0"]) == {"mid.0": folder}
    x = tensors()[1]
    with torch.no_grad():
        torch.testing.assert_close(load_sae(folder).decode(load_sae(folder).encode(x)), model(x), atol=1e-5, rtol=0)
    # Stopped before its end, it leaves the steps alone.
    (folder / "ae.pt").unlink()
    with pytest.raises(RiebenchError, match=r"several SAEs for mid.0: .*ae_1.pt, .*ae_2.pt; say which, such as mid.0="):
        choose_checkpoints(tmp_path, ["mid.0"])
    assert load_sae(folder / "checkpoints" / "ae_2.pt").k == 2


def test_a_training_of_saelens_leaves_checkpoints_that_are_found(tmp_path: Path) -> None:
    need(ALL_LAYOUTS["lens topk"])
    from library_saes import train_lens

    from riebench.saes.formats import choose_checkpoints

    train_lens(tmp_path / "mid.0" / "checkpoints" / "x1y2")
    chosen = choose_checkpoints(tmp_path, ["mid.0"])["mid.0"]
    assert chosen.parent.name == "x1y2" and chosen.name.startswith("final_")
    assert len(list(chosen.parent.iterdir())) > 1 and load_sae(chosen).format == "SAELens"
