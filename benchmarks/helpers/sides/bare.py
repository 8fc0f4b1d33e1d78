"""Bare baselines: an engine or a model alone in a process, without this package's actors; a plain copy of weights.

The processes run one turn per request, so that they can alternate with other sides.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from benchmarks.helpers.shapes import Shape, update_request
from medr1_ray.config import Config
from medr1_ray.model import packing
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.image_patches import ImagePatcher
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.types import Group, Prompt, Sampling, pixels_of

Turn = Callable[[Any], Any]
"""Takes a request, returns its answer."""


@dataclass(frozen=True)
class Answer:
    """Outcome of a turn: its value, wall-clock seconds in the worker, CPU seconds of the worker process (without its
    children), and the worker's peak memory so far."""

    value: Any
    seconds: float
    processor_seconds: float
    peak_bytes: int


class Worker:
    """A separate process that is prepared once and then runs one turn for each `ask`.

    Args:
        prepare: called in the process with `arguments`, so it must be importable there; returns the turn.
    """

    def __init__(self, prepare: Callable[..., Turn], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, arguments))
        self._process.start()
        theirs.close()  # or `wait` would not see the end of the pipe when the process dies
        self._asked = True

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._pipe.send(None)
            self._process.join(10.0)
        except OSError:  # the process has already ended
            pass
        self._process.terminate()
        self._process.join()

    def wait(self) -> Answer:
        """Return the answer to the last `ask`; the first answer says that the worker is ready.

        Raises:
            RuntimeError: the worker failed or died.
        """
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("a worker process of the benchmark died; see its output above") from None
        if isinstance(answer, str):
            raise RuntimeError(f"a worker process of the benchmark failed:\n{answer}")
        return answer  # type: ignore[no-any-return]

    def ask(self, what: Any) -> None:
        """Start a turn; `wait` returns its answer."""
        self._pipe.send((what,))


def _serve(pipe: Connection, prepare: Callable[..., Turn], arguments: Sequence[Any]) -> None:
    os.dup2(2, 1)  # vLLM logs to stdout, which is for results
    try:
        turn = prepare(*arguments)
        pipe.send(_answer(lambda: None))
        while (asked := pipe.recv()) is not None:
            pipe.send(_answer(lambda what=asked[0]: turn(what)))
    except BaseException:
        pipe.send(traceback.format_exc())


def _answer(work: Callable[[], Any]) -> Answer:
    start, processor = time.perf_counter(), time.process_time()
    value = work()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return Answer(value, seconds, processor, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def engine(config: Config, index: int) -> Turn:
    """Start vLLM's AsyncLLM with the run's engine arguments; a turn takes (prompts, sampling), returns a token count.

    All requests are submitted at once, and only final outputs are requested.
    """
    from medr1_ray.rollout import engine as rollout_engine

    rollout_engine.set_environment(config.rollout.threads)
    torch.set_num_threads(config.rollout.threads)
    vocabulary = load_vocabulary(config.model.folder)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    turns = 0

    async def start() -> Any:
        return rollout_engine.start_engine(EngineSettings.of(config), str(config.model.folder), index)

    llm = loop.run_until_complete(start())

    async def generate(prompt: Prompt, sampling: Sampling) -> int:
        request_id = f"{turns}/{prompt.id}"
        params = rollout_engine.sampling_params(sampling, vocabulary, prompt.id)
        of_engine = rollout_engine.engine_prompt(prompt, pixels_of(prompt.image))
        async for output in llm.generate(of_engine, params, request_id):
            final = output
        return sum(len(answer.token_ids) for answer in final.outputs)

    async def generate_all(prompts: Sequence[Prompt], sampling: Sampling) -> int:
        return sum(await asyncio.gather(*(generate(prompt, sampling) for prompt in prompts)))

    def turn(asked: tuple[Sequence[Prompt], Sampling]) -> int:
        nonlocal turns
        turns += 1
        return loop.run_until_complete(generate_all(*asked))

    return turn


def model(config: Config, shape: Shape, groups: Sequence[Group], whole_step: bool) -> Turn:
    """Prepare forward and backward passes over the groups' packed tensors, with torch and transformers alone.

    With `whole_step`, a turn also runs the reference's forward pass, gradient clipping and AdamW. The tensors are
    packed here, outside the timed turns.
    """
    torch.set_num_threads(config.learner.threads)
    path = config.model.folder
    vocabulary = load_vocabulary(path)

    def load() -> Policy:
        return Policy(load_model(path, torch.float32, config.model), vocabulary, 1.0)

    policy, reference = load(), load() if whole_step else None
    patch = ImagePatcher(path)
    batches = []
    request = update_request(config, groups, shape)
    for micro_batch in request.mini_batches[0].micro_batches:
        members = [request.groups[i] for i in micro_batch.groups]
        images = patch([group.prompt.image for group in members])
        pairs = [(group.prompt, group.completions) for group in members]
        batches.append(
            packing.pack_groups(pairs, images, vocabulary.image_pad, vocabulary.pad, policy.prompt_positions)
        )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)

    def turn(_: Any) -> None:
        optimizer.zero_grad(set_to_none=False)
        if reference is not None:
            with torch.no_grad():
                for batch in batches:
                    reference(batch)
        for batch in batches:
            policy(batch).sum().backward()
        if whole_step:
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()

    return turn


def plain_copy(tensors: dict[str, torch.Tensor], size: int) -> Callable[[], float]:
    """Return a function that copies all `size` bytes once into newly allocated memory and returns the seconds."""

    def run() -> float:
        start = time.perf_counter()
        # Allocated in the timed part, so that the kernel provides its pages during the copy.
        fresh = torch.empty(size, dtype=torch.uint8)
        used = 0
        for tensor in tensors.values():
            flat = tensor.view(-1).view(torch.uint8)
            fresh[used : used + flat.numel()].copy_(flat)
            used += flat.numel()
        return time.perf_counter() - start

    return run
