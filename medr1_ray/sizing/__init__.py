"""`--dry-run`: memory, time and price of a run by arithmetic from its settings and the model's shape.

Runs in: the driver, before anything is started.

Door: report.

To add a part of memory or work: a `Part` in `memory.py` or a term in `work.py`, with its formula in docs/sizing.md.
"""
