"""What a run keeps of prompts that went wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medr1_ray.pool.incidents import Incidents
from medr1_ray.rewards.functions import RewardError
from tests.faults.files import full
from tests.unit.pool.world import QUESTION, Encoder


def unexpected(line: str) -> None:
    raise AssertionError(line)


def test_completions_on_which_a_reward_function_failed_are_kept_whole(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path, unexpected)
    assert list(tmp_path.iterdir()) == [], "nothing before the first"
    prompt = Encoder().encode(QUESTION, "3.0:q")
    for text in ("<answer>\u2028A", "second"):
        file = incidents.reward_error(prompt, RewardError("'mine' raised", "mine", text))
    rows = [json.loads(line) for line in file.read_bytes().decode().strip().split("\n")]
    assert [row["completion"] for row in rows] == ["<answer>\u2028A", "second"]
    assert rows[0]["prompt_id"] == "3.0:q"
    assert rows[0]["question"]["options"] == ["CT", "MRI"]


def test_a_prompt_that_is_put_aside_is_kept_with_its_image_and_passed_over_by_its_question(tmp_path: Path) -> None:
    question = replace(QUESTION, id="../images/a b.png#3" + "x" * 300)
    prompt = replace(Encoder().encode(question, "3.0:q"), image=np.full((4, 6, 3), 9, np.uint8))
    incidents = Incidents(tmp_path, unexpected)
    assert not incidents.passes_over(prompt)
    folder = incidents.put_aside(prompt, ["rollout-1: died", "rollout-2: died"])
    assert folder.parent == tmp_path / "set_aside"
    assert len(folder.name) < 150
    assert np.array_equal(np.asarray(Image.open(folder / "image.png")), prompt.image)
    record = json.loads((folder / "question.json").read_text())
    assert (record["prompt_id"], record["text"], record["token_ids"]) == ("3.0:q", "Which? A)CT, B)MRI", [0, 0, 0, 0])
    assert record["deaths"] == ["rollout-1: died", "rollout-2: died"]
    later = replace(prompt, id="7.2:q")
    for each in (incidents, Incidents(tmp_path, unexpected)):  # and in a resumed run
        assert each.passes_over(later)
        assert not each.passes_over(Encoder().encode(QUESTION, "q"))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"question": 3}'])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "set_aside" / "q" / "question.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(ValueError, match=r"set_aside/q/question\.json is not the record .* remove its folder to ask"):
        Incidents(tmp_path, unexpected)


def test_a_full_disk_costs_the_record_and_not_the_run(disk: Path) -> None:
    said: list[str] = []
    incidents, prompt = Incidents(disk, said.append), Encoder().encode(QUESTION, "3.0:q")
    with full(disk):
        incidents.reward_error(prompt, RewardError("'mine' raised", "mine", "x" * 5000))
        incidents.put_aside(prompt, ["died" * 2000])
    assert [line.partition(": No space left on device. The run goes on")[0] for line in said] == [
        f"NOT WRITTEN: {disk / 'reward_errors.jsonl'}",
        f"NOT WRITTEN: {disk / 'set_aside' / 'q'}",
    ]
    assert incidents.passes_over(prompt), "as long as this run goes on"
    incidents.reward_error(prompt, RewardError("'mine' raised", "mine", "second"))
    (row,) = map(json.loads, (disk / "reward_errors.jsonl").read_text().splitlines())
    assert row["completion"] == "second"
