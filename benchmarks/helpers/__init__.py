"""Code that the commands in `benchmarks/` share or are split into; nothing here is a command to type.

    common, shapes    options, timing and results; models, prompts and run settings
    rewards           of models that know nothing
    kept_engines      engines that stay up from one training to the next
    sides/            the two sides of a comparison: bare parts, this package's steps, TRL's
    data/             a made data set, and a run's start on it
    calibration/      for `sizing_calibration.py`: measured steps, and the rates fitted to them
    matrix/           for `matrix.py`: settings, training, evaluation, tables and pictures
    cluster/          for `cluster.py`: the modes of a cluster, measured, and what that says

Commands are run from the repository's root, as `python -m benchmarks.<name>`.
"""
