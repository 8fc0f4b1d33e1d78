"""Answering questions without a known correct answer, with the reasoning and the probability of every letter."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from medr1_ray.base.atomic_files import naming
from medr1_ray.config import Config, require_lasting
from medr1_ray.data.encoding import PromptEncoder, Refused, check_image, continuations
from medr1_ray.data.questions import UNKNOWN
from medr1_ray.model.folder.check import check_model
from medr1_ray.rewards.parsing import parse_answer
from medr1_ray.types import LETTERS, Likelihoods, Mode, Prompt, Question, Sampling

if TYPE_CHECKING:
    from medr1_ray.pool.groups import RolloutPool

COLUMNS = ("image", "question", "options")
_SHOWN = 200


@dataclass(frozen=True)
class Explained:
    """The answer to one question.

    `letter` is None if the completion names no option or the question could not be asked; `problem` says why.
    `reasoning` is the completion without its answer. `probabilities` are those of the letters, in order, each as the
    answer that follows what the model wrote before its answer.
    """

    question: Question
    letter: str | None
    problem: str | None
    reasoning: str
    completion: str
    probabilities: tuple[float, ...]


def require_image(config: Config, image: Path) -> None:
    """Check the image of a single question before the model, whose check imports for seconds.

    Raises:
        ValueError: it cannot be read, or not within `data.image_timeout_seconds`.
    """
    try:
        check_image(image, config.data)
    except ValueError as error:
        raise ValueError(f"--image {image}: image unreadable ({error})") from None


def encode(config: Config, questions: Sequence[Question]) -> list[Prompt | Refused]:
    """Return each question as a prompt, or why it cannot be asked.

    Raises:
        ValueError: the model is not usable.
    """
    check_model(config)
    encoder = PromptEncoder.of(config)
    return [encoder.encode(question, question.id) for question in questions]


def without_engines(questions: Sequence[Question], encoded: Sequence[Prompt | Refused]) -> list[Explained]:
    """Return the questions that cannot be asked, each with its reason."""
    return [
        Explained(question, None, prompt.detail, "", "", ())
        for question, prompt in zip(questions, encoded, strict=True)
        if isinstance(prompt, Refused)
    ]


def answer(
    pool: RolloutPool, config: Config, questions: Sequence[Question], encoded: Sequence[Prompt | Refused]
) -> list[Explained]:
    """Return one greedy answer per question, in order; for a question that cannot be asked, the reason."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(config.model.folder))
    prompts = [prompt for prompt in encoded if isinstance(prompt, Prompt)]
    groups = pool.run(prompts, Sampling(group_size=1, max_tokens=config.rollout.max_tokens, temperature=0.0))
    completions = [group.completions.texts[0] for group in groups]
    texts = [
        continuations(
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            _with_each_letter(completion, prompt.question, config.mode),
        )
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    likelihoods = pool.likelihoods(prompts, texts)
    explained = {
        prompt.id: _explain(prompt.question, completion, found, config.mode)
        for prompt, completion, found in zip(prompts, completions, likelihoods, strict=True)
    }
    explained |= {each.question.id: each for each in without_engines(questions, encoded)}
    return [explained[question.id] for question in questions]


def make_question(id_: str, image: Path, stem: str, options: str) -> Question:
    """Return a question without a known correct answer; `options` are separated by semicolons.

    Raises:
        ValueError: the question is empty, or there are not 2 to 26 different options.
    """
    texts = tuple(option.strip() for option in options.split(";") if option.strip())
    if not stem.strip():
        raise ValueError("the question is empty")
    if not 2 <= len(set(texts)) == len(texts) <= len(LETTERS):
        raise ValueError(
            f"the options are {options!r}; give 2 to {len(LETTERS)} different ones, separated by semicolons"
        )
    # Option 0 as the correct answer is a placeholder: nothing is graded here.
    return Question(id_, str(image.absolute()), stem.strip(), texts, 0, UNKNOWN, UNKNOWN, "none")


def read_questions(file: Path, images: Path) -> tuple[list[Question], dict[int, str]]:
    """Return the questions of a CSV file, and the problems of the other rows by line number.

    Raises:
        ValueError: the file cannot be read or lacks a column.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            rows = _rows_by_line(content)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--csv {file}: cannot be read ({error}); give a CSV file in UTF-8") from error
    header = rows.pop(min(rows)) if rows else []
    if missing := [column for column in COLUMNS if column not in header]:
        found = ", ".join(map(repr, header)) or "none"
        raise ValueError(
            f"--csv {file}: no column {', '.join(map(repr, missing))}; it needs {', '.join(COLUMNS)}, spelled so and "
            f"divided by commas, and has {found if len(found) <= _SHOWN else f'{found[:_SHOWN]}...'}"
        )
    if not rows:
        raise ValueError(f"--csv {file}: no questions below the header; give one in each line")
    questions, problems = [], {}
    for line, cells in rows.items():
        try:
            if len(cells) != len(header):
                raise ValueError(
                    f"the row has {len(cells)} cells and the header {len(header)}; put a cell with a comma in quotes"
                )
            row = dict(zip(header, cells, strict=True))
            image, stem, options = (row[column] for column in COLUMNS)
            questions.append(make_question(str(line), images / image, stem, options))
        except ValueError as error:
            problems[line] = str(error)
    return questions, problems


def _rows_by_line(content: TextIO) -> dict[int, list[str]]:
    """Return the cells of each row that is not blank, by the line of the file that it begins in."""
    # Strict: a quote that is not closed would take the following rows into its cell.
    reader = csv.reader(content, strict=True)
    rows, begins = {}, 1
    for cells in reader:
        if cells:
            rows[begins] = cells
        begins = reader.line_num + 1
    return rows


def require_writable(file: Path) -> None:
    """Raise ValueError where `write_answers` could not write: found out before the answers are paid for."""
    require_lasting("--out", file)
    folder = file.parent
    if file.is_dir():
        raise ValueError(f"--out {file} is a folder; give the name of a file in it")
    if not folder.is_dir():
        raise ValueError(f"--out {file}: the folder {folder} does not exist; create it, or choose another file")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise ValueError(f"--out {file} cannot be written; choose another file")


def write_answers(file: Path, answers: Sequence[Explained], problems: dict[int, str]) -> None:
    """Write one row per line of the questions' file, including those with a problem."""
    letters = LETTERS[: max((len(each.question.options) for each in answers), default=0)]
    columns = ("line", *COLUMNS, "answer", "text", "problem", "reasoning", *(f"p_{letter}" for letter in letters))
    rows = {int(each.question.id): _row(each) for each in answers}
    rows |= {line: {"problem": problem} for line, problem in problems.items()}
    with naming(file), file.open("w", newline="", encoding="utf-8") as content:
        writer = csv.DictWriter(content, columns)
        writer.writeheader()
        writer.writerows({"line": line, **rows[line]} for line in sorted(rows))


def _row(each: Explained) -> dict[str, str]:
    question = each.question
    return {
        "image": question.image_path,
        "question": question.stem,
        "options": "; ".join(question.options),
        "answer": each.letter or "",
        "text": question.options[LETTERS.index(each.letter)] if each.letter else "",
        "problem": each.problem or "",
        "reasoning": each.reasoning,
        **{f"p_{letter}": f"{p:.4f}" for letter, p in zip(LETTERS, each.probabilities, strict=False)},
    }


def _with_each_letter(completion: str, question: Question, mode: Mode) -> list[str]:
    """Return what the model wrote before its answer, followed by each letter as the answer."""
    # The last tag: the thinking may mention one.
    before, tag, _ = completion.rpartition("<answer>")
    written = before if tag else completion if mode == "think" else ""
    return [f"{written}<answer>{letter}</answer>" for letter in LETTERS[: len(question.options)]]


def _explain(question: Question, completion: str, found: Likelihoods, mode: Mode) -> Explained:
    parsed = parse_answer(completion, question, mode)
    # The maximum is subtracted against underflow. The text before the letter is the same for all and cancels.
    weights = np.exp(found.logprobs - found.logprobs.max())
    before, tag, after = completion.rpartition("<answer>")
    outside = before + after.partition("</answer>")[2] if tag else completion
    reasoning = outside.replace("<think>", "").replace("</think>", "").strip()
    probabilities = tuple((weights / weights.sum()).tolist())
    return Explained(question, parsed.letter, parsed.problem, reasoning, completion, probabilities)


def describe_answer(each: Explained) -> str:
    """Return an answer formatted for the terminal."""
    options = each.question.options
    named = options[LETTERS.index(each.letter)] if each.letter else f"none: {each.problem}"
    lines = [f"answer     {each.letter or '-'}  {named}"]
    lines += [f"reasoning  {each.reasoning}"] if each.reasoning else []
    triples = zip(LETTERS, each.probabilities, options, strict=False)
    return "\n".join([*lines, *(f"{p:9.4f}  {letter}  {option}" for letter, p, option in triples)])
