"""Benchmark scores of an SAE in stored runs, and the licence its files state."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from riebench.analysis.configurations import configurations, whole_configurations
from riebench.analysis.leaderboard.methods import row_notes
from riebench.analysis.standings import MethodComparison, Standing, group_entries, with_score_controls
from riebench.errors import RiebenchError, one_line
from riebench.saes.sources import SCHEME, SaeSource, parse_place
from riebench.store.folder import RunFolder, find_run_folders, group_by_model
from riebench.tasks.schema import Count, StoredModel
from riebench.utils.files import parse_json
from riebench.utils.hub import fetch

README = "README.md"
CONFIGS = ("config.json", "cfg.json")
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt")
LICENCE_KEYS = ("license", "licence")
MAX_LICENCE_TEXT = 200
"""Largest number of characters that are kept of a licence's name or address."""
HUB_LICENCES = frozenset({
    "agpl-3.0", "apache-2.0", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "creativeml-openrail-m", "epl-2.0", "eupl-1.2", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1",
    "lgpl-3.0", "mit", "mpl-2.0", "odbl", "openrail", "openrail++", "unlicense", "zlib",
})  # fmt: skip
"""Identifiers by which the hub knows common licences; any other licence is `other`, with a name of its own."""
OTHER = "other"


class BenchmarkScore(StoredModel):
    """Standing of a method that edited with an SAE, as on the leaderboard."""

    suite: str
    model: str
    method: str
    """Method configuration, or the group of those that are its edit strengths."""
    block_set: str
    blocks: tuple[str, ...]
    """Blocks whose SAEs are those of the card."""
    other_blocks: tuple[str, ...]
    """Blocks that were edited with further SAEs in the same run."""
    score: float | None
    """Mean gain over LPIPS budgets, as stored (printed x100); None where it cannot be computed."""
    low: float | None
    """Lower end of its 95 % interval."""
    high: float | None
    rank: Count | None
    """Among the methods that use the same inputs."""
    lpips: float | None
    """Mean LPIPS at which the gains were read."""
    examples: Count
    runs: tuple[str, ...]
    """Beginnings of the ids of its runs."""
    control_of: str
    """The method that it is a control of; "" if it is none."""
    notes: str
    """What it is a control of, why it is unranked, and what else is to be known of it."""


class Licence(StoredModel):
    """The licence of SAEs, as far as it is stated."""

    identifier: str = ""
    """The hub's identifier; "other" for a licence without one, "" if none is stated."""
    name: str = ""
    """Its name where it has no identifier."""
    link: str = ""
    """Where its text is, if that is stated."""
    stated_in: str = ""
    """File or option that states it."""


def benchmark_scores(results: Path, saes: Container[tuple[str, str]]) -> tuple[BenchmarkScore, ...]:
    """Return the scores of all stored runs that edited with some SAEs.

    They are those of the leaderboard: mean gains and ranks among all methods of the same suite and model.

    Args:
        results: a results folder; it may be absent.
        saes: block and SHA-256 of the weights of each, as runs state them.
    """
    found: list[BenchmarkScore] = []
    for (suite, model), folders in group_by_model(find_run_folders(results)).items():
        shared = {folder.spec.run_id: _shared_blocks(folder, saes) for folder in folders}
        if any(shared.values()):
            found += _group_scores(suite, model, folders, shared)
    return tuple(found)


def _shared_blocks(folder: RunFolder, saes: Container[tuple[str, str]]) -> tuple[str, ...]:
    """Return the blocks of a run whose SAEs are among some, by their hashes."""
    return tuple(block for block, sha in folder.spec.sae_sha256.items() if (block, sha) in saes)


def _group_scores(
    suite: str, model: str, folders: Sequence[RunFolder], shared: Mapping[str, tuple[str, ...]]
) -> list[BenchmarkScore]:
    read = [(folder, whole_configurations(configurations(folder))) for folder in folders]
    comparison = MethodComparison(with_score_controls(group_entries(read)))
    used = {folder.spec.run_id: tuple(folder.spec.sae_sha256) for folder in folders}
    found = []
    for standing in comparison.standings():
        runs = tuple(dict.fromkeys(one.run_id for one in standing.entry.configurations))
        blocks = tuple(dict.fromkeys(block for run in runs for block in shared[run]))
        if blocks:
            others = dict.fromkeys(block for run in runs for block in used[run] if block not in blocks)
            found.append(_score(suite, model, standing, comparison, blocks, tuple(others), runs))
    return found


