"""A training with fake engines and no learner: `python simulated_run.py JSON`, a JSON line for each thing that happens.

Pool, rollout actors' management and reward actors are the real ones. The argument is that of `run`; a test may change
the cluster while it runs.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import ray

from medr1_ray.cluster.connect import connect
from medr1_ray.cluster.pending_calls import PendingCalls
from medr1_ray.cluster.placement import release_nodes
from medr1_ray.config import Config
from medr1_ray.data.encoding import Asked, PromptEncoder
from medr1_ray.data.stream import PromptStream
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.reward_actors import RewardActors
from medr1_ray.pool.scaling import Scaling
from medr1_ray.records.busy_time import BusyTime, seconds_of
from medr1_ray.rollout.fake_actor import FakeBehaviour, fake_launcher
from medr1_ray.types import Prompt, Question, Span
from medr1_ray.weights.messages import WeightUpdate

QUESTIONS = 20


class Encoder(PromptEncoder):
    """Prompts without an image file."""

    def __init__(self) -> None:
        pass

    def begin(self, asked: Sequence[Asked]) -> None:
        pass

    def encode(self, question: Question, prompt_id: str) -> Prompt:
        return Prompt(prompt_id, question, np.zeros(4, np.int32), np.zeros((28, 28, 3), np.uint8))


def tell(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **values}), flush=True)


def most_at_once(spans: list[Span]) -> int:
    """The largest number of spans that have a moment in common."""
    changes = sorted([(span.start_seconds, 1) for span in spans] + [(span.end_seconds, -1) for span in spans])
    return max(accumulate(change for _, change in changes))


def run(
    settings: Mapping[str, Any],
    behaviour: Mapping[str, Any],
    special: Mapping[str, Mapping[str, Any]] | None = None,
    update_seconds: float = 0.0,
    measured: bool = True,
) -> None:
    """`train.steps` steps, each of which "updates" for `update_seconds`.

    `special` is the behaviour of single actors by number. How many are wanted follows from what is `measured`, or from
    lines on standard input, of which `actors 3` has the next step begin with three. The line `slower` makes the updates
    take a hundred times as long, `stop` makes the step the last.
    """
    config = Config.model_validate(
        {"run": {"dir": Path("unused")}, "data": {"format": "phantoms", "root": Path("unused")}, **settings}
    )
    connect(config)
    calls = PendingCalls()
    of = {int(index): FakeBehaviour(**given) for index, given in (special or {}).items()}
    rollout_actors = RolloutActors(
        config, calls, lambda text: tell("say", text=text), fake_launcher(FakeBehaviour(**behaviour), of)
    )
    reward_actors = RewardActors(config, calls, lambda text: tell("say", text=text))
    questions = tuple(
        Question(f"q{i}", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "none") for i in range(QUESTIONS)
    )
    pool = RolloutPool(
        config, rollout_actors, reward_actors, PromptStream(questions, Encoder(), 0), Ledger(time.monotonic)
    )
    scaling, busy_time = Scaling.of(config), BusyTime()
    rollout_actors.wait_until_up()
    told: list[str] = []
    threading.Thread(target=lambda: told.extend(map(str.strip, iter(sys.stdin.readline, ""))), daemon=True).start()
    for step in range(config.train.steps):
        for line in list(told):
            if line.startswith("actors "):
                told.remove(line)
                pool.scale(int(line.split()[1]), "as told")
                while step and pool.actor_counts().serving != pool.actor_counts().target:  # at 0 none has weights
                    pool.poll(0.1)
        start = time.monotonic()
        tell("sync", version=step)
        pool.load_weights(WeightUpdate(step, (), f"digest of {step}"))
        synced = time.monotonic()
        pool.fill(versions_ahead=0)
        names = pool.rollout_names
        nodes = {name: rollout_actors._actors[name].node_id for name in names}
        tell("generating", load=pool.ledger.load_of(names), nodes=nodes)
        groups = pool.take(step)
        assert {int(version) for group in groups for version in group.completions.versions} <= set(
            range(step - config.train.max_staleness, step + 1)
        )
        taken = time.monotonic()
        pool.fill(versions_ahead=1)
        update_until = taken + update_seconds * (100 if "slower" in told else 1)
        while time.monotonic() < update_until:
            pool.poll(0.05)
        busy = seconds_of(busy_time.add(pool.drain_spans()), "rollout-")
        lost = pool.actor_counts().lost
        scaling.measure(taken - synced, synced - start + time.monotonic() - taken, busy, lost)
        if measured:
            pool.scale(scaling.choose(pool.actor_counts().target), f"idle {scaling.idle_fraction}")
        counts = pool.ledger.counts()
        tell(
            "step",
            step=step,
            sync_seconds=synced - start,
            rollout_seconds=taken - synced,
            actors=sorted({group.completions.actor for group in groups}),
            at_once=most_at_once([group.completions.span for group in groups]),
            ledger=asdict(counts),
            serving=pool.actor_counts().serving,
            gone=sum(pool.actor_counts().gone.values()),
            target=pool.actor_counts().target,
            nodes=sum(node["Alive"] for node in ray.nodes()),
        )
        if "stop" in told:
            break
    release_nodes()
    members = pool.actor_counts()
    tell("end", asked=members.asked, gone={why.value: number for why, number in members.gone.items()})


if __name__ == "__main__":
    try:
        run(**json.loads(sys.argv[1]))
    except (ValueError, RuntimeError) as error:
        tell("error", text=str(error))
        sys.exit(1)
