"""Colocated placement: each learner rank and its engine are on one GPU of Ray's, different pairs on different ones."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.faults.processes import PATIENCE

# On a Ray cluster of its own, whose two GPUs exist in Ray's books only: no actor here touches one.
SCRIPT = """
import json
import ray
from medr1_ray.config.schema import Config
from medr1_ray.learner.handle import Learner

ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
config = Config.model_validate({
    "run": {"dir": "unused"},
    "data": {"format": "phantoms", "root": "unused"},
    "train": {"steps": 1},
    "cluster": {"colocated": True, "weight_transport": "ipc"},
    "learner": {"world_size": 2, "gpus_per_rank": 0.25},
    "rollout": {"actors": 2, "gpus_per_actor": 0.75},
})

@ray.remote
class Engine:
    def gpus(self):
        return ray.get_gpu_ids()

learner = Learner(config)
ranks = [rank.__ray_call__.remote(lambda self: ray.get_gpu_ids()) for rank in learner._ranks]
place_of = learner.places_on_same_gpus()
engines = [Engine.options(**place_of(f"rollout-{i}").options()).remote() for i in range(2)]
print(json.dumps([ray.get(ranks), ray.get([engine.gpus.remote() for engine in engines])]))
"""


def test_a_rank_and_its_engine_share_a_gpu_that_no_other_pair_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    ranks, engines = json.loads(done.stdout.splitlines()[-1])
    assert ranks == engines
    assert sorted(str(gpus[0]) for gpus in ranks) == ["0", "1"]
    assert all(len(gpus) == 1 for gpus in ranks)
