"""One evaluation on disk: put every pass to a model, keep each answer as it comes, go on where it was cut off.

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
from medr1_ray.data.encoding import Refused
from medr1_ray.evaluation.passes import IMAGE, Engines, Pass, Row
from medr1_ray.types import Prompt, Question

CHUNK = 256
"""Questions whose images are in memory at once, twice: while some are answered, the next are read."""


class EvaluationFolder:
    """The folder of one evaluation.

    Args:
        path: where it is, or is to be.
        settings: what makes the evaluation what it is; a folder with others is refused.
        questions: all questions, in order.

    Raises:
        ValueError: the folder holds another evaluation, or something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any], questions: Sequence[Question]) -> None:
        self.path = path
        self.questions = questions
        file = path / "settings.json"
        if file.exists():
            _require_same(path, json.loads(file.read_text()), json.loads(json.dumps(settings)))
        else:
            path.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions]
            (path / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
            file.write_text(json.dumps(settings, indent=1))  # last: with it, the folder counts as begun

    def answers(self, name: str) -> Answers:
        """What there is of a pass."""
        return read_answers(self.path, name)

    def run(self, engines: Engines, each: Pass) -> None:
        """Put those questions of a pass that have no answer yet."""
        log = AppendLog(_file(self.path, each.name))
        done = {row["id"] for row in log.rows}
        todo = [question for question in self.questions if question.id not in done]
        bar = tqdm(total=len(self.questions), initial=len(done), desc=each.name, unit="q", disable=not todo)
        with bar, ThreadPoolExecutor(1) as reader:
            for asked in _ahead(reader, each, todo):
                refused = [
                    {"id": question.id, "left_out": prompt.reason}
                    for question, prompt in asked
                    if isinstance(prompt, Refused)
                ]
                prompts = [prompt for _, prompt in asked if isinstance(prompt, Prompt)]
                log.append([*each.run(engines, prompts), *refused])
                bar.update(len(asked))


@dataclass(frozen=True)
class Answers:
    """A pass's rows by question id, and why the others were left out."""

    rows: dict[str, Row]
    left_out: dict[str, str]


def read_answers(folder: Path, name: str = IMAGE) -> Answers:
    """The answers of a pass; none where it has not been run."""
    rows = AppendLog(_file(folder, name)).rows
    return Answers(
        {row["id"]: row for row in rows if "left_out" not in row},
        {row["id"]: row["left_out"] for row in rows if "left_out" in row},
    )


def questions_digest(questions: Sequence[Question]) -> str:
    """Hex BLAKE2b-128 over ids, texts and gold letters, in order."""
    state = blake2b(digest_size=16)
    for question in questions:
        state.update(repr((question.id, question.text, question.answer)).encode())
    return state.hexdigest()


def _ahead(
    reader: ThreadPoolExecutor, each: Pass, todo: Sequence[Question]
) -> Iterator[list[tuple[Question, Prompt | Refused]]]:
    """The prompts of `todo` in chunks, the next being made while one is used."""

    def make(start: int) -> list[tuple[Question, Prompt | Refused]]:
        return [(question, each.ask(question)) for question in todo[start : start + CHUNK]]

    following = reader.submit(make, 0)
    for start in range(0, len(todo), CHUNK):
        asked = following.result()
        following = reader.submit(make, start + CHUNK)
        yield asked


def _require_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"--out {path} holds an evaluation with {key} {before.get(key)!r}, this one has {now.get(key)!r}; give "
                "another --out, or delete that folder"
            )


def _file(folder: Path, name: str) -> Path:
    return folder / "answers" / f"{name}.jsonl"
