"""The metrics of a running training for Prometheus, through `ray.util.metrics`.

Ray's metrics agent on the driver's node exports them with `ray_` in front; `clusters/monitoring/` has a dashboard and
alert rules for them. Names follow from `metric_names.METRICS` and from nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ray.util.metrics import Gauge

from medr1_ray.records.metric_names import METRICS, prometheus_name


class LiveMetrics:
    """Gauges of the latest value of every metric, tagged with the run's name."""

    def __init__(self, run: str) -> None:
        self._gauges = {
            # Ray's agent adds the prefix itself.
            name: Gauge(prometheus_name(name).removeprefix("ray_"), description=meaning, tag_keys=("run",))
            for name, meaning in METRICS.items()
        }
        self._tags = {"run": run}

    def set(self, metrics: Mapping[str, float | None]) -> None:
        """Take over what was measured; what is None or not finite keeps its last value."""
        for name, value in metrics.items():
            if value is not None and math.isfinite(value):
                self._gauges[name].set(float(value), tags=self._tags)
