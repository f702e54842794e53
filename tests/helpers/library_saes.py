"""SAEs of other people's libraries, written by the libraries' own code, each with what the library computes.

`LAYOUTS` names them; `Layout.write` makes the library's class from given tensors, has it save itself, and returns the
codes and reconstructions that it computes. The libraries are not needed to run riebench; where one is not installed,
its tests are skipped.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from sae_files import OVERCOMPLETE, K, Parts
from torch import Tensor

from riebench.saes.files import SaeOptions

THRESHOLD = 0.4
SCALE = 0.5
HOOK = "unet.mid_block.attentions.0.proj_out"


@dataclass(frozen=True)
class Values:
    """What a library computes: codes [P, n] for decoder rows of length one, and reconstructions [P, d]."""

    codes: Tensor
    reconstruction: Tensor


Write = Callable[[Path, Parts, Tensor], Values]


@dataclass(frozen=True)
class Layout:
    """One layout of a library.

    Attributes:
        library: its name in tables.
        module: what is imported.
        distribution: its name in the package registry.
        architecture: the kind of SAE, as the library calls it.
        write: saves it in a folder and returns what it computes on some inputs.
        own: the writer of the same layout that needs no library (`library_layouts.ALL_WRITERS`); None if there is none.
        how: "read", "mapping", or "refused".
        options: what the user has to say.
    """

    library: str
    module: str
    distribution: str
    architecture: str
    write: Write
    own: str | None = None
    how: str = "read"
    options: SaeOptions = field(default_factory=SaeOptions)

    @property
    def shown(self) -> str:
        """How it is read, with what the user has to say."""
        stated = {"input_scale": self.options.input_scale, "signed": "yes" if self.options.signed else None,
                  "k": self.options.k}  # fmt: skip
        words = ",".join(f"{key}={value}" for key, value in stated.items() if value is not None)
        return f"{self.how}, with `#{words}`" if words else self.how

    @property
    def version(self) -> str:
        """The version that is installed."""
        return version(self.distribution)


@torch.no_grad()
def fill(module: Any, **tensors: Tensor) -> None:
    """Give a module's parameters and buffers other values."""
    state = module.state_dict()
    unknown = set(tensors) - set(state)
    assert not unknown, f"the library has no {unknown}, but {sorted(state)}"
    for name, value in tensors.items():
        state[name].copy_(value)


def lengths(p: Parts) -> Tensor:
    return p.decoder.norm(dim=1)


# dictionary_learning


def dl_trainer(name: str, p: Parts, **more: Any) -> Any:
    """One of the library's trainers, with the model it would train."""
    trainers = importlib.import_module(f"dictionary_learning.trainers.{_DL_MODULES.get(name, 'standard')}")
    return getattr(trainers, name)(
        steps=9000, activation_dim=p.d, dict_size=p.n, layer=0, lm_name="", device="cpu", **more
    )  # fmt: skip


_DL_MODULES = {
    "TopKTrainer": "top_k", "BatchTopKTrainer": "batch_top_k", "MatryoshkaBatchTopKTrainer": "matryoshka_batch_top_k",
    "JumpReluTrainer": "jumprelu", "GatedSAETrainer": "gdm",
}  # fmt: skip


