"""Published results on the Hugging Face Hub.

They lie in data set repositories laid out as a results folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.store.records import RECORDS_FILE, RECORDS_TABLE, RUN_FILE, SCORES_FILE, SCORES_TABLE
from riebench.store.run_file import SEAL_FILE
from riebench.store.sae_figures import SAE_FIGURES_FILE
from riebench.store.shared import MODEL_FILE, SHARED_NAME
from riebench.utils.hub import fetch, upload_error

ADDRESS = re.compile(r"hf:/{1,2}datasets/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")
"""Address of a data set repository; path types of the standard library write two slashes as one."""
RUN_FILES = (
    RUN_FILE, RECORDS_TABLE, SCORES_TABLE, RECORDS_FILE, SCORES_FILE, "scoring.json", SAE_FIGURES_FILE, SEAL_FILE,
)  # fmt: skip
"""Files of a run folder that are read from a repository."""
CARD_FILE = "README.md"


def is_address(text: object) -> bool:
    """Return whether a results folder is named by an address on the hub."""
    return str(text) == "hf:" or str(text).startswith("hf:/")


def check_address(address: str | Path) -> tuple[str, str | None]:
    """Return the repository and the revision that an address names.

    The revision is None for the newest.

    Raises:
        RiebenchError: if it is no address.
    """
    found = ADDRESS.fullmatch(str(address))
    if found is None:
        raise RiebenchError(f"{str(address)!r} is no address of results; write hf://datasets/OWNER/NAME[@REVISION]")
    return f"{found['owner']}/{found['name']}", found["revision"]


def fetch_results(address: str | Path, *, offline: bool = False) -> Path:
    """Download published results, without pictures, into the hub's cache.

    Args:
        address: "hf://datasets/OWNER/NAME", with "@REVISION" for other than the newest.
        offline: uses the cache only.

    Returns:
        Folder laid out as `results/`, for reading only.

    Raises:
        RiebenchError: if it is no address, the hub cannot be reached, or the repository holds no runs.
    """
    repo, revision = check_address(address)
    patterns = [f"*/*/*/{name}" for name in RUN_FILES]
    place = fetch(repo, revision, patterns=patterns, offline=offline, kind="dataset")
    if not any(place.glob(f"*/*/*/{RUN_FILE}")):
        raise RiebenchError(f"{repo} holds no runs: it has no SUITE/MODEL/CONFIGURATION/{RUN_FILE}")
    return place


def push_results(results: Path, runs: Sequence[Path], name: str) -> str:
    """Upload published runs to a data set repository.

    One that is new is made as a private one.

    Args:
        results: the results folder.
        runs: published run folders below it.
        name: "OWNER/NAME".

    Returns:
        The repository's page.

    Raises:
        RiebenchError: with the hub's own first line, if it cannot.
    """
    from huggingface_hub import HfApi

    places = [run.relative_to(results).as_posix() for run in runs]
    files = [f"{place}/{file}" for place in places for file in RUN_FILES]
    shared = sorted({f"{place.rsplit('/', 1)[0]}/{SHARED_NAME}/{MODEL_FILE}" for place in places})
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        if not api.file_exists(name, CARD_FILE, repo_type="dataset"):
            api.upload_file(
                path_or_fileobj=dataset_card(places).encode(), path_in_repo=CARD_FILE, repo_id=name,
                repo_type="dataset", commit_message="Add a data set card",
            )  # fmt: skip
        api.upload_folder(
            repo_id=name, repo_type="dataset", folder_path=results, allow_patterns=[*files, *shared],
            commit_message=f"Publish {', '.join(places)[:60]}",
        )  # fmt: skip
    # The hub's client raises errors of many libraries, none of which can be handled here.
    except Exception as error:
        raise upload_error(name, error) from error
    return f"https://huggingface.co/datasets/{name}"


def dataset_card(places: Iterable[str]) -> str:
    """Return the card of a repository of results.

    With it the hub shows records and scores as tables.

    Args:
        places: published runs, "SUITE/MODEL/CONFIGURATION" each.
    """
    runs = "\n".join(f"- `{place}`" for place in places)
    return f"""---
configs:
- config_name: scores
  data_files: "*/*/*/{SCORES_TABLE}"
- config_name: records
  data_files: "*/*/*/{RECORDS_TABLE}"
tags:
- riebench
- sparse-autoencoder
- image-editing
---

# Results of riebench

Edits of pictures by features of sparse autoencoders in a text-to-image model, and their scores. Each folder
`SUITE/MODEL/CONFIGURATION` is one run: `{RUN_FILE}` says what was run and by which commands, `{RECORDS_TABLE}` holds
one row per edited picture, and `{SCORES_TABLE}` one row per score. With riebench installed,
`riebench compare A B --results hf://datasets/OWNER/NAME` compares two of them.

Runs uploaded first:

{runs}
"""
