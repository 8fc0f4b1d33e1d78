"""The learner: GRPO updates by DeepSpeed ranks.

Runs in: learner ranks; `handle.py`, `batching.py` and `prefetch.py` in the driver.

Doors: handle (the ranks as one object), messages (what driver and ranks send each other).

To add a loss: extend `grpo.py`, whose functions are pure, and name the choice in `LossSettings`
(`config/algorithm.py`). CONTRIBUTING.md has it step by step.
"""
