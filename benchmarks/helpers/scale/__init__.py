"""Parts of `python -m benchmarks.scale`: what a group costs, measured with fake engines (`measuring`), a driver and
engines with queues (`simulation`), and what each part of a cluster could sustain by itself (`limits`)."""
