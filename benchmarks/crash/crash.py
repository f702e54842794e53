"""Trials that kill the main job at random moments and check its final results.

    python -m benchmarks.crash --kills 200

Every trial starts with an empty folder and repeats `riebench run` (pictures, scores, tables, leaderboard, page) until
it comes to its end, killing it with SIGKILL at random moments up to four times a trial. Then every file is compared
with those of an undisturbed run: byte for byte, but for what a clock says. A unit or a score that is there
twice was made twice; one that a repeated run sets out to make although it is recorded counts likewise. Runs are forked
from one process that has imported and loaded everything, so that a trial takes seconds. Trials are seeded by their
number and logged; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.crash.killing import PHASES, Ending, Moment, run
from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job
from riebench.store.records import UnitKey
from riebench.store.run_file import SEAL_FILE, broken_seals, count_unsealed_lines
from riebench.utils.files import parse_json, read_lines, repair_last_line


def snapshot(place: Path) -> dict[str, bytes]:
    """Return the whole lines of all records and scores below a folder, by file."""
    found = {}
    for file in sorted(place.rglob("*.jsonl")):
        data = file.read_bytes()
        found[str(file.relative_to(place))] = data[: data.rfind(b"\n") + 1]
    return found


def lost(before: dict[str, bytes], place: Path) -> list[str]:
    """Return the files whose recorded lines are not all there any more."""
    now = snapshot(place)
    return [name for name, data in before.items() if not now.get(name, b"").startswith(data)]


def recorded(before: dict[str, bytes]) -> set[str]:
    """Return the units and scores that a snapshot holds.

    They are named as `benchmarks.crash.killing.Ending.planned` names them.
    """
    found = set()
    for name, data in before.items():
        setting = Path(name).parent.name
        for line in map(parse_json, data.splitlines()):
            made = [UnitKey.model_validate(line["key"]).digest] if "key" in line else [line["unit"], line["metric"]]
            found.add(" ".join([setting, *made]))
    return found


def differences(place: Path, reference: Path) -> list[str]:
    """Return the differences of a folder from that of an undisturbed run.

    Each is one line. Values of clocks and hashes over them are left out of the comparison.

    Args:
        place: the folder of a job.
        reference: another one.
    """
    one, other = _contents(place), _contents(reference)
    found = [f"{name} is only in one of them" for name in sorted(set(one) ^ set(other))]
    found += [f"{name} differs" for name in sorted(set(one) & set(other)) if one[name] != other[name]]
    for file in sorted(place.rglob("*.jsonl")):
        lines = Counter(_identity(json.loads(line)) for line in file.read_text().splitlines())
        twice = [identity for identity, n in lines.items() if n > 1]
        found += [f"{file.name}: {len(twice)} made twice, e.g. {twice[0]}"] if twice else []
    for file in sorted(place.rglob(SEAL_FILE)):
        found += broken_seals(file.parent)
        found += [f"{file.parent.name}: lines without a seal"] if count_unsealed_lines(file.parent) else []
    return found


def _identity(line: dict[str, Any]) -> str:
    named = line["key"] if "key" in line else [line["unit"], line["metric"], line.get("backbone")]
    return json.dumps(named, sort_keys=True)


def _contents(place: Path) -> dict[str, bytes]:
    found = {}
    for file in sorted(place.rglob("*")):
        if file.is_file() and not file.name.startswith(".lock"):
            found[str(file.relative_to(place))] = _without_clocks(file)
    return found


def _without_clocks(file: Path) -> bytes:
    data = file.read_bytes()
    if file.name in ("records.jsonl", "scores.jsonl"):
        # A killed run is finished by several commands, and each line names its own.
        return re.sub(rb',"(?:seconds|invocation)":[-+.0-9e]+', b"", data)
    if file.name == "run.json":
        meta = json.loads(data)
        del meta["invocations"]
        return json.dumps(meta).encode()
    if file.name == SEAL_FILE:
        # Hashes over clocks: that they are right is asked apart, here only what is sealed.
        return json.dumps(sorted(json.loads(data))).encode()
    return data


MakeJob = Callable[[Path], RunRequest]
"""Makes a job that writes only below the given folder."""


@dataclass
class Trials:
    """Trials of one job, each of them killed several times.

    Attributes:
        make: the job.
        root: where trials and the undisturbed run write.
        by: what decides the moment: "clock" or "operation".
        seed: of the moments.
        kills: of one trial, at most.
        keep: gets the folders of trials in which something is wrong; None leaves them where they are.
        whole: the undisturbed run, once it is made.
    """

    make: MakeJob
    root: Path
    by: str = "clock"
    seed: int = 0
    kills: int = 4
    keep: Path | None = None
    whole: Ending | None = None

    @property
    def reference(self) -> Path:
        """Folder of the undisturbed run."""
        return self.root / "undisturbed" / "work"

    def prepare(self) -> Ending:
        """Make the undisturbed run and return its end."""
        shutil.rmtree(self.reference.parent, ignore_errors=True)
        self.whole = run(self.make(self.reference))
        return self.whole

    def trial(self, number: int) -> dict[str, Any]:
        """Run one trial and compare its results with the undisturbed run's.

        Args:
            number: of the trial; decides the moments.

        Returns:
            The number, the phases in which the job was killed, and a line for everything that is wrong in the end.
        """
        chance = random.Random(f"{self.seed}:{number}")
        place = self.root / f"trial-{number}" / "work"
        shutil.rmtree(place.parent, ignore_errors=True)
        done: list[str] = []
        wrong: list[str] = []
        # In the order of the phases: what a later one was killed in has nothing left for the earlier ones.
        moments = sorted((self._moment(chance) for _ in range(self.kills)), key=lambda one: PHASES.index(one.phase))
        for moment in moments:
            ending = self._repeat(place, moment, wrong)
            if not ending.killed:
                break
            done.append(list(ending.seconds)[-1])
        self._repeat(place, None, wrong)
        wrong += differences(place, self.reference)
        if not wrong:
            shutil.rmtree(place.parent)
        elif self.keep is not None:
            shutil.copytree(place.parent, self.keep / place.parent.name, dirs_exist_ok=True)
        return {"trial": number, "killed": done, "wrong": wrong}

    def _repeat(self, place: Path, moment: Moment | None, wrong: list[str]) -> Ending:
        before = snapshot(place)
        ending = run(self.make(place), moment)
        wrong += [f"{name} lost lines" for name in lost(before, place)]
        wrong += [f"{one} was to be made again" for one in sorted(ending.planned & recorded(before))]
        return ending

    def _moment(self, chance: random.Random) -> Moment:
        assert self.whole is not None, "call prepare() first"
        if self.by == "operation":
            return Moment(operation=chance.randint(1, self.whole.operations))
        phase = chance.choice(PHASES)
        return Moment(phase=phase, delay=chance.uniform(0, self.whole.seconds[phase]))


def toy_job(place: Path) -> RunRequest:
    """Return a job of two examples and three settings on the toy model.

    It makes one step and one picture at a time. In larger batches a resumed run shares its calls with other pictures,
    which moves a number by rounding.
    """
    suite = place.parent / "mine"
    if not suite.is_dir():
        suite.mkdir(parents=True)
        (suite / "change_color.yaml").write_text(_TASK, encoding="utf-8")
        (suite / "few.yml").write_text(_SETTING, encoding="utf-8")
    return RunRequest(
        suite=str(suite), settings=("no_edit", "target_prompt", str(suite / "few.yml")), model="toy-turbo", steps=1,
        batch_size=1, device="cpu", results=place / "results", leaderboard=place / "results" / "leaderboard.md",
        report=place / "results" / "report",
    )  # fmt: skip


_TASK = """\
category: change_color
version: 1
examples:
  - {id: one, source: a red circle, target: a blue circle, source_region: circle, target_region: circle}
  - {id: two, source: a green square, target: a yellow square, source_region: whole, target_region: whole}
