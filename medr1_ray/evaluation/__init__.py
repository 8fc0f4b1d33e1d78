"""Evaluating a checkpoint, answering questions with one, and the evaluations during training.

Runs in: the driver.

Doors: all modules.

To add a scoring: write a pass in `passes.py` (prompt and grading of a question) and name it in `SCORINGS`.
"""
