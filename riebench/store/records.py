"""Stored types: the run's identity, unit keys, records and scores.

Their fields are the keys of the JSON files in a run folder. This module needs no torch.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from riebench.models.spec import ModelSpec
from riebench.store.invocations import Invocation
from riebench.tasks.masks import MaskShare
from riebench.tasks.schema import ALL_CATEGORIES, MAX_WHOLE, Count, Identifier, Setting, StoredModel, Strength
from riebench.utils.files import MAX_PATH_LENGTH, MAX_PATH_PART, content_digest

RUN_FILE, RECORDS_FILE, SCORES_FILE = "run.json", "records.jsonl", "scores.jsonl"
"""Files of a run folder: the run's identity, the outcome of its units, and their scores."""

RAW_OUTPUTS_FILE = "raw_outputs.jsonl"
"""File of a run folder with what networks said that values are made of."""

RECORDS_TABLE, SCORES_TABLE = "records.parquet", "scores.parquet"
"""The same outcomes and scores in compact form, as they are published (`riebench.store.parquet`)."""

SPEC_VERSION = 1
"""Version of the run identity.

It is raised when the meaning of a stored number changes; runs of different versions never share a folder.
"""

NameWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=200)]
"""A word that can be part of a file's name."""

BlockSet = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*(?:/text(?:\+[A-Za-z0-9._+-]*)?)*$", max_length=2000)
]
"""Name of blocks edited together (`block_set_name`); for a whole U-Net it is longer than a file's name may be."""


_PLAIN_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._+-]{0,99}/[A-Za-z0-9_-][A-Za-z0-9._+-]{0,199}")
"""Paths as riebench names pictures, which need no further look: tens of thousands of them are read."""


def _check_inside(name: str) -> str:
    """Return a path if it stays below the folder that it is relative to."""
    if _PLAIN_PATH.fullmatch(name):
        return name
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or not name.isprintable():
        raise ValueError(f"{name[:80]!r} names a file outside itself")
    if any(len(part.encode()) > MAX_PATH_PART for part in parts):
        raise ValueError(f"{name[:80]!r} is too long for a file's name")
    return name


def _check_category(category: str) -> str:
    if category not in ALL_CATEGORIES:
        raise ValueError(f"unknown category {category[:80]!r}")
    return category


Category = Annotated[str, AfterValidator(_check_category)]
"""A key of `ALL_CATEGORIES`."""

FileName = Annotated[str, Field(max_length=MAX_PATH_LENGTH), AfterValidator(_check_inside)]
"""Path of a file below the folder that it is relative to, with forward slashes."""


