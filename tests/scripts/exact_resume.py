"""Kill a run at moments spread over all of its phases, start it again, and compare it with one that was left alone.

    python -m tests.scripts.exact_resume --kills 20 --seed 0

Groups are generated once (`--rollout-only`). Every run then learns from them (`--replay`), with real engines, DeepSpeed
and Ray; each is killed with all of its processes as by a power cut, and the same command (`run.resume=auto`) goes on.
Right is: weights, optimizer state and position equal bit for bit, and metrics equal but for times. Prints a table; the
exit status is 1 where one differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from tests.faults.runs import Run

STEPS = 12
SETTINGS = (
    "--config",
    "configs/phantom_cpu.yaml",
    "data.phantom_images=120",
    "data.eval_questions=8",
    "train.prompts_per_step=8",
    "train.group_size=4",
    f"train.steps={STEPS}",
    "rollout.actors=1",
    "run.save_every=1",
    "run.keep_checkpoints=2",
    "run.resume=auto",
)
# What is said, or what is there, when a phase has begun; a kill comes up to so many seconds later.
PHASES: dict[str, tuple[str, float]] = {
    "start of Ray": ("starting 1 learner rank", 3.0),
    "start of learner and engine": ("Ray is up after", 12.0),
    "first sync and parity gate": ("first weight sync", 1.0),
    "evaluation before": ("parity gate: they differ", 1.0),
    "update, sync, logging": ("step ", 4.0),
    "save": (".partial", 0.05),
    "evaluations after": ("evaluation after", 0.3),
}
NOT_COMPARED = ("time/", "perf/", "reward_seconds")


def finished(folder: Path, *options: str) -> Run:
    run = Run(folder, (*SETTINGS, *options))
    run.finish()
    return run


def result(folder: Path) -> dict[str, Any]:
    """All that must be equal: tensors by name as bytes, the position, and metrics but for times."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{STEPS}"
    tensors = {
        f"{path.name}:{name}": array.tobytes()
        for path in sorted(checkpoint.rglob("*.safetensors"))
        for name, array in load_file(path).items()
    }
    state = json.loads((checkpoint / "state.json").read_text())
    # Of the totals not the times, nor what each start adds: its actors, and the tokens of its parity gate.
    position = {key: value for key, value in state.items() if key not in ("totals", "config_digest")}
    position["completions"] = state["totals"]["completions"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        {name: value for name, value in line.items() if not name.startswith(NOT_COMPARED)} for line in lines
    ]
    optimizer = json.loads((checkpoint / "learner_state" / "optimizer.json").read_text())["steps"]
    return {"tensors": tensors, "optimizer steps": optimizer, "position": position, "metrics": metrics}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/exact_resume"))
    options = parser.parse_args()
    chance, out = random.Random(options.seed), options.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    finished(out / "generated", "--rollout-only")
    replay = ("--replay", str(out / "generated" / "recorded"))
    expected = result(finished(out / "alone", *replay).folder)
    print(f"| {'killed in':27} | after s | resumed after step | differs in |\n|{'-' * 29}|---|---|---|", flush=True)
    wrong = 0
    for number in range(options.kills):
        phase = list(PHASES)[number % len(PHASES)]
        word, seconds = PHASES[phase]
        delay = chance.uniform(0.0, seconds)
        run = Run(out / f"killed-{number}", (*SETTINGS, *replay))
        # A save: not always the first one.
        skip = chance.randrange(STEPS - 1) if phase == "save" else 0
        newest = out / f"killed-{number}" / "checkpoints" / f"checkpoint-{skip}"
        run.until(lambda run=run, newest=newest, skip=skip: (not skip or newest.exists()))
        run.until(run.saves if phase == "save" else lambda run=run, word=word: f"\n{word}" in run.said())
        started = time.monotonic()
        run.until(lambda started=started, delay=delay: time.monotonic() - started > delay)
        if run.process.poll() is None:
            run.kill()
        again = finished(out / f"killed-{number}", *replay)
        found = result(again.folder)
        differs = [key for key in expected if expected[key] != found[key]]
        wrong += bool(differs)
        said = again.said()
        words = said.partition("resuming after step ")[2].split()
        resumed = words[0] if words else "nothing was left to do" if "nothing left to do" in said else "from the start"
        print(f"| {phase:27} | {delay:.2f} | {resumed} | {', '.join(differs) or 'nothing'} |", flush=True)
        shutil.rmtree(again.folder)
    print(f"{options.kills - wrong} of {options.kills} are equal bit for bit")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
