"""`--dry-run`: estimates of a run's memory, time and price, computed from its settings and the model's shape.

Runs in: the driver, before anything is started.

Door: report.

To add a part of memory or work: a `Part` in `memory.py` or a term in `work.py`, and its formula to docs/sizing.md.
"""
