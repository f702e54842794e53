"""Names that stand for nothing: refused in one line, before a library that takes seconds is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from command_list import COMMANDS
from paths import ROOT

from riebench.cli import names
from riebench.cli.names import (
    BASELINE_WORDS,
    CHECKS,
    DEVICE_WORDS,
    ENGINE_WORDS,
    KIND_WORDS,
    RECIPE_WORDS,
    REDO_WORDS,
    SIGNAL_WORDS,
)
from riebench.errors import RiebenchError
from riebench.saes.sae import Signal

NO_NAMES = {
    # Places that are written, or read and written.
    "results", "out", "work", "config", "runs", "json_file", "document", "push_to",
    # Numbers, lists of numbers, parts of a run, addresses; each is parsed before anything else is done.
    "seeds", "edit_steps", "batch_size", "shard", "address", "index", "strengths", "k", "width", "steps",
    # What only the data set that is read can tell.
    "dataset_config", "revision", "split", "column", "category", "mapped", "name", "names", "first", "second",
    # Read together with the suite, when the job is planned; options of a file.
    "examples", "version", "log_level",
    # A licence has any name, and so have SAEs; their name is checked when the job is planned.
    "licence", "sae_name",
}  # fmt: skip

VERBS = [("run",), ("doctor",), ("score",), *(words for words in COMMANDS if words[0] == "sae")]

WRONG = {
    "run nope": "unknown configuration 'nope'",
    "run mine.yaml": "there is no file mine.yaml",
    "run --settings-set swep": "(did you mean 'sweep'?)",
    "run --suite tyo": "(did you mean 'toy'?)",
    "run --categories change_colour": "(did you mean 'change_color'?)",
    "run --model toy-trubo": "(did you mean 'toy-turbo'?)",
    "run --model /nope": "no model '/nope'",
    "run --dtype fp16": "--dtype 'fp16' (did you mean 'float16'?)",
    "run --dtype BF16": "(did you mean 'bfloat16'?)",
    "run --device cdua": "--device 'cdua' (did you mean 'cuda'?)",
    "run --device gpu": "(did you mean 'cuda'?)",
    "run --offload modell": "(did you mean 'model'?)",
    "run --attention flsh": "(did you mean 'flash'?)",
    "run --redo al": "(did you mean 'all'?)",
    "run --engine rya": "(did you mean 'ray'?)",
    "run --profile papre": "(did you mean 'paper'?)",
    "run --regions atention": "(did you mean 'attention'?)",
    "run --scorer clip-l15": "(did you mean 'clip-l14'?)",
    "run --weights din=x": "(did you mean 'dino'?)",
    "run --weights dino=/nope": "there is no /nope",
    "run --sae /nope": "no SAE folder /nope",
    "run --sae /nope#k=3": "no SAE folder /nope",
    "run --blocks mid.9": "toy-turbo has no block mid.9 (did you mean 'mid.0'?)",
    "run --blocks mid.0,up.0": "unknown block 'up.0' (did you mean 'up.0.0' or 'up.0.1' or 'up.0.2'?)",
    "run --unet /nope.safetensors": "--unet /nope.safetensors: there is no such file",
    "run --lora /nope.safetensors:2": "there is no such file",
    "run --vae nope": "--vae 'nope': there is no such folder",
    "run --single-file-config nope": "--single-file-config 'nope'",
    "doctor --dtype fp16": "(did you mean 'float16'?)",
    "score --metrics clip_gian": "(did you mean 'clip_gain'?)",
    "score --suite tyo": "(did you mean 'toy'?)",
    "score --results nope": "nope holds no runs",
    "leaderboard --verify nope": "--verify nope: cannot be read",
    "export --format cvs": "(did you mean 'csv'?)",
    "sae inspect /nope": "no SAE folder /nope",
    "sae inspect . --model toy-trubo": "(did you mean 'toy-turbo'?)",
    "sae inspect . --mapping nope": "--mapping nope",
    "sae feature mid.9 1": "toy-turbo has no block mid.9",
    "sae feature mid.0 1 --prompts nope": "--prompts nope: cannot be read",
    "sae card --model toy-turbo,toy-trubo": "(did you mean 'toy-turbo'?)",
    "sae card /nope --model toy-turbo": "no SAE folder /nope",
    "sae card --model toy-turbo --seeds-of /nope": "no SAE folder /nope",
    "sae stability . /nope": "no SAE folder /nope",
    "sae collect --model toy-turbo --blocks mid.9": "toy-turbo has no block mid.9",
    "sae collect --model toy-turbo --dataset nope": "there is no nope here, and it is no hub id",
    "sae train nope": "there is no folder nope; `riebench sae collect` makes it",
    "sae collect --model toy-turbo --signal update,ouput": "--signal 'ouput' (did you mean 'output'?)",
    "sae train . --signal input": "--signal 'input'",
    "sae train . --kind tpok": "(did you mean 'topk'?)",
    "sae baselines out --activations nope": "there is no folder nope; `riebench sae collect` makes it",
    "sae baselines out --kinds pca,neuron": "--kinds 'neuron' (did you mean 'neurons'?)",
    "sae baselines out --like nope": "--like nope: there is no such folder",
    "sae speed --kind tpok": "(did you mean 'topk'?)",
    "tasks check tyo": "(did you mean 'toy'?)",
    "tasks import riebench nope.json": "file nope.json: cannot be read",
}
"""Command line -> what its one line says."""

PROGRAM = """
import contextlib, io, json, sys
from riebench.cli.main import main
found = []
for line in json.loads(sys.argv[1]):
    sys.argv = ["riebench", *line.split()]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code
    heavy = {"torch", "diffusers", "transformers", "pandas", "open_clip"} & {*sys.modules}
    found.append([line, status, out.getvalue(), err.getvalue(), sorted(heavy)])
