"""An evaluation on disk: run every pass, write each answer as it arrives, and resume after an interruption.

    <out>/ settings.json  questions.jsonl  answers/<pass>.jsonl  pass_rates.jsonl  report.json  report.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from medr1_ray.base.append_log import AppendLog
from medr1_ray.base.json_files import read_mapping, read_rows
from medr1_ray.base.signs_of_life import repeating
from medr1_ray.data.encoding import Refused
from medr1_ray.evaluation.passes import IMAGE, Engines, Pass, Row
from medr1_ray.types import Prompt, Question

CHUNK = 256
"""Questions per chunk. The images of two chunks are in memory: one is being answered while the next is read."""

_KEYS = ("id",)  # of every line of answers
_ANOTHER = "give another --out, or delete that folder"

SETTINGS = "settings.json"


def require_own(path: Path) -> None:
    """Raise ValueError for a folder with files of others, which an evaluation would lie among."""
    names = {found.name for found in path.iterdir()} if path.exists() else set()
    # Without settings.json, which is written last, it may have been cut short.
    if SETTINGS not in names and (others := names - {"questions.jsonl", "logs"}):
        raise ValueError(
            f"--out {path} holds files that are not of an evaluation, e.g. {min(others)}; give a new folder, or that "
            "of an evaluation"
        )


class EvaluationFolder:
    """The folder of one evaluation.

    Args:
        path: the folder, which need not exist.
        settings: identify the evaluation; a folder with other settings is refused.
        questions: all questions, in order.

    Raises:
        ValueError: the folder holds another evaluation.
    """

    def __init__(self, path: Path, settings: dict[str, Any], questions: Sequence[Question]) -> None:
        self.path = path
        self.questions = questions
        file = path / SETTINGS
        if file.exists():
            require_same(path, settings, all_of_them=True)
        else:
            path.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions]
            (path / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
            file.write_text(json.dumps(settings, indent=1))  # last: it marks the folder as initialised

    def answers(self, name: str) -> Answers:
        """Return the answers of a pass so far."""
        return read_answers(self.path, name)

    def run(self, engines: Engines, each: Pass) -> None:
        """Ask the questions of a pass that have no answer yet."""
        log = AppendLog(_file(self.path, each.name), _KEYS)
        done = {row["id"] for row in log.rows}
        todo = [question for question in self.questions if question.id not in done]
        bar = tqdm(total=len(self.questions), initial=len(done), desc=each.name, unit="q", disable=not todo)
        # One thread, because the encoder's cache is not locked.
        with bar, repeating(bar.refresh), ThreadPoolExecutor(1) as reader:
            for asked in _ahead(reader, each, todo):
                refused = [
                    {"id": question.id, "left_out": prompt.reason}
                    for question, prompt in asked
                    if isinstance(prompt, Refused)
                ]
                prompts = [prompt for _, prompt in asked if isinstance(prompt, Prompt)]
                # Refused questions too: a pass is complete when every question has a row.
                log.append([*each.run(engines, prompts), *refused])
                bar.update(len(asked))


@dataclass(frozen=True)
class Answers:
    """Rows of a pass by question id, and the reasons of questions left out."""

    rows: dict[str, Row]
    left_out: dict[str, str]


def read_answers(folder: Path, name: str = IMAGE) -> Answers:
    """Return the answers of a pass so far, empty if it has not been run."""
    rows = read_rows(_file(folder, name), _KEYS)
    return Answers(
        {row["id"]: row for row in rows if "left_out" not in row},
        {row["id"]: row["left_out"] for row in rows if "left_out" in row},
    )


def questions_digest(questions: Sequence[Question]) -> str:
    """Return the hex BLAKE2b-128 digest of ids, texts and correct answers, whatever the order of the questions."""
    state = blake2b(digest_size=16)
    for question in sorted(questions, key=lambda question: question.id):
        state.update(repr((question.id, question.text, question.answer)).encode())
    return state.hexdigest()


def _ahead(
    reader: ThreadPoolExecutor, each: Pass, todo: Sequence[Question]
) -> Iterator[list[tuple[Question, Prompt | Refused]]]:
    """Yield the prompts of `todo` in chunks, encoding the next chunk while one is used."""

    def make(start: int) -> list[tuple[Question, Prompt | Refused]]:
        return [(question, each.ask(question)) for question in todo[start : start + CHUNK]]

    following = reader.submit(make, 0)
    for start in range(0, len(todo), CHUNK):
        asked = following.result()
        following = reader.submit(make, start + CHUNK)
        yield asked


def require_same(path: Path, settings: dict[str, Any], *, all_of_them: bool = False) -> None:
    """Raise ValueError for the folder of an evaluation where one of these settings was another.

    `all_of_them`: these are all, so that it must have no more.
    """
    file = path / SETTINGS
    if not file.exists():
        return
    before = read_mapping(file, _ANOTHER)
    # Through JSON, because the file has lists where the settings have tuples.
    now = json.loads(json.dumps(settings))
    # None: what there was before there was such a setting.
    unsaid = [key for key in now if key not in before and now[key] is not None]
    if all_of_them and unsaid:
        raise ValueError(
            f"--out {path} holds an evaluation of an earlier version, whose {SETTINGS} does not say its {unsaid[0]}; "
            + _ANOTHER
        )
    keys = before.keys() | now.keys() if all_of_them else now.keys()
    # Images last: those of other questions are others, too.
    for key in sorted(keys, key=lambda key: (key == "images", key)):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"--out {path} holds an evaluation with {key} {before.get(key)!r}, this one has {now.get(key)!r}; "
                + _ANOTHER
            )


def _file(folder: Path, name: str) -> Path:
    return folder / "answers" / f"{name}.jsonl"
