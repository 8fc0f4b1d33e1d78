"""What a run leaves: its directory, checkpoints, metrics, rollouts, the trace, the lines on the terminal.

Runs in: the driver.

Doors: all modules.

To add a field to a checkpoint's state: `RunState` in `checkpoints.py`, with a default so that older checkpoints still
load; `run/session.py` fills it in and `run/startup.py` reads it.

To add a metric: document it in `metric_names.py`, compute it in `metrics.py`; a test holds the two together.
"""