class RunSpec(StoredModel):
    """Identity of one run: one configuration on one model over one suite."""

    spec_version: Count = SPEC_VERSION
    """`SPEC_VERSION` of the program that made the run."""
    suite: Identifier
    """Name of the suite that the examples come from; their content is in the unit keys."""
    model: ModelSpec
    """The generating model."""
    setting: Setting
    """The complete configuration; only the parts of it that can change a number enter the identity."""
    sae_sha256: dict[str, str] = Field(default_factory=dict)
    """Block -> SHA-256 of its SAE's weights; empty for methods without SAEs."""
    regions: str = "attention"
    """Name of the region provider for regions given by words."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Installed package -> its version, for those whose method, model family or SAE readers are used."""

    @model_serializer(mode="wrap")
    def _leave_out_no_packages(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A run that needs no other package is stored without the field, as runs were before it existed.
        stored: dict[str, Any] = write(self)
        if not self.packages:
            stored.pop("packages", None)
        return stored

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change a number of the run.

        What the unit key already states (task, strength, seed) is not part of it.
        """
        names = {"method", "params", "blocks", "block_mode"}
        # Fields that came later enter only where they are set, so that the identities of old runs stay the same.
        names |= {name for name in ("edit_steps", "plugin_sha256") if getattr(self.setting, name) is not None}
        setting = self.setting.model_dump(mode="json", include=names)
        return {
            "spec_version": self.spec_version,
            "suite": self.suite,
            "model": self.model.identity,
            **setting,
            "sae_sha256": self.sae_sha256,
            "regions": self.regions,
            **({"packages": self.packages} if self.packages else {}),
        }

    @property
    def run_id(self) -> str:
        """SHA-256 of `identity` as canonical JSON."""
        return content_digest(self.identity)


class PlannedCell(BaseModel):
    """Number of units planned for a category, block set and strength."""

    category: Category
    block_set: BlockSet
    strength: Strength = Field(allow_inf_nan=False)
    n: Count


def _read_notes(stated: Any) -> Any:
    """Sort the notes that older files hold in the place of invocations."""
    return Invocation.from_notes(stated) if isinstance(stated, dict) else stated


class RunMeta(BaseModel):
    """The parts of run.json beside the spec, as far as they are read."""

    invocations: tuple[Invocation, ...] = ()
    """Commands that wrote records or scores, in the order of their first line."""
    provenance: Annotated[Invocation, BeforeValidator(_read_notes)] | None = None
    """The last command, in files from before all were kept."""
    expected: tuple[PlannedCell, ...] = ()


DIGEST_LENGTH = 20
"""Hexadecimal digits of a unit's digest."""


class UnitKey(StoredModel):
    """Key of one edited picture of a run."""

    task: NameWord
    """Task name."""
    task_version: Count
    """Task version."""
    category: Category
    """Edit category."""
    example_id: NameWord
    """Example id."""
    example_hash: NameWord
    """Content hash of the example."""
    block_set: BlockSet
    """Name of the blocks edited together."""
    strength: Strength
    """Multiplier of the edit."""
    seed: Count
    """Index of the seed; the noise follows from it and from the example id (`noise_seed`)."""

    @property
    def digest(self) -> str:
        """Short stable hash, used in file names and score lines."""
        # This is `content_digest` of the fields, written out: none of these words needs escaping in JSON, and tables
        # take the digests of tens of thousands of units.
        strength = int(self.strength) if self.strength.is_integer() else self.strength
        text = (
            f'{{"block_set":"{self.block_set}","category":"{self.category}","example_hash":"{self.example_hash}",'
            f'"example_id":"{self.example_id}","seed":{self.seed},"strength":{strength!r},"task":"{self.task}",'
            f'"task_version":{self.task_version}}}'
        )
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]

    @property
    def noise_seed(self) -> int:
        """Seed of the unit's own CPU generator."""
        return noise_seed(self.example_id, self.seed)

    @property
    def slot(self) -> tuple[str, str, str, float, int]:
        """The fields whose latest record counts.

        A later record with the same ones replaces an earlier one, also if the example has changed since.
        """
        return self.task, self.example_id, self.block_set, self.strength, self.seed


