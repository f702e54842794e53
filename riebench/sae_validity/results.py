"""Stored results of the ladder: a table of values and a note of their origin.

Everything that the document says is computed from these two files, so that it can be checked without a picture.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, ValidationError

from riebench.errors import RiebenchError
from riebench.tasks.schema import Count, StoredModel
from riebench.utils.files import parse_json, read_regular, write_atomic

if TYPE_CHECKING:
    import pandas as pd

VALUES_FILE, ABOUT_FILE = "saes.parquet", "saes.json"
"""Names of the table of values, and of the note beside it."""
COLUMNS = {
    "rung": "string", "training_seed": "int64", "measure": "string", "block": "string", "category": "string",
    "example": "string", "seed": "int64", "value": "double",
}  # fmt: skip
"""Column of the table -> its type."""
DIGITS = 6
"""Significant digits of a stored value; scores have no more."""
MOST_BYTES = 2**26
"""Larger files are not read: the ladder has some hundred thousand values."""

Name = Annotated[str, Field(min_length=1, max_length=200)]


class StoredRung(StoredModel):
    """A rung as it was made."""

    name: Name
    family: Name
    order: Count | None = None
    """Place inside the family, least trained first; None where no order is known."""
    training_seeds: tuple[Count, ...] = Field(min_length=1, max_length=1000)


class About(StoredModel):
    """Origin of the values."""

    suite: Name
    model: Name
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
    """Hash of what the pictures come from."""
    version: Name
    """Of riebench."""
    rungs: tuple[StoredRung, ...] = Field(min_length=1, max_length=1000)
    missing: tuple[Name, ...] = ()
    """Rungs that were asked for and are not complete."""
    pictures: Count
    """Edited pictures, those of the activation patch among them."""
    examples: Count
    block_examples: Count
    """Examples whose blocks were also edited one at a time."""
    picture_seeds: tuple[Count, ...] = Field(min_length=1, max_length=1000)
    """Of the rungs whose pictures were made with several seeds; all others have the first one."""
    command: Annotated[str, Field(min_length=1, max_length=1000)]
    """What repeats the run."""
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    """Wall time of making and scoring the pictures, over all calls."""


@dataclass(frozen=True, eq=False)
class LadderResults:
    """Values of all measures on all SAEs, with their origin.

    Attributes:
        about: the origin.
        values: the columns of `COLUMNS`, a row for each value.
    """

    about: About
    values: pd.DataFrame

    def write(self, folder: Path) -> list[Path]:
        """Write both files; return their paths."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        frame = self.values[[*COLUMNS]].sort_values([*COLUMNS][:-1], kind="stable")
        frame = frame[np.isfinite(frame["value"].to_numpy(dtype=np.float64))]
        values = {**{name: frame[name].tolist() for name in COLUMNS}, "value": _rounded(frame["value"].to_numpy())}
        table = pa.table({name: pa.array(values[name], _types()[kind]) for name, kind in COLUMNS.items()})
        sink = io.BytesIO()
        pq.write_table(
            table, sink, compression="zstd", compression_level=19, write_statistics=False, store_schema=False,
            use_dictionary=True,
        )  # fmt: skip
        write_atomic(folder / VALUES_FILE, sink.getvalue())
        write_atomic(folder / ABOUT_FILE, (self.about.model_dump_json(indent=1) + "\n").encode())
        return [folder / VALUES_FILE, folder / ABOUT_FILE]

    @classmethod
    def read(cls, folder: Path) -> LadderResults:
        """Read both files.

        Raises:
            RiebenchError: in one line, if one is missing or damaged.
        """
        for file in (folder / VALUES_FILE, folder / ABOUT_FILE):
            if not file.is_file():
                raise RiebenchError(f"{file} is missing; `riebench validity saes --work FOLDER` makes it")
            if file.stat().st_size > MOST_BYTES:
                raise RiebenchError(f"{file} is larger than {MOST_BYTES >> 20} MiB: it is no table of these values")
        return cls(_read_about(folder / ABOUT_FILE), _read_values(folder / VALUES_FILE))


def _types() -> dict[str, object]:
    import pyarrow as pa

    return {"string": pa.string(), "int64": pa.int64(), "double": pa.float64()}


def _rounded(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _read_about(file: Path) -> About:
    try:
        return About.model_validate(parse_json(read_regular(file)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RiebenchError(f"{file} is damaged ({place}: {first['msg']}); restore or make it anew") from error
    except ValueError as error:
        raise RiebenchError(f"{file} is damaged ({error}); restore or make it anew") from error


def _read_values(file: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(read_regular(file)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RiebenchError(f"{file} is damaged ({str(error).splitlines()[0]}); restore or make it anew") from error
    found = {field.name: field.type for field in table.schema}
    expected = {name: _types()[kind] for name, kind in COLUMNS.items()}
    if found != expected:
        odd = sorted({*found.items()} ^ {*expected.items()}, key=str)
        names = ", ".join(sorted({name for name, _ in odd}))
        raise RiebenchError(f"{file}: these columns are missing, unknown or of another type: {names}")
    if any(table[name].null_count for name in COLUMNS):
        raise RiebenchError(f"{file} has empty cells; restore or make it anew")
    return table.to_pandas()
