"""What a run keeps of prompts that went wrong."""

from __future__ import annotations

import json
from pathlib import Path

from medr1_ray.pool.incidents import Incidents
from medr1_ray.rewards.functions import RewardError
from tests.unit.pool.world import QUESTION, Encoder


def test_completions_on_which_a_reward_function_failed_are_kept_whole(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing before the first"
    prompt = Encoder().encode(QUESTION, "3.0:q")
    for text in ("<answer>\u2028A", "second"):
        file = incidents.reward_error(prompt, RewardError("'mine' raised", "mine", text))
    rows = [json.loads(line) for line in file.read_bytes().decode().strip().split("\n")]
    assert [row["completion"] for row in rows] == ["<answer>\u2028A", "second"]
    assert rows[0]["prompt_id"] == "3.0:q"
    assert rows[0]["question"]["options"] == ["CT", "MRI"]