def dl_write(folder: Path, model: Any, config: dict[str, Any], p: Parts, x: Tensor) -> Values:
    """Save as the library's `trainSAE` does, and compute."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"trainer": config}))
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, folder / "ae.pt")
    with torch.no_grad():
        codes = model.encode(x)
        return Values(codes * lengths(p), model.decode(codes))


def train_dictionary(folder: Path, steps: int, save: tuple[int, ...]) -> Any:
    """A short training by the library, which writes its own folder; returns the model."""
    training = importlib.import_module("dictionary_learning.training")
    trainers = importlib.import_module("dictionary_learning.trainers.top_k")
    made = []

    def trainer(**options: Any) -> Any:
        made.append(trainers.TopKTrainer(**options))
        return made[-1]

    config = {
        "trainer": trainer, "steps": steps, "activation_dim": 8, "dict_size": 24, "k": K, "layer": 0, "lm_name": "",
        "device": "cpu", "warmup_steps": 0, "submodule_name": HOOK, "threshold_start_step": 1,
    }  # fmt: skip
    data = [torch.randn(16, 8, generator=torch.Generator().manual_seed(step)) for step in range(steps + 1)]
    training.trainSAE(data, [config], steps=steps, save_steps=list(save), save_dir=str(folder), device="cpu")
    return made[0].ae


def _linear(p: Parts) -> dict[str, Tensor]:
    return {"encoder.weight": p.encoder, "encoder.bias": p.b_enc, "decoder.weight": p.decoder.T}


def _matrices(p: Parts) -> dict[str, Tensor]:
    return {"W_enc": p.encoder.T, "b_enc": p.b_enc, "W_dec": p.decoder, "b_dec": p.b_dec}


def dl_standard(folder: Path, p: Parts, x: Tensor) -> Values:
    trainer = dl_trainer("StandardTrainer", p)
    fill(trainer.ae, **_linear(p), bias=p.b_dec)
    return dl_write(folder, trainer.ae, trainer.config, p, x)


def dl_new(folder: Path, p: Parts, x: Tensor) -> Values:
    model = importlib.import_module("dictionary_learning.dictionary").AutoEncoderNew(p.d, p.n)
    fill(model, **_linear(p), **{"decoder.bias": p.b_dec})
    return dl_write(folder, model, {**dl_trainer("StandardTrainer", p).config, "dict_class": "AutoEncoderNew"}, p, x)


def dl_top_k(folder: Path, p: Parts, x: Tensor) -> Values:
    trainer = dl_trainer("TopKTrainer", p, k=K, submodule_name=HOOK)
    fill(trainer.ae, **_linear(p), b_dec=p.b_dec)
    return dl_write(folder, trainer.ae, trainer.config, p, x)


def dl_batch_top_k(folder: Path, p: Parts, x: Tensor) -> Values:
    trainer = dl_trainer("BatchTopKTrainer", p, k=K)
    fill(trainer.ae, **_linear(p), b_dec=p.b_dec, threshold=torch.tensor(THRESHOLD))
    return dl_write(folder, trainer.ae, trainer.config, p, x)


def dl_matryoshka(folder: Path, p: Parts, x: Tensor) -> Values:
    trainer = dl_trainer("MatryoshkaBatchTopKTrainer", p, k=K, group_fractions=[0.5, 0.5])
    fill(trainer.ae, **_matrices(p), threshold=torch.tensor(0.25))
    return dl_write(folder, trainer.ae, trainer.config, p, x)


def dl_jump(folder: Path, p: Parts, x: Tensor) -> Values:
    trainer = dl_trainer("JumpReluTrainer", p)
    fill(trainer.ae, **_matrices(p), threshold=p.threshold)
    return dl_write(folder, trainer.ae, trainer.config, p, x)


def dl_gated(folder: Path, p: Parts, x: Tensor) -> Values:
    trainer = dl_trainer("GatedSAETrainer", p)
    fill(trainer.ae, **{
        "encoder.weight": p.encoder, "decoder.weight": p.decoder.T, "decoder_bias": p.b_dec, "r_mag": p.r_mag,
        "gate_bias": p.gate, "mag_bias": p.b_enc,
    })  # fmt: skip
    return dl_write(folder, trainer.ae, trainer.config, p, x)


# SAELens


def lens_write(folder: Path, name: str, p: Parts, x: Tensor, extra: dict[str, Tensor] | None = None, **config: Any
               ) -> Values:  # fmt: skip
    """An SAE of the library for inference, saved by itself; `name` without "SAE"."""
    library = importlib.import_module("sae_lens")
    model = getattr(library, f"{name}SAE")(getattr(library, f"{name}SAEConfig")(d_in=p.d, d_sae=p.n, **config))
    tensors = {**_matrices(p), **(extra or {})}
    fill(model, **{key: tensor for key, tensor in tensors.items() if key in model.state_dict()})
    model.save_model(folder)
    return lens_values(model, p, x)


@torch.no_grad()
def lens_values(model: Any, p: Parts, x: Tensor) -> Values:
    codes = model.encode(x)
    # Where the library multiplies by the row lengths itself, its codes are those for rows of length one.
    scaled = getattr(model.cfg, "rescale_acts_by_decoder_norm", False)
    return Values(codes if scaled else codes * lengths(p), model.decode(codes))


def lens(name: str, extra: Callable[[Parts], dict[str, Tensor]] | None = None, **config: Any) -> Write:
    def write(folder: Path, p: Parts, x: Tensor) -> Values:
        return lens_write(folder, name, p, x, extra(p) if extra else None, **config)

    return write


def lens_scaled(folder: Path, p: Parts, x: Tensor) -> Values:
    """An SAE of inputs that a training multiplied by a constant, which the library does not save."""
    values = lens_write(folder, "Standard", p, x * SCALE, normalize_activations="expected_average_only_in")
    return Values(values.codes / SCALE, values.reconstruction / SCALE)


def lens_whitened(folder: Path, p: Parts, x: Tensor) -> Values:
    return lens_write(folder, "Standard", p, x, normalize_activations="covariance_whitening")


def lens_temporal(folder: Path, p: Parts, x: Tensor) -> Values:
    library = importlib.import_module("sae_lens")
    library.TemporalSAE(library.TemporalSAEConfig(d_in=p.d, d_sae=p.n, kval_topk=K, n_heads=1, bottleneck_factor=1)
                        ).save_model(folder)  # fmt: skip
    return Values(torch.zeros(len(x), p.n), torch.zeros_like(x))


def lens_hooked(folder: Path, p: Parts, x: Tensor) -> Values:
    metadata = importlib.import_module("sae_lens.saes.sae").SAEMetadata(hook_name=HOOK)
    return lens_write(folder, "Standard", p, x, apply_b_dec_to_input=False, metadata=metadata)


def lens_batch(name: str, threshold: float, *, export: bool, **config: Any) -> Write:
    """A batch top-k SAE in training: its checkpoint, or its export, which is a jumprelu one."""

    def write(folder: Path, p: Parts, x: Tensor) -> Values:
        library = importlib.import_module("sae_lens")
        made = getattr(library, f"{name}TrainingSAEConfig")(d_in=p.d, d_sae=p.n, k=float(K), **config)
        model = getattr(library, f"{name}TrainingSAE")(made)
        fill(model, **_matrices(p), topk_threshold=torch.tensor(threshold, dtype=torch.float64))
        if not export:
            model.save_model(folder)
        else:
            # As the library's trainer does: rows of length one, for which the threshold holds.
            model.fold_W_dec_norm()
            model.save_inference_model(folder)
        # What is used on new positions is the export; a top-k over a batch depends on who else is in it.
        exported = folder / "again" if not export else folder
        if not export:
            model.fold_W_dec_norm()
            model.save_inference_model(exported)
        loaded = library.SAE.load_from_disk(exported)
        with torch.no_grad():
            codes = loaded.encode(x)
            return Values(codes, loaded.decode(codes))

    return write


def lens_transcoder(name: str, extra: Callable[[Parts], dict[str, Tensor]] | None = None) -> Write:
    """A transcoder, which reads the block's input and predicts its update."""

    def write(folder: Path, p: Parts, x: Tensor) -> Values:
        library = importlib.import_module("sae_lens")
        config = getattr(library, f"{name}Config")(d_in=p.d, d_out=p.d, d_sae=p.n, apply_b_dec_to_input=False)
        model = getattr(library, name)(config)
        fill(model, **_matrices(p), **(extra(p) if extra else {}))
        model.save_model(folder)
        with torch.no_grad():
            return Values(model.encode(x) * lengths(p), model(x))

    return write


