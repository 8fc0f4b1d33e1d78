"""A run's checkpoints behind a URL (`run.storage`), so that it outlives the disk of its driver.

Runs in the driver. `objects` are files behind the URL; `stored_run` says which there are and when they count; `owner`
keeps a second run away; `uploads` brings checkpoints there behind the training, `fetch` one back before a resume.
Doors: none, it belongs to `run`. To add a protocol: install its fsspec package; nothing here names one.
"""
