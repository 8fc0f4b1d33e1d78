"""Ray itself: joining a cluster, what actors ask for, places for them, and calls that are under way.

Runs in: the driver.

Doors: all modules.

To add an actor class: add its demand to `resources.py`, so that `--dry-run`, the check of the cluster and the
autoscaler's request know of it.
"""
