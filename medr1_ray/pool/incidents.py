"""What a run keeps of prompts that went wrong, in its folder: those that end engines, and completions on which a reward
function failed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from medr1_ray.base.append_log import NO_ROOM, AppendLog
from medr1_ray.base.atomic_files import write_text
from medr1_ray.rewards.functions import RewardError
from medr1_ray.types import Prompt, pixels_of

SET_ASIDE = "set_aside"
_LONGEST_NAME = 100
# For each question that is set aside, since one may come several times in an epoch. Any other comes in between.
_MOST_PASSED_OVER = 100


class Incidents:
    """Reads and writes them below `folder`, the run's; nothing is there before the first.

    Questions that were put aside are passed over from then on, in a resumed run too. Their record is all that says so:
    a question is asked again once its folder is gone. A record for which the disk has no room is left out, and `say`
    is told.

    Raises:
        ValueError: a record cannot be read.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._say = say
        self._reward_errors = folder / "reward_errors.jsonl"
        self._folder = folder / SET_ASIDE
        self._aside = {_question_id(file) for file in self._folder.glob("*/question.json")}
        self._passed_over_in_a_row = 0

    def reward_error(self, prompt: Prompt, error: RewardError) -> Path:
        """Append the function, the question and the completion; returns the file."""
        row = {
            "prompt_id": prompt.id,
            "function": error.function,
            "error": str(error),
            "completion": error.completion,
            "question": asdict(prompt.question),
        }
        with self._room_for(self._reward_errors):
            AppendLog(self._reward_errors).append([row])
        return self._reward_errors

    def passes_over(self, prompt: Prompt) -> bool:
        """Whether this prompt's question was put aside.

        Raises:
            ValueError: that holds for so many in a row that there can be no others.
        """
        if prompt.question.id not in self._aside:
            self._passed_over_in_a_row = 0
            return False
        self._passed_over_in_a_row += 1
        if self._passed_over_in_a_row > _MOST_PASSED_OVER * len(self._aside):
            raise ValueError(f"all questions of this run are set aside; {self._folder} says why")
        return True

    def put_aside(self, prompt: Prompt, deaths: Sequence[str]) -> Path:
        """Record a prompt that ended engines, with its image as the engines got it; returns the folder."""
        from PIL import Image

        folder = self._folder / _folder_name(prompt.question.id)
        record = {
            "prompt_id": prompt.id,
            "deaths": list(deaths),
            "text": prompt.question.text,
            "question": asdict(prompt.question),
            "token_ids": prompt.token_ids.tolist(),
        }
        self._aside.add(prompt.question.id)
        with self._room_for(folder):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels_of(prompt.image)).save(folder / "image.png")
            # Last, because it makes the question one that is set aside in a resumed run too.
            write_text(folder / "question.json", json.dumps(record, indent=1))
        return folder

    @contextmanager
    def _room_for(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._say(f"NOT WRITTEN: {path}: {os.strerror(error.errno)}. The run goes on; this record is lost")


def _folder_name(question_id: str) -> str:
    # Without slashes and dots in front; shortened ones stay different from each other.
    name = quote(question_id, safe=" ").replace(".", "%2E")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.blake2b(question_id.encode(), digest_size=6).hexdigest()}"


def _question_id(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["question"]["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not the record of a question that was set aside ({type(error).__name__}: {error}); restore it, "
            "or remove its folder to ask the question again"
        ) from None
