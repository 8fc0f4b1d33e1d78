"""`python -m medr1_ray.data.prepare`: check a dataset once; write its manifest, its splits and a summary.

`readers/prepared.py` reads the files that this command writes. Images are read in separate processes
(`image_scan.py`), because a broken file can crash the decoder.

To add a kind of split: write a function in `recipes.py` that yields `Split`s. To add a kind of data: write a function
in `sources.py` that returns a `Source`.
"""
