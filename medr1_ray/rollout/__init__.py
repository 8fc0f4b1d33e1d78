"""Generation: an actor around one vLLM engine that turns prompts into groups of completions.

Runs in: the rollout actor's process; `image_scheduler.py` in vLLM's engine process.

Doors: actor, defaults (sizes that the pool and `--dry-run` must know too), fake_actor (for simulations and injected
faults).

To add an engine setting: nothing to do, `rollout.engine` passes it to vLLM under vLLM's name. What we set ourselves is
in `engine.py`.
"""
