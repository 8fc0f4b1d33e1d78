"""The rollout actor: one vLLM engine that turns prompts into groups of completions and loads the learner's weights.

Consumes: prompts and weight updates. Produces: `Completions`. Waits for: its engine, each call with a deadline.
Unblocked by: the first `load_weights`. All calls share one asyncio loop, so that control calls never queue behind
generation.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from medr1_ray.base.code_digest import code_digest
from medr1_ray.base.deadline import inside
from medr1_ray.base.process_output import last_error, write_output_to
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.rollout.engine_weights import EngineWeights
from medr1_ray.rollout.request_images import begin_fetching, most_are_fetched, with_pixels
from medr1_ray.rollout.running_groups import RunningGroups
from medr1_ray.types import (
    Completions,
    Continuations,
    GroupRequest,
    Likelihoods,
    Prompt,
    Sampling,
    Span,
    pixels_of,
)
from medr1_ray.weights.messages import LoadReport, WeightGroup, WeightMember, WeightUpdate

T = TypeVar("T")
_LOOK_SECONDS = 1.0
_NO_WEIGHTS = "no weights have been loaded yet"


class NotServingError(RuntimeError):
    """The engine holds no complete policy version; it generates nothing until a weight update has succeeded."""


class GroupsEndedError(NotServingError):
    """A weight update that failed ended what was being generated; the actor may serve again by now."""


class WeightLoadError(RuntimeError):
    """A weight update failed; the actor does not serve until a later one succeeds."""


class EngineLostError(RuntimeError):
    """The engine process has died or does not answer, so that its actor is of no more use."""


@dataclass(frozen=True)
class RolloutStatus:
    """`version` is the policy version being served, or None, in which case `failure` says why."""

    actor: str
    version: int | None
    failure: str | None
    running_requests: int


class RolloutActor:
    """Ray actor around vLLM's AsyncLLM.

    It serves nothing before its first `load_weights`: after a restart by Ray it would otherwise serve the start model.

    Args:
        settings: the sections that concern an engine.
        index: the number of this actor, whose name is `rollout-<index>`.
        driver_code_digest: `code_digest()` of the driver.

    Raises:
        ValueError: this process runs other code than the driver, or this node does not see the driver's files.
    """

    def __init__(self, settings: EngineSettings, index: int, driver_code_digest: str) -> None:
        self._name = f"rollout-{index}"
        self._settings = settings
        self._driver_code_digest = driver_code_digest
        # First, because starting an engine takes seconds to minutes.
        self._require_same_code("the actor", code_digest())
        for file in settings.files:
            file.require()
        self._log = settings.logs / f"{self._name}.log"
        self._log_begin = write_output_to(self._log, self._name)

        # Below, because vLLM reads the environment when it is imported.
        from medr1_ray.rollout import engine as rollout_engine

        rollout_engine.set_environment(settings.rollout.threads)

        import torch
        from transformers import AutoTokenizer

        from medr1_ray.model.vocabulary import load_vocabulary
        from medr1_ray.weights.transports import TRANSPORTS

        torch.set_num_threads(settings.rollout.threads)
        model = str(settings.model.folder)
        self._vocabulary = load_vocabulary(model)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        try:
            self._engine = rollout_engine.start_engine(settings, model, index)
        except Exception as error:
            raise rollout_engine.start_error(error, self._log, self._log_begin) from error
        self._loader = EngineWeights(self._engine, TRANSPORTS[settings.cluster.weight_transport].receiver())
        self._incarnation = uuid.uuid4().hex
        self._groups = RunningGroups()
        # Held by everything that changes the engine's weights or memory: `EngineWeights` is not for concurrent use.
        self._loading = asyncio.Lock()
        self._loaded: LoadReport | None = None
        self._failure: str | None = _NO_WEIGHTS

    def __repr__(self) -> str:
        return f"RolloutActor({self._name})"

    async def generate(self, requests: Sequence[GroupRequest]) -> list[tuple[str, Completions]]:
        """Take on these groups, and answer as soon as one of all that were taken on is done: with those that are, by
        request id (`RunningGroups.fetch`). A prompt and its image enter the engine once.

        Empty where another call comes in between, which then has the answer.

        Raises, and then all groups that were taken on have ended:
            NotServingError: no complete policy version is loaded.
            GroupsEndedError: the one that was being loaded at the same time failed.
            TimeoutError: not done within `cluster.rollout_timeout_seconds`, less a margin for the driver.
            ValueError: the engine refused a prompt (too long) or the sampling (a greedy group of several).
            EngineLostError: the engine process died.
        """
        self._groups.raise_failure()
        if requests:
            self._require_serving()
        turn = self._groups.take_turn()
        begun = begin_fetching(request.prompt for request in requests)
        for request, prompt in zip(requests, begun, strict=True):
            self._groups.start(request.id, self._generate(request.id, request.prompt.id, prompt, request.sampling))
        await most_are_fetched(begun)
        return await self._groups.fetch(turn)

    async def likelihoods(self, request_id: str, prompt: Prompt, continuations: Continuations) -> Likelihoods:
        """The log-probability of each continuation after the prompt, under the weights being served.

        Raises:
            NotServingError, TimeoutError, ValueError, EngineLostError: as `generate`.
        """
        from medr1_ray.rollout.engine import continued_prompts, likelihood_params, to_likelihoods

        self._require_serving()
        prompts = enumerate(continued_prompts(prompt, continuations))
        outputs = await asyncio.gather(
            *(
                self._run(f"{request_id}/{number}", prompt.id, with_pixels(each), likelihood_params)
                for number, each in prompts
            )
        )
        return to_likelihoods(outputs, prompt, continuations.lengths)

    async def load_weights(self, update: WeightUpdate) -> LoadReport:
        """Bring the engine to `update.version`; requests in flight wait and go on with the new weights.

        Idempotent by version. After a failure nothing is served until a complete update has succeeded.

        Raises:
            WeightLoadError: wrong bytes, parameters that do not fit, or a broadcast that another member broke.
            EngineLostError: the engine died, or took longer than `cluster.sync_timeout_seconds`, less a margin.
            ValueError: the update is older than the loaded weights, or the engine runs other code than the driver.
        """
        return await self._from_engine(f"load policy version {update.version}", self._load_alone(update))

    async def forget_run(self) -> None:
        """Cancel what is being generated and serve nothing until `load_weights`, which may bring any version."""
        await self._from_engine("end its load", self._forget_alone())

    async def weight_member(self) -> WeightMember:
        """This engine's part in a weight group. Raises EngineLostError where it could take none."""
        # Any method would do: there is one answer per worker process.
        ranks = len(await self._from_engine("answer", self._engine.collective_rpc("medr1_code_digest")))
        return WeightMember(self._name, self._incarnation, ranks)

    async def join_weight_group(self, group: WeightGroup) -> None:
        """Meet the learner and the other engines of a broadcast, leaving the previous group.

        Raises:
            WeightLoadError: not all came within `cluster.sync_timeout_seconds`, less a margin.
            EngineLostError: as `load_weights`.
        """
        await self._from_engine("join the weight group", self._join_alone(group))

    async def sleep(self) -> None:
        """Free the GPU for the learner: weights and KV cache are discarded, requests wait for the next weights."""
        await self._from_engine("fall asleep", self._alone(self._loader.sleep))

    async def wake(self) -> None:
        """Take the rest of the GPU's memory back after `load_weights`, and continue generating."""
        await self._from_engine("wake", self._alone(self._loader.wake))

    async def status(self) -> RolloutStatus:
        """The version being served; answers at once, whatever the engine is doing."""
        version = self._loaded.version if self._loaded is not None and self._failure is None else None
        return RolloutStatus(self._name, version, self._failure, len(self._groups))

    async def ping(self) -> str:
        """The actor's name, once the engine has started.

        Raises:
            EngineLostError: the engine process died.
        """
        if self._engine.errored:
            raise self._death()
        return self._name

    async def shutdown(self) -> None:
        """Stop the engine process at once; it has nothing to save."""
        self._fail("the actor was shut down")
        self._engine.shutdown(timeout=0.0)

    async def _generate(
        self, request_id: str, prompt_id: str, prompt: asyncio.Task[Prompt], sampling: Sampling
    ) -> Completions:
        from medr1_ray.rollout.engine import sampling_params, to_completions

        start = time.time()
        params = partial(sampling_params, sampling, self._vocabulary, prompt_id)
        final = await self._run(request_id, prompt_id, prompt, params)
        span = Span(self._name, "rollout", start, time.time())
        return to_completions(final, prompt.result(), self._name, self._vocabulary, self._tokenizer, span)

    async def _run(
        self, request_id: str, prompt_id: str, prompt: Awaitable[Prompt], params: Callable[[], Any]
    ) -> Any:
        """The engine's final output for one request."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        setting = self._settings.cluster.rollout_timeout_seconds
        limit = inside(setting)
        try:
            async with asyncio.timeout(limit):
                return await self._while_alive(self._final_output(prompt, params(), request_id))
        except EngineDeadError as error:
            raise self._death() from error
        except TimeoutError:
            raise TimeoutError(
                f"{self._name}: {prompt_id!r} was unfinished after {limit:g} s "
                f"(cluster.rollout_timeout_seconds={setting:g}, less a margin for the driver)"
            ) from None
        except VLLMClientError as error:  # not picklable
            raise ValueError(f"{self._name}: the engine refused prompt {prompt_id!r}: {error}") from None

    async def _final_output(self, prompt: Awaitable[Prompt], params: Any, request_id: str) -> Any:
        from medr1_ray.rollout.engine import engine_prompt

        fetched = await prompt
        made = engine_prompt(fetched, pixels_of(fetched.image))
        # Yields once, because `output_kind` is FINAL_ONLY.
        async for output in self._engine.generate(made, params, request_id):
            final = output
        return final

    async def _load(self, update: WeightUpdate) -> LoadReport:
        start = time.monotonic()
        # The engine process imports the package on its own, so it may find another copy of it.
        if self._loaded is None:
            for digest in await self._engine.collective_rpc("medr1_code_digest"):
                self._require_same_code("its engine process", digest)
        paused_seconds = await self._loader.load(update)
        return LoadReport(update.version, update.digest, time.monotonic() - start, paused_seconds)

    async def _load_alone(self, update: WeightUpdate) -> LoadReport:
        async with self._loading:
            held = self._loaded
            if held is not None and update.version < held.version:
                raise ValueError(
                    f"{self._name} holds policy version {held.version}; version {update.version} came too late"
                )
            # An update that does not last is a broadcast under way, in which every engine must take part.
            if held is not None and self._failure is None and held.digest == update.digest and update.lasting:
                return held
            try:
                self._loaded = await self._load(update)
            except Exception as error:
                self._fail(f"policy version {update.version} could not be loaded: {type(error).__name__}: {error}")
                raise WeightLoadError(f"{self._name}: {self._failure}") from error
            except asyncio.CancelledError:
                # A load that was cut off leaves a mixture of old and new weights.
                self._fail(self._failure or f"policy version {update.version} was not loaded to its end")
                raise
            self._failure = None
            return self._loaded

    async def _forget_alone(self) -> None:
        async with self._loading:
            self._loaded = None
            self._fail(_NO_WEIGHTS)

    async def _join_alone(self, group: WeightGroup) -> None:
        async with self._loading:
            try:
                await self._loader.join(group, inside(self._settings.cluster.sync_timeout_seconds, 2))
            except Exception as error:
                raise WeightLoadError(f"{self._name} could not join the weight group: {error}") from error

    async def _alone(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self._loading:
            await work()

    async def _from_engine(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        """The result of calls to the engine, which come within a sync's limit, waiting for earlier ones included."""
        setting = self._settings.cluster.sync_timeout_seconds
        limit = inside(setting)
        try:
            async with asyncio.timeout(limit):
                return await self._while_alive(work)
        except TimeoutError:
            lost = EngineLostError(
                f"{self._name}: the engine did not {what} within {limit:g} s "
                f"(cluster.sync_timeout_seconds={setting:g}, less a margin for the driver)"
            )
        except Exception as error:
            # Whatever a dead engine's call raised, the death says more.
            if not isinstance(error, EngineLostError) and not self._engine.errored:
                raise
            lost = self._death()
        self._fail(str(lost))
        raise lost

    async def _while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of calls to the engine. vLLM 0.32 never answers some that were under way when its engine died."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
                if self._engine.errored:
                    raise self._death()
            return task.result()
        finally:
            task.cancel()

    def _fail(self, failure: str) -> None:
        self._failure = failure
        # Requests in flight would go on with an unknown mixture of weights.
        self._groups.fail(GroupsEndedError(self._not_serving()))

    def _death(self) -> EngineLostError:
        cause = last_error(self._log, self._log_begin) or "it left no error"
        return EngineLostError(f"{self._name}: the engine process died: {cause} (more in {self._log})")

    def _require_serving(self) -> None:
        if self._failure is not None:
            raise NotServingError(self._not_serving())

    def _not_serving(self) -> str:
        return f"{self._name} serves nothing: {self._failure}"

    def _require_same_code(self, where: str, digest: str) -> None:
        if digest != self._driver_code_digest:
            raise ValueError(
                f"{self._name}: {where} runs other code of medr1_ray (digest {digest}, at {Path(__file__).parent}) "
                f"than the driver (digest {self._driver_code_digest}). Install the driver's version on every node, or "
                "submit the code with `ray job submit --working-dir`"
            )