def train_lens(folder: Path) -> None:
    """A short training by the library, which writes its own checkpoints."""
    library = importlib.import_module("sae_lens")
    sae = library.TopKTrainingSAE(library.TopKTrainingSAEConfig(d_in=8, d_sae=24, k=K))
    config = importlib.import_module("sae_lens.config").SAETrainerConfig(
        total_training_samples=64, train_batch_size_samples=16, lr_end=1e-4, n_checkpoints=1,
        checkpoint_path=str(folder), save_final_checkpoint=True,
    )  # fmt: skip
    data = (torch.randn(16, 8, generator=torch.Generator().manual_seed(step)) for step in range(100))
    library.SAETrainer(config, sae, data).fit()


# sparsify


def sparsify_write(activation: str, k: int, *, transcode: bool = False, skip: bool = False) -> Write:
    def write(folder: Path, p: Parts, x: Tensor) -> Values:
        # Its fast kernels need a GPU.
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
        library = importlib.import_module("sparsify")
        model = library.SparseCoder(
            p.d,
            library.SparseCoderConfig(
                num_latents=p.n, k=k, activation=activation, transcode=transcode, skip_connection=skip
            ),
        )
        fill(model, **{"encoder.weight": p.encoder, "encoder.bias": p.b_enc, "W_dec": p.decoder, "b_dec": p.b_dec})
        if skip:
            fill(model, W_skip=_skip(p)["W_skip"])
        model.save_to_disk(folder)
        with torch.no_grad():
            values, indices, _ = model.encode(x)
            codes = torch.zeros(len(x), p.n).scatter_(1, indices.long(), values)
            return Values(codes * lengths(p), model(x).sae_out)

    return write


