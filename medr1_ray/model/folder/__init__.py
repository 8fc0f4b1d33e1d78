"""The check of a model folder before anything starts: its small files, its weights' headers, and a sample of these.

A folder that passes is one that the learner, the engines and an evaluation can load.

Runs in: the driver; `files.py` in evaluations too.

`check.py` is the whole check, in three parts: `files.py` looks at names and small files (`kinds.py` at the values in
them), `limits.py` compares the model with the settings and its image processor, `contents.py` reads what takes
transformers' model classes.

Doors: all modules.
"""
