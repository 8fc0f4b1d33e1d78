"""Readers of annotation files: a row becomes a `Question`, or is dropped for a counted reason.

`rows.py` has what they share: reading JSON, checking texts and image paths, counting what was dropped.

To add a reader: write `<format>.py` with a function that returns `ReadResult`, add the format's name to
`data.format` (`config/data.py`) and a branch to `dataset.py`. CONTRIBUTING.md has it step by step.
"""