def _score(
    suite: str, model: str, standing: Standing, comparison: MethodComparison, blocks: tuple[str, ...],
    others: tuple[str, ...], runs: tuple[str, ...],
) -> BenchmarkScore:  # fmt: skip
    area = standing.area
    return BenchmarkScore(
        suite=suite, model=model, method=standing.entry.name, block_set=standing.entry.block_set, blocks=blocks,
        other_blocks=others, score=None if area is None else area.mean, low=None if area is None else area.low,
        high=None if area is None else area.high, rank=standing.group, lpips=standing.realised,
        examples=0 if area is None else area.n_examples, runs=tuple(run[:8] for run in runs),
        control_of=standing.entry.control_of, notes="; ".join(row_notes(standing, comparison)),
    )  # fmt: skip


def licence_named(name: str) -> Licence:
    """Return the licence that a user names.

    Raises:
        RiebenchError: if the name is empty, or longer than one line should be.
    """
    text = one_line(" ".join(name.split()))
    if not text or len(text) > MAX_LICENCE_TEXT:
        raise RiebenchError(f"--licence {name[:40]!r}: name a licence, such as mit or cc-by-4.0")
    return _licence(text, "", "--licence")


def stated_licence(sources: Sequence[SaeSource], paths: Iterable[Path], *, offline: bool = False) -> Licence:
    """Return the licence that the files of SAEs state.

    Of each folder the header of its README.md is read first, then a configuration's entry, then a licence file.

    Args:
        sources: where the SAEs are; of those on the hub the repository's own card is fetched.
        paths: of the SAEs on this machine.
        offline: fetches nothing.
    """
    for folder in _folders(sources, paths, offline):
        for stated in (_of_readme(folder), _of_config(folder), _of_file(folder)):
            if stated is not None:
                return stated
    return Licence()


def _folders(sources: Sequence[SaeSource], paths: Iterable[Path], offline: bool) -> list[Path]:
    """Return the folders in which a licence may be stated, nearest first.

    They are those of the SAEs, those around them inside the places that the user named, and hub repositories.
    """
    found: dict[Path, None] = {}
    roots = [source.locate(offline=True) for source in sources if not source.place.startswith(SCHEME)]
    for path in paths:
        inside = [one for one in (path, *path.parents) if any(one.is_relative_to(root) for root in roots)]
        around = path if path.is_dir() else path.parent
        found |= dict.fromkeys(one for one in (around, *inside) if one.is_dir())
    for source in sources:
        if source.place.startswith(SCHEME):
            place = parse_place(source.place)
            try:
                found[fetch(place.id, place.revision, patterns=[README, *LICENCE_FILES], offline=offline)] = None
            except RiebenchError:
                # Nothing of the kind is there, or on this machine: then the licence is not stated.
                continue
    return list(found)


def _of_readme(folder: Path) -> Licence | None:
    from huggingface_hub import metadata_load

    path = folder / README
    if not path.is_file():
        return None
    try:
        stated = metadata_load(path)
    except Exception:
        # A header may hold anything; one that cannot be read states nothing.
        return None
    if not isinstance(stated, dict):
        return None
    name, link = (_text(stated.get(key)) for key in ("license_name", "license_link"))
    identifier = _text(stated.get("license"))
    if identifier in ("", "unknown"):
        return None
    # The hub's own key: any identifier is one that it knows.
    return Licence(identifier=identifier, name=name, link=link, stated_in=README)


def _of_config(folder: Path) -> Licence | None:
    for name in CONFIGS:
        try:
            stated: Any = parse_json((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        texts = [_text(stated.get(key)) for key in LICENCE_KEYS] if isinstance(stated, dict) else []
        for text in texts:
            if text:
                return _licence(text, "", name)
    return None


def _of_file(folder: Path) -> Licence | None:
    for name in LICENCE_FILES:
        try:
            lines = (folder / name).read_text(encoding="utf-8", errors="replace")[:10_000].splitlines()
        except OSError:
            continue
        title = next((text for line in lines if (text := _text(line.strip("# \t")))), "")
        if title:
            short = re.sub(r"\s+licen[cs]e$", "", title, flags=re.IGNORECASE)
            return _licence(short if short.lower() in HUB_LICENCES else title, name, name)
    return None


def _licence(name: str, link: str, stated_in: str) -> Licence:
    if name.lower() in HUB_LICENCES:
        return Licence(identifier=name.lower(), link=link, stated_in=stated_in)
    return Licence(identifier=OTHER, name=name, link=link, stated_in=stated_in)


def _text(value: object) -> str:
    """Return a value from a file as a short line; "" for anything but text."""
    return one_line(" ".join(value.split()))[:MAX_LICENCE_TEXT] if isinstance(value, str) else ""
