"""`python -m medr1_ray.answer --model PATH --image FILE --question TEXT --options "x; y; z"`: answer one question.

With `--csv FILE`, answer many: columns `image` (a file in the folder `--image`), `question` and `options`. The answers
go to `--out`, each row with the model's reasoning and the probability of every letter.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import get_args

from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status
from medr1_ray.base.signs_of_life import still
from medr1_ray.config import as_path, expanded
from medr1_ray.data.encoding import Refused
from medr1_ray.evaluation.answering import (
    COLUMNS,
    answer,
    describe_answer,
    encode,
    make_question,
    read_questions,
    require_image,
    require_writable,
    without_engines,
    write_answers,
)
from medr1_ray.evaluation.settings import answering_config, describe_asking
from medr1_ray.model.checkpoint_files import resolve_checkpoint
from medr1_ray.types import Mode

_PROBLEMS_SHOWN = 5

OFTEN_CHANGED = """\
settings that are changed most (by default those of the run that wrote the model):
  rollout.max_tokens=256          longest answer
  rollout.max_prompt_tokens=1024  longest question, its image included
  data.image_size=384             side of the image in pixels
  rollout.gpus_per_actor=1        a GPU for each engine; 0 computes on the CPU
  rollout.actors=4                engines, for a long file of questions (default: one)

More in docs/evaluation.md, and all of them in the files of medr1_ray/config/."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(
        prog="python -m medr1_ray.answer",
        description=__doc__.splitlines()[0],
        epilog=OFTEN_CHANGED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=expanded, required=True, help="a checkpoint folder, a run's folder, or `tiny`")
    parser.add_argument("--image", type=as_path, required=True, help="an image file; with --csv the images' folder")
    parser.add_argument("--question", help="the question, without its options")
    parser.add_argument("--options", help="2 to 26 options, separated by semicolons")
    parser.add_argument("--csv", type=as_path, help=f"a file of questions, with columns {', '.join(COLUMNS)}")
    parser.add_argument("--out", type=as_path, help="file for the answers to --csv; default: answers.csv")
    parser.add_argument("--mode", choices=get_args(Mode), help="default: that of the model's run, else no_think")
    parser.add_argument("--config", type=as_path, action="append", help="YAML file; default: that of the model's run")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that override the files")
    options = parser.parse_intermixed_args(arguments)
    return run_to_status(lambda ending: _answer(options, ending))


def _answer(options: argparse.Namespace, ending: Ending) -> int:
    ending.how_to_go_on = lambda: "no answers were written"
    if bool(options.csv) == bool(options.question and options.options):
        raise ValueError("give --question and --options, or --csv, but not both")
    if options.out and not options.csv:
        raise ValueError(f"--out {options.out} is for the answers to --csv; leave it out")
    out = options.out or Path("answers.csv")
    if options.csv:
        require_writable(out)
        if out.resolve() == options.csv.resolve():
            raise ValueError(f"--out {out} is the file of the questions; choose another file for the answers")
        questions, problems = read_questions(options.csv, options.image)
    else:
        questions, problems = [make_question("2", options.image, options.question, options.options)], {}
    if options.csv and not options.image.is_dir():
        raise ValueError(f"--image {options.image} is not a folder; with --csv give the one that its images are in")
    if not options.csv and not options.image.exists():
        raise ValueError(f"--image {options.image}: does not exist; give the file of the image")
    checkpoint = resolve_checkpoint(options.model)
    config = answering_config(checkpoint, mode=options.mode, files=options.config or [], overrides=options.overrides)
    ending.logs = config.run.dir / "logs"
    if not options.csv:
        require_image(config, options.image)
    # Before the engines, which take half a minute to start: what they would be asked.
    with still(f"reading the images of {len(questions)} questions"):
        encoded = encode(config, questions)
    answers = without_engines(questions, encoded)
    if not options.csv and isinstance(refused := encoded[0], Refused):
        raise ValueError(f"--question: {refused.reason} ({refused.detail.removeprefix(f'{questions[0].id}: ')})")
    if len(answers) < len(questions):
        from medr1_ray.evaluation.inference import open_inference

        print(describe_asking(config), file=sys.stderr)
        with open_inference(config) as inference:
            inference.load(checkpoint)
            with still(f"answering {len(questions) - len(answers)} questions"):
                answers = answer(inference.pool, config, questions, encoded)
    if not options.csv:
        print(describe_answer(answers[0]))
        return 0
    try:
        write_answers(out, answers, problems)
    except OSError as error:
        # They may have cost hours: a disk that has filled up meanwhile must not lose them.
        spare = Path(tempfile.mkdtemp(prefix="medr1_ray-")) / "answers.csv"
        write_answers(spare, answers, problems)
        raise ValueError(f"--out {out}: {error.strerror}; the answers are in {spare} instead") from None
    for line, problem in list(problems.items())[:_PROBLEMS_SHOWN]:
        print(f"line {line} of {options.csv}: {problem}", file=sys.stderr)
    unanswered = len(problems) + sum(each.letter is None for each in answers)
    print(f"{out}: {len(answers) + len(problems)} rows, {unanswered} without an answer")
    return 0 if unanswered < len(answers) + len(problems) else 1


if __name__ == "__main__":
    sys.exit(main())
