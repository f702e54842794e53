"""Masks read from pictures of every mode: the region that is meant, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from riebench.errors import RiebenchError, TaskFileError
from riebench.features.painter import as_mask
from riebench.generation.regions.masks import View, find_region
from riebench.jobs.request import RunRequest
from riebench.methods.check import check_suite
from riebench.tasks.importers.datasets import import_dataset
from riebench.tasks.importers.examples import ImportCollector
from riebench.tasks.importers.rows import DatasetSource
from riebench.tasks.mask_files import mask_reading, read_mask
from riebench.tasks.suites import load_task
from riebench.utils.files import content_digest, file_sha256

SIDE = 8
DRAWN = np.zeros((SIDE, SIDE), bool)
DRAWN[1:, :3] = True
GREY = np.where(DRAWN, 255, 0).astype(np.uint8)
FULL = np.full((SIDE, SIDE), 255, np.uint8)
PHOTO = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)


def merged(mode: str, *channels: Any) -> Image.Image:
    """Return a picture of 8 bits a channel."""
    return Image.merge(mode, [Image.fromarray(channel) for channel in channels])


def indexed(*palette: int) -> Image.Image:
    """Return the drawn region as index 1 of a palette."""
    picture = Image.fromarray(DRAWN.astype(np.uint8))
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(palette)
    return picture


def turned() -> tuple[Image.Image, dict[str, Any]]:
    """Return the region upside down, and EXIF data that say so."""
    exif = Image.Exif()
    exif[0x112] = 3
    return Image.fromarray(GREY).rotate(180), {"exif": exif}


READ: dict[str, tuple[str, Callable[[], Image.Image], dict[str, Any]]] = {
    "1": ("png", lambda: Image.fromarray(DRAWN), {}),
    "L": ("png", lambda: Image.fromarray(GREY), {}),
    "L, JPEG": ("jpg", lambda: Image.fromarray(GREY), {"quality": 95}),
    "RGB": ("png", lambda: merged("RGB", GREY, GREY, GREY), {}),
    "RGB, yellow": ("png", lambda: merged("RGB", GREY, GREY, 0 * GREY), {}),
    "RGB, a transparent colour": ("png", lambda: merged("RGB", FULL, FULL, GREY), {"transparency": (255, 255, 0)}),
    "RGBA, opaque": ("png", lambda: merged("RGBA", GREY, GREY, GREY, FULL), {}),
    "RGBA, white paint": ("png", lambda: merged("RGBA", FULL, FULL, FULL, GREY), {}),
    "RGBA, WebP": ("webp", lambda: merged("RGBA", FULL, FULL, FULL, GREY), {"lossless": True, "exact": True}),
    "LA, white paint": ("png", lambda: merged("LA", FULL, GREY), {}),
    "L, black is transparent": ("png", lambda: Image.fromarray(GREY), {"transparency": 0}),
    "P": ("gif", lambda: indexed(0, 0, 0, 255, 255, 255), {}),
    "P, transparent": ("png", lambda: indexed(255, 255, 255, 255, 255, 255), {"transparency": 0}),
    "CMYK": ("tif", lambda: merged("RGB", GREY, GREY, GREY).convert("CMYK"), {}),
    "I;16": ("png", lambda: Image.fromarray(np.where(DRAWN, 40000, 25000).astype(np.uint16)), {}),
    "I": ("tif", lambda: Image.fromarray(DRAWN.astype(np.int32)), {}),
    "F": ("tif", lambda: Image.fromarray(np.where(DRAWN, 0.9, 0.4).astype(np.float32)), {}),
    "F, 0 and 255": ("tif", lambda: Image.fromarray(GREY.astype(np.float32)), {}),
}
"""What it is -> ending, picture, options of its file."""

REFUSED: dict[str, tuple[str, Callable[[], Image.Image], dict[str, Any], str]] = {
    "labels": ("png", lambda: Image.fromarray(DRAWN.astype(np.uint8)), {}, "brightest pixel is 1 of 255"),
    "8 of 16 bits": ("png", lambda: Image.fromarray(GREY.astype(np.uint16)), {}, "brightest pixel is 255 of 65535"),
    "dark red": ("png", lambda: merged("RGB", GREY // 2, 0 * GREY, 0 * GREY), {}, "brightest pixel is"),
    "palette of labels": ("png", lambda: indexed(0, 0, 0, 128, 0, 0), {}, "brightest pixel is"),
    "photograph": ("png", lambda: Image.fromarray(PHOTO), {}, "a picture in colours"),
    "hole": ("png", lambda: merged("RGBA", *(PHOTO[..., i] for i in range(3)), 255 - GREY), {}, "in colours"),
    "black paint": ("png", lambda: merged("LA", 0 * GREY, GREY), {}, "only its transparency varies"),
    "nothing visible": ("png", lambda: merged("RGBA", GREY, GREY, GREY, 0 * GREY), {}, "only its transparency varies"),
    "32 bits": ("tif", lambda: Image.fromarray(GREY.astype(np.int32) + 1), {}, "no known largest one"),
    "floats": ("tif", lambda: Image.fromarray(GREY.astype(np.float32) - 1), {}, "no known largest one"),
    "nan": ("tif", lambda: Image.fromarray(np.where(DRAWN, np.nan, 0).astype(np.float32)), {}, "no numbers"),
    "frames": (
        "tif",
        lambda: Image.fromarray(GREY),
        {"save_all": True, "append_images": [Image.fromarray(255 - GREY)]},
        "holds 2 pictures",
    ),
}
"""What it is -> ending, picture, options of its file, and a part of the message."""


def saved(folder: Path, ending: str, make: Callable[[], Image.Image], options: dict[str, Any]) -> Path:
    """Write a picture as a mask file of its suite, and a task that names it."""
    path = folder / f"mask.{ending}"
    make().save(path, **options)
    (folder / "change_object.yaml").write_text(
        "category: change_object\nversion: 1\nexamples:\n  - id: one\n    source: a red cat\n    target: a red dog\n"
        f'    source_region: "file:{path.name}"\n    target_region: "not: file:{path.name}"\n'
    )
    return path


def as_row(path: Path) -> ImportCollector:
    """Import a mask as the picture of a data set's row."""
    import datasets

    row = {"source": "a cat", "target": "a dog", "category": "1", "id": "a"}
    row["mask"] = {"bytes": path.read_bytes(), "path": None}  # type: ignore[assignment]
    features = datasets.Features({**{name: datasets.Value("string") for name in row}, "mask": datasets.Image()})
    datasets.Dataset.from_list([row], features=features).to_parquet(path.parent / "rows.parquet")
    collector = ImportCollector(lambda prompt: len(prompt.split()) + 2, 77)
    import_dataset(DatasetSource(str(path.parent / "rows.parquet")), collector)
    return collector


