"""What a run keeps of prompts that went wrong, in its folder: completions on which a reward function failed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from medr1_ray.base.append_log import AppendLog
from medr1_ray.rewards.functions import RewardError
from medr1_ray.types import Prompt


class Incidents:
    """Writes them below `folder`, the run's; nothing is there before the first."""

    def __init__(self, folder: Path) -> None:
        self._reward_errors = folder / "reward_errors.jsonl"

    def reward_error(self, prompt: Prompt, error: RewardError) -> Path:
        """Append the function, the question and the completion; returns the file."""
        row = {
            "prompt_id": prompt.id,
            "function": error.function,
            "error": str(error),
            "completion": error.completion,
            "question": asdict(prompt.question),
        }
        AppendLog(self._reward_errors).append([row])
        return self._reward_errors
