"""Code that the commands in `benchmarks/` share or are split into; nothing here is a command to type.

    common, shapes                       options, timing and results; models, prompts and run settings
    bare, session_steps                  the sides of a comparison: bare baselines, and this package's training steps
    rewards, trl_worker                  for `vs_trl.py`: the reward of both sides, and the process that runs TRL
    step_measurement, hardware_fit       for `sizing_calibration.py`: measured steps, and the rates fitted to them
    matrix_settings, matrix_lane, matrix_evaluation, matrix_tables, heat_maps
                                         for `matrix.py`: settings, training, evaluation, tables and pictures

Commands are run from the repository's root, as `python -m benchmarks.<name>`.
"""
