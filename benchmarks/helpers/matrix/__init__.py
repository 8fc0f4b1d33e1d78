"""Parts of `python -m benchmarks.matrix`: what is trained (`settings`), in which process (`lane`), what it is asked
(`evaluation`), and the results as tables (`tables`) and pictures (`heat_maps`)."""
