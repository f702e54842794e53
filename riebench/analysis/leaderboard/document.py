"""The leaderboard as a document and as CSV, and the check of both files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from riebench.analysis.configurations import Configuration, configurations, scored_profiles, whole_configurations
from riebench.analysis.leaderboard.methods import method_section
from riebench.analysis.leaderboard.profiles import profile_section
from riebench.analysis.leaderboard.rows import Section, leaderboard_csv
from riebench.analysis.leaderboard.sae_scores import GROUPS, sae_score_blocks, sae_score_conclusion, sae_score_rows
from riebench.analysis.sae_score.ranking import SaeComparison
from riebench.errors import RiebenchError
from riebench.scoring.profiles import DEFAULT
from riebench.store.folder import RunFolder, find_run_folders, group_by_model
from riebench.utils.files import write_atomic
from riebench.utils.markup import Block, BulletList, Code, Document, Heading, Paragraph
from riebench.utils.processes.helpers import Apply, apply_here

COMMAND = "riebench leaderboard"


@dataclass(frozen=True)
class Leaderboard:
    """Both forms of the leaderboard.

    Attributes:
        document: for people.
        numbers: text of leaderboard.csv, one row a method.
    """

    document: Document
    numbers: str

    def texts(self, path: Path) -> dict[Path, str]:
        """Return the files of the leaderboard with their texts.

        Args:
            path: the Markdown file; the CSV file lies beside it.
        """
        return {path: self.document.markdown(), path.with_suffix(".csv"): self.numbers}


def make_leaderboard(results: Path, *, apply: Apply = apply_here) -> Leaderboard:
    """Make the leaderboard of everything below a results folder.

    One section for each suite, model and profile. In the default profile methods are compared by their mean gain over
    LPIPS budgets; the other profiles rank single configurations, as the scripts they follow do.

    Args:
        results: the results folder.
        apply: reads the run folders.
    """
    sections: list[Section] = []
    groups = group_by_model(find_run_folders(results))
    profiles = {place: scored_profiles(folders) for place, folders in groups.items()}
    # Those of all models at once, so that no process waits between two of them.
    methods = [
        folder
        for place, folders in groups.items()
        for folder in folders
        if DEFAULT in profiles[place] and folder.spec.setting.group not in GROUPS
    ]
    read = dict(zip(methods, apply(_read_whole, methods, [one.n_expected for one in methods]), strict=True))
    for (suite, model), folders in groups.items():
        for profile in profiles[suite, model]:
            if profile == DEFAULT:
                section = method_section(suite, model, [(folder, read[folder]) for folder in folders if folder in read])
                comparison = SaeComparison.of(folders, apply=apply)
                sections.append(_with_sae_scores(section, suite, model, comparison))
            else:
                sections.append(profile_section(suite, model, folders, profile))
    comment = f"made by `{COMMAND}` from the results folder; do not edit, run it again"
    return Leaderboard(
        Document(tuple(_blocks(sections)), comment),
        leaderboard_csv(row for section in sections for row in section.rows),
    )


def _read_whole(folder: RunFolder) -> list[Configuration]:
    """Read a run folder without what is left to the tables.

    Blocks edited singly are most of what large runs hold.
    """
    return whole_configurations(configurations(folder, features=False))


def _with_sae_scores(section: Section, suite: str, model: str, comparison: SaeComparison) -> Section:
    """Return a section with its table of SAEs, if any were tested at few features."""
    standings = comparison.standings()
    if not standings:
        return section
    conclusion = sae_score_conclusion(standings)
    return replace(
        section,
        conclusion=(*section.conclusion, " ", *conclusion) if conclusion else section.conclusion,
        blocks=(*section.blocks, *sae_score_blocks(comparison, standings)),
        rows=(*section.rows, *sae_score_rows(suite, model, standings)),
    )


def _blocks(sections: list[Section]) -> list[Block]:
    """Return title, conclusions and all sections."""
    blocks: list[Block] = [Heading(1, ("Leaderboard",))]
    if not sections:
        return [*blocks, Paragraph(("No results yet: ", Code("riebench run"), " makes them."))]
    if len(sections) == 1:
        blocks.append(Paragraph(sections[0].conclusion))
    else:
        blocks.append(BulletList(tuple((*section.title, ": ", *section.conclusion) for section in sections)))
    for section in sections:
        blocks += [Heading(2, section.title), *section.blocks]
    return blocks


def leaderboard_document(results: Path) -> Document:
    """Return the leaderboard of everything below a results folder, for people."""
    return make_leaderboard(results).document


def leaderboard_text(results: Path) -> str:
    """Return the leaderboard as Markdown; see `make_leaderboard`."""
    return leaderboard_document(results).markdown()


def write_leaderboard(results: Path, path: Path, *, apply: Apply = apply_here) -> Document:
    """Write the leaderboard of a results folder and return its document.

    Args:
        results: the results folder.
        path: the Markdown file; leaderboard.csv goes beside it.
        apply: reads the run folders.
    """
    board = make_leaderboard(results, apply=apply)
    for file, text in board.texts(path).items():
        write_atomic(file, text.encode())
    return board.document


def check_leaderboard(results: Path, path: Path, *, apply: Apply = apply_here) -> list[Path]:
    """Check that the files of a leaderboard are what the results folder gives.

    Args:
        results: the results folder.
        path: the Markdown file; leaderboard.csv lies beside it.
        apply: reads the run folders.

    Returns:
        The files, both of them up to date.

    Raises:
        RiebenchError: naming the first file that is missing, or its first line that differs.
    """
    texts = make_leaderboard(results, apply=apply).texts(path)
    for file, text in texts.items():
        if not file.exists():
            raise RiebenchError(f"{file} is missing; make it with `{COMMAND}`")
        data = file.read_bytes()
        if data == text.encode():
            continue
        expected, found = text.splitlines(), data.decode(errors="replace").splitlines()
        line = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
            len(min(found, expected, key=len)),
        )
        raise RiebenchError(f"{file} is stale from line {line + 1} on; make it anew with `{COMMAND}`")
    return [*texts]
