"""`medr1-ray COMMAND ...`, or `python -m medr1_ray COMMAND ...`: all commands of the package behind one name."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches

from medr1_ray.base.command_line import Ending, run_to_status

COMMANDS = {
    "train": ("medr1_ray.train", "train a model by GRPO"),
    "sft": ("medr1_ray.sft", "train the supervised baseline"),
    "evaluate": ("medr1_ray.evaluate", "compare a checkpoint with baselines that do not see the image"),
    "answer": ("medr1_ray.answer", "answer one question, or a file of questions"),
    "timeline": ("medr1_ray.timeline", "write where a run spent its time, for a trace viewer"),
    "data.prepare": ("medr1_ray.data.prepare.__main__", "check a dataset once; write its manifest and splits"),
    "data.phantoms": ("medr1_ray.data.phantoms.__main__", "draw phantoms, the dataset that needs no download"),
    "tiny": ("medr1_ray.tiny.__main__", "build the tiny model that ships with the package, from a seed"),
}


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: medr1-ray COMMAND ...    (the same as python -m medr1_ray.COMMAND ...)",
            "",
            *lines,
            "",
            "medr1-ray COMMAND --help has its options. Guides: README.md and docs/.",
        ]
    )


def _list_commands(_: Ending) -> int:
    print(usage())
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status, 2 for an unknown one."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        return run_to_status(_list_commands)
    name, *rest = given
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"error: {name!r} is not a command; {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[name][0])
    status: int = module.main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
