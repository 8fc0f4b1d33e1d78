"""The bare sides: processes with an engine or a model and nothing of ours around them, which take turns on demand."""

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
from shapes import Shape, update_request

from medr1_ray.config import Config
from medr1_ray.model import packing
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.image_patches import ImagePatcher
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.types import Group, Prompt, Sampling

Turn = Callable[[Any], Any]
"""Takes what was asked, returns the answer."""


@dataclass(frozen=True)
class Answer:
    """`value` of a turn, its wall-clock seconds in the worker, the processor seconds of the worker itself (without
    children), and its peak memory so far."""

    value: Any
    seconds: float
    processor_seconds: float
    peak_bytes: int


class Worker:
    """A process of its own that gets ready once and then takes one turn for each `ask`.

    Args:
        prepare: called in the process with `arguments`; importable from there. Returns the turn.
    """

    def __init__(self, prepare: Callable[..., Turn], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, arguments))
        self._process.start()
        theirs.close()  # so that a process that dies is noticed
        self._asked = True

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._pipe.send(None)
            self._process.join(10.0)
        except OSError:  # it is gone already
            pass
        self._process.terminate()
        self._process.join()

    def wait(self) -> Answer:
        """The answer to what was asked last; the first is that the worker is ready. RuntimeError where it failed."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("a benchmark's worker process died") from None
        if isinstance(answer, str):
            raise RuntimeError(f"a benchmark's worker process failed:\n{answer}")
        return answer  # type: ignore[no-any-return]

    def ask(self, what: Any) -> None:
        """Begin a turn."""
        self._pipe.send((what,))


def _serve(pipe: Connection, prepare: Callable[..., Turn], arguments: Sequence[Any]) -> None:
    os.dup2(2, 1)  # vLLM talks a lot, and stdout is for results
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
    """vLLM's AsyncLLM with the run's own engine arguments; a turn takes (prompts, sampling) and returns tokens.

    All requests are made at once and only final outputs are asked for.
    """
    from medr1_ray.rollout import engine as rollout_engine

    rollout_engine.set_environment(config)
    torch.set_num_threads(config.rollout.threads)
    vocabulary = load_vocabulary(config.model.folder)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    turns = 0

    async def start() -> Any:
        return rollout_engine.start_engine(config, str(config.model.folder), index)

    llm = loop.run_until_complete(start())

    async def generate(prompt: Prompt, sampling: Sampling) -> int:
        request_id = f"{turns}/{prompt.id}"
        params = rollout_engine.sampling_params(sampling, vocabulary, request_id)
        async for output in llm.generate(rollout_engine.engine_prompt(prompt), params, request_id):
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
    """Forward and backward of the groups' packed tensors, by torch and transformers alone.

    With `whole_step` also the reference's forward pass, clipping and AdamW. The tensors were made before.
    """
    torch.set_num_threads(config.learner.threads)
    path = config.model.folder
    vocabulary = load_vocabulary(path)

    def load() -> Policy:
        return Policy(load_model(path, torch.float32, config.model), vocabulary, 1.0)

    policy, reference = load(), load() if whole_step else None
    patch = ImagePatcher(path)
    batches = []
    for micro_batch in update_request(config, groups, shape).micro_batches:
        members = [groups[i] for i in micro_batch.groups]
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
