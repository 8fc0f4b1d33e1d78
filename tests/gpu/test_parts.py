"""Parts that behave differently on a GPU, each alone."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.weights.digests import digest_of
from tests.generating import begin, the_one

# One end of a broadcast over vLLM's NCCL communicator: rank, world size, port; rank 2 stops before it takes part.
MEMBER = """
import os, signal, sys, time
import torch
from medr1_ray.base.deadline import ended_by, within
from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group
rank, size, port = map(int, sys.argv[1:])
torch.cuda.set_device(rank)
group = stateless_init_process_group("127.0.0.1", port, rank, size, rank)
if rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(2)
start = time.monotonic()
try:
    with ended_by(10, "broadcasting", group.destroy):
        group.broadcast(torch.ones(2**28, dtype=torch.uint8, device="cuda"), src=0)
        torch.cuda.current_stream().synchronize()
except TimeoutError:
    print("aborted", round(time.monotonic() - start))
    os._exit(0)
os._exit(3)
"""


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_a_fingerprint_is_the_same_on_cpu_and_gpu(dtype: torch.dtype) -> None:
    tensor = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0)).mul(100).to(dtype)
    assert digest_of([("w", tensor)]) == digest_of([("w", tensor.cuda())])


@pytest.mark.gpu
@pytest.mark.parametrize("heads_of_one_key", [2, 6])
@pytest.mark.parametrize("length", [20, 100, 127, 128, 193, 700])
def test_rows_of_any_length_attend_as_under_the_full_mask(length: int, heads_of_one_key: int) -> None:
    """Short rows too: torch has another kernel for them, which found no configuration on an H100."""
    from medr1_ray.model.attention import attend, block_mask
    from medr1_ray.model.packing import tree_mask

    torch.manual_seed(0)
    segment = torch.arange(length, device="cuda").mul(5).div(length, rounding_mode="floor").expand(3, length)
    sizes = ((3, 2 * heads_of_one_key, length, 32), (3, 2, length, 32), (3, 2, length, 32))
    inputs = [torch.randn(size, device="cuda", requires_grad=True) for size in sizes]
    module = torch.nn.Module()
    module.num_key_value_groups = heads_of_one_key
    found = []
    for mask in (block_mask(segment), tree_mask(segment)):
        output, _ = attend(module, *inputs, mask, scaling=32**-0.5)  # type: ignore[misc]
        found.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for ours, theirs in zip(*found, strict=True):
        # TF32 in Triton's products: 10 bits of mantissa.
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu(3)
def test_nccl_with_a_dead_member_is_aborted_at_the_deadline() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(rank), "3", str(port)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    outputs = [member.communicate(timeout=180)[0] for member in members]
    assert [member.returncode for member in members] == [0, 0, -signal.SIGKILL]
    assert all(output.split()[0] == "aborted" and int(output.split()[1]) < 30 for output in outputs[:2])


@pytest.fixture
def colocated_actor(tmp_path: Path) -> Iterator[Any]:
    """A rollout actor that may sleep, on half a GPU, with the tiny model's weights as version 0."""
    import ray
    from transformers import AutoModelForImageTextToText

    from medr1_ray.base.code_digest import code_digest
    from medr1_ray.config import Config, tiny_model_path
    from medr1_ray.rollout.actor import RolloutActor
    from medr1_ray.weights.buckets import write_buckets

    config = Config.model_validate(
        {
            "run": {"dir": tmp_path},
            "data": {"format": "phantoms", "root": "unused"},
            "train": {"steps": 1},
            "rollout": {
                "max_tokens": 32,
                "max_prompt_tokens": 200,
                "gpus_per_actor": 0.5,
                "engine": {"gpu_memory_utilization": 0.5},
            },
            "learner": {"gpus_per_rank": 0.5},
            "cluster": {"colocated": True, "weight_transport": "object_store"},
        }
    )
    ray.init("local", include_dashboard=False, log_to_driver=False)
    actor_class = ray.remote(RolloutActor).options(num_gpus=0.5, num_cpus=0)
    actor = actor_class.remote(EngineSettings.of(config), 0, code_digest())
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_path(), dtype=torch.float32)

    def load(version: int) -> None:
        update = write_buckets(model.named_parameters(), version, 2**20, ray.put)
        ray.get(actor.load_weights.remote(update))

    load(0)
    yield actor, load
    ray.shutdown()


@pytest.mark.gpu
def test_sleep_frees_the_gpu_and_waking_computes_as_before(colocated_actor: Any) -> None:
    import ray
    from transformers import AutoTokenizer

    from medr1_ray.config import tiny_model_path
    from medr1_ray.data.prompt_templates import chat_messages
    from medr1_ray.types import Prompt, Question, Sampling

    actor, load = colocated_actor
    question = Question("q", "", "Which modality?", ("CT", "MRI"), 0, "CT", "Modality", "none")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    text = tokenizer.apply_chat_template(
        chat_messages(question, "no_think"), tokenize=False, add_generation_prompt=True
    )
    image = np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)
    prompt = Prompt("p", question, np.array(tokenizer.encode(text), np.int32), image)
    sampling = Sampling(group_size=4, max_tokens=8, temperature=1.0, seed=1)

    def generate(version: int) -> Any:
        return the_one(begin(actor, "same", prompt, sampling), timeout=120)

    def used() -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free

    before, awake = generate(0), used()
    ray.get(actor.sleep.remote())
    asleep = used()
    assert asleep < awake / 4
    waiting = begin(actor, "while asleep", prompt, sampling)
    assert not ray.wait([waiting], timeout=3)[0]
    load(1)
    assert used() < awake / 2  # its weights alone
    ray.get(actor.wake.remote())
    after = generate(1)
    assert set(after.versions) == {1}
    assert after.token_ids.tolist() == before.token_ids.tolist()
    np.testing.assert_allclose(after.rollout_logprobs, before.rollout_logprobs, atol=1e-3)
    assert set(the_one(waiting, timeout=120).versions) == {1}
