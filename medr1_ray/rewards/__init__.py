"""Parsing answers, reward functions, and the actor that applies them to a group of completions.

Runs in: reward actors; the driver imports `functions` to refuse a wrong name early and `actor` to create the actor.

Doors: all modules.

To add a reward: write a function `(completion, question, mode) -> number` in `functions.py` and name it in `REGISTRY`,
or keep it in a module of your own and give `reward.functions` its `module:function`. CONTRIBUTING.md has it step by
step.
"""
