"""The tiny Qwen2-VL that ships with the package, and the code that makes it from a seed.

`python -m medr1_ray.tiny --out DIR --seed S` builds it: tokenizer, architecture, pre-training, probe.
`medr1_ray/tiny/model/README.md` is its model card, `medr1_ray/tiny/build_log.txt` the log of the shipped build.
"""