def noise_seed(example_id: str, index: int) -> int:
    """Return the seed of an example's noise.

    Examples share no noise; configurations and blocks share all of it.

    Args:
        example_id: the example.
        index: 0, 1, 2, ... as the user counts seeds.

    Returns:
        A number in 0 .. 2**63 - 1.
    """
    digest = hashlib.sha256(f"riebench-seed-v1:{example_id}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class BlockFeatures(StoredModel):
    """Features switched in one block."""

    add: tuple[Count, ...] = ()
    """Switched on, best first."""
    remove: tuple[Count, ...] = ()
    """Switched off, best first."""


Shares = tuple[Annotated[float, Field(ge=0, le=1)], ...]


class BlockDistribution(StoredModel):
    """Distance of one block's edited updates from unedited ones.

    Numbers are of some steps, over the positions of both regions, in the conditional half, after the edit.
    """

    reference: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    """Beginning of the hash of the unedited activations' statistics; numbers of two of them are not comparable."""
    steps: tuple[Count, ...]
    """The steps, from 0."""
    norm: Shares
    """Mean quantile of the norms among unedited norms: 0.5 is usual."""
    distance: tuple[Annotated[float, Field(ge=0, lt=MAX_WHOLE)], ...]
    """Root mean square of Mahalanobis distances, relative to that of unedited updates: 1 is usual."""
    far: Shares
    """Share of positions at a larger distance than 99 % of unedited ones."""
    far_before: Shares
    """The same share of the unedited source run, at the same positions."""

    @model_validator(mode="after")
    def _same_lengths(self) -> BlockDistribution:
        count = len(self.steps)
        # Hundreds of thousands come here when published results are read: no set is built.
        if not (len(self.norm) == len(self.distance) == len(self.far) == len(self.far_before) == count):
            raise ValueError("a number is missing for a step")
        return self


class Training(StoredModel):
    """Examples that a supervised method learned an edit from, and the cost.

    The cost is that of the whole training, which serves all examples of the fold that show the same concept.
    """

    examples: Count
    """Training examples of the category, of which each method uses those that show the concept."""
    fold: Count
    """Fold of the scored example, from 0; no example of it is learned from."""
    folds: Count
    """Number of folds."""
    evaluations: Count
    """Evaluations of the denoiser for one picture that made the training examples' runs."""
    gradients: Count
    """Evaluations of the denoiser for one picture while fitting: those that a gradient went through, and those
    without that measure the loss before."""
    seconds: float = Field(ge=0, lt=MAX_WHOLE)
    """Wall time of fitting, without the training examples' runs."""


class EditRecord(StoredModel):
    """Outcome of one unit."""

    key: UnitKey
    """The unit."""
    status: Literal["ok", "skipped", "error"]
    """Made, not applicable, or failed."""
    reason: str | None = None
    """Reason why it was skipped or failed."""
    image: FileName | None = None
    """Edited picture, relative to the run folder."""
    image_sha256: str | None = None
    """SHA-256 of the picture's file."""
    source_image: FileName | None = None
    """Source picture, relative to the shared folder."""
    target_image: FileName | None = None
    """Target picture, relative to the shared folder."""
    features: dict[str, BlockFeatures] = Field(default_factory=dict)
    """Block -> features switched; empty for methods without features."""
    neurons: int | None = Field(default=None, ge=0, lt=2**53)
    """Number of feed-forward units switched on and off; None for methods that switch none."""
    training: Training | None = None
    """Training of a supervised method; None for methods that learn nothing."""
    distribution: dict[str, BlockDistribution] | None = None
    """Block -> distance of its edited updates from unedited ones; None where it was not measured."""
    cluster: str | None = None
    """Name of the examples resampled together; None if the example is resampled alone."""
    mask_share: MaskShare | None = None
    """Share of the picture that the regions cover."""
    seconds: float = Field(default=0.0, ge=0, lt=MAX_WHOLE)
    """Wall time of the unit's share of its batch."""
    batch_size: int = Field(default=1, ge=1, lt=MAX_WHOLE)
    """Units generated in the same call."""
    invocation: int | None = Field(default=None, ge=0, lt=MAX_WHOLE)
    """Place in run.json's list of the command that made it; None if it was made before the list was kept."""

    @model_validator(mode="after")
    def _consistent(self) -> EditRecord:
        if self.status == "ok" and (self.image is None or self.image_sha256 is None):
            raise ValueError("a record with status 'ok' needs image and image_sha256")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"a record with status {self.status!r} needs a reason")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_no_neurons(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Other records are stored without the field, as all were before it existed.
        stored: dict[str, Any] = write(self)
        for name in ("neurons", "invocation", "distribution", "training"):
            if getattr(self, name) is None:
                stored.pop(name, None)
        return stored

    @property
    def switched(self) -> int | None:
        """Number of features or neurons switched; None if the method chooses none."""
        if self.features:
            return sum(len(block.add) + len(block.remove) for block in self.features.values())
        return self.neurons

    @property
    def picture_id(self) -> str:
        """Identifier of the picture that the unit's scores belong to.

        It is the beginning of the picture's hash, or the status if there is no picture.
        """
        return (self.image_sha256 or "")[:8] if self.status == "ok" else self.status


class ScoreRecord(StoredModel):
    """One metric's number for one unit.

    The unit's fields are found in records.jsonl by its digest.
    """

    unit: str
    """`UnitKey.digest`."""
    metric: str
    """A registered metric."""
    version: int = Field(ge=1, lt=MAX_WHOLE)
    """The metric's version."""
    backbone: str = ""
    """The network that measured, if any; numbers of different backbones never share a table cell."""
    picture: str = ""
    """`EditRecord.picture_id` of the measured picture: a unit that is made again is scored again."""
    value: float | None = None
    """The number, or None."""
    reason: str | None = None
    """Reason why there is no number."""
    invocation: int | None = Field(default=None, ge=0, lt=MAX_WHOLE)
    """Place in run.json's list of the command that measured it; None if it was measured before the list was kept."""

    @model_validator(mode="after")
    def _value_or_reason(self) -> ScoreRecord:
        if self.value is None and not self.reason:
            raise ValueError("a score without value needs a reason")
        return self


class RawOutputs(StoredModel):
    """Numbers and texts of one network about one unit, of which its values are made."""

    unit: str
    """`UnitKey.digest`."""
    picture: str
    """`EditRecord.picture_id` of the measured picture."""
    backbone: str
    """The network."""
    outputs: dict[str, Annotated[float, Field(allow_inf_nan=False)] | str]
    """Name of an output -> number or text."""
