"""Putting a run together and leading it: what the loops of `train.py` and `sft.py` call.

Runs in: the driver.

Doors: opening (a session with all actors up), command (arguments of the two commands).

`weight_sync.py` leads both ends of every transport, and retries a broken broadcast. `storage/` is for a run
behind a URL.

To add a step to the loop: a short method of `Session`, called in `train.py`.
"""
