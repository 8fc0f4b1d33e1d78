"""The tiny Qwen2-VL that ships with the package, and the code that builds it from a seed.

`python -m medr1_ray.tiny --out DIR --seed S` builds it: tokenizer, architecture, pre-training, probe.
`medr1_ray/tiny/model/README.md` is its model card, `medr1_ray/tiny/build_log.txt` the log of the shipped build.

Runs in: a separate command. The rest of the package imports nothing from here; it finds the model with
`config.tiny_model_path`.

Doors: none.

To add something that the model should know before a run: a lesson in `curriculum.py`.
"""