@pytest.mark.parametrize("name", READ)
def test_every_reader_finds_the_region_that_is_meant(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, *READ[name])
    view = View("a cat", np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8), None, (1, 1), lambda words: ())
    region = find_region(f"file:{path.name}", view, lambda words, view: DRAWN, tmp_path)
    assert np.array_equal(region, DRAWN.repeat(2, axis=0).repeat(2, axis=1))
    by_path = as_mask(path, SIDE, lambda words: pytest.fail(words))
    with Image.open(path) as picture:
        by_picture = as_mask(picture, SIDE, lambda words: pytest.fail(words))
    assert by_path is not None and np.array_equal(by_path, DRAWN)
    assert by_picture is not None and np.array_equal(by_picture, DRAWN)
    collector = as_row(path)
    (tmp_path / "imported.png").write_bytes(collector.masks["masks/a.png"])
    assert np.array_equal(read_mask(tmp_path / "imported.png"), DRAWN)
    assert check_suite(str(tmp_path)).endswith("all good")


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_that_may_mean_anything_is_refused_by_all(name: str, tmp_path: Path) -> None:
    *file, message = REFUSED[name]
    path = saved(tmp_path, *file)  # type: ignore[arg-type]
    with pytest.raises(TaskFileError, match=rf"change_object\.yaml: one: source_region: .*{message}.*save it white"):
        check_suite(str(tmp_path))
    with pytest.raises(RiebenchError, match=message):
        as_mask(path, SIDE, lambda words: pytest.fail(words))
    ((row, reason),) = as_row(path).skipped
    assert row == "a" and message in reason


def test_a_mask_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    picture, options = turned()
    assert np.array_equal(read_mask(saved(tmp_path, "png", lambda: picture, options)), DRAWN)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (FULL, "source_region) covers the whole picture; the mask of one (target_region) covers nothing, so its exam"),
        (0 * FULL, "target_region) covers the whole picture; the mask of one (source_region) covers nothing, so its "),
        (GREY[:, :6], "2 masks are not square and are stretched, first one (source_region)"),
    ],
)
def test_masks_of_all_or_nothing_are_told(values: Any, told: str, tmp_path: Path) -> None:
    saved(tmp_path, "png", lambda: Image.fromarray(values), {})
    assert told in check_suite(str(tmp_path))


def test_a_mask_that_is_read_otherwise_than_before_is_another_example(tmp_path: Path) -> None:
    plain = saved(tmp_path, "png", lambda: merged("RGBA", GREY, GREY, GREY, FULL), {})
    assert mask_reading(plain) == ""
    # Examples whose masks were always read so keep their hashes.
    assert load_task(tmp_path / "change_object.yaml").examples[0].mask_sha256 == content_digest(
        [file_sha256(plain)] * 2
    )
    layer = saved(tmp_path, "png", lambda: merged("RGBA", FULL, FULL, FULL, GREY), {})
    assert mask_reading(layer) != ""
    assert load_task(tmp_path / "change_object.yaml").examples[0].mask_sha256 != content_digest(
        [file_sha256(layer)] * 2
    )


def test_a_run_is_refused_before_anything_is_generated(tmp_path: Path) -> None:
    *file, message = REFUSED["labels"]
    saved(tmp_path, *file)  # type: ignore[arg-type]
    with pytest.raises(TaskFileError, match=message):
        RunRequest(suite=str(tmp_path), settings=("no_edit",)).plan()
