"""What a run leaves: its directory, checkpoints, metrics, rollouts, the trace, the lines on the terminal.

Runs in: the driver.

Doors: all modules.

To add a metric: document it in `metric_names.py`, compute it in `metrics.py`; a test holds the two together.
"""
