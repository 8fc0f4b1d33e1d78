"""A node provider for Ray's autoscaler whose nodes are `ray start` processes of this machine.

Ray's own fake provider needs a file that its wheel lacks, and refuses to be used as an `external` one. This one is
named in the cluster's settings as an external provider's `module`:
tests.integration.pool.process_nodes.ProcessNodeProvider.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

HEAD_ID = "head"
# Workers take any port: those of the default range would be taken by several nodes of one machine at the same time.
OWN_PORTS = ["--min-worker-port=0", "--max-worker-port=0"]


class ProcessNodeProvider(NodeProvider):  # type: ignore[misc]
    """Starts and ends nodes. `provider_config` has the `address` of the head."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._lock = threading.Lock()
        self._one_starts = threading.Lock()
        self._started = 0
        self._processes: dict[str, subprocess.Popen[str]] = {}
        head = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: "head"}
        self._tags: dict[str, dict[str, str]] = {HEAD_ID: head}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            return [
                node_id
                for node_id, tags in self._tags.items()
                if all(tags.get(tag) == value for tag, value in tag_filters.items())
            ]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self._tags[node_id].update(tags)

    def internal_ip(self, node_id: str) -> str:
        return node_id

    external_ip = internal_ip

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        for _ in range(count):
            with self._lock:
                self._started += 1
                node_id = f"node-{self._started}"
                self._tags[node_id] = dict(tags)
            environment = {
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "RAY_CLOUD_INSTANCE_ID": node_id,
                "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE],
            }
            command = ["ray", "start", "--block", f"--address={self.provider_config['address']}"]
            command += [f"--num-cpus={int(resources['CPU'])}", "--object-store-memory=100000000", *OWN_PORTS]
            command += ["--labels", ",".join(f"{label}={value}" for label, value in labels.items())]
            threading.Thread(target=self._run, args=(node_id, command, environment), daemon=True).start()

    def _run(self, node_id: str, command: list[str], environment: dict[str, str]) -> None:
        """A node's life. Two that start at once on one machine take the same names for their sockets, and one dies."""
        with self._one_starts:
            with self._lock:
                if node_id not in self._tags:
                    return
                process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
                self._processes[node_id] = process
            assert process.stdout is not None
            for line in process.stdout:
                if "Ray runtime started" in line:
                    break
        for _ in process.stdout:
            pass
        process.wait()
        with self._lock:  # as a cloud does not list a machine that is gone
            self._tags.pop(node_id, None)
            self._processes.pop(node_id, None)

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            self._tags.pop(node_id, None)
            process = self._processes.pop(node_id, None)
        if process is not None:
            process.terminate()


def cluster_settings(address: str, most_nodes: int, idle_minutes: float) -> str:
    """The autoscaler's settings, as JSON: a head, and up to `most_nodes` nodes of one CPU for rollout actors."""
    return json.dumps(
        {
            "cluster_name": "processes",
            "max_workers": most_nodes,
            "idle_timeout_minutes": idle_minutes,
            "provider": {
                "type": "external",
                "module": f"{__name__}.ProcessNodeProvider",
                "address": address,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "auth": {"ssh_user": "nobody"},
            "cluster_synced_files": [],
            "file_mounts": {},
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
            "head_node_type": "head",
            "available_node_types": {
                "head": {"resources": {"CPU": 2}, "labels": {"role": "head"}, "node_config": {}, "max_workers": 0},
                "rollout": {
                    "resources": {"CPU": 1},
                    "labels": {"role": "rollout"},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": most_nodes,
                },
            },
        }
    )
