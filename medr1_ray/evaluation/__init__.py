"""Evaluating and answering with a checkpoint; the evaluations inside a training.

Runs in: the driver.

Doors: all modules.

To add a way of scoring: a pass in `passes.py` (how a question is put, how an answer is graded), named in `SCORINGS`.
"""
