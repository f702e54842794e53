"""Tests of the types of task and setting files."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError
from records import make_key, make_spec

from riebench.blocks import block_set_blocks, block_set_name
from riebench.errors import RiebenchError
from riebench.models.families.sdxl.names import BLOCKS
from riebench.registry import METHODS, Registry
from riebench.store.records import EditRecord, ScoreRecord, noise_seed
from riebench.tasks.schema import CATEGORIES, EditExample, Setting
from riebench.utils.files import canonical_json

PINNED_RUN_ID = "04cb579520f130935e7172a223df45ec050c25c9c42db50d64a0a3f237bdf35a"
PINNED_DIGEST = "692343990781f75a1d25"


def test_identity_is_pinned() -> None:
    # If this fails, every stored run becomes another run: raise SPEC_VERSION and say so, or undo the change.
    assert make_spec().run_id == PINNED_RUN_ID
    assert make_key().digest == PINNED_DIGEST
    assert noise_seed("e1", 0) == 8_378_783_267_573_842_406


def test_identity_holds_what_moves_numbers() -> None:
    base = make_spec().run_id
    moving: list[dict[str, Any]] = [
        {"steps": 1},
        {"params": {"n_features": 21}},
        {"method": "neurons"},
        {"blocks": ("mid.0",)},
        {"block_mode": "each"},
    ]
    assert len({base, *(make_spec(**change).run_id for change in moving)}) == len(moving) + 1
    still: list[dict[str, Any]] = [
        {"name": "other"},
        {"strengths": (1.0, 2.0)},
        {"description": "words"},
        {"access": "P"},
    ]
    assert {make_spec(**change).run_id for change in still} == {base}


def test_canonical_json_has_one_text_for_one_value() -> None:
    assert canonical_json({"b": 2.0, "a": [1, True, None]}) == '{"a":[1,true,null],"b":2}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_unit_digest_moves_with_every_field() -> None:
    others = {
        "task": "t",
        "task_version": 2,
        "category": "change_pose",
        "example_id": "e2",
        "example_hash": "1" * 16,
        "block_set": "mid.0",
        "strength": 2.0,
        "seed": 1,
    }
    assert len({make_key().digest, *(make_key(**{k: v}).digest for k, v in others.items())}) == len(others) + 1


def test_example_hash_ignores_id_and_cluster_only() -> None:
    one = EditExample(id="a", source="a cat", target="a dog")
    assert one.content_hash == EditExample(id="b", source="a cat", target="a dog", cluster="c").content_hash
    assert one.content_hash != EditExample(id="a", source="a cat", target="a dog", source_region="cat").content_hash


def test_block_sets_and_their_names() -> None:
    setting = Setting(name="s", method="sae", block_mode="both")
    names = [block_set_name(blocks) for blocks in setting.block_sets]
    assert names == [*BLOCKS, "all"]
    assert [block_set_blocks(name) for name in names] == list(setting.block_sets)
    assert block_set_name(("mid.0", "up.0.0")) == "mid.0+up.0.0"
    assert block_set_blocks(block_set_name(())) == ()
    assert Setting(name="s", method="no_edit", blocks=()).block_sets == ((),)


def test_nine_categories_in_order() -> None:
    assert list(CATEGORIES.values()) == list(range(1, 10))


def test_records_say_why_something_is_missing() -> None:
    with pytest.raises(ValidationError, match="needs a reason"):
        EditRecord(key=make_key(), status="error")
    with pytest.raises(ValidationError, match="needs image"):
        EditRecord(key=make_key(), status="ok")
    with pytest.raises(ValidationError, match="needs a reason"):
        ScoreRecord(unit="u", metric="lpips", version=1)
    with pytest.raises(ValidationError, match="finite"):
        ScoreRecord(unit="u", metric="lpips", version=1, value=float("nan"))


def test_registry_answers_with_near_matches() -> None:
    with pytest.raises(RiebenchError, match="unknown method 'neuron' \\(did you mean 'neurons'\\?\\)"):
        METHODS.get("neuron")
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("one")(2)
    registry.register_lazy("tau", "math:tau")
    assert registry.get("tau") == pytest.approx(6.2831853)
    assert registry.names() == ("one", "tau")


def test_schema_and_registry_need_no_torch() -> None:
    modules = "riebench.tasks.schema, riebench.registry, riebench.tasks.suites, riebench.cli.main"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