print(json.dumps(found))
"""


def test_every_wrong_name_is_refused_in_one_line_before_heavy_imports(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", PROGRAM, json.dumps([*WRONG])]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words, status, out, error, heavy in json.loads(done.stdout):
        assert (status, out, len(error.splitlines())) == (2, "", 1), (words, error)
        assert WRONG[words] in error and error.startswith("riebench: "), (words, error)
        assert heavy == [], words
    assert list(tmp_path.iterdir()) == []


def test_every_option_that_names_something_is_checked() -> None:
    """A new option of these commands gets a check, or is listed here as no name; and every check has a wrong name."""
    for words in VERBS:
        for one in COMMANDS[words].params:
            text = getattr(one, "is_flag", False) is False and one.name != "help"
            numeric = "range" in str(getattr(one, "type", "")).lower() or isinstance(one.default, int | float)
            if text and not numeric and str(one.name) not in NO_NAMES:
                known = str(one.name) in CHECKS or _is_number(words, str(one.name))
                assert known, f"{' '.join(words)}: {one.name}"


def _is_number(words: tuple[str, ...], name: str) -> bool:
    """Whether a command takes a number there, as its function says."""
    from inspect import signature

    callback: Any = COMMANDS[words].callback
    annotation = signature(callback, eval_str=True).parameters[name].annotation
    return "int" in str(annotation) or "float" in str(annotation)


def test_the_words_are_those_of_the_parts_that_use_them() -> None:
    from riebench.jobs.request import ENGINES
    from riebench.store.folder import REDO_MODES
    from riebench.training.baselines import BASELINES
    from riebench.training.collection import TENSORS
    from riebench.training.settings import KINDS, RECIPES

    assert (REDO_WORDS, ENGINE_WORDS, KIND_WORDS, RECIPE_WORDS) == (REDO_MODES, ENGINES, KINDS, RECIPES)
    assert BASELINE_WORDS == BASELINES
    assert (*TENSORS,) == SIGNAL_WORDS and SIGNAL_WORDS[:2] == get_args(Signal)


@pytest.mark.parametrize("device", [*DEVICE_WORDS, "cuda:0", "cuda:12"])
def test_devices_that_may_be_named(device: str) -> None:
    CHECKS["device"](device, {})
    with pytest.raises(RiebenchError, match="--device"):
        CHECKS["device"](f"{device}x", {})


def test_right_names_pass(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n")
    right: dict[str, Any] = {
        "suite": "toy", "settings": ["sae", "no_edit"], "settings_set": "main", "categories": "change_color",
        "model": "someone/model@main", "dtype": "float16", "offload": "model", "attention": "math", "redo": "errors",
        "engine": "ray", "profile": "paper", "regions": "grounded-sam", "scorer": ["clip-l14", "siglip2-b16"],
        "blocks": "mid.0, down_blocks.2.attentions.1", "edit_steps": None, "sae": str(tmp_path), "vae": "fp16-fix",
        "single_file_config": "sdxl-base", "metrics": "lpips, clip_gain", "prompts": file,
        "dataset": "owner/name", "kind": "topk",
    }  # fmt: skip
    names.check_names("run", right)
    for word in ("each", "together", "both"):
        names.check_names("run", {"blocks": word, "edit_steps": None})
    # A file of options may name the suite and the model that these words belong to.
    named = {"config": file, "suite": "toy", "settings_set": "main", "settings": ["sae_k160"], "blocks": "up.2.9"}
    names.check_names("run", named)
    with pytest.raises(RiebenchError, match="unknown block 'each'"):
        names.check_names("train_saes", {"blocks": "each"})
