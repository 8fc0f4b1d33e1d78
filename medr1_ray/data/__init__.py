"""From annotation files to prompts: readers, splits, images, the resumable stream, demonstrations, phantoms.

Runs in: the driver, and `encoding.py` with images in encoder actors; `python -m medr1_ray.data.prepare` and
`python -m medr1_ray.data.phantoms` are separate commands.

Doors: dataset (the questions of a run), stream (the prompts of a run), encoding (turns a question into a prompt),
demonstrations, questions (canonical names, shuffling of options), blind_prior, prompt_templates, image_digest,
phantoms, readers.rows, readers.manifest.

To add a format: write a reader; `readers/__init__.py` lists the steps.
"""
