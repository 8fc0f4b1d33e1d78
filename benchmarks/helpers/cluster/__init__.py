"""Parts of `python -m benchmarks.cluster`: which modes a cluster allows (`modes`), their settings (`settings`), the
made model and questions (`making`), one mode measured (`measuring`, `memory`), its figures (`report`) and what they
say (`bottleneck`)."""