"""
_SETTING = (
    "method: sae\nparams: {n_features: 3}\nblocks: [mid.0, up.0.1]\nblock_mode: both\nstrengths: [2]\naccess: PAM\n"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--by", choices=["clock", "operation"], default="clock")
    parser.add_argument("--log", type=Path, default=Path("crash.jsonl"), help="what was done; continued if it is there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "crash.json")
    parser.add_argument("--keep", type=Path, default=Path("crash-findings"), help="where folders of findings are kept")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="riebench-crash-") as root:
        trials = Trials(toy_job, Path(root), chosen.by, chosen.seed, keep=chosen.keep)
        _warm(Path(root))
        whole = trials.prepare()
        print(f"undisturbed: {whole.operations} disk operations, {sum(whole.seconds.values()):.1f} s", file=sys.stderr)
        outcomes = _continued(trials, chosen)
    wrong = [one for one in outcomes if one["wrong"]]
    kills = sum(len(one["killed"]) for one in outcomes)
    print(f"{kills} kills in {len(outcomes)} trials, {len(wrong)} wrong; {chosen.out}")
    return 1 if wrong else 0


def _warm(root: Path) -> None:
    """Load everything once in this process, so that its children need not."""
    import torch

    from riebench.models.lookup import ModelRecipe

    torch.set_num_threads(1)
    job = toy_job(root / "warm" / "work")
    model = job.recipe.load()
    # The children's model is the one that is loaded here.
    patch.object(ModelRecipe, "load", lambda _: model).start()
    with contextlib.redirect_stdout(sys.stderr):
        run_job(job, lambda _: None)


def _continued(trials: Trials, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Run trials until there are enough kills, those of the log included.

    The log and the summary are written after each trial.
    """
    log: Path = chosen.log
    repair_last_line(log)
    outcomes = [line for _, line in read_lines(log)]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        while True:
            assert trials.whole is not None
            summary = json.dumps(_summary(outcomes, trials.whole, chosen), indent=1)
            chosen.out.write_text(summary + "\n", encoding="utf-8")
            if sum(len(one["killed"]) for one in outcomes) >= chosen.kills:
                return outcomes
            outcomes.append(trials.trial(len(outcomes)))
            file.write(json.dumps(outcomes[-1]) + "\n")
            file.flush()
            print(f"{sum(len(one['killed']) for one in outcomes)}/{chosen.kills} {outcomes[-1]}", file=sys.stderr)


def _summary(outcomes: list[dict[str, Any]], whole: Ending, chosen: argparse.Namespace) -> dict[str, Any]:
    from riebench.store.invocations import package_versions

    phases = Counter(phase for one in outcomes for phase in one["killed"])
    return {
        "kills": phases.total(),
        "trials": len(outcomes),
        "killed_in": {phase: phases[phase] for phase in PHASES},
        "wrong": [one for one in outcomes if one["wrong"]],
        "moments_by": chosen.by,
        "seed": chosen.seed,
        "undisturbed": {
            "disk_operations": whole.operations,
            "seconds": {k: round(v, 3) for k, v in whole.seconds.items()},
        },
        "versions": package_versions(),
    }
