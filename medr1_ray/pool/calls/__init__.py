"""What the driver asks of rollout actors: groups (`generation.py`), measurements, and what all engines do at once."""
