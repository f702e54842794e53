"""Kills the main job at random moments, repeats it, and compares what is there in the end with an undisturbed run.

    python -m benchmarks.crash --kills 200

Every trial starts with an empty folder and repeats `riebench run` (pictures, scores, tables, leaderboard, page) until
it comes to its end, killing it with SIGKILL at random moments up to four times a trial. Then every file is compared
with those of a run that nobody disturbed: byte for byte, but for what a clock says. A unit or a score that is there
twice was made twice. Runs are forked from one process that has imported and loaded everything, so that a trial takes
seconds. Trials are seeded by their number and logged; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from riebench.job import Job
from riebench.seal import broken_seals, unsealed_lines

PHASES = ("run", "score", "tables", "report")
"""What a kill may hit: pictures, scores, tables with leaderboard and galleries, and the page."""
PATIENCE = 900.0
"""Seconds after which a run counts as hanging."""
OPERATIONS = ("fsync", "replace", "link")
"""Calls of `os` by which anything comes to the disk."""

MakeJob = Callable[[Path], Job]
"""A job that writes all it writes below a folder."""


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Attributes:
        operation: before the so many-th call of one of `OPERATIONS`; None for a moment of the clock.
        phase: a moment of the clock in this phase,
        delay: so many seconds after its beginning.
    """

    operation: int | None = None
    phase: str = PHASES[0]
    delay: float = 0.0


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        killed: by us; otherwise it came to its end.
        operations: how many of `OPERATIONS` it made, if it came to its end.
        seconds: phase -> how long it took, as far as it got.
    """

    killed: bool
    operations: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def run(job: Job, moment: Moment | None = None) -> Ending:
    """Runs a job in a process of its own, and kills it at a moment.

    Args:
        job: what to run.
        moment: when; None lets it finish.

    Raises:
        AssertionError: if it fails by itself or hangs.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _perform(job, writer, moment)
    os.close(writer)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        return _watch(process, reader, moment)


def _perform(job: Job, writer: int, moment: Moment | None) -> None:
    """The child's part: never returns."""
    code = 1
    try:
        import torch
        from tqdm import tqdm

        # Threads do not survive a fork; with one alone none are asked for.
        torch.set_num_threads(1)
        # The bars' own lock is shared by all forks: whoever is killed holding it would stop all later ones.
        tqdm.set_lock(threading.RLock())
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
            count = _count_operations(stack, None if moment is None else moment.operation)
            for phase, place in _BEGINNINGS.items():
                stack.enter_context(_marked(phase, place, writer))
            os.write(writer, b"begins run\n")
            job.run(lambda _: None)
            os.write(writer, f"ends {count[0]}\n".encode())
        code = 0
    except BaseException:
        os.write(writer, ("fails " + traceback.format_exc()).encode()[:60000])
    finally:
        os._exit(code)


_BEGINNINGS = {
    "score": "riebench.scoring.score", "tables": "riebench.job.write_tables", "report": "riebench.job.say_page",
}  # fmt: skip


@contextlib.contextmanager
def _marked(phase: str, place: str, writer: int) -> Iterator[None]:
    from pydoc import locate

    original: Any = locate(place)

    def begin(*args: Any, **options: Any) -> Any:
        os.write(writer, f"begins {phase}\n".encode())
        return original(*args, **options)

    with patch(place, begin):
        yield


def _count_operations(stack: contextlib.ExitStack, last: int | None) -> list[int]:
    count = [0]
    for name in OPERATIONS:
        original: Callable[..., Any] = getattr(os, name)

        def counted(*args: Any, _original: Callable[..., Any] = original, **options: Any) -> Any:
            count[0] += 1
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return _original(*args, **options)

        stack.enter_context(patch.object(os, name, counted))
    return count


