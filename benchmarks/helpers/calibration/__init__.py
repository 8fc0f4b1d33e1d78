"""Parts of `python -m benchmarks.sizing_calibration`: steps measured with the real engine and learner
(`step_measurement`), and the rates of `hardware` fitted to them (`hardware_fit`)."""