# saev


def saev_write(folder: Path, p: Parts, x: Tensor) -> Values:
    config = importlib.import_module("saev.config").SparseAutoencoder(d_vit=p.d, exp_factor=p.n // p.d)
    library = importlib.import_module("saev.nn")
    model = library.SparseAutoencoder(config)
    fill(model, **_matrices(p))
    library.dump(str(folder / "sae.pt"), model)
    with torch.no_grad():
        reconstruction, codes, _ = model(x)
    return Values(codes * lengths(p), reconstruction)


# overcomplete


def overcomplete_write(name: str, change: dict[str, Any], **options: Any) -> Write:
    """A model of the library, whose state dict is explained by a mapping."""

    def write(folder: Path, p: Parts, x: Tensor) -> Values:
        # Its pictures ask for a function that matplotlib dropped in 3.9; without it not even its SAEs can be imported.
        colors = importlib.import_module("matplotlib.cm")
        vars(colors).setdefault("get_cmap", importlib.import_module("matplotlib").colormaps.get_cmap)
        library = importlib.import_module("overcomplete.sae")
        model = getattr(library, name)(
            p.d, p.n, encoder_module="linear", dictionary_params={"use_multiplier": True, "normalization": "identity"},
            **options,
        )  # fmt: skip
        fill(model, **{
            "encoder.final_block.0.weight": p.encoder, "encoder.final_block.0.bias": p.b_enc,
            "dictionary._weights": p.decoder, "dictionary.multiplier": torch.tensor(0.3),
        })  # fmt: skip
        if "thresholds" in model.state_dict():
            fill(model, thresholds=p.threshold.log())
        # The dictionary that is used is made when training ends.
        model.eval()
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "weights.pt")
        (folder / "mapping.yaml").write_text(yaml.safe_dump({**OVERCOMPLETE, **change}))
        with torch.no_grad():
            codes = model.encode(x)[1]
            return Values(codes * model.get_dictionary().norm(dim=1), model.decode(codes))

    return write


_JUMP = {
    "activation": "jump", "k": None, "threshold_included": True, "logarithms": ["multiplier", "threshold"],
    "tensors": {**OVERCOMPLETE["tensors"], "threshold": "thresholds"},
}  # fmt: skip

_DL = ("dictionary_learning", "dictionary_learning", "dictionary-learning")
_LENS = ("SAELens", "sae_lens", "sae-lens")
_SPARSIFY = ("sparsify", "sparsify", "eai-sparsify")
_OVERCOMPLETE = ("overcomplete", "overcomplete", "overcomplete")


def _threshold(p: Parts) -> dict[str, Tensor]:
    return {"threshold": p.threshold}


def _skip(p: Parts) -> dict[str, Tensor]:
    return {"W_skip": p.encoder[: p.d] / 4}


def _gates(p: Parts) -> dict[str, Tensor]:
    return {"b_gate": p.gate, "b_mag": p.b_enc, "r_mag": p.r_mag}