def _watch(process: int, reader: int, moment: Moment | None) -> Ending:
    text = ""
    began: dict[str, float] = {}
    kill_at: float | None = None
    while True:
        wait = PATIENCE if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select([reader], [], [], min(wait, PATIENCE))
        now = time.monotonic()
        if not ready:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            assert kill_at is not None, f"nothing was heard for {PATIENCE:g} s: {text}"
            return Ending(True, seconds=_durations(began, now))
        data = os.read(reader, 65536)
        text += data.decode(errors="replace")
        for phase in re.findall(r"begins (\w+)\n", text):
            if phase not in began:
                began[phase] = now
                if moment is not None and moment.operation is None and moment.phase == phase:
                    kill_at = now + moment.delay
        if not data:
            break
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return Ending(True, seconds=_durations(began, now))
    ended = re.search(r"ends (\d+)\n", text)
    assert ended is not None, f"the run failed by itself: {text}"
    return Ending(False, int(ended[1]), _durations(began, now))


def _durations(began: dict[str, float], end: float) -> dict[str, float]:
    times = [*began.values(), end]
    return {phase: times[index + 1] - times[index] for index, phase in enumerate(began)}


def snapshot(place: Path) -> dict[str, bytes]:
    """The whole lines of all records and scores below a folder."""
    found = {}
    for file in sorted(place.rglob("*.jsonl")):
        data = file.read_bytes()
        found[str(file.relative_to(place))] = data[: data.rfind(b"\n") + 1]
    return found


def lost(before: dict[str, bytes], place: Path) -> list[str]:
    """Files whose recorded lines are not all there any more."""
    now = snapshot(place)
    return [name for name, data in before.items() if not now.get(name, b"").startswith(data)]


def differences(place: Path, reference: Path) -> list[str]:
    """What tells a folder from that of an undisturbed run, one line each; clocks and their hashes apart.

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
    for file in sorted(place.rglob("seal.json")):
        found += broken_seals(file.parent)
        found += [f"{file.parent.name}: lines without a seal"] if unsealed_lines(file.parent) else []
    return found


def _identity(line: dict[str, Any]) -> str:
    named = line["key"] if "key" in line else [line["unit"], line["metric"], line.get("backbone")]
    return json.dumps(named, sort_keys=True)


def _contents(place: Path) -> dict[str, bytes]:
    found = {}
    for file in sorted(place.rglob("*")):
        name = str(file.relative_to(place))
        if file.is_file() and not file.name.startswith(".lock") and file.name != "seal.json":
            data = file.read_bytes()
            if file.name == "records.jsonl":
                data = re.sub(rb'"seconds":[-+.0-9e]+,?', b"", data)
            elif file.name == "run.json":
                meta = json.loads(data)
                # When it began, and the state of a checkout that may be worked on meanwhile.
                meta["provenance"] = {k: v for k, v in meta["provenance"].items() if k not in ("started", "git")}
                data = json.dumps(meta).encode()
            found[name] = data
    return found


@dataclass
class Trials:
    """Trials of one job.

    Attributes:
        make: the job.
        root: where trials and the undisturbed run write.
        by: what decides the moment: "clock" or "operation".
        seed: of the moments.
        kills: of one trial, at most.
        whole: the undisturbed run, once it is made.
    """

    make: MakeJob
    root: Path
    by: str = "clock"
    seed: int = 0
    kills: int = 4
    whole: Ending | None = None

    @property
    def reference(self) -> Path:
        """The undisturbed run's folder."""
        return self.root / "undisturbed" / "work"

    def prepare(self) -> Ending:
        """Makes the undisturbed run."""
        shutil.rmtree(self.reference.parent, ignore_errors=True)
        self.whole = run(self.make(self.reference))
        return self.whole

    def trial(self, number: int) -> dict[str, Any]:
        """One trial: in which phases it was killed, and what is wrong in the end.

        Args:
            number: of the trial; decides the moments.
        """
        chance = random.Random(f"{self.seed}:{number}")
        place = self.root / f"trial-{number}" / "work"
        shutil.rmtree(place.parent, ignore_errors=True)
        done, wrong = [], []
        # In the order of the phases: what a later one was killed in has nothing left for the earlier ones.
        for moment in sorted(
            (self._moment(chance) for _ in range(self.kills)), key=lambda one: PHASES.index(one.phase)
        ):
            before = snapshot(place)
            ending = run(self.make(place), moment)
            wrong += [f"{name} lost lines" for name in lost(before, place)]
            if not ending.killed:
                break
            done.append(list(ending.seconds)[-1])
        before = snapshot(place)
        run(self.make(place))
        wrong += [f"{name} lost lines" for name in lost(before, place)] + differences(place, self.reference)
        if not wrong:
            shutil.rmtree(place.parent)
        return {"trial": number, "killed": done, "wrong": wrong}

    def _moment(self, chance: random.Random) -> Moment:
        assert self.whole is not None, "call prepare() first"
        if self.by == "operation":
            return Moment(operation=chance.randint(1, self.whole.operations))
        phase = chance.choice(PHASES)
        return Moment(phase=phase, delay=chance.uniform(0, self.whole.seconds[phase]))


