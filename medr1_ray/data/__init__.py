"""From annotation files to prompts: readers, splits, images, the resumable stream, demonstrations, phantoms.

Runs in: the driver; `python -m medr1_ray.data.prepare` and `python -m medr1_ray.data.phantoms` are commands of their
own.

Doors: dataset (questions of a run), stream (prompts of a run), encoding (a question as a prompt), demonstrations,
questions (names, orders of options), blind_prior, prompt_templates, phantoms, readers.rows, readers.manifest.

To add a format: a reader in `readers/`, see there.
"""
