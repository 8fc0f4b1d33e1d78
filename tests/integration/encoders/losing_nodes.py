"""A driver whose encoder's node is killed, and what others find when they ask for the images that were made there."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import ray
from numpy.typing import NDArray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medr1_ray.config import Config
from medr1_ray.encoders.handle import EncoderActors, RemoteEncoder
from medr1_ray.types import Image, Prompt, Question, StoredImage, pixels_of

ENCODERS = {"role": "encoder"}
class Reader:
    """Asks for images as an engine or a learner rank does, in a process of its own."""

    def read(self, images: Sequence[Image]) -> list[NDArray[np.uint8]]:
        return [pixels_of(image) for image in images]


def read_after_loss(config: Config, questions: Sequence[Question]) -> list[NDArray[np.uint8]]:
    """Return what a reader finds of the questions' images, when the node where they were made has died and there is
    another one only while it waits.

    Runs in a process without Ray; all nodes are processes of this machine.
    """
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.pop("RAY_ADDRESS", None)
    # With Ray's own patience, 15 s, before a node is dead: on a busy machine one that is well may not answer for 5.
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    lost = cluster.add_node(num_cpus=1, labels=ENCODERS)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        reader = ray.remote(Reader).options(num_cpus=0, scheduling_strategy=here).remote()
        encoder = RemoteEncoder(EncoderActors(config), config)
        images = _encoded(encoder, questions)
        _kill(cluster, lost)
        asked = reader.read.remote(images)
        while any(node["NodeID"] == lost.node_id and node["Alive"] for node in ray.nodes()):
            time.sleep(0.1)
        cluster.add_node(num_cpus=1, labels=ENCODERS)
        found: list[NDArray[np.uint8]] = ray.get(asked)
        return found
    finally:
        ray.shutdown()
        cluster.shutdown()


def _encoded(encoder: RemoteEncoder, questions: Sequence[Question]) -> list[StoredImage]:
    """The images of questions, all of which have been made."""
    encoder.begin([(question, question.id) for question in questions])
    prompts = [encoder.encode(question, question.id) for question in questions]
    images = [prompt.image for prompt in prompts if isinstance(prompt, Prompt)]
    stored = [image for image in images if isinstance(image, StoredImage)]
    references = [image.reference for image in stored]
    ray.wait(references, num_returns=len(references), fetch_local=False)
    return stored


def _kill(cluster: Cluster, node: Any) -> None:
    """End a node as a power cut would: all of its processes at the same moment."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    workers = raylet.children(recursive=True)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.suspend()
    cluster.remove_node(node, allow_graceful=False)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