def toy_job(place: Path) -> Job:
    """Two examples and three settings on the toy model in one step, one picture at a time.

    In larger batches a resumed run shares its calls with other pictures, which moves a number by rounding.
    """
    suite = place.parent / "mine"
    if not suite.is_dir():
        suite.mkdir(parents=True)
        (suite / "change_color.yaml").write_text(_TASK, encoding="utf-8")
        (suite / "few.yml").write_text(_SETTING, encoding="utf-8")
    return Job(
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
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--by", choices=["clock", "operation"], default="clock")
    parser.add_argument("--log", type=Path, default=Path("crash.jsonl"), help="what was done; continued if it is there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "crash.json")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="riebench-crash-") as root:
        trials = Trials(toy_job, Path(root), chosen.by, chosen.seed)
        _warm(Path(root))
        whole = trials.prepare()
        print(f"undisturbed: {whole.operations} disk operations, {sum(whole.seconds.values()):.1f} s", file=sys.stderr)
        told = _continued(trials, chosen)
    wrong = [one for one in told if one["wrong"]]
    print(f"{sum(len(one['killed']) for one in told)} kills in {len(told)} trials, {len(wrong)} wrong; {chosen.out}")
    return 1 if wrong else 0


def _warm(root: Path) -> None:
    """Loads everything once in this process, so that its children need not."""
    import torch

    from riebench.recipe import ModelRecipe

    torch.set_num_threads(1)
    job = toy_job(root / "warm" / "work")
    loaded = ModelRecipe(str(job.model), job.steps, job.guidance, job.dtype, "cpu", False, job.options, job.profile)
    model = loaded.load()
    # The children's model is the one that is loaded here.
    patch.object(ModelRecipe, "load", lambda _: model).start()
    with contextlib.redirect_stdout(sys.stderr):
        job.run(lambda _: None)


def _continued(trials: Trials, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Trials until there are enough kills, those of the log included; the summary is written after each."""
    log: Path = chosen.log
    told = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        while True:
            assert trials.whole is not None
            summary = json.dumps(_summary(told, trials.whole, chosen), indent=1)
            chosen.out.write_text(summary + "\n", encoding="utf-8")
            if sum(len(one["killed"]) for one in told) >= chosen.kills:
                return told
            told.append(trials.trial(len(told)))
            file.write(json.dumps(told[-1]) + "\n")
            file.flush()
            print(f"{sum(len(one['killed']) for one in told)}/{chosen.kills} {told[-1]}", file=sys.stderr)


def _summary(told: list[dict[str, Any]], whole: Ending, chosen: argparse.Namespace) -> dict[str, Any]:
    from riebench.provenance import package_versions

    phases = Counter(phase for one in told for phase in one["killed"])
    return {
        "kills": phases.total(),
        "trials": len(told),
        "killed_in": {phase: phases[phase] for phase in PHASES},
        "wrong": [one for one in told if one["wrong"]],
        "moments_by": chosen.by,
        "seed": chosen.seed,
        "undisturbed": {
            "disk_operations": whole.operations,
            "seconds": {k: round(v, 3) for k, v in whole.seconds.items()},
        },
        "versions": package_versions(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
