"""`python -m medr1_ray.data.prepare`: check a dataset once; write its manifest, its splits and what was left out.

`readers/prepared.py` reads what this writes. Images are read in processes of their own (`image_scan.py`), because a
broken file can kill the decoder.

To add a kind of split: a function in `recipes.py` that yields `Split`s.
"""
