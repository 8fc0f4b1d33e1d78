"""Recorded groups are read back as they were, and nothing else is taken for one."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from medr1_ray.records.recorded_groups import (
    _ARRAYS,
    read_groups,
    recorded_steps,
    write_demonstrations,
    write_groups,
)
from tests.unit.records.recorded import a_group


def same(one: Any, other: Any) -> bool:
    if is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
        )
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return bool(one == other)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    group = a_group()
    groups = [group, replace(group, advantages=np.full_like(group.advantages, np.inf))]
    assert write_groups(tmp_path / "recorded", 12, groups).name == "step-000012.safetensors"
    found = read_groups(tmp_path / "recorded", 12)
    assert all(same(one, other) for one, other in zip(groups, found, strict=True))
    write_groups(tmp_path / "recorded", 1_000_001, groups)
    assert recorded_steps(tmp_path / "recorded") == [12, 1_000_001]


def test_demonstrations_are_whole_and_not_taken_for_groups(tmp_path: Path) -> None:
    group = a_group()
    demonstrations = [(group.prompt, group.completions), (replace(group.prompt, id="e0/q2"), group.completions)]
    path = write_demonstrations(tmp_path / "recorded", 12, demonstrations)
    with safe_open(path, "np") as file:
        told = json.loads(file.metadata()["demonstrations"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert [each["id"] for each in told] == ["e0/q1", "e0/q2"]
    assert told[1]["text"] == "<answer>B</answer>"
    assert told[0]["question"]["options"] == ["CT", "MRI"]
    for i, (prompt, target) in enumerate(demonstrations):
        assert np.array_equal(arrays[f"{i}/prompt_token_ids"], prompt.token_ids)
        assert np.array_equal(arrays[f"{i}/image"], prompt.image)
        assert np.array_equal(arrays[f"{i}/token_ids"], target.token_ids)
    assert recorded_steps(tmp_path / "recorded") == []


def test_a_step_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    for step in (3, 4):
        write_groups(tmp_path, step, [a_group()])
    with pytest.raises(ValueError, match=r"no groups of step 5 are recorded there \(it has 2 steps, 3 to 4\)"):
        read_groups(tmp_path, 5)
    with pytest.raises(ValueError, match="it has none"):
        read_groups(tmp_path / "nowhere", 1)


@pytest.mark.parametrize("name", _ARRAYS)
def test_arrays_of_another_kind_or_shape_are_refused(tmp_path: Path, name: str) -> None:
    path = write_groups(tmp_path, 1, [a_group()])
    whole, told = load_file(path), json.dumps([])
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        told = file.metadata()["groups"]
    array = whole[f"0/{name}"]
    other = np.float64 if array.dtype != np.float64 else np.int8
    for changed in (array.astype(other), array[None], array[:0], np.concatenate([array, array])):
        alike = changed.dtype == array.dtype and changed.ndim == array.ndim and changed.size > 0
        if alike and name in ("prompt_token_ids", "image"):
            continue  # another prompt, which is one as well
        save_file({**whole, f"0/{name}": changed}, path, {"groups": told})
        with pytest.raises(ValueError, match=r"step-000001\.safetensors: no recorded groups that can be used"):
            read_groups(tmp_path, 1)
    del whole[f"0/{name}"]
    save_file(whole, path, {"groups": told})
    with pytest.raises(ValueError, match="no recorded groups that can be used"):
        read_groups(tmp_path, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3},
        {"actor": None},
        {"texts": ["one"]},
        {"texts": "ab" * 50},
        {"answers": ["a word"] * 2},
        {"visual_tokens": 0},
        {"visual_tokens": True},
        {"names": []},
        {"spans": []},
        {"spans": [{}, {}]},
        {"question": {}},
        {"question": None},
        {"extra": 1, "question": {"options": ["a"]}},
    ],
)
def test_what_is_told_of_a_group_is_checked(tmp_path: Path, change: dict[str, Any]) -> None:
    from safetensors import safe_open

    path = write_groups(tmp_path, 1, [a_group()])
    with safe_open(path, "np") as file:
        (told,) = json.loads(file.metadata()["groups"])
    save_file(load_file(path), path, {"groups": json.dumps([{**told, **change}])})
    with pytest.raises(ValueError, match="no recorded groups that can be used"):
        read_groups(tmp_path, 1)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_groups(tmp_path, 1, [a_group()])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="no recorded groups that can be used"):
        read_groups(tmp_path, 1)


def test_any_bytes_are_groups_or_refused(tmp_path: Path) -> None:
    path = write_groups(tmp_path, 1, [a_group()])
    content, random = path.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(500):
        changed = bytearray(content)
        for at in random.integers(0, header, random.integers(1, 4)):
            changed[at] = random.integers(0, 256)
        path.write_bytes(changed)
        with suppress(ValueError):  # any other error fails the test
            read_groups(tmp_path, 1)
