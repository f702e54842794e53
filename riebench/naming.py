"""How a generating model is called in results, and what its name means, known without loading it."""

from __future__ import annotations

from pathlib import Path


def model_label(
    name: str, *, steps: int | None = None, guidance: float | None = None, size: int | None = None,
    dtype: str | None = None, vae: str | None = None, vae_tiling: bool = False,
) -> str:  # fmt: skip
    """Name of a model's results folder: other settings give other pictures and get a folder of their own.

    Args:
        name: the preset's name or `short_name`.
        steps: if not the model's own.
        guidance: likewise.
        size: likewise, in pixels.
        dtype: likewise.
        vae: the autoencoder put in the place of the model's own, as the user named it.
        vae_tiling: whether pictures are decoded in tiles.
    """
    changes = {"steps": steps, "guidance": guidance, "px": size}
    parts = [f"{word}{value:g}" for word, value in changes.items() if value is not None]
    exchanged = [f"vae-{short_name(vae)}"] if vae else []
    return "-".join([name, *parts, *([dtype] if dtype else []), *exchanged, *(["tiled"] if vae_tiling else [])])


def short_name(name_or_path: str) -> str:
    """What a folder, file or hub id is called: its last part, without ending and revision."""
    path = Path(name_or_path).expanduser()
    # "." and ".." have a name only once resolved; dots inside a folder's name do not begin an ending.
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.is_file() else Path(name_or_path.split("@")[0]).name
