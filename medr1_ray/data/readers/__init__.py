"""Readers of annotation files: each row becomes a `Question`, or is dropped and counted by reason.

`rows.py` has the shared parts: reading JSON, checking texts and image paths, counting dropped rows.

To add a reader: write `<format>.py` with a function that returns a `ReadResult`, add the format's name to
`data.format` (`config/data.py`) and a branch to `dataset.py`. CONTRIBUTING.md lists the steps.
"""
