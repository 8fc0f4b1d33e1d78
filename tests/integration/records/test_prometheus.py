"""A gauge reaches Ray's metrics agent, where Prometheus finds it."""

from __future__ import annotations

import time
import urllib.request
from contextlib import suppress

import ray

from medr1_ray.records.metric_names import prometheus_name
from medr1_ray.records.prometheus import LiveMetrics
from tests.faults.processes import PATIENCE


def exported() -> str:
    """The agent's page as soon as it has a metric of ours; Ray's processes report every ten seconds."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(OSError):  # the agent starts on its own, after the cluster
            page = urllib.request.urlopen(url, timeout=10).read().decode()
            if "ray_medr1_" in page:
                return str(page)
        time.sleep(0.5)
    raise AssertionError(f"no metric of ours at {url} within {PATIENCE:g} s")


def test_metrics_reach_prometheus(ray_cluster: None) -> None:
    live = LiveMetrics("a run")
    live.set({"reward/total_mean": 0.25, "policy/kl": None, "policy/ratio_max": float("inf")})
    ours = [line for line in exported().splitlines() if line.startswith("ray_medr1_")]
    (line,) = ours
    assert line.startswith(prometheus_name("reward/total_mean") + "{")
    assert 'run="a run"' in line
    assert line.endswith(" 0.25")
