"""The Ray cluster: connecting to it, resource demands of actors, placement groups, and pending remote calls.

Runs in: the driver.

Doors: all modules.

To add an actor class: add its demand to `resources.py`, so that `--dry-run`, the check that the run fits the cluster
and the request to the autoscaler include it.
"""