LAYOUTS: dict[str, Layout] = {
    "dl plain": Layout(*_DL, "AutoEncoder", dl_standard, "dl plain"),
    "dl new": Layout(*_DL, "AutoEncoderNew", dl_new, "dl new"),
    "dl topk": Layout(*_DL, "AutoEncoderTopK", dl_top_k, "dl topk"),
    "dl batch topk": Layout(*_DL, "BatchTopKSAE", dl_batch_top_k, "dl batch topk"),
    "dl matryoshka": Layout(*_DL, "MatryoshkaBatchTopKSAE", dl_matryoshka, "dl matryoshka"),
    "dl jump": Layout(*_DL, "JumpReluAutoEncoder", dl_jump, "dl jump"),
    "dl gated": Layout(*_DL, "GatedAutoEncoder", dl_gated, "dl gated"),
    "lens standard": Layout(*_LENS, "standard", lens("Standard"), "saelens standard"),
    "lens hooked": Layout(
        *_LENS, "standard, b_dec not subtracted, hook stated", lens_hooked, "saelens without subtraction"
    ),
    "lens topk": Layout(
        *_LENS, "topk", lens("TopK", k=K, rescale_acts_by_decoder_norm=False), "saelens topk"
    ),
    "lens topk rescaled": Layout(
        *_LENS, "topk, rescaled", lens("TopK", k=K, rescale_acts_by_decoder_norm=True), "saelens topk rescaled"
    ),
    "lens jumprelu": Layout(*_LENS, "jumprelu", lens("JumpReLU", _threshold), "saelens jumprelu"),
    "lens gated": Layout(*_LENS, "gated", lens("Gated", _gates), "saelens gated"),
    "lens layer norm": Layout(
        *_LENS, "standard, layer_norm", lens("Standard", normalize_activations="layer_norm"), "saelens layer norm"
    ),
    "lens norm rescale": Layout(
        *_LENS, "standard, constant_norm_rescale", lens("Standard", normalize_activations="constant_norm_rescale"),
        "saelens norm rescale",
    ),
    "lens scaled": Layout(
        *_LENS, "standard, expected_average_only_in", lens_scaled, options=SaeOptions(input_scale=SCALE)
    ),
    "lens whitened": Layout(*_LENS, "standard, covariance_whitening, not folded in", lens_whitened, how="refused"),
    "lens temporal": Layout(*_LENS, "temporal", lens_temporal, how="refused"),
    "lens batchtopk": Layout(*_LENS, "batchtopk, exported", lens_batch("BatchTopK", 0.7, export=True)),
    "lens batchtopk checkpoint": Layout(
        *_LENS, "batchtopk, checkpoint", lens_batch("BatchTopK", 0.7, export=False)
    ),
    "lens matryoshka": Layout(
        *_LENS, "matryoshka_batchtopk, exported",
        lens_batch("MatryoshkaBatchTopK", 0.7, export=True, matryoshka_widths=[4, 24]),
    ),
    "lens matryoshka checkpoint": Layout(
        *_LENS, "matryoshka_batchtopk, checkpoint",
        lens_batch("MatryoshkaBatchTopK", 0.7, export=False, matryoshka_widths=[4, 24]), "saelens in training",
    ),
    "lens abstopk": Layout(
        *_LENS, "abstopk", lens("AbsTopK", k=K, rescale_acts_by_decoder_norm=False), options=SaeOptions(signed=True)
    ),
    "lens transcoder": Layout(*_LENS, "transcoder", lens_transcoder("Transcoder")),
    "lens skip transcoder": Layout(*_LENS, "skip_transcoder", lens_transcoder("SkipTranscoder", _skip)),
    "lens jumprelu transcoder": Layout(
        *_LENS, "jumprelu_transcoder", lens_transcoder("JumpReLUTranscoder", _threshold)
    ),
    "lens jumprelu skip transcoder": Layout(
        *_LENS, "jumprelu_skip_transcoder",
        lens_transcoder("JumpReLUSkipTranscoder", lambda p: {**_skip(p), **_threshold(p)}),
    ),
    "sparsify transcoder": Layout(*_SPARSIFY, "topk, transcoder", sparsify_write("topk", K, transcode=True)),
    "sparsify skip transcoder": Layout(
        *_SPARSIFY, "topk, transcoder with skip", sparsify_write("topk", K, transcode=True, skip=True)
    ),
    "sparsify topk": Layout(*_SPARSIFY, "topk", sparsify_write("topk", K), "sparsify"),
    "sparsify groupmax": Layout(*_SPARSIFY, "groupmax", sparsify_write("groupmax", 3), "sparsify groupmax"),
    "saev relu": Layout("saev", "saev", "saev", "relu, no schema", saev_write),
    "overcomplete topk": Layout(
        *_OVERCOMPLETE, "TopKSAE", overcomplete_write("TopKSAE", {}, top_k=K), "overcomplete", "mapping"
    ),
    "overcomplete jump": Layout(
        *_OVERCOMPLETE, "JumpSAE", overcomplete_write("JumpSAE", _JUMP), "overcomplete jump", "mapping"
    ),
}  # fmt: skip
"""Name -> layout."""
