"""How long a command takes to refuse what is wrong: `python -m tests.scripts.wrong_inputs`, on an idle machine.

Each case of `tests/unit/test_wrong_inputs.py` as a command of its own, as a user types it. Prints the slowest with
their processor and wall-clock seconds; the exit status is 1 where one takes more than 5 processor seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from tests.repository import REPOSITORY
from tests.unit.test_wrong_inputs import CASES, COMMANDS, write_place

MOST_SECONDS = 5.0
_SHOWN = 12


def main() -> int:
    os.chdir(tempfile.mkdtemp())
    write_place()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    taken = []
    for command, arguments, says in CASES:
        module = COMMANDS[command].__module__
        before, started = os.times(), time.monotonic()
        words = [sys.executable, "-m", module.removesuffix(".__main__"), *arguments.split()]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        wall, after = time.monotonic() - started, os.times()
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        if not done.returncode or any(text not in done.stdout + done.stderr for text in says):
            raise SystemExit(f"{command} {arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        taken.append((seconds, wall, f"{command} {arguments}"))
    taken.sort(reverse=True)
    print("| processor s | wall-clock s | command |\n|---|---|---|")
    for seconds, wall, words_ in taken[:_SHOWN]:
        print(f"| {seconds:.1f} | {wall:.1f} | `{words_.replace(str(REPOSITORY) + '/', '')}` |")
    print(f"{len(taken)} commands, the median {taken[len(taken) // 2][0]:.2f} processor seconds")
    return int(taken[0][0] > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
